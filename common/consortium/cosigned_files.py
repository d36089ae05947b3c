"""Cosigned checkpoints as files, for a compliance officer.

    write_cosigned(Path("witnessed"), cosigned)
    sottovoce ledger verify LEDGER --seen witnessed/hospital-a-12.cosigned.txt --roster roster.json

Guarantees:
  - Each checkpoint is there as it was signed (`.txt`, for every program that reads checkpoints), and with its witnesses
    below (`.cosigned.txt`).
  - A cosignature that does not hold under the identity that it came with is in no file. Whether that identity is the
    site's, a roster tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sottovoce.common.errors import DeploymentError
from sottovoce.common.files import write_whole
from sottovoce.common.ledger.checkpoint import parse
from sottovoce.common.ledger.cosignature import Cosignature, cosignature_of, cosigned_text


@dataclass(frozen=True, kw_only=True)
class Witness:
    """Who says to have seen a checkpoint, and when."""

    name: str
    identity: str
    witnessed_at: int
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Cosigned:
    """A site's checkpoint and its witnesses."""

    site: str
    note: str
    witnesses: Sequence[Witness]


def write_cosigned(folder: Path, cosigned: Sequence[Cosigned]) -> tuple[Path, ...]:
    """Writes the files and returns those with witnesses.

    Raises:
        LedgerError: a checkpoint is none.
        DeploymentError: the folder cannot be written, or a witness did not sign what it is said to have.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in cosigned:
            name = f"{_file_name(one.site)}-{parse(one.note).checkpoint.size}"
            text = cosigned_text(one.note, [_checked(one, witness) for witness in one.witnesses])
            write_whole(folder / f"{name}.txt", one.note.encode())
            write_whole(folder / f"{name}.cosigned.txt", text.encode())
            written.append(folder / f"{name}.cosigned.txt")
    except OSError as error:
        raise DeploymentError(f"{folder}: cannot be written ({error.strerror}).") from None
    return tuple(written)


def _checked(cosigned: Cosigned, witness: Witness) -> Cosignature:
    try:
        made = cosignature_of(
            witness.name, witness.identity, witnessed_at=witness.witnessed_at, signature=witness.signature
        )
        holds = made.signed_by(witness.identity, parse(cosigned.note))
    except ValueError:  # an identity that is no key
        holds = False
    if not holds:
        raise DeploymentError(
            f"Expected a cosignature of {witness.name!r} on a checkpoint of {cosigned.site!r}; came another."
        )
    return made


def _file_name(site: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in site)
