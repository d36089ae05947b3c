"""Noise has the deviation that the accountant counts on: not two thirds of it, and not three halves."""

import numpy as np
import pytest
from scipy.stats import kstest, norm

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy.noise import add_noise, standard_normals
from sottovoce.common.privacy.source import SecretSource, SimulatedNoise_NotPrivate
from sottovoce.common.privacy.stages import QuantisedSum
from tests.fakes.privacy import Told

GRID = 2.0**-20
N = 40_000


def zeros(n: int = N, clip_norm: float = 1.0) -> QuantisedSum:
    return QuantisedSum(values=np.zeros(n, dtype=np.int64), clip_norm=clip_norm, grid_step=GRID)


def fits(noise: np.ndarray, deviation: float) -> float:
    return float(kstest(noise, norm(scale=deviation).cdf).pvalue)


@pytest.mark.parametrize(("noise_multiplier", "clip_norm"), [(1.0, 1.0), (0.7, 3.0)])
def test_noise_at_the_right_scale_passes(noise_multiplier: float, clip_norm: float) -> None:
    noise = add_noise(zeros(clip_norm=clip_norm), noise_multiplier, SecretSource()).values * GRID
    assert fits(noise, noise_multiplier * clip_norm) > 1e-10  # so seldom is good noise refused


@pytest.mark.parametrize("wrong", [2 / 3, 3 / 2])
def test_noise_at_another_scale_is_noticed(wrong: float) -> None:
    noise = add_noise(zeros(), wrong, SecretSource()).values * GRID
    assert fits(noise, 1.0) < 1e-20


def test_neighbouring_coordinates_have_nothing_in_common() -> None:
    normals = standard_normals(SecretSource(), N)
    half = len(normals[:16384]) // 2  # the two halves of a block come from the same words
    for one, other in ((normals[:-1], normals[1:]), (normals[:half], normals[half : 2 * half])):
        for power in (1, 2):
            assert abs(np.corrcoef(one**power, other**power)[0, 1]) < 8 / np.sqrt(len(one))


def test_all_four_quadrants_are_alike() -> None:
    normals = standard_normals(SecretSource(), 16384)
    first, second = normals[:8192] > 0, normals[8192:] > 0
    counts = np.bincount(2 * first + second, minlength=4)
    assert (np.abs(counts - 2048) < 6 * np.sqrt(2048)).all()


def test_the_longest_and_the_shortest_radius_are_finite() -> None:
    words = [0, 2**64 - 1, 0, 2**64 - 1]
    normals = standard_normals(Told(words), 4)
    assert np.isfinite(normals).all()
    assert np.abs(normals).max() == pytest.approx(np.sqrt(2 * 65 * np.log(2)), rel=0.5)


def test_the_sum_is_added_exactly() -> None:
    total = np.array([0, 1, -1, 2**50 + 1], dtype=np.int64)
    noise = [
        add_noise(
            QuantisedSum(values=values, clip_norm=1.0, grid_step=GRID),
            1.0,
            SimulatedNoise_NotPrivate(seed=0, site="a", round=0),
        ).values
        for values in (np.zeros(4, dtype=np.int64), total)
    ]
    assert (noise[1] - noise[0] == total).all()


def test_two_releases_have_nothing_in_common() -> None:
    one, other = (add_noise(zeros(), 1.0, SecretSource()).values.astype(float) for _ in range(2))
    assert abs(np.corrcoef(one, other)[0, 1]) < 7 / np.sqrt(N)


def test_simulated_noise_marks_what_it_touches() -> None:
    seeded = SimulatedNoise_NotPrivate(seed=0, site="a", round=0)
    assert add_noise(zeros(8), 1.0, seeded).simulated
    assert not add_noise(zeros(8), 1.0, SecretSource()).simulated


@pytest.mark.parametrize("noise_multiplier", [1e-9, 1e18])
def test_noise_that_the_grid_cannot_carry_is_refused(noise_multiplier: float) -> None:
    with pytest.raises(PrivacyError, match="grid steps"):
        add_noise(zeros(8), noise_multiplier, SecretSource())
