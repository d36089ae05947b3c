"""The coordinator: duplicates, order, who is awaited, and the end of an attempt."""

import pytest

from sottovoce.common.errors import SecureSumError
from sottovoce.common.secagg.complaint import read_complaint
from sottovoce.common.secagg.wire import Kind, open_message
from tests.fakes.secagg import World, plain_sum


def test_the_same_bytes_again_change_nothing() -> None:
    attempt = World(3).attempt()
    for phase in ("advert", "deal", "mask", "consent", "reveal"):
        attempt.until(phase)
        for number, message in attempt.messages.items():
            answer = attempt.answer(number, phase, message)
            attempt.coordinator.receive(attempt.world.site(number), answer)
            attempt.coordinator.receive(attempt.world.site(number), answer)
        attempt._send(attempt.coordinator.advance())
    assert attempt.coordinator.finish().values.tolist() == plain_sum(attempt.values, range(3))


def test_it_says_who_is_awaited() -> None:
    attempt = World(3).attempt().until("advert")
    before = attempt.coordinator.awaited
    attempt.coordinator.receive("hospital-01", attempt.answer(1, "advert", attempt.messages[1]))
    after = attempt.coordinator.awaited
    assert (before, after) == (("hospital-00", "hospital-01", "hospital-02"), ("hospital-00", "hospital-02"))


def test_a_site_that_masked_and_then_broke_a_rule_stays_in_the_sum_but_is_asked_nothing_more() -> None:
    attempt = World(5).attempt().until("mask")
    for number, message in attempt.messages.items():
        attempt.coordinator.receive(attempt.world.site(number), attempt.answer(number, "mask", message))
    with pytest.raises(SecureSumError):
        attempt.coordinator.receive("hospital-04", b"other bytes")
    attempt._send(attempt.coordinator.advance())
    assert sorted(attempt.messages) == [0, 1, 2, 3]
    found = attempt.run()
    assert found.survivors[-1] == "hospital-04"
    assert found.values.tolist() == plain_sum(attempt.values, range(5))


def test_a_stranger_s_message_is_refused_and_bars_nobody() -> None:
    attempt = World(3).attempt()
    with pytest.raises(SecureSumError) as refused:
        attempt.coordinator.receive("elsewhere", b"hello")
    assert read_complaint(refused.value.complaint, attempt.world.roster).reason == "cohort"
    attempt.run()


def test_an_abandoned_attempt_can_be_asked_nothing() -> None:
    attempt = World(3).attempt()
    with pytest.raises(SecureSumError, match="Start another attempt"):
        attempt.coordinator.advance()
    for ask in (attempt.coordinator.advance, attempt.coordinator.finish):
        with pytest.raises(SecureSumError, match="phase"):
            ask()


def test_there_is_no_sum_before_the_last_phase_and_it_is_given_once() -> None:
    early = World(3).attempt().until("reveal")
    with pytest.raises(SecureSumError):
        early.coordinator.finish()
    attempt = World(3).attempt()
    attempt.run()
    with pytest.raises(SecureSumError):
        attempt.coordinator.finish()


def test_the_sum_comes_with_its_sites_signatures() -> None:
    attempt = World(4).attempt()
    found = attempt.run({3: "mask"})
    for number, consent in enumerate(found.consents):
        assert open_message(consent, Kind.CONSENT, session=attempt.session, sender=number)
    assert len(found.consents) == 3
