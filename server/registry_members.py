"""The half of the registry that says who takes part: invitations, members, certificates.

Guarantees:
  - Two members never have one name, whatever its case or Unicode form, and never one identity or one node key.
  - An invitation is used once. The same request again gets the same certificate.
  - A certificate that was not recorded here, or was revoked, or whose member was, is admitted to nothing.
"""

import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from sottovoce.common.consortium.names import folded, member_name
from sottovoce.common.errors import DeploymentError
from sottovoce.common.pki import Role
from sottovoce.server.registry_file import Change, RegistryFile, Row
from sottovoce.server.registry_tables import Invited, Member, invited_from, member_from


class MemberRegistry:
    """An open registry, as far as its members go."""

    def __init__(self, file: RegistryFile) -> None:
        self.file = file

    @classmethod
    def create(cls, path: Path) -> Self:
        """Makes an empty registry, for its owner's eyes only. Raises: DeploymentError where there is one."""
        return cls(RegistryFile.create(path))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a registry. Raises: DeploymentError where there is none, or it is damaged or of another version."""
        return cls(RegistryFile.open(path))

    def close(self) -> None:
        """Closes the file. What was changed is durable already."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- who takes part -------------------------------------------------------------------------------

    def invite(
        self, name: str, role: Role, *, serial: int, not_after: int, person: str = "coordinator"
    ) -> Invited:
        """Records an invitation, by the serial number of its one-time certificate.

        Raises:
            DeploymentError: the name is none, or a member has it in another spelling or role.
        """
        if role not in ("site", "admin", "auditor", "coordinator"):
            raise DeploymentError(f"Expected role site, admin, auditor or coordinator; came {role!r}.")
        named = member_name(name)
        with self.file.changing() as change:
            _refuse_other(find(change, named), named, role)
            change.do(
                "INSERT INTO invitations (serial, name, role, not_after, invited_at) VALUES (?, ?, ?, ?, ?)",
                *(str(serial), named, role, not_after, now()),
            )
            change.note(person, "invited", {"name": named, "role": role, "until": not_after})
        return Invited(
            serial=serial, name=named, role=role, not_after=not_after, used_at=None, withdrawn_at=None
        )

    def invitation(self, serial: int) -> Invited | None:
        """Returns an invitation by its certificate's serial number."""
        row = self.file.first("SELECT * FROM invitations WHERE serial = ?", str(serial))
        return None if row is None else invited_from(row)

    def invitations(self) -> tuple[Invited, ...]:
        """Returns every invitation, oldest first."""
        return tuple(
            map(invited_from, self.file.all("SELECT * FROM invitations ORDER BY invited_at, serial"))
        )

    def certificate_given(self, invitation: int, request_sha256: str) -> str | None:
        """Returns the certificate that an invitation was turned into by this very request, if it was.

        Raises:
            DeploymentError: it was used by another request, was withdrawn, or is none.
        """
        return _given(
            self.file.first("SELECT * FROM invitations WHERE serial = ?", str(invitation)), request_sha256
        )

    def enrolled(
        self,
        *,
        invitation: int,
        request_sha256: str,
        identity: str,
        node_key_pem: str,
        certificate_pem: str,
        serial: int,
        not_after: int,
    ) -> str:
        """Turns an invitation into a member with a certificate, and returns that certificate.

        The same request again gets the certificate of the first time. A member that enrols again, by a new invitation,
        is no longer revoked; certificates that were, stay so.

        Raises:
            DeploymentError: the invitation was used by another request, or the identity is another member's.
        """
        with self.file.changing() as change:
            row = change.first("SELECT * FROM invitations WHERE serial = ?", str(invitation))
            given = _given(row, request_sha256)
            if row is None or given is not None:
                return given or ""
            name, role, before = row["name"], row["role"], find(change, row["name"])
            _refuse_other(before, name, role)
            _refuse_taken(change, "identity", identity, name)
            if node_key_pem:
                _refuse_taken(change, "node_key", node_key_pem, name)
            change.do(
                "INSERT INTO members (folded, name, role, identity, node_key, serial, not_after, enrolled_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (folded) DO UPDATE SET identity = excluded.identity, "
                "node_key = excluded.node_key, enrolled_at = excluded.enrolled_at, revoked_at = NULL",
                *(folded(name), name, role, identity, node_key_pem, str(serial), not_after, now()),
            )
            _certify(change, name, serial, not_after)
            change.do(
                "UPDATE invitations SET used_at = ?, request_sha256 = ?, certificate = ? WHERE serial = ?",
                *(now(), request_sha256, certificate_pem, str(invitation)),
            )
            facts = {"role": role, "identity": identity, "serial": str(serial)}
            if before is not None and before["identity"] != identity:
                facts["identity_before"] = before["identity"]
            change.note(name, "enrolled" if before is None else "enrolled again", facts)
        return certificate_pem

    def renewed(self, name: str, *, serial: int, not_after: int) -> None:
        """Records a member's next certificate. Raises: DeploymentError where it may have none."""
        with self.file.changing() as change:
            member = find(change, name)
            if member is None or member["revoked_at"] is not None:
                raise DeploymentError(f"Expected a member that may take part; {name[:80]!r} is none.")
            _certify(change, name, serial, not_after)
            change.note(name, "certificate renewed", {"serial": str(serial), "until": not_after})

    def refusal(self, name: str, role: Role, serial: int) -> str | None:
        """Says why a certificate is admitted to nothing; None where it is admitted. Asked at every call."""
        if role == "invitation":
            return _refusal_of_invitation(self.invitation(serial), name)
        row = self.file.first(
            "SELECT m.name, m.role, m.revoked_at AS member_revoked, c.revoked_at FROM certificates c "
            "JOIN members m USING (folded) WHERE c.serial = ?",
            str(serial),
        )
        if row is None or (row["name"], row["role"]) != (name, role):
            return "this certificate is not on record"
        revoked = row["revoked_at"] is not None or row["member_revoked"] is not None
        return "this certificate was revoked" if revoked else None

    def seen(self, name: str) -> None:
        """Notes that a member called; callers see to it that this is not done at every call."""
        with self.file.changing() as change:
            change.do("UPDATE members SET last_seen = ? WHERE folded = ?", now(), folded(name))

    def sites(self) -> tuple[Member, ...]:
        """Returns every member, persons and revoked ones too, by name."""
        return tuple(map(member_from, self.file.all("SELECT * FROM members ORDER BY name")))

    def member(self, name: str) -> Member | None:
        """Returns one member."""
        row = self.file.first("SELECT * FROM members WHERE folded = ?", folded(name))
        return None if row is None else member_from(row)

    def revoke(self, name: str, person: str, reason: str) -> tuple[int, ...]:
        """Takes a member's part away, with its certificates and open invitations; returns the serial numbers.

        Raises:
            DeploymentError: there is no such member.
        """
        key, at = folded(name), now()
        with self.file.changing() as change:
            member = find(change, name)
            if member is None:
                raise DeploymentError(f"Expected a member; {name[:80]!r} is none.")
            change.do("UPDATE members SET revoked_at = ? WHERE folded = ?", at, key)
            change.do(
                "UPDATE certificates SET revoked_at = ? WHERE folded = ? AND revoked_at IS NULL", at, key
            )
            change.do(
                "UPDATE invitations SET withdrawn_at = ? WHERE name = ? AND used_at IS NULL",
                at,
                member["name"],
            )
            rows = change.all("SELECT serial FROM certificates WHERE folded = ?", key)
            change.note(
                person, "revoked", {"name": member["name"], "reason": reason, "certificates": len(rows)}
            )
        return tuple(int(row["serial"]) for row in rows)

    def revoked_serials(self) -> tuple[int, ...]:
        """Returns the serial numbers that a revocation list must name: those not over yet."""
        query = "SELECT serial FROM certificates WHERE revoked_at IS NOT NULL AND not_after >= ?"
        return tuple(sorted(int(row["serial"]) for row in self.file.all(query, now())))


def now() -> int:
    """Returns unix seconds."""
    return int(time.time())


def find(change: Change, name: str) -> Row | None:
    """Returns a member's row, by any spelling of the name."""
    return change.first("SELECT * FROM members WHERE folded = ?", folded(name))


def _refuse_other(member: Row | None, name: str, role: Role) -> None:
    if member is not None and (member["name"], member["role"]) != (name, role):
        raise DeploymentError(
            f"Expected a name of its own; {name!r} is too near to {member['role']} {member['name']!r}."
        )


def _refuse_taken(change: Change, column: Literal["identity", "node_key"], value: str, name: str) -> None:
    taken = change.first(
        f"SELECT name FROM members WHERE {column} = ? AND folded <> ?",
        *(value, folded(name)),
    )
    if taken is not None:
        what = column.replace("_", " ")
        raise DeploymentError(f"Expected a member with its own {what}; this one is of {taken['name']!r}.")


def _certify(change: Change, name: str, serial: int, not_after: int) -> None:
    """Puts a certificate on record, as its member's newest."""
    change.do(
        "INSERT INTO certificates (serial, folded, not_after, issued_at) VALUES (?, ?, ?, ?)",
        *(str(serial), folded(name), not_after, now()),
    )
    change.do(
        "UPDATE members SET serial = ?, not_after = ? WHERE folded = ?", str(serial), not_after, folded(name)
    )


def _given(invitation: Row | None, request_sha256: str) -> str | None:
    if invitation is None or invitation["withdrawn_at"] is not None:
        raise DeploymentError("Expected an invitation that holds; ask the coordinator for a new one.")
    if invitation["used_at"] is None:
        return None
    if invitation["request_sha256"] != request_sha256:
        raise DeploymentError(
            "Expected an invitation that was not used; this one was. If that was not you, tell the coordinator at once."
        )
    return str(invitation["certificate"])


def _refusal_of_invitation(invitation: Invited | None, name: str) -> str | None:
    if invitation is None or invitation.name != name:
        return "this invitation is not on record"
    return None if invitation.withdrawn_at is None else "this invitation was withdrawn"
