"""The coordinator's registry: who takes part, what was offered and approved, what is witnessed and released.

    registry = Registry.create(home.registry)           # once
    with Registry.open(home.registry) as registry:
        registry.sites(), registry.approvals(digest), registry.revoke("hospital-a", "Name", "why")

One SQLite file (`registry_file.py`). Threads may share one object, processes may open the file together.

Guarantees:
  - What a method that changes something returns from is durable, and stands whole or not at all, `kill -9` included.
  - Every change is also a row of `events`, in the same transaction; a row of `events` is never changed or removed.
    The one exception is `seen`: when a member last called is no event.
  - Two members never have one name, whatever its case or Unicode form, and never one identity.
  - An invitation is used once. The same request again gets the same certificate.
  - A certificate that was not recorded here, or was revoked, or whose member was, is admitted to nothing.
"""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from sottovoce.common.consortium.names import folded, member_name
from sottovoce.common.errors import DeploymentError
from sottovoce.common.pki import Role
from sottovoce.server.registry_file import Change, RegistryFile, Row
from sottovoce.server.registry_tables import (
    Decision,
    Event,
    Invited,
    Kept,
    Member,
    Offered,
    Published,
    Witnessed,
    event_from,
    invited_from,
    joined,
    kept_from,
    member_from,
)

__all__ = ["Member", "Registry"]


class Registry:
    """An open registry."""

    def __init__(self, file: RegistryFile) -> None:
        self._file = file

    @classmethod
    def create(cls, path: Path) -> "Registry":
        """Makes an empty registry, for its owner's eyes only. Raises: DeploymentError where there is one."""
        return cls(RegistryFile.create(path))

    @classmethod
    def open(cls, path: Path) -> "Registry":
        """Opens a registry. Raises: DeploymentError where there is none, or it is damaged or of another version."""
        return cls(RegistryFile.open(path))

    def close(self) -> None:
        """Closes the file. What was changed is durable already."""
        self._file.close()

    def __enter__(self) -> "Registry":
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
        with self._file.changing() as change:
            _refuse_other(_member(change, named), named, role)
            change.do(
                "INSERT INTO invitations (serial, name, role, not_after, invited_at) VALUES (?, ?, ?, ?, ?)",
                *(str(serial), named, role, not_after, _now()),
            )
            change.note(person, "invited", {"name": named, "role": role, "until": not_after})
        return Invited(
            serial=serial, name=named, role=role, not_after=not_after, used_at=None, withdrawn_at=None
        )

    def invitation(self, serial: int) -> Invited | None:
        """Returns an invitation by its certificate's serial number."""
        row = self._file.first("SELECT * FROM invitations WHERE serial = ?", str(serial))
        return None if row is None else invited_from(row)

    def invitations(self) -> tuple[Invited, ...]:
        """Returns every invitation, oldest first."""
        return tuple(
            map(invited_from, self._file.all("SELECT * FROM invitations ORDER BY invited_at, serial"))
        )

    def certificate_given(self, invitation: int, request_sha256: str) -> str | None:
        """Returns the certificate that an invitation was turned into by this very request, if it was.

        Raises:
            DeploymentError: it was used by another request, was withdrawn, or is none.
        """
        return _given(
            self._file.first("SELECT * FROM invitations WHERE serial = ?", str(invitation)), request_sha256
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
        with self._file.changing() as change:
            row = change.first("SELECT * FROM invitations WHERE serial = ?", str(invitation))
            given = _given(row, request_sha256)
            if row is None or given is not None:
                return given or ""
            name, role, before = row["name"], row["role"], _member(change, row["name"])
            _refuse_other(before, name, role)
            _refuse_taken(change, identity, name)
            change.do(
                "INSERT INTO members (folded, name, role, identity, node_key, serial, not_after, enrolled_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (folded) DO UPDATE SET identity = excluded.identity, "
                "node_key = excluded.node_key, enrolled_at = excluded.enrolled_at, revoked_at = NULL",
                *(folded(name), name, role, identity, node_key_pem, str(serial), not_after, _now()),
            )
            _certify(change, name, serial, not_after)
            change.do(
                "UPDATE invitations SET used_at = ?, request_sha256 = ?, certificate = ? WHERE serial = ?",
                *(_now(), request_sha256, certificate_pem, str(invitation)),
            )
            facts = {"role": role, "identity": identity, "serial": str(serial)}
            if before is not None and before["identity"] != identity:
                facts["identity_before"] = before["identity"]
            change.note(name, "enrolled" if before is None else "enrolled again", facts)
        return certificate_pem

    def renewed(self, name: str, *, serial: int, not_after: int) -> None:
        """Records a member's next certificate. Raises: DeploymentError where it may have none."""
        with self._file.changing() as change:
            member = _member(change, name)
            if member is None or member["revoked_at"] is not None:
                raise DeploymentError(f"Expected a member that may take part; {name[:80]!r} is none.")
            _certify(change, name, serial, not_after)
            change.note(name, "certificate renewed", {"serial": str(serial), "until": not_after})

    def refusal(self, name: str, role: Role, serial: int) -> str | None:
        """Says why a certificate is admitted to nothing; None where it is admitted. Asked at every call."""
        if role == "invitation":
            return _refusal_of_invitation(self.invitation(serial), name)
        row = self._file.first(
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
        with self._file.changing() as change:
            change.do("UPDATE members SET last_seen = ? WHERE folded = ?", _now(), folded(name))

    def sites(self) -> tuple[Member, ...]:
        """Returns every member, persons and revoked ones too, by name."""
        return tuple(map(member_from, self._file.all("SELECT * FROM members ORDER BY name")))

    def member(self, name: str) -> Member | None:
        """Returns one member."""
        row = self._file.first("SELECT * FROM members WHERE folded = ?", folded(name))
        return None if row is None else member_from(row)

    def revoke(self, name: str, person: str, reason: str) -> tuple[int, ...]:
        """Takes a member's part away, with its certificates and open invitations; returns the serial numbers.

        Raises:
            DeploymentError: there is no such member.
        """
        key, now = folded(name), _now()
        with self._file.changing() as change:
            member = _member(change, name)
            if member is None:
                raise DeploymentError(f"Expected a member; {name[:80]!r} is none.")
            change.do("UPDATE members SET revoked_at = ? WHERE folded = ?", now, key)
            change.do(
                "UPDATE certificates SET revoked_at = ? WHERE folded = ? AND revoked_at IS NULL", now, key
            )
            change.do(
                "UPDATE invitations SET withdrawn_at = ? WHERE name = ? AND used_at IS NULL",
                now,
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
        return tuple(sorted(int(row["serial"]) for row in self._file.all(query, _now())))

    # --- studies --------------------------------------------------------------------------------------

    def offer(
        self,
        study_text: str,
        digest: str,
        sites: Sequence[str],
        roster_bytes: bytes,
        signature: bytes,
        *,
        offered_at: int,
    ) -> None:
        """Offers a study to sites. Raises: DeploymentError where it was offered already, or a site is no member."""
        with self._file.changing() as change:
            if change.first("SELECT 1 FROM offers WHERE study = ?", digest):
                raise DeploymentError(f"Study {digest[:16]}… was offered already.")
            change.do(
                "INSERT INTO offers (study, text, roster, offered_at, signature) VALUES (?, ?, ?, ?, ?)",
                *(digest, study_text, roster_bytes, offered_at, signature),
            )
            for site in sites:
                member = _member(change, site)
                if member is None or member["role"] != "site" or member["revoked_at"] is not None:
                    raise DeploymentError(f"Expected a site that may take part; {site[:80]!r} is none.")
                change.do("INSERT INTO offered_to VALUES (?, ?)", digest, member["folded"])
            change.note("coordinator", "offered", {"study": digest, "sites": sorted(sites)})

    def offers(self, site: str | None = None) -> tuple[Offered, ...]:
        """Returns the studies offered, or those offered to one site, oldest first."""
        found = self._file.all(
            "SELECT o.* FROM offers o WHERE ?1 IS NULL OR EXISTS "
            "(SELECT 1 FROM offered_to t WHERE t.study = o.study AND t.folded = ?1) ORDER BY offered_at, study",
            None if site is None else folded(site),
        )
        return tuple(map(self._offered, found))

    def offered(self, digest: str) -> Offered | None:
        """Returns one study as it was offered."""
        row = self._file.first("SELECT * FROM offers WHERE study = ?", digest)
        return None if row is None else self._offered(row)

    def record_approval(self, said: Decision) -> None:
        """Records what a site said of a study; the same again changes nothing."""
        values = (said.study, folded(said.site), said.decision, said.instance, said.entry)
        with self._file.changing() as change:
            added = change.do(
                "INSERT INTO approvals (study, folded, decision, instance, entry, decided_at, identity, signature) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                *(*values, said.decided_at, said.identity, said.signature),
            )
            if added:
                facts = {"study": said.study, "instance": said.instance, "entry": said.entry}
                change.note(said.site, said.decision, facts)

    def approvals(self, digest: str) -> tuple[Decision, ...]:
        """Returns each site's newest decision on a study, by site."""
        rows = self._file.all(
            "SELECT a.study, m.name AS site, a.decision, a.instance, a.entry, a.decided_at, a.identity, a.signature "
            "FROM approvals a JOIN members m USING (folded) WHERE study = ? ORDER BY m.name, decided_at, entry",
            digest,
        )
        return tuple({row["site"]: Decision(**row) for row in rows}.values())

    def approved(self, digest: str) -> frozenset[str]:
        """Returns the sites whose newest word on a study is that they approve, under their identity in force."""
        said = {one.site: one for one in self.approvals(digest) if one.decision == "approved"}
        return frozenset(
            member.name
            for member in self.sites()
            if member.revoked_at is None
            and member.name in said
            and said[member.name].identity == member.identity
        )

    # --- witnessed ledgers ----------------------------------------------------------------------------

    def checkpoint(self, kept: Kept) -> None:
        """Keeps a checkpoint that the caller has proven to extend the one before; the same again is nothing."""
        facts = (folded(kept.site), kept.identity, kept.size, kept.note, kept.ledger_key, kept.signature)
        with self._file.changing() as change:
            added = change.do(
                "INSERT INTO checkpoints (folded, identity, size, note, ledger_key, signature, proof, sent_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                *(*facts, joined(kept.proof), kept.sent_at),
            )
            if added:
                change.note(kept.site, "checkpoint", {"size": kept.size})

    def checkpoints(self) -> tuple[Kept, ...]:
        """Returns the newest checkpoint of each site, under its identity in force, by site."""
        rows = self._file.all(
            "SELECT m.name AS site, c.*, max(c.size) FROM checkpoints c JOIN members m USING (folded, identity) "
            "GROUP BY c.folded ORDER BY m.name"
        )
        return tuple(map(kept_from, rows))

    def checkpoints_since(self, site: str, identity: str, size: int, limit: int) -> tuple[Kept, ...]:
        """Returns the checkpoints of a site from `size` on, shortest first, at most `limit`."""
        rows = self._file.all(
            "SELECT m.name AS site, c.* FROM checkpoints c JOIN members m USING (folded) "
            "WHERE c.folded = ? AND c.identity = ? AND c.size >= ? ORDER BY c.size LIMIT ?",
            *(folded(site), identity, size, limit),
        )
        return tuple(map(kept_from, rows))

    def cosign(self, seen: Witnessed) -> None:
        """Keeps a witness's cosignature; the same again is nothing. Raises: DeploymentError: no such checkpoint."""
        who = (folded(seen.site), seen.identity, seen.size, folded(seen.witness), seen.witness_identity)
        with self._file.changing() as change:
            added = change.do(
                "INSERT INTO cosignatures (folded, identity, size, witness, witness_identity, witnessed_at, signature) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                *(*who, seen.witnessed_at, seen.signature),
            )
            if added:
                change.note(seen.witness, "cosigned", {"site": seen.site, "size": seen.size})

    def cosignatures(self) -> tuple[Witnessed, ...]:
        """Returns every cosignature, by site, size and witness."""
        rows = self._file.all(
            "SELECT m.name AS site, s.identity, s.size, w.name AS witness, s.witness_identity, s.witnessed_at, "
            "s.signature FROM cosignatures s JOIN members m ON m.folded = s.folded "
            "JOIN members w ON w.folded = s.witness ORDER BY m.name, s.size, w.name"
        )
        return tuple(Witnessed(**row) for row in rows)

    # --- released models and events -------------------------------------------------------------------

    def publish(self, run: str, digest: str, file: Path, *, study: str) -> None:
        """Releases a run's model, by its SHA-256, to the sites of its study; the same again changes nothing.

        Raises:
            DeploymentError: the file is not what the digest says, or the run has released another one.
        """
        found, n_bytes = _digest_of(file)
        if found != digest:
            raise DeploymentError(f"{file}: expected SHA-256 {digest[:16]}…; the file has {found[:16]}….")
        with self._file.changing() as change:
            before = change.first("SELECT sha256 FROM models WHERE run = ?", run)
            if before is None:
                change.do(
                    "INSERT INTO models (run, study, sha256, file, n_bytes, released_at) VALUES (?, ?, ?, ?, ?, ?)",
                    *(run, study, digest, str(file.resolve()), n_bytes, _now()),
                )
                change.note("coordinator", "released", {"run": run, "study": study, "sha256": digest})
            elif before["sha256"] != digest:
                raise DeploymentError(f"Run {run!r} has released another model. Use a new run.")

    def models(self, site: str | None = None) -> tuple[Published, ...]:
        """Returns the released models, or those of the studies that were offered to one site, oldest first."""
        rows = self._file.all(
            "SELECT o.* FROM models o WHERE ?1 IS NULL OR EXISTS "
            "(SELECT 1 FROM offered_to t WHERE t.study = o.study AND t.folded = ?1) ORDER BY released_at, run",
            None if site is None else folded(site),
        )
        return tuple(Published(**row) for row in rows)

    def log(self, who: str, what: str, **facts: Any) -> None:
        """Adds an event. Facts are public: names, digests, counts, reasons."""
        with self._file.changing() as change:
            change.note(who, what, facts)

    def events(self, *, since: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        """Returns events with a number above `since`, oldest first."""
        return tuple(
            map(
                event_from,
                self._file.all("SELECT * FROM events WHERE number > ? ORDER BY number LIMIT ?", since, limit),
            )
        )

    def _offered(self, row: Row) -> Offered:
        sites = self._file.all(
            "SELECT m.name FROM offered_to JOIN members m USING (folded) WHERE study = ? ORDER BY m.name",
            row["study"],
        )
        return Offered(**row, sites=tuple(site["name"] for site in sites))


def _now() -> int:
    return int(time.time())


def _member(change: Change, name: str) -> Row | None:
    return change.first("SELECT * FROM members WHERE folded = ?", folded(name))


def _refuse_other(member: Row | None, name: str, role: Role) -> None:
    if member is not None and (member["name"], member["role"]) != (name, role):
        raise DeploymentError(
            f"Expected a name of its own; {name!r} is too near to {member['role']} {member['name']!r}."
        )


def _refuse_taken(change: Change, identity: str, name: str) -> None:
    taken = change.first(
        "SELECT name FROM members WHERE identity = ? AND folded <> ?", identity, folded(name)
    )
    if taken is not None:
        raise DeploymentError(f"Expected an identity of its own; this one is of {taken['name']!r}.")


def _certify(change: Change, name: str, serial: int, not_after: int) -> None:
    """Puts a certificate on record, as its member's newest."""
    change.do(
        "INSERT INTO certificates (serial, folded, not_after, issued_at) VALUES (?, ?, ?, ?)",
        *(str(serial), folded(name), not_after, _now()),
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


def _digest_of(file: Path) -> tuple[str, int]:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()
    except OSError as error:
        raise DeploymentError(f"{file}: cannot be read ({error.strerror}).") from None
