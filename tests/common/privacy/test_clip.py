"""A patient's influence is bounded, for every finite gradient, in exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy.clip import clip, quantised_sum
from sottovoce.common.privacy.stages import ClippedPatientGradients, PatientGradients
from tests.fakes.privacy import some_gradients

BOUND, GRID = 1.0, 2.0**-20
TINY = np.float32(1.4e-45)  # the smallest denormal
HUGE = np.finfo(np.float32).max


def hostile_rows(width: int, n_random: int, seed: int = 0) -> np.ndarray:
    """Rows at the edges of the ball and of float32, and random ones over 80 powers of ten."""
    rng = np.random.default_rng(seed)
    rows = [np.zeros(width), np.full(width, -0.0), np.full(width, TINY), np.full(width, HUGE)]
    rows += [np.where(np.arange(width) % 2, HUGE, -HUGE), np.where(np.arange(width) % 2, TINY, -HUGE)]
    for value in (BOUND, np.nextafter(np.float32(BOUND), 2), np.nextafter(np.float32(BOUND), 0)):
        rows += [np.eye(1, width)[0] * value, np.full(width, value / math.sqrt(width))]
    directions = rng.standard_normal((n_random, width)) * (
        rng.random((n_random, width)) < rng.random((n_random, 1))
    )
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = np.where(
        rng.random((n_random, 1)) < 0.5,
        BOUND * (1 + rng.integers(-8, 9, (n_random, 1)) * 2.0**-24),
        10.0 ** rng.uniform(-42, 37, (n_random, 1)),
    )
    random = np.divide(directions, norms, out=np.zeros_like(directions), where=norms > 0) * lengths
    return np.concatenate([np.array(rows), random]).astype(np.float32)


def exact_square(row: np.ndarray) -> Fraction:
    return sum((Fraction(float(value)) ** 2 for value in row), Fraction(0))


@pytest.mark.parametrize("width", [1, 7, 40])
def test_no_row_is_longer_than_the_bound_in_exact_arithmetic(width: int) -> None:
    clipped = clip(PatientGradients(values=hostile_rows(width, 300)), BOUND)
    assert max(exact_square(row) for row in clipped.dense()) <= Fraction(BOUND) ** 2


@pytest.mark.parametrize("grid", [GRID, 2.0**-26, 1 / 3000, 1e-5])
def test_every_quantised_patient_is_inside_the_integer_ball(grid: float) -> None:
    limit = math.floor((Fraction(BOUND) / Fraction(grid)) ** 2)
    clipped = clip(PatientGradients(values=hostile_rows(30, 100)), BOUND)
    for row, factor in zip(clipped.values, clipped.factors, strict=True):
        one = ClippedPatientGradients(values=row[None], factors=factor[None], clip_norm=BOUND)
        assert sum(int(v) ** 2 for v in quantised_sum(one, grid).values) <= limit


def test_the_sum_is_the_sum_of_the_patients() -> None:
    clipped = clip(some_gradients(n_rows=9, width=5000), BOUND)
    parts = [
        quantised_sum(
            ClippedPatientGradients(values=row[None], factors=factor[None], clip_norm=BOUND), GRID
        ).values
        for row, factor in zip(clipped.values, clipped.factors, strict=True)
    ]
    assert (quantised_sum(clipped, GRID).values == np.sum(parts, axis=0)).all()


def test_direction_stays_and_what_is_inside_is_returned_as_it_is() -> None:
    values = np.array([[0.3, -0.4], [30.0, -40.0]], dtype=np.float32)
    inside, outside = clip(PatientGradients(values=values), BOUND).dense()
    assert (inside == values[0]).all()
    assert outside == pytest.approx([0.6, -0.8], rel=1e-8)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_counts_as_zeros_and_changes_nobody_else(bad: float) -> None:
    # A refusal would be an oracle: weights can be chosen that overflow for one patient alone.
    good = some_gradients(scale=5.0).values
    values = good.copy()
    values[2, 3] = bad
    found = quantised_sum(clip(PatientGradients(values=values), BOUND), BOUND / 1024).values
    others = quantised_sum(
        clip(PatientGradients(values=np.delete(good, 2, axis=0)), BOUND), BOUND / 1024
    ).values
    assert found.tolist() == others.tolist()


def test_an_unclipped_row_does_not_pass_the_integer_check() -> None:
    # Somebody builds the type by hand, with factors of 1: the integers notice.
    honest_type = ClippedPatientGradients(
        values=some_gradients(scale=5.0).values, factors=np.ones(4), clip_norm=BOUND
    )
    with pytest.raises(PrivacyError, match="unclipped"):
        quantised_sum(honest_type, GRID)


def test_a_row_just_over_the_edge_is_shrunk_once_more() -> None:
    # A clip that is off by one cell in 3,000: the integers see 3,001, and shrinking brings it to 3,000.
    clipped = ClippedPatientGradients(
        values=np.array([[3000.0], [5.0]], dtype=np.float32),
        factors=np.array([1.0 + 1 / 3000, 1.0]),
        clip_norm=3000.0,
    )
    assert quantised_sum(clipped, 1.0).values.tolist() == [3005]


def test_nobody_drawn_is_a_sum_of_zeros() -> None:
    nobody = PatientGradients(values=np.zeros((0, 6), dtype=np.float32))
    assert quantised_sum(clip(nobody, BOUND), GRID).values.tolist() == [0] * 6


@pytest.mark.parametrize("grid", [2.0**-27, 2.0])
def test_a_grid_without_exact_sums_is_refused(grid: float) -> None:
    with pytest.raises(PrivacyError, match="clip_norm / grid"):
        quantised_sum(clip(some_gradients(), BOUND), grid)


def test_rounding_moves_no_coordinate_away_from_zero() -> None:
    row = some_gradients(n_rows=1, width=2000, scale=0.01)
    steps = quantised_sum(clip(row, BOUND), GRID).values
    exact = row.values[0].astype(np.float64) / GRID
    assert (np.abs(steps) <= np.abs(exact)).all()
    assert (np.abs(exact - steps) < 1).all()
