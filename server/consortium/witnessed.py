"""Cosigned checkpoints of the registry as files: `export_witnessed(registry, Path("witnessed"))`."""

from pathlib import Path

from sottovoce.common.consortium.cosigned_files import Cosigned, Witness, write_cosigned
from sottovoce.server.consortium.witnessing import cosigned
from sottovoce.server.registry import Registry


def export_witnessed(registry: Registry, folder: Path) -> tuple[Path, ...]:
    """Writes each site's newest checkpoint that others cosigned, or its newest; returns the files with witnesses.

    Raises:
        DeploymentError: the folder cannot be written, or the registry holds what its witness did not sign.
    """
    found = [
        Cosigned(
            site=kept.site,
            note=kept.note,
            witnesses=[
                Witness(
                    name=one.witness,
                    identity=one.witness_identity,
                    witnessed_at=one.witnessed_at,
                    signature=one.signature,
                )
                for one in witnesses
            ],
        )
        for kept, witnesses in cosigned(registry)
    ]
    return write_cosigned(folder, found)
