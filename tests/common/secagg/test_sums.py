"""The sum is exact for whoever is in it, or there is none: every pattern of loss for 3 and 4 sites."""

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from sottovoce.common.errors import SecureSumError
from sottovoce.common.secagg.complaint import read_complaint
from sottovoce.common.secagg.journal import PHASES
from tests.fakes.secagg import Attempt, World, patterns, plain_sum, remembered_signatures, survivors_of


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with remembered_signatures():
        yield


def _hold(attempt: Attempt, lost: dict[int, str], n_min: int = 3) -> bool:
    """Whether there was a sum; it is exact and of the right sites, or abandoned as the rules demand."""
    n_sites = attempt.world.n_sites
    expected = survivors_of(lost, n_sites, n_min)
    if expected is None:
        with pytest.raises(SecureSumError) as refused:
            attempt.run(lost)
        assert refused.value.reason == "abandoned"
        assert read_complaint(refused.value.complaint, attempt.world.roster).accuser == "coordinator"
        return False
    found = attempt.run(lost)
    assert found.survivors == tuple(attempt.world.site(number) for number in expected)
    assert found.values.tolist() == plain_sum(attempt.values, expected)
    return True


@pytest.mark.parametrize(
    ("n_sites", "n_sums", "bits"), [(3, 7, 32), (3, 7, 16), (3, 7, 8), (4, 21, 32), (4, 21, 8)]
)
def test_every_pattern_of_loss_ends_in_the_exact_sum_or_is_abandoned(
    n_sites: int, n_sums: int, bits: int
) -> None:
    every, bound = patterns(n_sites), min(1000, (2 ** (bits - 1) - 1) // n_sites)
    assert every.total() == 6**n_sites
    ended = Counter[bool]()
    for lost, count in every.items():
        ended[_hold(World(n_sites, ring_bits=bits, bound=bound).attempt(), dict(lost))] += count
    assert ended == {True: n_sums, False: 6**n_sites - n_sums}  # both were seen, as often as the rules say


def test_a_site_lost_between_setup_and_sharing_costs_the_others_nothing() -> None:
    # One that advertises and never deals made every survivor of Flower's SecAgg+ raise KeyError.
    for lost in range(5):
        assert _hold(World(5).attempt(), {lost: "deal"})


def test_n_min_above_the_threshold_decides() -> None:
    assert not _hold(World(5, n_min=5).attempt(), {0: "mask"}, n_min=5)
    assert _hold(World(5, n_min=5).attempt(), {0: "consent"}, n_min=5)


@pytest.mark.parametrize("n_sites", [17])
def test_a_third_may_be_lost_in_large_cohorts(n_sites: int) -> None:
    lost = dict(zip(range(0, n_sites, 3), itertools.cycle(PHASES), strict=False))
    assert _hold(World(n_sites, length=3).attempt(), dict(list(lost.items())[: n_sites // 3]))


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_sums_at_the_bound_do_not_wrap(bits: int) -> None:
    bound = (2 ** (bits - 1) - 1) // 3
    for sign in (1, -1):
        world = World(3, bound=bound, ring_bits=bits)
        values = [np.full(world.length, sign * bound, np.int64) for _ in range(3)]
        assert world.attempt(values=values).run().values.tolist() == [sign * 3 * bound] * world.length


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8])
def test_any_integer_type_may_come_in(dtype: type[np.generic]) -> None:
    values = [np.arange(5, dtype=dtype) for _ in range(3)]
    assert World(3).attempt(values=values).run().values.tolist() == [0, 3, 6, 9, 12]


def test_a_site_whose_answer_breaks_a_rule_is_left_out_and_the_others_go_on() -> None:
    attempt = World(5).attempt().until("deal")
    with pytest.raises(SecureSumError):
        attempt.coordinator.receive(attempt.world.site(1), b"no dealing")
    attempt.messages = {number: message for number, message in attempt.messages.items() if number != 1}
    attempt.phase("deal", {})
    found = attempt.run()
    assert found.values.tolist() == plain_sum(attempt.values, [0, 2, 3, 4])
    assert [read_complaint(record, attempt.world.roster).accused for record in found.complaints] == [
        "hospital-01"
    ]


def test_every_answer_differs_from_what_the_coordinator_could_undo_alone() -> None:
    # With all its own secrets and every message, a masked vector is uniform: here, that the same vector of the
    # same site is another under other coins, and that no masked word is the plain one more often than by chance.
    values = [np.zeros(2000, np.int64) for _ in range(3)]
    seen = []
    for number in (1, 2):
        attempt = World(3, length=2000).attempt(number, values=values)
        attempt.run()
        seen += [data for phase, sender, _, data in attempt.log if (phase, sender) == ("mask", "hospital-00")]
    first, second = (np.frombuffer(data[-8064:-64], "<u4") for data in seen)
    assert not np.array_equal(first, second)
    for words in (first, second, first - second):
        assert np.count_nonzero(words == 0) <= 1
        assert abs(np.mean(words / 2**32) - 0.5) < 5 * (1 / 12 / 2000) ** 0.5
