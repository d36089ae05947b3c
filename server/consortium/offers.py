"""What the coordinator signs for others to keep: offers of studies, and released models."""

from collections.abc import Sequence

from sottovoce.common.consortium.statements import ModelStatement, OfferStatement, sha256, signed
from sottovoce.common.keys import SigningKey
from sottovoce.server.registry_tables import Published


def sign_offer(key: SigningKey, *, study: str, sites: Sequence[str], roster: bytes, offered_at: int) -> bytes:
    """Signs that a study, by its digest, is offered to these sites with this roster."""
    return signed(
        key,
        OfferStatement(
            study=study, sites=tuple(sorted(sites)), roster_sha256=sha256(roster), offered_at=offered_at
        ),
    )


def sign_model(key: SigningKey, model: Published, *, name: str) -> bytes:
    """Signs that a file is what a run released."""
    return signed(
        key,
        ModelStatement(
            run=model.run,
            study=model.study,
            name=name,
            n_bytes=model.n_bytes,
            sha256=model.sha256,
            released_at=model.released_at,
        ),
    )
