"""Epsilon is an upper bound, the same whatever the order, and close to what a second program finds."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy import accountant
from sottovoce.common.privacy.accountant import (
    conceded_delta,
    curve,
    epsilon,
    in_sites,
    merged,
    noise_for,
    per_record,
    rdp_epsilon,
)
from sottovoce.simulations.bench import second_accountant
from tests.fakes.privacy import an_event

DELTA = 1e-5


@pytest.mark.parametrize(
    ("noise_multiplier", "sampling_prob", "steps", "published"),
    [(1.0, 0.064, 320, 7.8280), (8.0, 1.0, 50, 3.7965), (2.0, 0.064, 1600, 6.4225)],
)
def test_known_studies(noise_multiplier: float, sampling_prob: float, steps: int, published: float) -> None:
    event = an_event(noise_multiplier=noise_multiplier, sampling_prob=sampling_prob, steps=steps)
    assert epsilon([event], DELTA) == pytest.approx(published, abs=1e-4)


@pytest.mark.parametrize(
    "groups",
    [
        [(4.0, 0.1, 200)],
        [(8.0, 1.0, 10)],
        [(3.0, 0.05, 100), (6.0, 0.3, 20)],
        [(2.5, 0.01, 400), (5.0, 0.2, 40), (10.0, 0.5, 60)],
    ],
)
def test_a_second_accountant_agrees_and_is_never_above(groups: list[tuple[float, float, int]]) -> None:
    events = [an_event(noise_multiplier=s, sampling_prob=q, steps=n) for s, q, n in groups]
    ours, other = epsilon(events, DELTA), second_accountant.epsilon(groups, DELTA)
    assert other - 1e-7 <= ours <= other + 1e-3


def test_order_and_splitting_change_nothing() -> None:
    one, other = an_event(steps=30), an_event(noise_multiplier=3.0, steps=20)
    split = [other, *(an_event(steps=10) for _ in range(3))]
    assert merged(split) == merged([one, other])
    assert epsilon(split, DELTA) == epsilon([one, other], DELTA)


def test_nothing_costs_nothing() -> None:
    assert epsilon([], DELTA) == epsilon([an_event(steps=0)], DELTA) == 0.0


def test_pld_is_at_most_rdp() -> None:
    for event in (an_event(), an_event(cap=150), an_event(sampling_prob=1.0, steps=5)):
        assert epsilon([event], DELTA) <= rdp_epsilon([event], DELTA).epsilon


def test_dropped_rdp_orders_are_recorded_and_not_used(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        figure = rdp_epsilon([an_event(noise_multiplier=1.0, sampling_prob=0.1)], DELTA)
    assert figure.dropped_orders
    assert figure.order not in figure.dropped_orders
    assert math.isfinite(figure.epsilon)
    assert not caplog.records  # recorded in the figure, where it is read, not in a log


def test_replacing_a_patient_costs_more_than_removing_one() -> None:
    assert epsilon([an_event()], DELTA) == pytest.approx(2.556, abs=1e-3)
    assert epsilon([an_event()], DELTA, adjacency="replace_one") == pytest.approx(4.976, abs=1e-3)


def test_the_curve_falls_as_delta_grows() -> None:
    figures = [figure for _, figure in curve([an_event()], [1e-9, 1e-7, 1e-5, 1e-3])]
    assert figures == sorted(figures, reverse=True)
    assert figures[2] == epsilon([an_event()], 1e-5)


def test_a_patient_in_two_sites_spends_twice_the_steps() -> None:
    assert epsilon(in_sites([an_event()], 2), DELTA) == epsilon([an_event(steps=640)], DELTA)


# --- truncated draws ---------------------------------------------------------------------------------------------


def test_a_cap_that_hardly_ever_binds_costs_hardly_anything() -> None:
    assert epsilon([an_event(cap=150)], DELTA) - epsilon([an_event()], DELTA) < 1e-4
    assert 0 < conceded_delta([an_event(cap=150)]) < DELTA * 1e-4


def test_a_cap_that_binds_costs_and_is_never_free() -> None:
    plain, tight, tighter = (
        epsilon([an_event(steps=50, cap=cap)], DELTA, grid=1e-3) for cap in (None, 96, 70)
    )
    assert plain < tight < plain + 0.01
    assert tighter > tight


def test_a_public_bound_far_above_the_true_number_does_not_flatter() -> None:
    # 60 patients, a cap of 5, and a study that says "at most 1,000": the library's event, which takes 1,000 for
    # the true number, prints 0.43. With 60 it prints 5.70, and 60 is allowed.
    said, with_60, with_20 = (
        epsilon([an_event(sampling_prob=0.1, steps=100, cap=5, n_patients=n)], DELTA, grid=2e-3)
        for n in (1000, 60, 20)
    )
    assert said > max(with_60, with_20, 5.6995)


# --- several records of one patient ------------------------------------------------------------------------------


@pytest.mark.parametrize(("records", "published"), [(2, 5.67754), (8, 32.96611)])
def test_a_patient_with_several_recordings_costs_what_the_mixture_says(
    records: int, published: float
) -> None:
    # Figures of dp-accounting's own mixture of Gaussians (two minutes each for 8 records).
    event = an_event(records_per_patient=records)
    assert epsilon([event], DELTA) == pytest.approx(published, abs=1e-4)
    assert epsilon(per_record([event]), DELTA) == epsilon([an_event()], DELTA)


def test_one_record_as_a_mixture_is_the_plain_mechanism() -> None:
    # The two ways into one figure: the library's Gaussian, and our mixture with one record.
    event = an_event(steps=1)
    ours = accountant._records_step(event, 1e-4).self_compose(320)
    assert ours.get_epsilon_for_delta(DELTA) == pytest.approx(epsilon([an_event()], DELTA), abs=1e-6)


def test_records_without_sampling_are_one_larger_gaussian() -> None:
    # 4 records in every draw shift the sum by 4: noise 8 becomes noise 2.
    several = an_event(noise_multiplier=8.0, sampling_prob=1.0, steps=6, records_per_patient=4)
    assert epsilon([several], DELTA) == pytest.approx(
        epsilon([an_event(sampling_prob=1.0, steps=6)], DELTA), abs=2e-4
    )
    assert rdp_epsilon([several], DELTA).epsilon == pytest.approx(
        rdp_epsilon([an_event(sampling_prob=1.0, steps=6)], DELTA).epsilon, rel=1e-6
    )


def test_replacing_a_patient_with_records_is_above_removing_one() -> None:
    event = an_event(records_per_patient=2, steps=20)
    removed, replaced = epsilon([event], DELTA), epsilon([event], DELTA, adjacency="replace_one")
    assert 2 * removed <= replaced < math.inf


# --- what a plan asks --------------------------------------------------------------------------------------------


def test_the_noise_for_a_target_meets_it_and_barely() -> None:
    noise = noise_for(3.0, DELTA, an_event())
    assert noise == pytest.approx(1.777, abs=0.003)
    assert epsilon([an_event(noise_multiplier=noise)], DELTA) <= 3.0
    assert epsilon([an_event(noise_multiplier=noise * 0.997)], DELTA) > 3.0


def test_no_noise_reaches_a_target_that_is_spent_already() -> None:
    with pytest.raises(PrivacyError, match="No noise reaches epsilon=1"):
        noise_for(1.0, DELTA, an_event(), spent=[an_event()])


# --- numbers that no accountant can take -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"sampling_prob": 1.1},
        {"sampling_prob": 0.0},
        {"steps": -1},
        {"cap": 0},
        {"n_patients": 0},
        {"records_per_patient": 0},
        {"mechanism": "shuffled_gaussian"},
    ],
)
def test_an_event_outside_its_limits_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(PrivacyError, match="Expected"):
        an_event(**change)


@pytest.mark.parametrize("delta", [0.0, 1e-12, 1.0, math.nan])
def test_a_delta_that_means_nothing_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyError, match="Expected delta"):
        epsilon([an_event()], delta)


def test_a_coarser_grid_is_never_below() -> None:
    event = an_event(noise_multiplier=6.0, sampling_prob=0.1, steps=5000)
    figures = [epsilon([event], DELTA, grid=grid) for grid in (1e-3, 1e-4, 2e-5)]
    assert figures == sorted(figures, reverse=True)
    assert figures[1] - figures[2] < 1e-4


def test_absurd_noise_ends_in_a_figure_and_not_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # A composed loss too wide for the grid gets a coarser grid: still an upper bound, of a useless figure.
    monkeypatch.setattr(accountant, "MAX_CELLS", 1 << 17)
    event = an_event(noise_multiplier=0.31, sampling_prob=1.0, steps=2000)
    mean = event.steps / (2 * event.noise_multiplier**2)
    assert mean < epsilon([event], DELTA) < 1.2 * mean


def test_more_of_anything_never_costs_less() -> None:
    base = an_event(steps=50)
    dearer = [
        replace(base, steps=60),
        replace(base, sampling_prob=0.08),
        replace(base, noise_multiplier=1.9),
        replace(base, records_per_patient=2),
    ]
    cheap = epsilon([base], DELTA)
    assert all(epsilon([event], DELTA) > cheap for event in dearer)
    assert np.isfinite(cheap)
