"""A checkpoint: a site's signed statement of how long its ledger is and what it holds.

The format is that of transparency logs (C2SP `tlog-checkpoint` in a signed note), so that any witness
software can keep it:

    sottovoce.ledger/<instance>
    <number of entries>
    <base64 of the Merkle root>
    <empty line>
    — sottovoce.ledger/<instance> <base64 of key hint and signature>

Guarantees:
  - One checkpoint has one text; `parse` refuses every other.
  - `parse` checks the form only; `signed_by` says under which key it holds.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass

from sottovoce.common.errors import LedgerError
from sottovoce.common.keys import SigningKey, verified

ORIGIN = "sottovoce.ledger/"
MAX_NOTE_BYTES = 1000
_DASH = "—"  # the em dash that opens a signature line of a signed note
_ED25519 = b"\x01"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """How long a ledger is and what it holds, without a signature."""

    instance: str
    size: int
    root: bytes

    def body(self) -> bytes:
        """Returns the bytes that are signed; their first line is the label."""
        root = base64.b64encode(self.root).decode()
        return f"{ORIGIN}{self.instance}\n{self.size}\n{root}\n".encode()


@dataclass(frozen=True, kw_only=True)
class SignedCheckpoint:
    """A checkpoint with its signature; `key_hint` says which key to try."""

    checkpoint: Checkpoint
    key_hint: bytes
    signature: bytes

    def text(self) -> str:
        """Returns the signed note."""
        stamp = base64.b64encode(self.key_hint + self.signature).decode()
        origin = f"{ORIGIN}{self.checkpoint.instance}"
        return f"{self.checkpoint.body().decode()}\n{_DASH} {origin} {stamp}\n"

    def signed_by(self, public_hex: str) -> bool:
        """Says whether the signature is of this key."""
        try:
            hint = key_hint(self.checkpoint.instance, public_hex)
        except ValueError:  # no key at all
            return False
        return self.key_hint == hint and verified(public_hex, self.signature, self.checkpoint.body())


def key_hint(instance: str, public_hex: str) -> bytes:
    """Returns the four bytes by which a signed note names a key; it identifies, it protects nothing."""
    name = f"{ORIGIN}{instance}\n".encode()
    return hashlib.sha256(name + _ED25519 + bytes.fromhex(public_hex)).digest()[:4]


def sign(checkpoint: Checkpoint, key: SigningKey) -> SignedCheckpoint:
    """Signs a checkpoint."""
    return SignedCheckpoint(
        checkpoint=checkpoint,
        key_hint=key_hint(checkpoint.instance, key.public_hex),
        signature=key.sign(checkpoint.body()),
    )


def parse(text: str) -> SignedCheckpoint:
    """Reads a signed note. Raises: LedgerError for any other text."""
    try:
        found = _parse(text)
        if found.text() != text:  # a second spelling of the same number or base64
            raise ValueError
    except (ValueError, binascii.Error):
        raise LedgerError(
            "Expected a ledger checkpoint: origin, size, root, an empty line, a signature; came another text."
        ) from None
    return found


def _parse(text: str) -> SignedCheckpoint:
    if len(text) > MAX_NOTE_BYTES:
        raise ValueError
    origin, size, root, empty, signature, end = text.split("\n")
    dash, name, stamp = signature.split(" ")
    raw, root_bytes = base64.b64decode(stamp, validate=True), base64.b64decode(root, validate=True)
    whole = (empty, end, dash, name, len(raw), len(root_bytes)) == ("", "", _DASH, origin, 68, 32)
    if (
        not whole
        or not origin.startswith(ORIGIN)
        or not size.isdigit()
        or len(size) > 12
        or len(origin) > 200
    ):
        raise ValueError
    checkpoint = Checkpoint(instance=origin.removeprefix(ORIGIN), size=int(size), root=root_bytes)
    return SignedCheckpoint(checkpoint=checkpoint, key_hint=raw[:4], signature=raw[4:])
