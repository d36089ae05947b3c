"""Cosigned checkpoints as files, for a compliance officer.

    export_witnessed(registry, Path("witnessed"))
    sottovoce ledger verify LEDGER --seen witnessed/hospital-a-12.txt

Guarantees:
  - Each site's newest checkpoint that others cosigned is there as it was signed (`.txt`, for every program that reads
    checkpoints), and with its witnesses below (`.cosigned.txt`); where nobody cosigned, the newest as it is.
  - Nothing is in the folder that was not signed by those whom it names.
"""

from pathlib import Path

from sottovoce.common.errors import DeploymentError
from sottovoce.common.files import write_whole
from sottovoce.common.ledger.checkpoint import parse
from sottovoce.common.ledger.cosignature import Cosignature, cosignature_of, cosigned_text
from sottovoce.server.consortium.witnessing import cosigned
from sottovoce.server.registry import Registry
from sottovoce.server.registry_tables import Kept, Witnessed


def export_witnessed(registry: Registry, folder: Path) -> tuple[Path, ...]:
    """Writes the files and returns those with witnesses.

    Raises:
        DeploymentError: the folder cannot be written, or the registry holds what its witness did not sign.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kept, seen in cosigned(registry):
            name = f"{kept.site.replace(' ', '_')}-{kept.size}"
            write_whole(folder / f"{name}.txt", kept.note.encode())
            path = folder / f"{name}.cosigned.txt"
            write_whole(path, cosigned_text(kept.note, [_checked(kept, one) for one in seen]).encode())
            written.append(path)
    except OSError as error:
        raise DeploymentError(f"{folder}: cannot be written ({error.strerror}).") from None
    return tuple(written)


def _checked(kept: Kept, seen: Witnessed) -> Cosignature:
    made = cosignature_of(
        seen.witness, seen.witness_identity, witnessed_at=seen.witnessed_at, signature=seen.signature
    )
    if not made.signed_by(seen.witness_identity, parse(kept.note)):
        raise DeploymentError(
            f"Expected a cosignature of {seen.witness!r} on a checkpoint of {kept.site!r}; the registry holds another."
        )
    return made
