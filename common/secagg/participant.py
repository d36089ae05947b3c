"""A site's side of one attempt at a secure sum: five messages in, five answers out, or a refusal.

Guarantees:
  - A site's vector leaves under its self-mask and a mask with every other dealer, and in no other way.
  - For each dealer it reveals a share of the self-mask or of the mask key, never both, and once.
  - It reveals nothing unless a threshold of sites signed one survivor set of at least
    max(threshold, 3, n_min) sites, with itself in it.
  - Each phase is answered once: a mark is durable before the answer leaves, and a phase that the journal has
    seen, or that comes out of order, is refused, after a restart too.
  - After a refusal, or any error, it is ended: every further message is refused.
  - Whatever the bytes, it raises nothing but SecureSumError, with a complaint that it signed.
  - No secret is part of a repr or of an error.
  - One that was resumed from another's bytes answers and refuses as that one would have. The journal, which both
    must share, keeps two of them from answering one phase.

What a phase does is a pure function in `steps.py`; this machine keeps their order, asks the journal, and signs
complaints.
"""

import hashlib
import os
from collections.abc import Callable
from typing import TypeVar

from sottovoce.common.errors import SecureSumError
from sottovoce.common.keys import SigningKey
from sottovoce.common.secagg import shamir
from sottovoce.common.secagg.complaint import Phase, Place, sign_complaint
from sottovoce.common.secagg.journal import Journal, Mark
from sottovoce.common.secagg.session import COORDINATOR, Agreement, Session, refuse_unless_agreed
from sottovoce.common.secagg.state import decode_state, encode_state, session_of
from sottovoce.common.secagg.steps import (
    Advertised,
    Consented,
    Dealt,
    Ended,
    Masked,
    State,
    Values,
    advertised,
    agreed_session,
    consented,
    dealt,
    masked,
    revealed,
)
from sottovoce.common.secagg.wire import (
    COORDINATOR_NUMBER,
    Kind,
    decode_messages,
    decode_numbers,
    open_message,
)

_S = TypeVar("_S")


class Participant:
    """The machine of one site and one attempt.

    The state holds secrets, and is never on disk: a site that restarts has lost the attempt. `coins` gives n bytes
    from the operating system; whoever passes another source knows every mask.

    Where each phase is answered by another process, its bytes are handed on in memory: `state_bytes()` after every
    answer and every refusal, `Participant.resume(...)` before the next.
    """

    def __init__(
        self,
        agreement: Agreement,
        *,
        site: str,
        key: SigningKey,
        journal: Journal,
        coins: shamir.Coins = os.urandom,
    ) -> None:
        self._agreement, self._site, self._key = agreement, site, key
        self._journal, self._coins = journal, coins
        self._state: State = agreement
        self.session: Session | None = None  # once agreed on

    @classmethod
    def resume(
        cls,
        agreement: Agreement,
        *,
        site: str,
        key: SigningKey,
        journal: Journal,
        state: bytes,
        coins: shamir.Coins = os.urandom,
    ) -> "Participant":
        """Returns the machine whose `state_bytes()` these are.

        1. The bytes are a state's (`decode_state`).
        2. Its session is what this site knows by itself (`refuse_unless_agreed`).
        3. It is this site's.

        Raises:
            SecureSumError: nothing was answered; there is no complaint, as nobody said anything.
        """
        resumed = cls(agreement, site=site, key=key, journal=journal, coins=coins)
        held = decode_state(state)
        resumed._state = held
        if (place := session_of(held)) is not None:
            session, me = place
            refuse_unless_agreed(session, agreement)
            if session.number_of(site) != me:
                raise SecureSumError("cohort", "Expected a state of this site; came another's.")
            resumed.session = session
        return resumed

    def state_bytes(self) -> bytes:
        """Returns what `resume` needs. For memory only, never a disk: whoever holds it knows this attempt's masks.

        Raises:
            SecureSumError: "phase", before the first message.
        """
        return encode_state(self._state)

    @property
    def may_mask(self) -> bool:
        """Whether the vector is what is due: to be asked before one is computed, which may cost a budget."""
        return isinstance(self._state, Dealt)

    def advert(self, opening: bytes) -> bytes:
        """Answers the opening with this site's keys."""

        def step(agreement: Agreement) -> tuple[Advertised, bytes]:
            session, me = agreed_session(opening, agreement, site=self._site)
            self.session = session
            return advertised(session, me, key=self._key, coins=self._coins)

        return self._answered("advert", Agreement, opening, step)

    def deal(self, adverts: bytes) -> bytes:
        """Answers everybody's adverts with shares of this site's secrets, sealed for each."""

        def step(state: Advertised) -> tuple[Dealt, bytes]:
            messages = self._messages(adverts, Kind.ADVERTS, state.session)
            return dealt(state, messages, key=self._key, coins=self._coins)

        return self._answered("deal", Advertised, adverts, step)

    def mask(self, dealings: bytes, values: Values) -> bytes:
        """Answers the shares sealed for this site with its masked vector."""

        def step(state: Dealt) -> tuple[Masked, bytes]:
            messages = self._messages(dealings, Kind.DEALINGS, state.session)
            return masked(state, messages, values, key=self._key)

        return self._answered("mask", Dealt, dealings, step)

    def consent(self, survivors: bytes) -> bytes:
        """Answers a survivor set with this site's signature under it."""

        def step(state: Masked) -> tuple[Consented, bytes]:
            body = open_message(survivors, Kind.SURVIVORS, session=state.session, sender=COORDINATOR_NUMBER)
            return consented(state, decode_numbers(body), key=self._key)

        return self._answered("consent", Masked, survivors, step)

    def reveal(self, consents: bytes) -> bytes:
        """Answers the others' signatures with one share of each dealer's secrets. The site is done."""

        def step(state: Consented) -> tuple[Ended, bytes]:
            messages = self._messages(consents, Kind.CONSENTS, state.held.session)
            return revealed(state, messages, key=self._key)

        return self._answered("reveal", Consented, consents, step)

    def __repr__(self) -> str:
        return f"Participant({self._site}, {type(self._state).__name__})"

    def _messages(self, data: bytes, kind: Kind, session: Session) -> tuple[bytes, ...]:
        return decode_messages(open_message(data, kind, session=session, sender=COORDINATOR_NUMBER))

    def _answered(
        self, phase: Phase, needs: type[_S], data: bytes, step: Callable[[_S], tuple[State, bytes]]
    ) -> bytes:
        # Ended until the step is through: neither a refusal nor a failing disk leaves a state to try again with.
        state, self._state = self._state, Ended()
        try:
            if not isinstance(state, needs):
                raise _phase_error(f"{phase} once and in its turn; came it again or out of order")
            following, reply = step(state)
            self._record(phase, reply)
        except SecureSumError as error:
            raise self._complained(phase, error, data) from None
        self._state = following
        return reply

    def _record(self, phase: Phase, reply: bytes) -> None:
        if self.session is None:
            raise RuntimeError("no session was agreed on")
        mark = Mark(
            run=self.session.run,
            round=self.session.round,
            attempt=self.session.attempt,
            phase=phase,
            reply_sha256=hashlib.sha256(reply).hexdigest(),
            model_digest=self.session.model_digest,
        )
        if not self._journal.record(mark):
            raise _phase_error(
                "a phase that was not answered before, of the round's one model; the journal has this, a later one, or "
                "another model"
            )

    def _complained(self, phase: Phase, error: SecureSumError, data: bytes) -> SecureSumError:
        session = self.session
        place = Place(
            run=self._agreement.run,
            round=self._agreement.round,
            attempt=session.attempt if session else 0,
            session=session.digest.hex() if session else "0" * 64,
            phase=phase,
        )
        accused = error.accused if error.accused or error.reason == "input" else COORDINATOR
        evidence = error.evidence if error.evidence or error.reason == "input" else data
        whole = SecureSumError(error.reason, str(error), accused=accused, evidence=evidence)
        record = sign_complaint(whole, place, accuser=self._site, key=self._key)
        return SecureSumError(error.reason, str(error), accused=accused, evidence=evidence, complaint=record)


def _phase_error(expected: str) -> SecureSumError:
    return SecureSumError("phase", f"Expected {expected}.")
