"""Figures of mode `distributed` are never below what is exactly given away, nor what another program finds."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy import distributed_accountant as accountant
from sottovoce.common.privacy.distributed_accountant import (
    DistributedEvent,
    divergence,
    epsilon,
    replace_one,
    tau,
)
from sottovoce.simulations.bench import second_distributed
from sottovoce.simulations.bench.distributed import random_event
from tests.fakes import exact_distributed as exact

second = second_distributed.program()
SHARES = [Fraction(1, 2), Fraction(3, 4), Fraction(2), Fraction(25, 4)]
FLOAT = 1 + 1e-10  # a bound that is met with equality may be below by the rounding of floats


def an_event(**changes: Any) -> DistributedEvent:
    """320 steps at noise 2 against 2 of at least 10 sites: what the doctest has."""
    fields: dict[str, Any] = {
        "squared_norm": 2**20,
        "variance_numerator": 2**19,
        "variance_denominator": 1,
        "n_min": 10,
        "n_colluding": 2,
        "n_parameters": 60_000,
        "sampling_prob": 1 / 16,
        "steps": 320,
        "cap": None,
        "n_patients": 1000,
    }
    return DistributedEvent(**(fields | changes))


def small(share: Fraction, n_shares: int, vector: list[int], sampling_prob: float) -> DistributedEvent:
    return an_event(
        squared_norm=sum(v * v for v in vector),
        variance_numerator=share.numerator,
        variance_denominator=share.denominator,
        n_min=n_shares,
        n_colluding=0,
        n_parameters=len(vector),
        sampling_prob=sampling_prob,
        steps=1,
    )


def reach(share: Fraction, n_dims: int) -> int:
    return int(36 * math.sqrt(share / n_dims))


def cases(share: Fraction, q: float, vectors: list[list[int]]) -> Iterator[tuple[DistributedEvent, Any]]:
    for n_shares in (1, 2, 4):
        views = exact.views(float(share), n_shares, vectors, q, reach(share, len(vectors[0])))
        yield small(share, n_shares, vectors[0], q), views


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("vector", [[1], [2], [1, 1], [2, -1]])
@pytest.mark.parametrize("q", [0.05, 0.5, 1.0])
def test_a_step_is_never_below_the_exact_divergence(share: Fraction, vector: list[int], q: float) -> None:
    for event, views in cases(share, q, [vector]):
        for order in (2, 3, 4, 8, 12):
            assert divergence(event, order) * FLOAT >= exact.both_ways(views, order)


@pytest.mark.parametrize("share", [Fraction(1), *SHARES[2:]])
@pytest.mark.parametrize("q", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("n_sites", [2, 3])
def test_a_patient_in_several_sites_is_never_below_the_exact_divergence(
    share: Fraction, q: float, n_sites: int
) -> None:
    for event, views in cases(share, q, [[1]] * n_sites):
        for order in (2, 3, 4, 8):
            assert divergence(event, order, n_sites=n_sites) * FLOAT >= exact.both_ways(views, order)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
@pytest.mark.parametrize("q", [0.1, 1.0])
def test_an_epsilon_is_never_below_the_exact_one(n_steps: int, q: float) -> None:
    for share, n_shares in ((Fraction(1, 2), 2), (Fraction(3, 2), 2), (Fraction(3, 2), 3)):
        views = exact.views(float(share), n_shares, [[1]], q, 14)
        event = small(share, n_shares, [1], q)
        steps = [DistributedEvent(**(asdict(event) | {"steps": n_steps}))]
        for delta in (1e-3, 1e-6):
            assert epsilon(steps, delta) >= exact.epsilon(views, delta, n_steps)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("q", [0.1, 1.0])
def test_replacing_a_patient_is_never_below_the_exact_figure(n_steps: int, q: float) -> None:
    for share, n_shares in ((Fraction(1, 2), 2), (Fraction(3, 2), 3)):
        _, one = exact.views(float(share), n_shares, [[1]], q, 14)
        _, other = exact.views(float(share), n_shares, [[-1]], q, 14)
        event = small(share, n_shares, [1], q)
        steps = [DistributedEvent(**(asdict(event) | {"steps": n_steps}))]
        for delta in (1e-3, 1e-6):
            assert replace_one(steps, delta) >= exact.epsilon((one, other), delta, n_steps)
            assert replace_one(steps, delta) >= epsilon(steps, delta)


def test_replacing_takes_the_better_of_two_bounds() -> None:
    assert replace_one([an_event(steps=0)], 1e-5) == 0.0
    assert replace_one([an_event(overflow_prob=1e-6)], 1e-5) == math.inf
    # Without sampling, two norms are the whole story: the figure of half the noise.
    unsampled = an_event(sampling_prob=1.0, steps=20)
    halved = an_event(sampling_prob=1.0, steps=20, variance_numerator=2**17)
    assert replace_one([unsampled], 1e-5) == pytest.approx(epsilon([halved], 1e-5), rel=1e-9)
    # With it, removing and adding is better: less than three figures, and more than two.
    assert 2 * epsilon([an_event()], 1e-5) < replace_one([an_event()], 1e-5) < 3 * epsilon([an_event()], 1e-5)


def test_a_sum_of_discrete_gaussians_is_not_taken_for_one() -> None:
    # Shares of 1/2: the sum's odd and even numbers are weighted otherwise than one discrete Gaussian's.
    event = small(Fraction(1, 2), 2, [1], 1.0)
    of_one_gaussian = 3 * 1 / (2 * 2 * 0.5)
    true = exact.both_ways(exact.views(0.5, 2, [[1]], 1.0, 25), 3)
    assert true > of_one_gaussian * 1.001
    assert divergence(event, 3) >= true
    # and in many dimensions, each of which can be looked at: a hundred ones are a hundred times one
    wide = small(Fraction(1, 2), 2, [1] * 100, 1.0)
    assert divergence(wide, 3) >= 100 * true


def test_tau_is_never_below_the_exact_log_ratio() -> None:
    for share in (0.5, 0.6, 1.0, 2.0):
        for n_shares in (1, 2, 3, 6):
            wide = int(8 * math.sqrt(share * n_shares))
            of_many = exact.shares(share, n_shares, int(36 * math.sqrt(share)) + wide)
            middle = len(of_many) // 2
            of_many = of_many[middle - wide : middle + wide + 1]
            of_one = exact.discrete_gaussian(share * n_shares, wide)
            largest = float(np.abs(np.log(of_many / of_many.sum() / of_one)).max())
            assert 2 * largest <= tau(share, n_shares) + 1e-9
    assert 2 * math.log(1 + 2 * math.exp(-(math.pi**2) / 2)) > 0.02, "a tau of nothing would have failed"


def test_adding_a_patient_is_never_dearer_than_removing_one_where_noise_is_symmetric() -> None:
    rng = np.random.default_rng(0)
    for share, n_shares in ((0.5, 2), (1.3, 3), (4.0, 1)):
        for vector in ([1], [3], [1, -2]):
            q, order = float(rng.uniform(0.01, 0.99)), float(rng.uniform(1.01, 12))
            without, mixed = exact.views(share, n_shares, [vector], q, reach(Fraction(share), len(vector)))
            adding, removing = (
                exact.divergence(without, mixed, order),
                exact.divergence(mixed, without, order),
            )
            assert adding <= removing * (1 + 1e-9)
    # the inequality on two mirrored outcomes, of which the whole is a sum (Mironov, Talwar, Zhang, theorem 5)
    a, b = 10 ** rng.uniform(-6, 0, 20_000), 10 ** rng.uniform(-6, 0, 20_000)
    part, alpha = rng.uniform(0, 1, 20_000), rng.uniform(1, 20, 20_000)
    one, other = (1 - part) * a + part * b, (1 - part) * b + part * a
    moments_adding = a**alpha * one ** (1 - alpha) + b**alpha * other ** (1 - alpha)
    moments_removing = one**alpha * a ** (1 - alpha) + other**alpha * b ** (1 - alpha)
    assert (moments_adding <= moments_removing * (1 + 1e-9)).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_second_program_finds_the_same_figure(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = (2, 3, 5, 9, 14, 22, 40)  # all of them are compared in `make bench`
    monkeypatch.setattr(accountant, "ORDERS", orders)
    monkeypatch.setattr(second, "ORDERS", list(orders))
    events = [random_event(3 * seed + k) for k in range(3)]
    for chosen in ([events[0]], events):
        for n_sites in (1, 3):
            ours = epsilon(chosen, 1e-5, n_sites=n_sites)
            theirs = second.epsilon([asdict(event) for event in chosen], 1e-5, n_sites=n_sites)
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9)


def test_both_programs_look_at_the_same_orders() -> None:
    assert list(accountant.ORDERS) == second.ORDERS


def test_a_wide_share_is_the_sampled_gaussian_of_the_library() -> None:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    event, orders = an_event(), [2, 3, 8, 32]
    library = RdpAccountant(orders)
    library.compose(PoissonSampledDpEvent(event.sampling_prob, GaussianDpEvent(event.noise_multiplier())))
    for order, value in zip(orders, library._rdp, strict=True):
        assert divergence(event, order) == pytest.approx(float(value), rel=1e-9)


def test_colluding_sites_take_their_shares_off() -> None:
    figures = [epsilon([an_event()], 1e-5, n_colluding=t) for t in range(10)]
    assert figures == sorted(figures)
    assert figures[2] == epsilon([an_event()], 1e-5) > 1.1 * figures[0]
    # Against all others, one share is left: a discrete Gaussian alone, with a tenth of the variance of ten.
    alone = an_event(n_min=1, n_colluding=0)
    assert figures[-1] == epsilon([alone], 1e-5)
    assert an_event().noise_multiplier(9) == pytest.approx(an_event().noise_multiplier(0) / math.sqrt(10))


@pytest.mark.parametrize("share", [Fraction(1, 2), Fraction(2**19)])
def test_steps_colluders_and_sites_never_give_a_smaller_figure(share: Fraction) -> None:
    norm = 1 if share < 1 else 2**20
    event = an_event(
        squared_norm=norm, variance_numerator=share.numerator, variance_denominator=share.denominator
    )
    by_colluders = [divergence(event, 8, n_colluding=t) for t in range(10)]
    by_sites = [divergence(event, 8, n_sites=k) for k in range(1, 6)]
    by_steps = [epsilon([an_event(steps=n)], 1e-5) for n in (0, 1, 2, 50, 320)]
    for figures in (by_colluders, by_sites, by_steps):
        assert figures == sorted(figures)
    assert by_steps[0] == 0.0


def test_survivors_beyond_the_least_only_help() -> None:
    for n_shares in (1, 2, 3):
        event = small(Fraction(1, 2), n_shares, [1], 0.5)
        for more in (1, 2):
            views = exact.views(0.5, n_shares + more, [[1]], 0.5, 25)
            assert divergence(event, 4) >= exact.both_ways(views, 4)


def test_full_draws_and_overflows_are_taken_off_delta() -> None:
    plain, capped = an_event(), an_event(cap=120, n_patients=1000)
    lost = accountant.conceded_delta([capped])
    assert 0 < lost < 1e-7
    assert epsilon([capped], 1e-5) == pytest.approx(epsilon([plain], 1e-5 - lost), rel=1e-12)
    assert accountant.conceded_delta([capped], n_sites=3) == pytest.approx(3 * lost)
    overflowing = an_event(overflow_prob=1e-9)
    assert epsilon([overflowing], 1e-5) == epsilon([plain], 1e-5 - 320e-9)
    assert epsilon([an_event(cap=60)], 1e-5) == math.inf
    assert epsilon([an_event(overflow_prob=1e-6)], 1e-5) == math.inf


def test_events_compose_and_their_epsilons_are_not_added() -> None:
    one, both = epsilon([an_event()], 1e-5), epsilon([an_event(), an_event()], 1e-5)
    assert one < both < 2 * one
    assert both == epsilon([an_event(steps=640)], 1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"n_colluding": 10}, {"squared_norm": 0}, {"variance_numerator": 1, "variance_denominator": 3},
     {"sampling_prob": 0.0}, {"steps": -1}, {"mechanism": "gaussian"}, {"overflow_prob": -1e-9}],
)  # fmt: skip
def test_constants_that_no_figure_covers_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError, match="Expected"):
        an_event(**changes)


def test_questions_that_have_no_answer_are_refused() -> None:
    with pytest.raises(PrivacyError, match="below n_min"):
        epsilon([an_event()], 1e-5, n_colluding=10)
    with pytest.raises(PrivacyError, match="delta"):
        epsilon([an_event()], 0.0)
    with pytest.raises(PrivacyError, match="order"):
        divergence(an_event(), 1)
