"""A site: masks, one kind of share for each dealer, each phase once, and silence after a refusal."""

import itertools

import numpy as np
import pytest

from sottovoce.common.errors import SecureSumError
from sottovoce.common.secagg.complaint import read_complaint
from sottovoce.common.secagg.journal import PHASES, Mark
from sottovoce.common.secagg.steps import Advertised, Dealt, Masked
from sottovoce.common.secagg.wire import Kind, decode_reveal
from tests.fakes.secagg import Attempt, MemoryJournal, World, coins_of
from tests.fakes.secagg_deviations import body_of


@pytest.mark.parametrize("lost", [{}, {4: "mask"}, {4: "consent"}])
def test_for_each_dealer_one_kind_of_share_is_revealed_never_both(lost: dict[int, str]) -> None:
    attempt = World(5).attempt()
    attempt.run(lost)
    for phase, sender, _, data in attempt.log:
        if phase == "reveal" and sender != "coordinator":
            reveal = decode_reveal(body_of(data, Kind.REVEAL))
            own = [dealer for dealer, _ in reveal.self_shares]
            mask = [dealer for dealer, _ in reveal.mask_shares]
            assert sorted(own + mask) == [0, 1, 2, 3, 4]
            assert mask == ([4] if lost == {4: "mask"} else [])


class BrokenDisk:
    def record(self, mark: Mark) -> bool:
        raise OSError("no space left on device")


@pytest.mark.parametrize("phase", PHASES)
def test_no_answer_leaves_before_its_mark_is_durable_and_a_broken_disk_ends_the_attempt(phase: str) -> None:
    attempt = World(3).attempt().until(phase)
    attempt.participants[0]._journal = BrokenDisk()
    with pytest.raises(OSError, match="no space"):
        attempt.answer(0, phase, attempt.messages[0])
    attempt.participants[0]._journal = MemoryJournal()  # the disk is well again, and the state is gone
    with pytest.raises(SecureSumError, match="out of order"):
        attempt.answer(0, phase, attempt.messages[0])


def test_marks_name_the_run_round_attempt_phase_and_the_bytes_that_left() -> None:
    attempt = World(3).attempt()
    attempt.run()
    marks = attempt.world.journals[0].marks
    assert [(mark.run, mark.round, mark.attempt, mark.phase) for mark in marks] == [
        ("study", 3, 1, phase) for phase in PHASES
    ]
    assert len({mark.reply_sha256 for mark in marks}) == 5


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_is_not_answered_again_after_a_restart(phase: str) -> None:
    attempt = World(3).attempt().until(phase)
    attempt.answer(0, phase, attempt.messages[0])
    attempt.participants[0] = attempt.world.participant(0, coins="other coins")
    with pytest.raises(SecureSumError) as refused:
        attempt.participants[0].advert(attempt.coordinator.opening())
    assert refused.value.reason == "phase"


def test_an_attempt_is_not_answered_any_more_once_a_later_one_has_begun() -> None:
    world = World(3)
    first = world.attempt(1).until("consent")
    world.attempt(2).until("deal")
    with pytest.raises(SecureSumError) as refused:
        first.answer(0, "consent", first.messages[0])
    assert refused.value.reason == "phase"


def test_a_later_attempt_and_a_later_round_go_on() -> None:
    world = World(3)
    world.attempt(1).run()
    world.attempt(2).run()
    assert len(world.journals[0].marks) == 10


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase != "advert"])
def test_every_phase_needs_the_one_before(phase: str) -> None:
    attempt = World(3).attempt().until(phase)
    attempt.participants[0] = attempt.world.participant(0)  # one that has answered nothing
    with pytest.raises(SecureSumError, match="out of order"):
        attempt.answer(0, phase, attempt.messages[0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.zeros(5), "array of integers"),
        (np.full(5, np.nan), "array of integers"),
        (np.zeros(5, bool), "array of integers"),
        ([0] * 5, "array of integers"),
        (np.zeros(4, np.int64), "shape"),
        (np.zeros((5, 1), np.int64), "shape"),
        (np.full(5, 1001, np.int64), "at most 1000"),
        (np.full(5, -1001, np.int64), "at most 1000"),
        (np.full(5, 2**63, np.uint64), "at most 1000"),
        (np.full(5, -(2**63), np.int64), "at most 1000"),
    ],
)
def test_a_vector_of_another_type_shape_or_size_never_leaves(values: object, expected: str) -> None:
    attempt = World(3).attempt().until("mask")
    attempt.values[0] = values
    with pytest.raises(SecureSumError, match=expected) as refused:
        attempt.answer(0, "mask", attempt.messages[0])
    complaint = read_complaint(refused.value.complaint, attempt.world.roster)
    assert (complaint.reason, complaint.accused, complaint.evidence) == ("input", "", "")


def test_no_repr_and_no_error_shows_a_secret() -> None:
    attempt: Attempt = World(3).attempt()
    site, texts = attempt.participants[0], []
    secrets = [coins_of("coins of 0 in attempt 1")(96)[start : start + 32] for start in (0, 32, 64)]
    for phase in PHASES:
        attempt.until(phase)
        secrets += _secrets(site._state)
        texts.append(repr(site._state) + repr(site))
    with pytest.raises(SecureSumError) as refused:
        attempt.answer(0, "reveal", b"")
    texts += [repr(refused.value), refused.value.complaint.decode()]
    assert len(secrets) > 15
    for text, secret in itertools.product(texts, secrets):
        assert repr(secret)[2:20] not in text
        assert secret.hex()[:16] not in text


def _secrets(state: object) -> list[bytes]:
    """Every key, seed and share that a state holds."""
    match state:
        case Advertised():
            return [state.mask_secret, state.seed]
        case Dealt():
            return [state.self_mask, *state.pair_masks.values(), *state.sealed_for_me.values()]
        case Masked():
            return [piece for shares in state.shares.values() for piece in (shares.mask, shares.own)]
        case _:
            return []


def test_an_opening_without_the_site_and_one_of_no_form_leave_no_session() -> None:
    site = World(3).participant(0)
    with pytest.raises(SecureSumError) as refused:
        site.advert(b"")
    assert site.session is None
    assert read_complaint(refused.value.complaint, World(3).roster).session == "0" * 64
