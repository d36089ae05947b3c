"""What the coordinator's registry holds: the rows, as frozen dataclasses, and the tables they lie in.

Times are unix seconds. Serial numbers are text: a certificate's has 160 bits, a column's integer 63.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sottovoce.common.pki import Role

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE invitations (
    serial TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, not_after INTEGER NOT NULL,
    invited_at INTEGER NOT NULL, used_at INTEGER, request_sha256 TEXT, certificate TEXT, withdrawn_at INTEGER
) STRICT;
CREATE TABLE members (
    folded TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL, identity TEXT NOT NULL UNIQUE,
    node_key TEXT NOT NULL, serial TEXT NOT NULL, not_after INTEGER NOT NULL, enrolled_at INTEGER NOT NULL,
    revoked_at INTEGER, last_seen INTEGER
) STRICT;
CREATE TABLE certificates (
    serial TEXT PRIMARY KEY, folded TEXT NOT NULL REFERENCES members (folded), not_after INTEGER NOT NULL,
    issued_at INTEGER NOT NULL, revoked_at INTEGER
) STRICT;
CREATE TABLE offers (
    study TEXT PRIMARY KEY, text TEXT NOT NULL, roster BLOB NOT NULL, offered_at INTEGER NOT NULL,
    signature BLOB NOT NULL
) STRICT;
CREATE TABLE offered_to (
    study TEXT NOT NULL REFERENCES offers (study), folded TEXT NOT NULL REFERENCES members (folded),
    PRIMARY KEY (study, folded)
) STRICT;
CREATE TABLE approvals (
    study TEXT NOT NULL REFERENCES offers (study), folded TEXT NOT NULL REFERENCES members (folded),
    decision TEXT NOT NULL, instance TEXT NOT NULL, entry INTEGER NOT NULL, decided_at INTEGER NOT NULL,
    identity TEXT NOT NULL, signature BLOB NOT NULL, PRIMARY KEY (study, folded, instance, entry)
) STRICT;
CREATE TABLE checkpoints (
    folded TEXT NOT NULL REFERENCES members (folded), identity TEXT NOT NULL, size INTEGER NOT NULL,
    note TEXT NOT NULL, ledger_key TEXT NOT NULL, signature BLOB NOT NULL, proof BLOB NOT NULL,
    sent_at INTEGER NOT NULL, PRIMARY KEY (folded, identity, size)
) STRICT;
CREATE TABLE bridges (
    folded TEXT NOT NULL, identity TEXT NOT NULL, from_size INTEGER NOT NULL, to_size INTEGER NOT NULL,
    proof BLOB NOT NULL, PRIMARY KEY (folded, identity, from_size),
    FOREIGN KEY (folded, identity, to_size) REFERENCES checkpoints (folded, identity, size)
) STRICT;
CREATE TABLE cosignatures (
    folded TEXT NOT NULL, identity TEXT NOT NULL, size INTEGER NOT NULL,
    witness TEXT NOT NULL REFERENCES members (folded), witness_identity TEXT NOT NULL,
    witnessed_at INTEGER NOT NULL, signature BLOB NOT NULL,
    PRIMARY KEY (folded, identity, size, witness, witness_identity),
    FOREIGN KEY (folded, identity, size) REFERENCES checkpoints (folded, identity, size)
) STRICT;
CREATE TABLE models (
    run TEXT PRIMARY KEY, study TEXT NOT NULL, sha256 TEXT NOT NULL, file TEXT NOT NULL, n_bytes INTEGER NOT NULL,
    released_at INTEGER NOT NULL
) STRICT;
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
    facts TEXT NOT NULL
) STRICT;
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER events_remain BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are never removed'); END;
"""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A site or a person that has enrolled. `node_key_pem` is "" for persons; `serial` is of the newest certificate."""

    name: str
    role: Role
    identity: str
    node_key_pem: str
    serial: int
    not_after: int
    enrolled_at: int
    revoked_at: int | None
    last_seen: int | None


@dataclass(frozen=True, kw_only=True)
class Invited:
    """An invitation: for whom, until when, and what came of it. `role` is the one to be enrolled for."""

    serial: int
    name: str
    role: Role
    not_after: int
    used_at: int | None
    withdrawn_at: int | None


@dataclass(frozen=True, kw_only=True)
class Offered:
    """A study as it was offered. `signature` is the coordinator's."""

    study: str
    text: str
    roster: bytes
    sites: tuple[str, ...]
    offered_at: int
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a site said of a study: where it stands in the site's ledger, under the signature of its identity."""

    study: str
    site: str
    decision: str
    instance: str
    entry: int
    decided_at: int
    identity: str
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A site's checkpoint as the coordinator keeps it. `proof` leads there from the one kept before."""

    site: str
    identity: str
    size: int
    note: str
    ledger_key: str
    signature: bytes
    proof: tuple[bytes, ...]
    sent_at: int


@dataclass(frozen=True, kw_only=True)
class Witnessed:
    """A witness's cosignature on a site's checkpoint."""

    site: str
    identity: str
    size: int
    witness: str
    witness_identity: str
    witnessed_at: int
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Published:
    """A released model."""

    run: str
    study: str
    sha256: str
    file: str
    n_bytes: int
    released_at: int


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of what happened: who did what. Facts are public: names, digests, counts, reasons."""

    number: int
    at: float
    who: str
    what: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def member_from(row: Mapping[str, Any]) -> Member:
    """Builds a member from its row."""
    fields = {key: value for key, value in row.items() if key not in ("folded", "node_key", "serial")}
    return Member(**fields, node_key_pem=row["node_key"], serial=int(row["serial"]))


def invited_from(row: Mapping[str, Any]) -> Invited:
    """Builds an invitation from its row."""
    return Invited(
        serial=int(row["serial"]),
        name=row["name"],
        role=row["role"],
        not_after=row["not_after"],
        used_at=row["used_at"],
        withdrawn_at=row["withdrawn_at"],
    )


def kept_from(row: Mapping[str, Any]) -> Kept:
    """Builds a checkpoint from its row."""
    fields = {
        key: row[key] for key in ("site", "identity", "size", "note", "ledger_key", "signature", "sent_at")
    }
    return Kept(**fields, proof=hashes(row["proof"]))


def hashes(column: bytes) -> tuple[bytes, ...]:
    """Returns a proof from its column."""
    return tuple(column[at : at + 32] for at in range(0, len(column), 32))


def joined(proof: Iterable[bytes]) -> bytes:
    """Returns a proof's hashes, each of 32 bytes, as one column."""
    return b"".join(proof)


def event_from(row: Mapping[str, Any]) -> Event:
    """Builds an event from its row."""
    return Event(
        number=row["number"], at=row["at"], who=row["who"], what=row["what"], facts=json.loads(row["facts"])
    )
