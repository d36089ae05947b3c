"""What is signed in the consortium, and how: each statement is a frozen dataclass, signed as labelled canonical JSON.

Guarantees:
  - A signature of one kind of statement is none of another: the label is the first line of what is signed.
  - One statement has one text.

>>> from sottovoce.common.keys import SigningKey
>>> key = SigningKey.generate()
>>> said = ModelStatement(run="r", study="d", name="m", n_bytes=1, sha256="s", released_at=2)
>>> holds(said, signed(key, said), key.public_hex)
True
"""

import hashlib
from dataclasses import dataclass

from sottovoce.common.config import canonical
from sottovoce.common.keys import SigningKey, verified


@dataclass(frozen=True, kw_only=True)
class EnrolmentStatement:
    """By a new member's identity: these keys are mine, all of them."""

    name: str
    certificate_request: str
    node_key: str
    identity: str


@dataclass(frozen=True, kw_only=True)
class OfferStatement:
    """By the coordinator: this study is offered to these sites, with this roster (SHA-256 of its bytes)."""

    study: str
    sites: tuple[str, ...]
    roster_sha256: str
    offered_at: int


@dataclass(frozen=True, kw_only=True)
class ApprovalStatement:
    """By a site's identity: this is our decision, and it stands at this entry of this ledger."""

    study: str
    site: str
    decision: str
    instance: str
    entry: int
    decided_at: int


@dataclass(frozen=True, kw_only=True)
class CheckpointStatement:
    """By a site's identity: this is a checkpoint of our ledger, and this is the ledger's key."""

    site: str
    ledger_key: str
    note: str


@dataclass(frozen=True, kw_only=True)
class ModelStatement:
    """By the coordinator: this file is what the run of this study released."""

    run: str
    study: str
    name: str
    n_bytes: int
    sha256: str
    released_at: int


Statement = EnrolmentStatement | OfferStatement | ApprovalStatement | CheckpointStatement | ModelStatement
_LABELS: dict[type[Statement], str] = {
    EnrolmentStatement: "enrolment",
    OfferStatement: "offer",
    ApprovalStatement: "approval",
    CheckpointStatement: "checkpoint",
    ModelStatement: "model",
}


def statement_bytes(statement: Statement) -> bytes:
    """Returns what is signed."""
    return f"sottovoce/consortium/{_LABELS[type(statement)]}/1\n{canonical(statement)}".encode()


def signed(key: SigningKey, statement: Statement) -> bytes:
    """Signs a statement."""
    return key.sign(statement_bytes(statement))


def holds(statement: Statement, signature: bytes, public_key: str) -> bool:
    """Says whether a signature over a statement is of this key."""
    return verified(public_key, signature, statement_bytes(statement))


def sha256(data: bytes) -> str:
    """Returns the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
