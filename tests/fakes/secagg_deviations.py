"""Dishonest coordinators and peers, one a few lines. Every one must be refused, for the reason that stands beside it.

Site 0 is the victim of a dishonest coordinator, who holds its own key and, where it says so, colludes with site 1.
Site 1 is the dishonest peer of an honest coordinator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from sottovoce.common.errors import SecureSumError
from sottovoce.common.keys import AgreementKey, SigningKey
from sottovoce.common.secagg import wire
from sottovoce.common.secagg.session import Member, Session, threshold_of
from sottovoce.common.secagg.steps import Advertised, advertised, dealt
from sottovoce.common.secagg.wire import COORDINATOR_NUMBER, Kind
from tests.fakes.secagg import Attempt, World, coins_of, signing_key

LOW_ORDER = bytes(32)  # the point at zero: every agreement with it is zero
VICTIM, PEER = 0, 1


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """What a deviation led to: the error, in which world, and the victim's message."""

    attempt: Attempt
    phase: str
    message: bytes
    error: SecureSumError


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A dishonest act. `accused` is whom the complaint must name."""

    name: str
    by: Literal["coordinator", "peer"]
    reason: str
    accused: str
    play: Callable[[], Refusal]


class NotRefused(Exception):
    """A deviation that went through."""


Forge = Callable[[Attempt], bytes]


def _to_site(
    phase: str,
    forge: Forge,
    *,
    world: Callable[[], World] = lambda: World(5),
    lost: dict[int, str] | None = None,
) -> Callable[[], Refusal]:
    def play() -> Refusal:
        attempt = world().attempt().until(phase, lost)
        message = forge(attempt)
        return _refused(attempt, phase, message, lambda: attempt.answer(VICTIM, phase, message))

    return play


def _to_coordinator(
    phase: str,
    forge: Forge,
    *,
    world: Callable[[], World] = lambda: World(5),
    lost: dict[int, str] | None = None,
) -> Callable[[], Refusal]:
    def play() -> Refusal:
        attempt = world().attempt().until(phase, lost)
        message = forge(attempt)
        return _refused(
            attempt, phase, message, lambda: attempt.coordinator.receive(attempt.world.site(PEER), message)
        )

    return play


def _refused(attempt: Attempt, phase: str, message: bytes, act: Callable[[], object]) -> Refusal:
    try:
        act()
    except SecureSumError as error:
        return Refusal(attempt=attempt, phase=phase, message=message, error=error)
    raise NotRefused


def told(attempt: Attempt, kind: Kind, body: bytes, *, key: SigningKey | None = None) -> bytes:
    """A message that the coordinator signs as it should, whatever it says."""
    return wire.seal(
        kind, attempt.session.digest, COORDINATOR_NUMBER, body, key or attempt.world.coordinator_key
    )


def body_of(message: bytes, kind: Kind) -> bytes:
    return wire.parse(message, kind, vector_bytes=2**22).body


def parts(attempt: Attempt, kind: Kind) -> list[bytes]:
    """The messages inside what the coordinator would send the victim now."""
    return list(wire.decode_messages(body_of(attempt.messages[VICTIM], kind)))


def answered(attempt: Attempt, phase: str, number: int = PEER) -> bytes:
    """A site's honest answer now."""
    return attempt.answer(number, phase, attempt.messages[number])


# An opening that says something else.


def _opening(**changes: Any) -> Forge:
    def forge(attempt: Attempt) -> bytes:
        return _opening_of(attempt, replace(attempt.session, **changes))

    return forge


def _opening_of(attempt: Attempt, session: Session) -> bytes:
    return wire.seal(
        Kind.OPENING, session.digest, COORDINATOR_NUMBER, session.encoded, attempt.world.coordinator_key
    )


def _cohort(choose: Callable[[tuple[Member, ...]], Sequence[Member]]) -> Forge:
    def forge(attempt: Attempt) -> bytes:
        cohort = tuple(choose(attempt.session.cohort))
        session = replace(attempt.session, cohort=cohort, threshold=threshold_of(len(cohort)))
        return _opening_of(attempt, session)

    return forge


def _swapped_key(cohort: tuple[Member, ...]) -> Sequence[Member]:
    return [replace(cohort[0]), replace(cohort[1], public_key=signing_key("mine").public_hex), *cohort[2:]]


def _with_stranger(cohort: tuple[Member, ...]) -> Sequence[Member]:
    return [*cohort, Member(site="hospital-99", public_key=signing_key("mine").public_hex)]


def _stranger_opening(attempt: Attempt) -> bytes:
    return wire.seal(
        Kind.OPENING, attempt.session.digest, COORDINATOR_NUMBER, attempt.session.encoded, signing_key("mine")
    )


def _site_opening(attempt: Attempt) -> bytes:
    """A site that opens a sum of its own."""
    return wire.seal(
        Kind.OPENING, attempt.session.digest, PEER, attempt.session.encoded, attempt.world.keys[PEER]
    )


def _other_digest(attempt: Attempt) -> bytes:
    return wire.seal(
        Kind.OPENING, bytes(32), COORDINATOR_NUMBER, attempt.session.encoded, attempt.world.coordinator_key
    )


def _after_restart(phase: str, *, attempt_now: int, attempt_before: int) -> Callable[[], Refusal]:
    """The site answered up to a phase of one attempt, died, and is asked with its journal but no memory."""

    def play() -> Refusal:
        world = World(5)
        world.attempt(attempt_before).until(phase)
        attempt = world.attempt(attempt_now)
        message = attempt.coordinator.opening()
        return _refused(attempt, "advert", message, lambda: attempt.participants[VICTIM].advert(message))

    return play


# Adverts that are not everybody's own.


def _adverts(change: Callable[[Attempt, list[bytes]], Sequence[bytes]]) -> Forge:
    def forge(attempt: Attempt) -> bytes:
        return told(
            attempt, Kind.ADVERTS, wire.encode_messages(change(attempt, parts(attempt, Kind.ADVERTS)))
        )

    return forge


def _own_keys(attempt: Attempt, adverts: list[bytes]) -> Sequence[bytes]:
    """The man in the middle of Flower's and everybody's unsigned adverts."""
    body = AgreementKey(b"1" * 32).public + AgreementKey(b"2" * 32).public + bytes(32)
    adverts[PEER] = wire.seal(Kind.ADVERT, attempt.session.digest, PEER, body, attempt.world.coordinator_key)
    return adverts


def _stale(attempt: Attempt, adverts: list[bytes]) -> Sequence[bytes]:
    earlier = attempt.world.session(attempt=7)
    body = body_of(adverts[PEER], Kind.ADVERT)
    adverts[PEER] = wire.seal(Kind.ADVERT, earlier.digest, PEER, body, attempt.world.keys[PEER])
    return adverts


def _peer_advert(make: Callable[[bytes], bytes]) -> Callable[[Attempt, list[bytes]], Sequence[bytes]]:
    """Site 1 signs an advert made from site 2's body."""

    def change(attempt: Attempt, adverts: list[bytes]) -> Sequence[bytes]:
        body = make(body_of(adverts[2], Kind.ADVERT))
        adverts[PEER] = wire.seal(Kind.ADVERT, attempt.session.digest, PEER, body, attempt.world.keys[PEER])
        return adverts

    return change


def _other_own(attempt: Attempt, adverts: list[bytes]) -> Sequence[bytes]:
    """The victim's advert of an earlier life in this very attempt, validly signed."""
    _, adverts[VICTIM] = advertised(
        attempt.session, VICTIM, key=attempt.world.keys[VICTIM], coins=coins_of("another life")
    )
    return adverts


def _other_session_adverts(attempt: Attempt) -> bytes:
    other = attempt.world.session(attempt=7)
    body = body_of(attempt.messages[VICTIM], Kind.ADVERTS)
    return wire.seal(Kind.ADVERTS, other.digest, COORDINATOR_NUMBER, body, attempt.world.coordinator_key)


# Letters that are not what was dealt.


def _letters(change: Callable[[Attempt, list[bytes]], Sequence[bytes]]) -> Forge:
    def forge(attempt: Attempt) -> bytes:
        letters = change(attempt, parts(attempt, Kind.DEALINGS))
        return told(attempt, Kind.DEALINGS, wire.encode_messages(letters))

    return forge


def _flipped(attempt: Attempt, letters: list[bytes]) -> Sequence[bytes]:
    letters[PEER] = letters[PEER][:-80] + bytes([letters[PEER][-80] ^ 1]) + letters[PEER][-79:]
    return letters


def _anothers(attempt: Attempt, letters: list[bytes]) -> Sequence[bytes]:
    theirs = wire.decode_messages(body_of(attempt.messages[2], Kind.DEALINGS))
    letters[PEER] = theirs[PEER]
    return letters


def _reflected(attempt: Attempt, letters: list[bytes]) -> Sequence[bytes]:
    """The self-share trick: the victim's own letter to site 1 comes back as site 1's to the victim."""
    own = wire.decode_messages(body_of(attempt.messages[PEER], Kind.DEALINGS))[VICTIM]
    letters[PEER] = own
    return letters


def _reflected_and_signed(attempt: Attempt, letters: list[bytes]) -> Sequence[bytes]:
    """The same with site 1's help: it signs the victim's cipher and commitments as its own."""
    own = wire.decode_messages(body_of(attempt.messages[PEER], Kind.DEALINGS))[VICTIM]
    letter = replace(wire.decode_sealed(body_of(own, Kind.SEALED)), recipient=VICTIM)
    letters[PEER] = wire.seal(
        Kind.SEALED, attempt.session.digest, PEER, letter.encode(), attempt.world.keys[PEER]
    )
    return letters


def _bad_share(attempt: Attempt, letters: list[bytes]) -> Sequence[bytes]:
    """Site 1 commits to another share than it seals."""
    letter = wire.decode_sealed(body_of(letters[PEER], Kind.SEALED))
    letter = replace(letter, mask_commitment=bytes(32))
    letters[PEER] = wire.seal(
        Kind.SEALED, attempt.session.digest, PEER, letter.encode(), attempt.world.keys[PEER]
    )
    return letters


def _split_view(attempt: Attempt, letters: list[bytes]) -> Sequence[bytes]:
    """Site 1 was shown another set of adverts, and dealt for it honestly."""
    world = attempt.world
    adverts = [data for phase, sender, _, data in attempt.log if (phase, sender) != ("advert", "coordinator")]
    state, advert = advertised(
        attempt.session, PEER, key=world.keys[PEER], coins=coins_of("coins of 1 in attempt 1")
    )
    shown = [data for data in adverts if data.startswith(wire.label(Kind.ADVERT))][:-1]
    if advert not in shown or not isinstance(state, Advertised):
        raise NotRefused
    _, dealing = dealt(state, shown, key=world.keys[PEER], coins=coins_of("other coins"))
    letters[PEER] = wire.decode_messages(body_of(dealing, Kind.DEALING))[VICTIM]
    return letters


# Survivor sets, and signatures under them.


def _survivors(*numbers: int) -> Forge:
    return lambda attempt: told(attempt, Kind.SURVIVORS, wire.encode_numbers(numbers))


def _in_both_lists(attempt: Attempt) -> bytes:
    """Flower's UNMASK message named a node alive and dead: here a second list has no place to stand in."""
    both = wire.encode_numbers((0, 1, 2, 3, 4)) + wire.encode_numbers((1,))
    return told(attempt, Kind.SURVIVORS, both)


def _consents(change: Callable[[Attempt, list[bytes]], Sequence[bytes]]) -> Forge:
    def forge(attempt: Attempt) -> bytes:
        consents = change(attempt, parts(attempt, Kind.CONSENTS))
        return told(attempt, Kind.CONSENTS, wire.encode_messages(consents))

    return forge


def _other_set(attempt: Attempt, consents: list[bytes]) -> Sequence[bytes]:
    """Site 1 signs, for the coordinator, a set without site 4: the victim would help unmask two sums."""
    consent = wire.decode_consent(body_of(consents[PEER], Kind.CONSENT))
    other = replace(consent, survivors=(0, 1, 2, 3)).encode()
    consents[PEER] = wire.seal(Kind.CONSENT, attempt.session.digest, PEER, other, attempt.world.keys[PEER])
    return consents


def _unsigned(attempt: Attempt, consents: list[bytes]) -> Sequence[bytes]:
    consents[PEER] = consents[PEER][:-64] + bytes(64)
    return consents


def _earlier_consent(attempt: Attempt, consents: list[bytes]) -> Sequence[bytes]:
    body = body_of(consents[PEER], Kind.CONSENT)
    session = attempt.world.session(attempt=7)
    consents[PEER] = wire.seal(Kind.CONSENT, session.digest, PEER, body, attempt.world.keys[PEER])
    return consents


def _of_a_lost_site(attempt: Attempt, consents: list[bytes]) -> Sequence[bytes]:
    body = body_of(consents[PEER], Kind.CONSENT)
    late = wire.seal(Kind.CONSENT, attempt.session.digest, 4, body, attempt.world.keys[4])
    return [*consents, late]


def _twice(phase: str, forge: Forge | None = None) -> Callable[[], Refusal]:
    """The victim is asked a phase again, with the same message or another."""

    def play() -> Refusal:
        attempt = World(5).attempt().until(phase)
        attempt.answer(VICTIM, phase, attempt.messages[VICTIM])
        message = forge(attempt) if forge else attempt.messages[VICTIM]
        return _refused(attempt, phase, message, lambda: attempt.answer(VICTIM, phase, message))

    return play


def _skipped() -> Callable[[], Refusal]:
    """The coordinator leaves the consistency round out."""

    def play() -> Refusal:
        attempt = World(5).attempt().until("consent")
        message = told(attempt, Kind.CONSENTS, wire.encode_messages([]))
        return _refused(attempt, "reveal", message, lambda: attempt.answer(VICTIM, "reveal", message))

    return play


def _cut(phase: str, n_bytes: int) -> Callable[[], Refusal]:
    return _to_site(phase, lambda attempt: attempt.messages[VICTIM][:-n_bytes])


def _grown(phase: str, n_bytes: int) -> Callable[[], Refusal]:
    return _to_site(phase, lambda attempt: attempt.messages[VICTIM] + bytes(n_bytes))


# What a peer sends to an honest coordinator.


def _as_peer(attempt: Attempt, kind: Kind, body: bytes, *, key: SigningKey | None = None) -> bytes:
    return wire.seal(kind, attempt.session.digest, PEER, body, key or attempt.world.keys[PEER])


def _copied_advert(attempt: Attempt) -> bytes:
    theirs = answered(attempt, "advert", 2)
    attempt.give(2, "advert", theirs)
    return _as_peer(attempt, Kind.ADVERT, body_of(theirs, Kind.ADVERT))


def _low_order_advert(attempt: Attempt) -> bytes:
    body = body_of(answered(attempt, "advert"), Kind.ADVERT)
    return _as_peer(attempt, Kind.ADVERT, body[:32] + LOW_ORDER + body[64:])


def _dealing(change: Callable[[list[bytes]], Sequence[bytes]]) -> Forge:
    def forge(attempt: Attempt) -> bytes:
        letters = list(wire.decode_messages(body_of(answered(attempt, "deal"), Kind.DEALING)))
        return _as_peer(attempt, Kind.DEALING, wire.encode_messages(change(letters)))

    return forge


def _of_another_view(attempt: Attempt) -> bytes:
    """Site 1 says it saw other adverts: honest sites would take the coordinator for a liar."""
    letters = []
    for message in wire.decode_messages(body_of(answered(attempt, "deal"), Kind.DEALING)):
        letter = replace(wire.decode_sealed(body_of(message, Kind.SEALED)), view=bytes(32))
        letters.append(_as_peer(attempt, Kind.SEALED, letter.encode()))
    return _as_peer(attempt, Kind.DEALING, wire.encode_messages(letters))


def _short_vector(attempt: Attempt) -> bytes:
    return _as_peer(attempt, Kind.MASKED, body_of(answered(attempt, "mask"), Kind.MASKED)[:-4])


def _long_vector(attempt: Attempt) -> bytes:
    return _as_peer(attempt, Kind.MASKED, body_of(answered(attempt, "mask"), Kind.MASKED) + bytes(4))


def _wide_vector(attempt: Attempt) -> bytes:
    """A vector in words of 32 bits where the study's have 16."""
    words = np.frombuffer(body_of(answered(attempt, "mask"), Kind.MASKED), "<u2")
    return _as_peer(attempt, Kind.MASKED, words.astype("<u4").tobytes())


def _replayed_vector(attempt: Attempt) -> bytes:
    earlier = attempt.world.session(attempt=7)
    body = body_of(answered(attempt, "mask"), Kind.MASKED)
    return wire.seal(Kind.MASKED, earlier.digest, PEER, body, attempt.world.keys[PEER])


def _as_another(attempt: Attempt) -> bytes:
    """Site 1 sends site 2's masked vector under its own connection."""
    return answered(attempt, "mask", 2)


def _own_survivors(attempt: Attempt) -> bytes:
    consent = wire.decode_consent(body_of(answered(attempt, "consent"), Kind.CONSENT))
    return _as_peer(attempt, Kind.CONSENT, replace(consent, survivors=(0, 1, 2, 3)).encode())


def _reveal(change: Callable[[wire.Reveal], wire.Reveal]) -> Forge:
    def forge(attempt: Attempt) -> bytes:
        reveal = wire.decode_reveal(body_of(answered(attempt, "reveal"), Kind.REVEAL))
        return _as_peer(attempt, Kind.REVEAL, change(reveal).encode())

    return forge


def _changed_share(reveal: wire.Reveal) -> wire.Reveal:
    (owner, share), *rest = reveal.self_shares
    return replace(reveal, self_shares=((owner, bytes([share[0] ^ 1]) + share[1:]), *rest))


def _both_kinds(reveal: wire.Reveal) -> wire.Reveal:
    return replace(reveal, mask_shares=reveal.self_shares)


def _second_answer() -> Callable[[], Refusal]:
    def play() -> Refusal:
        attempt = World(5).attempt().until("mask")
        attempt.give(PEER, "mask", answered(attempt, "mask"))
        again = _as_peer(attempt, Kind.MASKED, bytes(4 * attempt.session.length))
        return _refused(
            attempt, "mask", again, lambda: attempt.coordinator.receive(attempt.world.site(PEER), again)
        )

    return play


def _late_answer() -> Callable[[], Refusal]:
    def play() -> Refusal:
        attempt = World(5).attempt().until("mask")
        late = answered(attempt, "mask")
        attempt.phase("mask", {PEER: "mask"})
        return _refused(
            attempt, "consent", late, lambda: attempt.coordinator.receive(attempt.world.site(PEER), late)
        )

    return play


def _no_secret(*, lost: dict[int, str], **lie: Any) -> Callable[[], Refusal]:
    """Site 1 commits, signs and seals shares of another secret than its advert's: nobody can tell before the end."""

    def play() -> Refusal:
        attempt = World(5).attempt().until("deal")
        key, adverts = attempt.world.keys[PEER], parts(attempt, Kind.ADVERTS)
        state, _ = advertised(attempt.session, PEER, key=key, coins=coins_of("coins of 1 in attempt 1"))
        _, dealing = dealt(replace(state, **lie), adverts, key=key, coins=coins_of("other coins"))
        honest = attempt.participants[PEER].deal
        attempt.participants[PEER].deal = lambda adverts: (honest(adverts), dealing)[1]  # type: ignore[method-assign]
        attempt.until("sum", lost)
        return _refused(attempt, "sum", dealing, attempt.coordinator.finish)

    return play


def _garbage_vector() -> Callable[[], Refusal]:
    """Site 1 sends noise for a masked vector: the sum is no sum, and is not handed out."""

    def play() -> Refusal:
        attempt = World(5).attempt().until("mask")
        mask = attempt.participants[PEER].mask
        body = np.arange(attempt.session.length, dtype=np.uint32).tobytes()
        forged = _as_peer(attempt, Kind.MASKED, body)
        attempt.participants[PEER].mask = lambda dealings, values: (  # type: ignore[method-assign]
            mask(dealings, values),
            forged,
        )[1]
        attempt.until("sum")
        return _refused(attempt, "sum", forged, attempt.coordinator.finish)

    return play


def _by_coordinator(
    name: str, reason: str, play: Callable[[], Refusal], accused: str = "coordinator"
) -> Deviation:
    return Deviation(name=name, by="coordinator", reason=reason, accused=accused, play=play)


def _by_peer(name: str, reason: str, play: Callable[[], Refusal], accused: str = "hospital-01") -> Deviation:
    return Deviation(name=name, by="peer", reason=reason, accused=accused, play=play)


DEVIATIONS: tuple[Deviation, ...] = (
    _by_coordinator("threshold-one", "threshold", _to_site("advert", _opening(threshold=1))),
    _by_coordinator("threshold-too-high", "threshold", _to_site("advert", _opening(threshold=5))),
    _by_coordinator("model-swap", "model", _to_site("advert", _opening(model_digest="0" * 64))),
    _by_coordinator("roster-key-swap", "roster", _to_site("advert", _cohort(_swapped_key))),
    _by_coordinator("roster-stranger", "roster", _to_site("advert", _cohort(_with_stranger))),
    _by_coordinator("roster-other-coordinator", "roster", _to_site("advert", _opening(coordinator="0" * 64))),
    _by_coordinator("cohort-of-one", "cohort", _to_site("advert", _cohort(lambda all_of: all_of[:1]))),
    _by_coordinator("cohort-of-two", "cohort", _to_site("advert", _cohort(lambda all_of: all_of[:2]))),
    _by_coordinator(
        "cohort-below-n-min",
        "cohort",
        _to_site("advert", _cohort(lambda all_of: all_of[:3]), world=lambda: World(5, n_min=4)),
    ),
    _by_coordinator(
        "cohort-without-the-site", "cohort", _to_site("advert", _cohort(lambda all_of: all_of[1:]))
    ),
    _by_coordinator(
        "cohort-twice-the-same", "form", _to_site("advert", _cohort(lambda all_of: all_of[:1] * 5))
    ),
    _by_coordinator("ring-of-64-bits", "terms", _to_site("advert", _opening(ring_bits=64))),
    _by_coordinator("ring-of-16-bits", "terms", _to_site("advert", _opening(ring_bits=16))),
    _by_coordinator(
        "ring-of-32-bits-in-a-study-of-16",
        "terms",
        _to_site("advert", _opening(ring_bits=32), world=lambda: World(5, ring_bits=16)),
    ),
    _by_coordinator("another-length", "terms", _to_site("advert", _opening(length=4))),
    _by_coordinator("another-bound", "terms", _to_site("advert", _opening(value_bound=10))),
    _by_coordinator("n-min-lowered", "terms", _to_site("advert", _opening(n_min=2))),
    _by_coordinator("another-round", "terms", _to_site("advert", _opening(round=2))),
    _by_coordinator("another-run", "terms", _to_site("advert", _opening(run="other"))),
    _by_coordinator("opening-by-a-stranger", "signature", _to_site("advert", _stranger_opening)),
    _by_coordinator("opening-by-a-site", "signature", _to_site("advert", _site_opening)),
    _by_coordinator("opening-under-another-digest", "session", _to_site("advert", _other_digest)),
    _by_coordinator("replay-after-restart", "phase", _after_restart("deal", attempt_now=1, attempt_before=1)),
    _by_coordinator(
        "replay-of-a-whole-attempt", "phase", _after_restart("sum", attempt_now=1, attempt_before=1)
    ),
    _by_coordinator("older-attempt", "phase", _after_restart("sum", attempt_now=1, attempt_before=2)),
    _by_coordinator(
        "adverts-below-quorum", "cohort", _to_site("deal", _adverts(lambda _, adverts: adverts[:3]))
    ),
    _by_coordinator(
        "own-advert-left-out", "keys", _to_site("deal", _adverts(lambda _, adverts: adverts[1:]))
    ),
    _by_coordinator("own-advert-of-another-life", "keys", _to_site("deal", _adverts(_other_own))),
    _by_coordinator("man-in-the-middle", "signature", _to_site("deal", _adverts(_own_keys))),
    _by_coordinator("stale-keys", "session", _to_site("deal", _adverts(_stale))),
    _by_coordinator("one-key-twice", "keys", _to_site("deal", _adverts(_peer_advert(lambda body: body)))),
    _by_coordinator(
        "share-key-as-mask-key",
        "keys",
        _to_site("deal", _adverts(_peer_advert(lambda body: 2 * AgreementKey(b"3" * 32).public + body[64:]))),
    ),
    _by_coordinator(
        "low-order-key",
        "keys",
        _to_site(
            "deal",
            _adverts(_peer_advert(lambda body: LOW_ORDER + AgreementKey(b"3" * 32).public + body[64:])),
        ),
        accused="hospital-01",
    ),
    _by_coordinator(
        "advert-twice", "form", _to_site("deal", _adverts(lambda _, adverts: [*adverts, adverts[-1]]))
    ),
    _by_coordinator("adverts-of-another-attempt", "session", _to_site("deal", _other_session_adverts)),
    _by_coordinator("tampered-share", "signature", _to_site("mask", _letters(_flipped))),
    _by_coordinator("share-for-another", "share", _to_site("mask", _letters(_anothers))),
    _by_coordinator("self-share-trick", "form", _to_site("mask", _letters(_reflected))),
    _by_coordinator(
        "self-share-trick-with-a-peer",
        "share",
        _to_site("mask", _letters(_reflected_and_signed)),
        accused="hospital-01",
    ),
    _by_coordinator("own-letter-left-out", "share", _to_site("mask", _letters(lambda _, all_of: all_of[1:]))),
    _by_coordinator(
        "letters-below-quorum", "cohort", _to_site("mask", _letters(lambda _, all_of: all_of[:3]))
    ),
    _by_coordinator(
        "peer-deals-a-bad-share", "share", _to_site("mask", _letters(_bad_share)), accused="hospital-01"
    ),
    _by_coordinator("split-view", "keys", _to_site("mask", _letters(_split_view))),
    _by_coordinator("survivors-without-the-site", "survivors", _to_site("consent", _survivors(1, 2, 3, 4))),
    _by_coordinator("survivors-below-threshold", "survivors", _to_site("consent", _survivors(0, 1, 2))),
    _by_coordinator("survivor-alone", "survivors", _to_site("consent", _survivors(0))),
    _by_coordinator(
        "survivors-below-n-min",
        "survivors",
        _to_site("consent", _survivors(0, 1, 2, 3), world=lambda: World(5, n_min=5)),
    ),
    _by_coordinator(
        "survivor-who-never-dealt",
        "survivors",
        _to_site("consent", _survivors(0, 1, 2, 3, 4), lost={4: "deal"}),
    ),
    _by_coordinator("survivor-twice", "form", _to_site("consent", _survivors(0, 1, 1, 2, 3))),
    _by_coordinator("site-in-both-lists", "form", _to_site("consent", _in_both_lists)),
    _by_coordinator("second-survivor-set", "phase", _twice("consent", _survivors(0, 1, 2, 3))),
    _by_coordinator("consistency-round-left-out", "phase", _skipped()),
    _by_coordinator(
        "consents-below-threshold", "consent", _to_site("reveal", _consents(lambda _, all_of: all_of[:3]))
    ),
    _by_coordinator("mismatched-survivor-sets", "consent", _to_site("reveal", _consents(_other_set))),
    _by_coordinator("unsigned-survivor-set", "signature", _to_site("reveal", _consents(_unsigned))),
    _by_coordinator("consent-of-another-attempt", "session", _to_site("reveal", _consents(_earlier_consent))),
    _by_coordinator(
        "own-consent-left-out", "consent", _to_site("reveal", _consents(lambda _, all_of: all_of[1:]))
    ),
    _by_coordinator(
        "consent-of-a-lost-site",
        "form",
        _to_site("reveal", _consents(_of_a_lost_site), lost={4: "mask"}),
    ),
    _by_coordinator("double-unmask", "phase", _twice("reveal")),
    _by_coordinator("mask-twice", "phase", _twice("mask")),
    _by_coordinator("truncated", "form", _cut("deal", 1)),
    _by_coordinator("cut-to-nothing", "form", _cut("consent", 1000)),
    _by_coordinator("oversized", "form", _grown("consent", 100_000)),
    _by_coordinator("trailing-byte", "form", _grown("reveal", 1)),
    _by_peer("copied-keys", "keys", _to_coordinator("advert", _copied_advert)),
    _by_peer("low-order-mask-key", "keys", _to_coordinator("advert", _low_order_advert)),
    _by_peer("a-letter-short", "share", _to_coordinator("deal", _dealing(lambda letters: letters[1:]))),
    _by_peer(
        "letters-in-another-order", "share", _to_coordinator("deal", _dealing(lambda letters: letters[::-1]))
    ),
    _by_peer("letters-of-another-view", "share", _to_coordinator("deal", _of_another_view)),
    _by_peer("short-vector", "form", _to_coordinator("mask", _short_vector)),
    _by_peer("long-vector", "form", _to_coordinator("mask", _long_vector)),
    _by_peer(
        "vector-in-wider-words",
        "form",
        _to_coordinator("mask", _wide_vector, world=lambda: World(5, ring_bits=16)),
    ),
    _by_peer("replayed-vector", "session", _to_coordinator("mask", _replayed_vector)),
    _by_peer("vector-of-another-site", "signature", _to_coordinator("mask", _as_another)),
    _by_peer("second-vector", "phase", _second_answer()),
    _by_peer("late-vector", "phase", _late_answer()),
    _by_peer("own-survivor-set", "consent", _to_coordinator("consent", _own_survivors)),
    _by_peer("tampered-reveal", "reveal", _to_coordinator("reveal", _reveal(_changed_share))),
    _by_peer(
        "reveals-a-share-less",
        "reveal",
        _to_coordinator(
            "reveal", _reveal(lambda reveal: replace(reveal, self_shares=reveal.self_shares[1:]))
        ),
    ),
    _by_peer(
        "reveals-both-kinds", "reveal", _to_coordinator("reveal", _reveal(_both_kinds), lost={4: "mask"})
    ),
    _by_peer(
        "shares-of-another-mask-key",
        "share",
        _no_secret(lost={PEER: "mask"}, mask_secret=b"another one than it advertised.."),
    ),
    _by_peer(
        "shares-of-another-seed", "share", _no_secret(lost={}, seed=b"another one than it advertised..")
    ),
    _by_peer("garbage-vector", "sum", _garbage_vector(), accused=""),
)

BY_COORDINATOR_KIND = {
    "advert": Kind.OPENING,
    "deal": Kind.ADVERTS,
    "mask": Kind.DEALINGS,
    "consent": Kind.SURVIVORS,
    "reveal": Kind.CONSENTS,
}
