"""A site's state as bytes: another process goes on where the last one stopped, and takes nothing else for a state."""

import functools
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.common.errors import SecureSumError
from sottovoce.common.secagg import participant, state
from sottovoce.common.secagg.journal import PHASES
from sottovoce.common.secagg.session import Member
from sottovoce.common.secagg.state import MAX_STATE_BYTES, decode_state, encode_state
from sottovoce.common.secagg.steps import Advertised, Consented, Dealt, Masked, Shares
from sottovoce.common.secagg.wire import Consent
from tests.fakes.secagg import (
    Attempt,
    World,
    coins_of,
    patterns,
    plain_sum,
    remembered_signatures,
    survivors_of,
)
from tests.fakes.secagg_deviations import DEVIATIONS, Deviation

HELD = (*PHASES[1:], "sum")  # before which of these there is a state


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with remembered_signatures():
        yield


def resumed(world: World) -> Attempt:
    attempt = world.attempt()
    attempt.resumed = True
    return attempt


def state_before(phase: str, lost: dict[int, str] | None = None, *, world: World | None = None) -> bytes:
    """Site 0's bytes before it answers a phase."""
    attempt = (world or World(4)).attempt().until(phase, lost)
    return attempt.participants[0].state_bytes()


@functools.cache
def states() -> dict[str, bytes]:
    return {phase: state_before(phase, {3: "mask"}) for phase in HELD}


def finished(content: bytes) -> bytes:
    """These bytes with the digest that belongs to them."""
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize("lost", [{}, {1: "deal"}, {4: "mask"}, {2: "consent"}])
def test_a_sum_whose_phases_are_answered_by_other_objects_has_the_same_messages(lost: dict[int, str]) -> None:
    whole, pieces = World(5).attempt(), resumed(World(5))
    assert pieces.run(lost).values.tolist() == whole.run(lost).values.tolist()
    assert pieces.log == whole.log
    assert pieces.world.journals[0].marks == whole.world.journals[0].marks


def test_every_pattern_of_loss_of_three_sites_ends_the_same_from_bytes() -> None:
    for losses in patterns(3):
        lost, attempt = dict(losses), resumed(World(3))
        expected = survivors_of(lost, 3)
        with suppress(SecureSumError):
            assert attempt.run(lost).values.tolist() == plain_sum(attempt.values, expected or ())
            expected = None
        assert expected is None


@pytest.mark.parametrize(
    "deviation", [it for it in DEVIATIONS if it.by == "coordinator"], ids=lambda deviation: deviation.name
)
def test_a_resumed_site_refuses_the_same_for_the_same_reason(
    deviation: Deviation, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = World.attempt

    def attempt(world: World, *args: Any, **fields: Any) -> Attempt:
        made = honest(world, *args, **fields)
        made.resumed = True
        return made

    monkeypatch.setattr(World, "attempt", attempt)
    error = deviation.play().error
    assert (error.reason, error.accused) == (deviation.reason, deviation.accused)


@pytest.mark.parametrize("phase", HELD)
def test_a_state_has_one_encoding(phase: str) -> None:
    read = decode_state(states()[phase])
    assert encode_state(read) == states()[phase]
    assert decode_state(encode_state(read)) == read


def test_a_site_that_was_asked_nothing_has_no_state() -> None:
    with pytest.raises(SecureSumError, match="no state yet") as refused:
        World(3).participant(0).state_bytes()
    assert refused.value.reason == "phase"


@pytest.mark.parametrize("phase", PHASES)
def test_an_ended_state_refuses_every_message(phase: str) -> None:
    attempt = World(3).attempt().until(phase)
    with pytest.raises(SecureSumError):
        attempt.answer(0, phase, b"no message")
    attempt.resume(0)
    for now in PHASES:
        with pytest.raises(SecureSumError, match="out of order"):
            attempt.answer(0, now, attempt.messages[0])


def test_who_has_revealed_is_ended_for_the_next_process_too() -> None:
    attempt = World(3).attempt()
    attempt.run()
    attempt.resume(0)
    with pytest.raises(SecureSumError, match="out of order"):
        attempt.participants[0].reveal(next(data for phase, _, _, data in attempt.log if phase == "reveal"))


@pytest.mark.parametrize("phase", HELD[:-1])
def test_of_two_processes_with_one_state_the_second_is_refused(phase: str) -> None:
    attempt = World(3).attempt().until(phase)
    state = attempt.participants[0].state_bytes()
    attempt.answer(0, phase, attempt.messages[0])
    attempt.resume(0, state)
    with pytest.raises(SecureSumError, match="the journal has this") as refused:
        attempt.answer(0, phase, attempt.messages[0])
    assert refused.value.reason == "phase"


@pytest.mark.parametrize("phase", HELD[:-1])
def test_a_state_of_another_attempt_answers_nothing(phase: str) -> None:
    world = World(3)
    earlier = world.attempt(1).until(phase).participants[0].state_bytes()
    attempt = world.attempt(2).until(phase)
    attempt.resume(0, earlier)
    with pytest.raises(SecureSumError) as refused:
        attempt.answer(0, phase, attempt.messages[0])
    assert refused.value.reason == "session"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run": "another"}, "terms"),
        ({"round": 4}, "terms"),
        ({"length": 6}, "terms"),
        ({"ring_bits": 16}, "terms"),
        ({"value_bound": 999}, "terms"),
        ({"n_min": 4}, "terms"),
        ({"model_digest": "1" * 64}, "model"),
        ({"roster": World(3).roster}, "roster"),
    ],
)
@pytest.mark.parametrize("phase", HELD[:-1])
def test_a_state_of_another_sum_than_the_site_agreed_on_is_refused(
    phase: str, changes: dict[str, object], reason: str
) -> None:
    world = World(4)
    with pytest.raises(SecureSumError) as refused:
        participant.Participant.resume(
            replace(world.agreement, **changes),  # type: ignore[arg-type]
            site=world.site(0),
            key=world.keys[0],
            journal=world.journals[0],
            state=states()[phase],
        )
    assert refused.value.reason == reason


@pytest.mark.parametrize("phase", HELD[:-1])
def test_a_state_of_another_site_is_refused(phase: str) -> None:
    attempt = World(4).attempt().until("deal")
    with pytest.raises(SecureSumError, match="of this site") as refused:
        attempt.resume(1, states()[phase])
    assert refused.value.reason == "cohort"


@pytest.mark.parametrize("phase", HELD)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_no_bytes_but_a_state_s_own_are_taken_for_it(phase: str, data: st.DataObject) -> None:
    good = states()[phase]
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 8)))
    other = good[:start] + data.draw(st.binary(max_size=8)) + good[end:]
    if other != good:
        with pytest.raises(SecureSumError):
            decode_state(other)


@pytest.mark.parametrize("phase", HELD)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_fields_that_were_changed_with_their_digest_are_refused_or_one_encoding(
    phase: str, data: st.DataObject
) -> None:
    # Whoever writes a state may write any secret; what it cannot write is a second encoding, or another error.
    good = states()[phase][:-32]
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 3)))
    other = finished(good[:start] + data.draw(st.binary(max_size=3)) + good[end:])
    with suppress(SecureSumError):
        assert encode_state(decode_state(other)) == other


@pytest.mark.parametrize("phase", HELD)
def test_a_state_that_is_cut_anywhere_is_refused(phase: str) -> None:
    good = states()[phase]
    for n_bytes in range(len(good)):
        with pytest.raises(SecureSumError):
            decode_state(good[:n_bytes])
    for n_bytes in range(len(good) - 32):
        with pytest.raises(SecureSumError):
            decode_state(finished(good[:n_bytes]))


@given(data=st.binary(max_size=300))
@settings(max_examples=50, deadline=None)
def test_no_bytes_make_it_raise_anything_else(data: bytes) -> None:
    for other in (data, finished(data), finished(b"sottovoce/secagg/1/state-dealt\n" + data)):
        with pytest.raises(SecureSumError):
            decode_state(other)


def test_the_largest_cohort_with_the_longest_names_fits() -> None:
    cohort = tuple(Member(site=f"{n:02}" + "x" * 62, public_key="f" * 64) for n in range(50))
    session = replace(World(3).session(), cohort=cohort, run="r" * 120)
    shares = {n: Shares(mask=bytes(33), own=bytes(33)) for n in range(50)}
    held = Masked(session=session, me=49, view=bytes(32), shares=shares)
    consent = Consent(view=held.view, dealers=tuple(range(50)), survivors=tuple(range(50)))
    largest = Consented(held=held, consent=consent)
    assert decode_state(encode_state(largest)) == largest


def test_what_is_longer_than_a_state_can_be_is_refused_before_it_is_hashed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state, "hashlib", None)
    with pytest.raises(SecureSumError):
        decode_state(bytes(MAX_STATE_BYTES + 1))


def test_fields_that_do_not_hang_together_are_refused() -> None:
    advertised, dealt, masked, consented = (decode_state(states()[phase]) for phase in HELD[:-1])
    assert isinstance(advertised, Advertised) and isinstance(dealt, Dealt)  # noqa: PT018
    assert isinstance(masked, Masked) and isinstance(consented, Consented)  # noqa: PT018
    without_another = {number: piece for number, piece in masked.shares.items() if number != 1}
    without_me = {number: piece for number, piece in masked.shares.items() if number != 0}
    for other in (
        replace(advertised, seed=bytes(32)),
        replace(advertised, mask_secret=bytes(32)),
        replace(advertised, share_secret=bytes(32)),
        replace(advertised, advert=advertised.advert[:-1] + bytes([advertised.advert[-1] ^ 1])),
        replace(advertised, me=4),
        replace(dealt, me=4),
        replace(
            dealt,
            sealed_for_me={**dealt.sealed_for_me, 4: b"k" * 32},
            pair_masks={**dealt.pair_masks, 4: b"k" * 32},
        ),
        replace(masked, shares=without_me),
        replace(masked, shares=dict(reversed(list(masked.shares.items())))),
        Consented(held=replace(masked, shares=without_another), consent=consented.consent),
        replace(consented, consent=replace(consented.consent, survivors=(1, 2))),
        replace(consented, consent=replace(consented.consent, survivors=(0, 1, 2, 3, 4))),
        replace(consented, consent=replace(consented.consent, survivors=(1, 0, 2))),
    ):
        with pytest.raises(SecureSumError):
            decode_state(encode_state(other))


def test_no_repr_of_a_state_that_was_read_shows_a_secret() -> None:
    secrets = [coins_of("coins of 0 in attempt 1")(96)[start : start + 32] for start in (0, 32, 64)]
    attempt = World(4).attempt()
    for phase in HELD[:-1]:
        attempt.until(phase)
        attempt.resume(0)
        text = repr(attempt.participants[0]) + repr(attempt.participants[0]._state)
        state = attempt.participants[0]._state
        if isinstance(state, Dealt):
            secrets += [state.self_mask, *state.pair_masks.values(), *state.sealed_for_me.values()]
        if isinstance(state, Masked):
            secrets += [piece for shares in state.shares.values() for piece in (shares.mask, shares.own)]
        for secret in secrets:
            assert repr(secret)[2:20] not in text
            assert secret.hex()[:16] not in text
    assert len(secrets) > 15
