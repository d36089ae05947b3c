"""The coordinator's registry: who takes part, what was offered and approved, what is witnessed and released.

    registry = Registry.create(home.registry)           # once
    with Registry.open(home.registry) as registry:
        registry.sites(), registry.approvals(digest), registry.revoke("hospital-a", "Name", "why")

One SQLite file (`registry_file.py`). Threads may share one object, processes may open the file together.

Guarantees:
  - What a method that changes something returns from is durable, and stands whole or not at all, `kill -9` included.
  - Every change is also a row of `events`, in the same transaction; a row of `events` is never changed or removed.
    The one exception is `seen`: when a member last called is no event.
  - Who takes part is told by rules of its own: `registry_members.py`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sottovoce.common.consortium.names import folded
from sottovoce.common.errors import DeploymentError
from sottovoce.server.registry_file import Row
from sottovoce.server.registry_members import MemberRegistry, find, now
from sottovoce.server.registry_tables import (
    Decision,
    Event,
    Kept,
    Member,
    Offered,
    Published,
    Witnessed,
    event_from,
    hashes,
    joined,
    kept_from,
)

__all__ = ["Member", "Registry"]


class Registry(MemberRegistry):
    """An open registry."""

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
        with self.file.changing() as change:
            if change.first("SELECT 1 FROM offers WHERE study = ?", digest):
                raise DeploymentError(f"Study {digest[:16]}… was offered already.")
            change.do(
                "INSERT INTO offers (study, text, roster, offered_at, signature) VALUES (?, ?, ?, ?, ?)",
                *(digest, study_text, roster_bytes, offered_at, signature),
            )
            for site in sites:
                member = find(change, site)
                if member is None or member["role"] != "site" or member["revoked_at"] is not None:
                    raise DeploymentError(f"Expected a site that may take part; {site[:80]!r} is none.")
                change.do("INSERT INTO offered_to VALUES (?, ?)", digest, member["folded"])
            change.note("coordinator", "offered", {"study": digest, "sites": sorted(sites)})

    def offers(self, site: str | None = None) -> tuple[Offered, ...]:
        """Returns the studies offered, or those offered to one site, oldest first."""
        found = self.file.all(
            "SELECT o.* FROM offers o WHERE ?1 IS NULL OR EXISTS "
            "(SELECT 1 FROM offered_to t WHERE t.study = o.study AND t.folded = ?1) ORDER BY offered_at, study",
            None if site is None else folded(site),
        )
        return tuple(map(self._offered, found))

    def offered(self, digest: str) -> Offered | None:
        """Returns one study as it was offered."""
        row = self.file.first("SELECT * FROM offers WHERE study = ?", digest)
        return None if row is None else self._offered(row)

    def record_approval(self, said: Decision) -> None:
        """Records what a site said of a study; the same again changes nothing."""
        values = (said.study, folded(said.site), said.decision, said.instance, said.entry)
        with self.file.changing() as change:
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
        rows = self.file.all(
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
        with self.file.changing() as change:
            added = change.do(
                "INSERT INTO checkpoints (folded, identity, size, note, ledger_key, signature, proof, sent_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                *(*facts, joined(kept.proof), kept.sent_at),
            )
            if added:
                change.note(kept.site, "checkpoint", {"size": kept.size})

    def checkpoints(self) -> tuple[Kept, ...]:
        """Returns the newest checkpoint of each site, under its identity in force, by site."""
        rows = self.file.all(
            "SELECT m.name AS site, c.*, max(c.size) FROM checkpoints c JOIN members m USING (folded, identity) "
            "GROUP BY c.folded ORDER BY m.name"
        )
        return tuple(map(kept_from, rows))

    def checkpoints_since(self, site: str, identity: str, size: int, limit: int) -> tuple[Kept, ...]:
        """Returns the checkpoints of a site from `size` on, shortest first, at most `limit`."""
        rows = self.file.all(
            "SELECT m.name AS site, c.* FROM checkpoints c JOIN members m USING (folded) "
            "WHERE c.folded = ? AND c.identity = ? AND c.size >= ? ORDER BY c.size LIMIT ?",
            *(folded(site), identity, size, limit),
        )
        return tuple(map(kept_from, rows))

    def bridge(self, kept: Kept, from_size: int, proof: Sequence[bytes]) -> None:
        """Keeps a proof that leads to a kept checkpoint from one that is not kept here; a witness will judge it."""
        with self.file.changing() as change:
            change.do(
                "INSERT OR REPLACE INTO bridges (folded, identity, from_size, to_size, proof) VALUES (?, ?, ?, ?, ?)",
                *(folded(kept.site), kept.identity, from_size, kept.size, joined(proof)),
            )
            change.note(kept.site, "bridge", {"from": from_size, "to": kept.size})

    def bridge_from(self, site: str, identity: str, from_size: int) -> tuple[int, tuple[bytes, ...]] | None:
        """Returns where a bridge from a size leads, and its proof."""
        row = self.file.first(
            "SELECT to_size, proof FROM bridges WHERE folded = ? AND identity = ? AND from_size = ?",
            *(folded(site), identity, from_size),
        )
        return None if row is None else (row["to_size"], hashes(row["proof"]))

    def cosign(self, seen: Witnessed) -> None:
        """Keeps a witness's cosignature; the same again is nothing. Raises: DeploymentError: no such checkpoint."""
        who = (folded(seen.site), seen.identity, seen.size, folded(seen.witness), seen.witness_identity)
        with self.file.changing() as change:
            added = change.do(
                "INSERT INTO cosignatures (folded, identity, size, witness, witness_identity, witnessed_at, signature) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                *(*who, seen.witnessed_at, seen.signature),
            )
            if added:
                change.note(seen.witness, "cosigned", {"site": seen.site, "size": seen.size})

    def cosignatures(self) -> tuple[Witnessed, ...]:
        """Returns every cosignature, by site, size and witness."""
        rows = self.file.all(
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
        with self.file.changing() as change:
            before = change.first("SELECT sha256 FROM models WHERE run = ?", run)
            if before is None:
                change.do(
                    "INSERT INTO models (run, study, sha256, file, n_bytes, released_at) VALUES (?, ?, ?, ?, ?, ?)",
                    *(run, study, digest, str(file.resolve()), n_bytes, now()),
                )
                change.note("coordinator", "released", {"run": run, "study": study, "sha256": digest})
            elif before["sha256"] != digest:
                raise DeploymentError(f"Run {run!r} has released another model. Use a new run.")

    def models(self, site: str | None = None) -> tuple[Published, ...]:
        """Returns the released models, or those of the studies that were offered to one site, oldest first."""
        rows = self.file.all(
            "SELECT o.* FROM models o WHERE ?1 IS NULL OR EXISTS "
            "(SELECT 1 FROM offered_to t WHERE t.study = o.study AND t.folded = ?1) ORDER BY released_at, run",
            None if site is None else folded(site),
        )
        return tuple(Published(**row) for row in rows)

    def log(self, who: str, what: str, **facts: Any) -> None:
        """Adds an event. Facts are public: names, digests, counts, reasons."""
        with self.file.changing() as change:
            change.note(who, what, facts)

    def events(self, *, since: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        """Returns events with a number above `since`, oldest first."""
        return tuple(
            map(
                event_from,
                self.file.all("SELECT * FROM events WHERE number > ? ORDER BY number LIMIT ?", since, limit),
            )
        )

    def _offered(self, row: Row) -> Offered:
        sites = self.file.all(
            "SELECT m.name FROM offered_to JOIN members m USING (folded) WHERE study = ? ORDER BY m.name",
            row["study"],
        )
        return Offered(**row, sites=tuple(site["name"] for site in sites))


def _digest_of(file: Path) -> tuple[str, int]:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()
    except OSError as error:
        raise DeploymentError(f"{file}: cannot be read ({error.strerror}).") from None
