"""A cosignature: a witness's signed word that at some time it saw a checkpoint extend all that it saw before.

The format is that of transparency logs (C2SP `tlog-cosignature`): a line more below the checkpoint's own signature.

    — sottovoce.witness/<name> <base64 of key hint, time and signature>

Guarantees:
  - A cosignature is of one witness, one checkpoint and one time; nothing of the three can be changed.
  - A cosigned text has one spelling; `read_cosigned` refuses every other.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from sottovoce.common.errors import LedgerError
from sottovoce.common.keys import SigningKey, verified
from sottovoce.common.ledger.checkpoint import SignedCheckpoint, parse
from sottovoce.common.secagg.session import Member

WITNESS = "sottovoce.witness/"
MAX_WITNESSES = 200
MAX_COSIGNED_BYTES = 100_000
_NOTE_LINES = 5
_DASH = "—"
_COSIGNATURE = b"\x04"  # the kind of signature, by the format


@dataclass(frozen=True, kw_only=True)
class Cosignature:
    """Who witnessed and when (unix seconds), with the signature."""

    witness: str
    key_hint: bytes
    witnessed_at: int
    signature: bytes

    def line(self) -> str:
        """Returns the signature line of a signed note."""
        stamp = self.key_hint + self.witnessed_at.to_bytes(8, "big") + self.signature
        return f"{_DASH} {_key_name(self.witness)} {base64.b64encode(stamp).decode()}\n"

    def signed_by(self, public_hex: str, seen: SignedCheckpoint) -> bool:
        """Says whether it is of this key, over this checkpoint."""
        return verified(public_hex, self.signature, _statement(seen, self.witnessed_at))


def cosign(seen: SignedCheckpoint, key: SigningKey, *, witness: str, now: int) -> Cosignature:
    """Signs that this checkpoint was seen, and that it extends all that this witness saw of its ledger."""
    return cosignature_of(
        witness, key.public_hex, witnessed_at=now, signature=key.sign(_statement(seen, now))
    )


def cosignature_of(witness: str, public_hex: str, *, witnessed_at: int, signature: bytes) -> Cosignature:
    """Puts a cosignature together from its parts; `signed_by` says whether it holds."""
    name = _key_name(witness).encode()
    hint = hashlib.sha256(name + b"\n" + _COSIGNATURE + bytes.fromhex(public_hex)).digest()[:4]
    return Cosignature(witness=witness, key_hint=hint, witnessed_at=witnessed_at, signature=signature)


def cosigned_text(note: str, cosignatures: Sequence[Cosignature]) -> str:
    """Returns a checkpoint with its witnesses below, by name."""
    ordered = sorted(cosignatures, key=lambda one: (one.witness, one.witnessed_at))
    return note + "".join(one.line() for one in ordered)


def read_cosigned(text: str) -> tuple[str, tuple[Cosignature, ...]]:
    """Returns a checkpoint's own text and its cosignatures, of which there may be none.

    Raises:
        LedgerError: it is no checkpoint, or what follows are no cosignatures.
    """
    lines = text[: MAX_COSIGNED_BYTES + 1].splitlines(keepends=True)
    note, rest = "".join(lines[:_NOTE_LINES]), lines[_NOTE_LINES:]
    parse(note)
    try:
        found = tuple(map(_cosignature, rest))
        if len(found) > MAX_WITNESSES or note + "".join(one.line() for one in found) != text:
            raise ValueError
    except (ValueError, binascii.Error):
        raise LedgerError(
            "Expected a checkpoint with lines of witnesses below it; came another text."
        ) from None
    return note, found


def witnesses_of(note: str, cosignatures: Sequence[Cosignature], keys: Mapping[str, str]) -> tuple[str, ...]:
    """Returns who of these, by name and public key, cosigned a checkpoint; each once, whatever else the lines say."""
    seen = parse(note)
    return tuple(
        name
        for name, key in sorted(keys.items())
        if any(one.witness == name and one.signed_by(key, seen) for one in cosignatures)
    )


def witnessed_by(
    shown: Mapping[str, tuple[str, Sequence[Cosignature]]], members: Sequence[Member] | None, *, site: str
) -> dict[str, dict[str, Any]]:
    """Returns for each checkpoint, by its name, who of a roster's other sites cosigned it; plain data.

    Without a roster nobody can tell whose a cosignature is: `of` is None then, and `lines` says how many there are.
    """
    keys = None if members is None else {one.site: one.public_key for one in members if one.site != site}
    return {
        name: {
            "lines": len(cosignatures),
            "of": None if keys is None else len(keys),
            "by": list(witnesses_of(note, cosignatures, keys or {})),
        }
        for name, (note, cosignatures) in shown.items()
    }


def _cosignature(line: str) -> Cosignature:
    _, name, stamp = line.split(" ")
    raw = base64.b64decode(stamp.strip(), validate=True)
    if len(raw) != 76 or not name.startswith(WITNESS):
        raise ValueError
    return Cosignature(
        witness=unquote(name.removeprefix(WITNESS), errors="strict"),
        key_hint=raw[:4],
        witnessed_at=int.from_bytes(raw[4:12], "big"),
        signature=raw[12:],
    )


def _key_name(witness: str) -> str:
    return WITNESS + quote(witness, safe="")  # a key's name has no space and no plus


def _statement(seen: SignedCheckpoint, witnessed_at: int) -> bytes:
    return f"cosignature/v1\ntime {witnessed_at}\n".encode() + seen.checkpoint.body()
