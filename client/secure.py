"""A site's five answers in one attempt at a secure sum, whatever process gives each of them.

    answer = answered("deal", body, agreement=agreement, site="a", place=place, held=state)
    answer.body      # goes to the coordinator
    answer.held      # goes into memory until the next phase: Flower's `Context.state`

Guarantees:
  - Nothing is computed from data, and no budget is touched, before `mask` is due in an attempt that this site began.
  - Each phase is answered once; a site that has lost its memory, or was asked twice, answers with a complaint.
  - A refusal is a complaint that this site signed. It holds what was on the wire, and nothing of the site's data.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.client.secure_folder import SecureFolder
from sottovoce.common.errors import SecureSumError
from sottovoce.common.secagg.complaint import Phase, Place, sign_complaint
from sottovoce.common.secagg.journal import PHASES
from sottovoce.common.secagg.participant import Participant
from sottovoce.common.secagg.session import Agreement, Session

Integers = npt.NDArray[np.integer[Any]]
Mask = Callable[[Integers], bytes]
# Computes this site's vector, has it masked, and returns the bytes with the checkpoint of the site's ledger.
Vector = Callable[[Session, Mask], tuple[bytes, str]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What goes out (`body`, or else a `complaint`; with a vector the ledger's `checkpoint`) and what is held."""

    body: bytes = b""
    complaint: bytes = b""
    checkpoint: str = ""
    held: bytes = field(default=b"", repr=False)


def answered(
    phase: Phase,
    body: bytes,
    *,
    agreement: Agreement,
    site: str,
    place: SecureFolder,
    held: bytes,
    vector: Vector | None = None,
) -> Answer:
    """Answers a phase. `held` are the bytes that the last answer left; `vector` is asked in phase `mask` alone.

    Raises:
        Whatever `vector` raises that is no SecureSumError: then nothing is answered, and the attempt is lost here.
    """
    session: Session | None = None
    checkpoint = ""
    try:
        if phase == PHASES[0]:
            participant = Participant(agreement, site=site, key=place.key, journal=place)
            return Answer(body=participant.advert(body), held=participant.state_bytes())
        if not held:
            raise SecureSumError(
                "phase", "Expected the next phase of an attempt; this site has none in memory."
            )
        participant = Participant.resume(agreement, site=site, key=place.key, journal=place, state=held)
        match phase:
            case "deal":
                reply = participant.deal(body)
            case "mask":
                if vector is None or participant.session is None or not participant.may_mask:
                    raise SecureSumError(
                        "phase", "Expected to mask once and in its turn; came it out of order."
                    )
                session = participant.session
                reply, checkpoint = vector(session, lambda values: participant.mask(body, values))
            case "consent":
                reply = participant.consent(body)
            case "reveal":
                reply = participant.reveal(body)
            case _:
                raise SecureSumError("phase", f"Expected a phase of {', '.join(PHASES)}; came another.")
        return Answer(body=reply, checkpoint=checkpoint, held=participant.state_bytes())
    except SecureSumError as error:
        return Answer(complaint=error.complaint or _complaint(error, phase, agreement, site, place, session))


def _complaint(
    error: SecureSumError,
    phase: Phase,
    agreement: Agreement,
    site: str,
    place: SecureFolder,
    session: Session | None,
) -> bytes:
    """Signs what was refused outside of any machine of the protocol, which signs for itself."""
    where = Place(
        run=agreement.run,
        round=agreement.round,
        attempt=session.attempt if session else 0,
        session=session.digest.hex() if session else "0" * 64,
        phase=phase,
    )
    return sign_complaint(error, where, accuser=site, key=place.key)
