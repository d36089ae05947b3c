"""Whatever a dishonest coordinator or peer does is refused, with a complaint that a stranger can verify."""

import hashlib
import json
from collections.abc import Iterator

import pytest

from sottovoce.common.errors import SecureSumError
from sottovoce.common.secagg.complaint import proves, read_complaint
from tests.fakes.secagg import World, remembered_signatures
from tests.fakes.secagg_deviations import DEVIATIONS, Deviation, Refusal

BY_NAME = {deviation.name: deviation for deviation in DEVIATIONS}
# What a Flower 1.42 client or workflow goes along with (notes, section 1): the third is in test_sums.py, a site
# that is lost between set-up and sharing.
BREAK_FLOWER = ("threshold-one", "double-unmask", "site-in-both-lists", "man-in-the-middle")
# Nothing of the accused's own is there to show: it is silent, or what it sent is in shares, or nobody is accused.
WORD_AGAINST_WORD = {
    "opening-by-a-stranger",
    "opening-by-a-site",
    "truncated",
    "cut-to-nothing",
    "oversized",
    "trailing-byte",
    "vector-of-another-site",
    "tampered-reveal",
    "reveals-both-kinds",
    "reveals-a-share-less",
    "garbage-vector",
}


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with remembered_signatures():
        yield


@pytest.fixture(scope="module")
def refusals() -> dict[str, Refusal]:
    with remembered_signatures():
        return {deviation.name: deviation.play() for deviation in DEVIATIONS}


def test_there_are_more_than_twenty_five_different_deviations() -> None:
    assert len(BY_NAME) == len(DEVIATIONS) >= 70
    assert set(BREAK_FLOWER) | WORD_AGAINST_WORD <= BY_NAME.keys()


@pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda deviation: deviation.name)
def test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint(
    deviation: Deviation, refusals: dict[str, Refusal]
) -> None:
    refusal = refusals[deviation.name]
    error, roster = refusal.error, refusal.attempt.world.roster
    complaint = read_complaint(error.complaint, roster)
    assert (error.reason, error.accused) == (deviation.reason, deviation.accused)
    assert (complaint.reason, complaint.accused) == (deviation.reason, deviation.accused)
    assert complaint.accuser == ("hospital-00" if deviation.by == "coordinator" else "coordinator")
    assert (complaint.run, complaint.round, complaint.phase) == ("study", 3, refusal.phase)
    assert complaint.evidence_sha256 == hashlib.sha256(error.evidence).hexdigest()
    assert proves(complaint, roster) is (deviation.name not in WORD_AGAINST_WORD)


@pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda deviation: deviation.name)
def test_who_refused_once_answers_nothing_more(deviation: Deviation, refusals: dict[str, Refusal]) -> None:
    attempt, phase = refusals[deviation.name].attempt, refusals[deviation.name].phase
    if deviation.by == "coordinator":
        with pytest.raises(SecureSumError, match=r"Expected .* once and in its turn"):
            attempt.answer(0, phase, attempt.messages.get(0, b""))
    elif phase == "sum":
        with pytest.raises(SecureSumError):
            attempt.coordinator.finish()
    else:
        assert "hospital-01" not in attempt.coordinator.awaited
        with pytest.raises(SecureSumError):
            attempt.coordinator.receive("hospital-01", b"again")


def test_no_share_and_no_vector_stands_in_a_complaint_of_a_reveal(refusals: dict[str, Refusal]) -> None:
    for name in ("tampered-reveal", "reveals-both-kinds", "reveals-a-share-less"):
        assert json.loads(refusals[name].error.complaint)["complaint"]["evidence"] == ""


def test_no_error_carries_a_message_or_a_secret_in_its_text(refusals: dict[str, Refusal]) -> None:
    for refusal in refusals.values():
        text = str(refusal.error)
        assert len(text) < 250
        assert text.startswith("Expected ")


def test_the_same_play_is_honest_where_nobody_deviates() -> None:
    # The twin that must not be refused: else every refusal above would prove nothing.
    attempt = World(5).attempt()
    attempt.run()
    assert attempt.coordinator.complaints == ()
