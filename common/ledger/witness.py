"""What a coordinator or another site keeps of a ledger: its newest checkpoint, moved on only by proof.

    kept = witness(kept, note, proof, public_key)     # kept is None at first

A ledger cannot be rolled back behind, or rewritten before, what its witnesses keep.

Guarantees:
  - A checkpoint is kept only if the site's key signed it and the proof shows that it extends the one kept.
  - A refused checkpoint leaves the one kept as it is: it is the evidence.
"""

from collections.abc import Sequence

from sottovoce.common.errors import LedgerError
from sottovoce.common.ledger.checkpoint import parse
from sottovoce.common.ledger.merkle import consistency_proof, consistent


def witness(kept: str | None, note: str, proof: Sequence[bytes], public_key: str) -> str:
    """Returns the checkpoint to keep from now on.

    Raises:
        LedgerError: it is not signed by this key, of another ledger, or does not extend the one kept.
    """
    new = parse(note)
    if not new.signed_by(public_key):
        raise LedgerError("Expected a checkpoint signed by this site's key; came another.")
    if kept is None:
        return note
    before, after = parse(kept).checkpoint, new.checkpoint
    extends = consistent(before.size, before.root, after.size, after.root, proof)
    if before.instance != after.instance or not extends:
        raise LedgerError(
            f"Expected a ledger that extends its {before.size} entries seen before; this checkpoint of {after.size} "
            "does not. It was rolled back, rewritten, or runs twice. Keep the old checkpoint: it is the evidence."
        )
    return note


def proof_since(hashes: Sequence[bytes], size: int) -> list[bytes]:
    """Returns what a site sends along with its newest checkpoint to a witness that keeps one of `size` entries."""
    return consistency_proof(hashes, size)
