"""The coordinator's side of one attempt: it relays, adds up what it cannot read, and takes off what it is given.

Guarantees:
  - What it returns is the exact integer sum of the vectors of the survivors, whom it names; or it raises.
  - A message that breaks a rule is refused with a signed complaint, and its sender is out of every later phase; the
    others go on, as they do without a site that is silent.
  - The same bytes again change nothing; other bytes of a phase that was answered are refused.
  - With fewer answers than a phase needs, the attempt is abandoned and nothing can be asked of it any more.
  - Whatever the bytes, it raises nothing but SecureSumError.

It is trusted with none of this: a site checks by itself what it must (`participant.py`).
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import SecureSumError
from sottovoce.common.keys import AgreementKey, SigningKey
from sottovoce.common.secagg import derive, masks, shamir
from sottovoce.common.secagg.complaint import Phase, Place, sign_complaint
from sottovoce.common.secagg.session import COORDINATOR, Session
from sottovoce.common.secagg.wire import (
    COORDINATOR_NUMBER,
    Advert,
    Consent,
    Kind,
    Reveal,
    SealedShares,
    decode_advert,
    decode_consent,
    decode_messages,
    decode_reveal,
    decode_sealed,
    encode_messages,
    encode_numbers,
    open_message,
    party,
    seal,
)

_ANSWERS: Mapping[Phase, Kind] = {
    "advert": Kind.ADVERT,
    "deal": Kind.DEALING,
    "mask": Kind.MASKED,
    "consent": Kind.CONSENT,
    "reveal": Kind.REVEAL,
}
_NEXT: Mapping[Phase, Phase] = {
    "advert": "deal",
    "deal": "mask",
    "mask": "consent",
    "consent": "reveal",
    "reveal": "sum",
}
_SCRATCH = AgreementKey(bytes(32))  # agrees with every key that is not of low order; protects nothing


@dataclass(frozen=True, kw_only=True)
class SecureSum:
    """The sum of the survivors' vectors, and their signatures under who they are.

    `complaints` are those of this attempt, in the order in which they were raised.
    """

    values: npt.NDArray[np.int64] = field(repr=False)
    survivors: tuple[str, ...]
    consents: tuple[bytes, ...] = field(repr=False)
    complaints: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class _Letters:
    """One dealer's letters, as it signed them and as they read."""

    messages: Mapping[int, bytes]
    read: Mapping[int, SealedShares]
    dealing: bytes


class Coordinator:
    """The machine of one attempt.

    `opening()`, then `receive(site, data)` for whatever comes and `advance()` when all have answered or the
    deadline is over, once for each phase; after the last phase `finish()`.
    """

    def __init__(self, session: Session, *, key: SigningKey) -> None:
        if key.public_hex != session.coordinator:
            raise SecureSumError("roster", "Expected the coordinator's key of the session; came another.")
        self._session, self._key = session, key
        self._phase: Phase = "advert"
        self._over = False
        self._asked: tuple[int, ...] = tuple(range(session.n_sites))
        self._answers: dict[int, bytes] = {}  # digests of this phase's, by site
        self._out: set[int] = set()
        self._adverts: dict[int, bytes] = {}
        self._keys: dict[int, Advert] = {}
        self._view = b""
        self._letters: dict[int, _Letters] = {}
        self._total: masks.Ring = masks.zeros(session.length, bits=session.ring_bits)
        self._consent = Consent(view=b"", dealers=(), survivors=())
        self._consents: dict[int, bytes] = {}
        self._reveals: dict[int, Reveal] = {}
        self._complaints: list[bytes] = []

    @property
    def phase(self) -> Phase:
        """Returns the phase whose answers are awaited; "sum" when all are in."""
        return self._phase

    @property
    def complaints(self) -> tuple[bytes, ...]:
        """Returns the signed records of all that was refused so far."""
        return tuple(self._complaints)

    @property
    def awaited(self) -> tuple[str, ...]:
        """Returns the sites that were asked and have not answered yet."""
        missing = [n for n in self._asked if n not in self._answers and n not in self._out]
        return tuple(party(self._session, number) for number in missing)

    def opening(self) -> bytes:
        """Returns the first message, the same for every site of the cohort."""
        return self._sealed(Kind.OPENING, self._session.encoded)

    def receive(self, site: str, data: bytes) -> None:
        """Takes a site's answer. `site` is who the transport says it is of. Raises: SecureSumError."""
        number = self._session.number_of(site)
        if number is None:
            # It is in no cohort, so there is nobody to bar; the transport should not have let it through.
            self._complain(
                SecureSumError("cohort", "Expected a site of the cohort; came another.", evidence=data)
            )
        digest = hashlib.sha256(data).digest()
        if self._answers.get(number) == digest:
            return
        try:
            self._refuse_unless_awaited(number)
            body = open_message(data, _ANSWERS[self._phase], session=self._session, sender=number)
            self._taken(number, body, data)
        except SecureSumError as error:
            self._out.add(number)
            shown = error.evidence or data
            self._complain(SecureSumError(error.reason, str(error), accused=site, evidence=shown))
        self._answers[number] = digest

    def advance(self) -> dict[str, bytes]:
        """Closes the phase with those who answered; returns the next message for each site that it concerns.

        After "reveal" there is none, and `finish` has the sum.

        Raises:
            SecureSumError: "abandoned", if too few answered.
        """
        if self._over or self._phase == "sum":
            self._end("phase", "Expected a phase to close; the attempt has none left.")
        answered = tuple(n for n in self._asked if n in self._answers and n not in self._out)
        if self._phase == "mask":  # the sum is of all whose vectors are in it already
            answered = tuple(n for n in self._asked if n in self._answers)
        session = self._session
        least = session.threshold if self._phase in ("consent", "reveal") else session.quorum
        if len(answered) < least:
            self._end(
                "abandoned",
                f"Expected at least {least} answers to {self._phase}; came {len(answered)}. Start another attempt.",
            )
        messages = self._closed(answered)
        self._phase, self._asked, self._answers = _NEXT[self._phase], answered, {}
        return {
            party(session, number): message for number, message in messages.items() if number not in self._out
        }

    def finish(self) -> SecureSum:
        """Returns the sum.

        1. A threshold of sites revealed, each the shares that their dealers had committed to.
        2. Each survivor's seed is rebuilt, and is the one it committed to; its mask is taken off.
        3. Each lost dealer's mask key is rebuilt, and is that of its advert; its masks with survivors are taken off.
        4. No element exceeds what the survivors' bounds add up to: else masks did not cancel.

        Raises:
            SecureSumError: "share" names the dealer whose committed shares are of no secret; "sum" nobody.
        """
        if self._over or self._phase != "sum":
            self._end("phase", "Expected every phase to be closed; this one is not.")
        self._over = True
        session, survivors = self._session, self._consent.survivors
        for number in survivors:
            masks.add_mask(self._total, self._self_mask(number), sign=-1)
        for number in self._consent.dealers:
            if number not in survivors:
                self._take_off_pairs(number)
        values = masks.unwrap(self._total)
        if max(int(values.max()), -int(values.min())) > len(survivors) * session.value_bound:
            self._end("sum", "Expected a sum within its sites' bounds; came another. Start another attempt.")
        return SecureSum(
            values=values,
            survivors=tuple(party(session, number) for number in survivors),
            consents=tuple(self._consents.values()),
            complaints=self.complaints,
        )

    def _refuse_unless_awaited(self, number: int) -> None:
        if self._over or self._phase == "sum" or number not in self._asked or number in self._out:
            _refuse(
                "phase", "Expected an answer that is awaited; came one of a site that is out, or too late."
            )
        if number in self._answers:
            _refuse("phase", f"Expected one answer to {self._phase}; came a second one with other bytes.")

    def _taken(self, number: int, body: bytes, data: bytes) -> None:
        take: Mapping[Phase, Callable[[int, bytes, bytes], None]] = {
            "advert": self._take_advert,
            "deal": self._take_dealing,
            "mask": self._take_masked,
            "consent": self._take_consent,
            "reveal": self._take_reveal,
        }
        take[self._phase](number, body, data)

    def _take_advert(self, number: int, body: bytes, data: bytes) -> None:
        advert = decode_advert(body)
        keys = {key for known in self._keys.values() for key in (known.share_key, known.mask_key)}
        if len(keys | {advert.share_key, advert.mask_key}) != len(keys) + 2:
            _refuse("keys", "Expected keys that no other site has; came one again.")
        if not all(map(_SCRATCH.shared, (advert.share_key, advert.mask_key))):
            _refuse("keys", "Expected keys that can be agreed with; came another.")
        self._adverts[number], self._keys[number] = data, advert

    def _take_dealing(self, number: int, body: bytes, data: bytes) -> None:
        letters = decode_messages(body)
        if len(letters) != len(self._asked):
            _refuse("share", "Expected shares for every site that advertised; came others.")
        read = {}
        for recipient, message in zip(self._asked, letters, strict=True):
            letter = decode_sealed(open_message(message, Kind.SEALED, session=self._session, sender=number))
            if (letter.recipient, letter.view) != (recipient, self._view):
                _refuse(
                    "share", "Expected shares for each site in its order, of the adverts sent; came others."
                )
            read[recipient] = letter
        self._letters[number] = _Letters(
            messages=dict(zip(self._asked, letters, strict=True)), read=read, dealing=data
        )

    def _take_masked(self, number: int, body: bytes, data: bytes) -> None:
        if len(body) != self._session.vector_bytes:
            _refuse("form", "Expected a vector of the session's length; came another.")
        self._total += masks.from_wire(body, bits=self._session.ring_bits)

    def _take_consent(self, number: int, body: bytes, data: bytes) -> None:
        if decode_consent(body) != self._consent:
            _refuse("consent", "Expected a signature under this attempt's survivor set; came another set.")
        self._consents[number] = data

    def _take_reveal(self, number: int, body: bytes, data: bytes) -> None:
        reveal = decode_reveal(body)
        survivors = self._consent.survivors
        lost = tuple(dealer for dealer in self._consent.dealers if dealer not in survivors)
        if (_owners(reveal.self_shares), _owners(reveal.mask_shares)) != (survivors, lost):
            _refuse(
                "reveal", "Expected a self-mask share of each survivor and a mask key share of each other."
            )
        for use, shares in (("self-share", reveal.self_shares), ("mask-share", reveal.mask_shares)):
            for dealer, share in shares:
                letter = self._letters[dealer].read[number]
                committed = letter.self_commitment if use == "self-share" else letter.mask_commitment
                made = derive.share_commitment(self._session, use, self._view, dealer, number, share)
                if made != committed:
                    _refuse("reveal", "Expected the shares that were dealt to this site; came others.")
        self._reveals[number] = reveal

    def _closed(self, answered: tuple[int, ...]) -> dict[int, bytes]:
        match self._phase:
            case "advert":
                self._adverts = {number: self._adverts[number] for number in answered}
                self._view = derive.view_of(self._session, list(self._adverts.values()))
                everybody = self._sealed(Kind.ADVERTS, encode_messages(list(self._adverts.values())))
            case "deal":
                return {number: self._letters_for(number, answered) for number in answered}
            case "mask":
                self._consent = Consent(
                    view=self._view,
                    dealers=self._asked,
                    survivors=answered,
                )
                everybody = self._sealed(Kind.SURVIVORS, encode_numbers(answered))
            case "consent":
                self._consents = {number: self._consents[number] for number in answered}
                everybody = self._sealed(Kind.CONSENTS, encode_messages(list(self._consents.values())))
            case _:
                self._reveals = {number: self._reveals[number] for number in answered}
                return {}
        return dict.fromkeys(answered, everybody)

    def _letters_for(self, number: int, dealers: tuple[int, ...]) -> bytes:
        letters = [self._letters[dealer].messages[number] for dealer in dealers]
        return self._sealed(Kind.DEALINGS, encode_messages(letters))

    def _self_mask(self, number: int) -> bytes:
        seed = self._rebuilt({who: dict(it.self_shares)[number] for who, it in self._reveals.items()})
        committed = self._keys[number].seed_commitment
        if seed is None or derive.seed_commitment(self._session, number, seed) != committed:
            self._accuse_dealer(number)
        return derive.self_mask_key(self._session, self._view, seed, number)

    def _take_off_pairs(self, lost: int) -> None:
        secret = self._rebuilt({who: dict(it.mask_shares)[lost] for who, it in self._reveals.items()})
        if secret is None or (key := AgreementKey(secret)).public != self._keys[lost].mask_key:
            self._accuse_dealer(lost)
        for number in self._consent.survivors:
            shared = key.shared(self._keys[number].mask_key)
            if shared is None:
                self._accuse_dealer(number)
            pair = derive.pair_mask_key(self._session, self._view, shared, number, lost)
            sign = masks.pair_sign(number, lost)
            masks.add_mask(self._total, pair, sign=-1 if sign == 1 else 1)

    def _rebuilt(self, shares: Mapping[int, bytes]) -> bytes | None:
        return shamir.combine(dict(islice(shares.items(), self._session.threshold)))

    def _accuse_dealer(self, number: int) -> NoReturn:
        self._end(
            "share",
            "Expected committed shares that make up a dealer's secret; came others. Start another attempt.",
            accused=party(self._session, number),
            evidence=self._letters[number].dealing,
        )

    def _end(self, reason: str, message: str, *, accused: str = "", evidence: bytes = b"") -> NoReturn:
        self._over = True
        self._complain(SecureSumError(reason, message, accused=accused, evidence=evidence))

    def _complain(self, error: SecureSumError) -> NoReturn:
        place = Place(
            run=self._session.run,
            round=self._session.round,
            attempt=self._session.attempt,
            session=self._session.digest.hex(),
            phase=self._phase,
        )
        # What a site reveals are shares in clear: a complaint of them is shown to others without them.
        record = sign_complaint(
            error, place, accuser=COORDINATOR, key=self._key, show_evidence=self._phase != "reveal"
        )
        self._complaints.append(record)
        raise SecureSumError(
            error.reason, str(error), accused=error.accused, evidence=error.evidence, complaint=record
        )

    def _sealed(self, kind: Kind, body: bytes) -> bytes:
        return seal(kind, self._session.digest, COORDINATOR_NUMBER, body, self._key)


def _owners(shares: tuple[tuple[int, bytes], ...]) -> tuple[int, ...]:
    return tuple(owner for owner, _ in shares)


def _refuse(reason: str, message: str) -> NoReturn:
    raise SecureSumError(reason, message)
