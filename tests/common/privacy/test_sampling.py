"""Who is drawn is what the accountant takes it for: independent coins, a random subset, at most k recordings."""

import numpy as np
import pytest

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy.sampling import choose_recordings, draw_units, first_recordings
from sottovoce.common.privacy.source import SecretSource
from tests.fakes.privacy import Told

N, Q, DRAWS = 400, 0.1, 1500


@pytest.fixture(scope="module")
def hits() -> np.ndarray:
    """DRAWS rows of N booleans."""
    drawn = np.zeros((DRAWS, N), dtype=bool)
    for row in drawn:
        row[draw_units(N, sampling_prob=Q, cap=N, source=SecretSource())] = True
    return drawn


def test_every_unit_is_drawn_with_the_stated_probability(hits: np.ndarray) -> None:
    deviation = np.sqrt(DRAWS * Q * (1 - Q))
    # Coins cannot be seeded: of 400 honest units one is eight deviations off in 10^10 runs. All together tell more.
    assert (np.abs(hits.sum(axis=0) - DRAWS * Q) < 8 * deviation).all()
    assert abs(hits.mean() - Q) < 7 * deviation / (DRAWS * np.sqrt(N))


def test_sizes_of_draws_vary_as_independent_coins_do(hits: np.ndarray) -> None:
    # A shuffled batch of fixed size has variance 0; the accountant's events do not cover it.
    sizes = hits.sum(axis=1)
    assert sizes.var() == pytest.approx(N * Q * (1 - Q), rel=7 * np.sqrt(2 / DRAWS))


def test_coins_of_two_units_are_independent(hits: np.ndarray) -> None:
    pairs = (hits[:, :-1] & hits[:, 1:]).sum()
    trials = DRAWS * (N - 1)
    assert abs(pairs - trials * Q**2) < 6 * np.sqrt(trials * Q**2 * (1 - Q**2) * 3)


def test_the_probability_does_not_depend_on_how_many_there_are() -> None:
    few = [len(draw_units(3, sampling_prob=Q, cap=3, source=SecretSource())) for _ in range(4000)]
    assert np.mean(few) == pytest.approx(3 * Q, abs=7 * np.sqrt(3 * Q / 4000))


def test_coins_have_64_bits() -> None:
    heads = int(0.1 * 2**64)
    drawn = draw_units(3, sampling_prob=0.1, cap=3, source=Told([heads - 1, heads, heads + 1]))
    assert drawn.tolist() == [0]


def test_nobody_is_a_valid_draw() -> None:
    assert draw_units(3, sampling_prob=0.5, cap=3, source=Told([2**64 - 1] * 3)).tolist() == []


def test_with_probability_one_everybody_is_drawn() -> None:
    assert draw_units(3, sampling_prob=1.0, cap=3, source=Told([0, 5, 2**64 - 1])).tolist() == [0, 1, 2]


def test_a_draw_beyond_the_cap_keeps_every_unit_alike() -> None:
    kept = np.zeros(6)
    for _ in range(3000):
        drawn = draw_units(6, sampling_prob=1.0, cap=2, source=SecretSource())
        assert len(drawn) == 2
        kept[drawn] += 1
    assert (np.abs(kept - 1000) < 6 * np.sqrt(1000)).all()


def test_the_withdrawn_are_never_drawn_and_nobody_elses_coin_changes() -> None:
    words = [0, 2**64 - 1, 0, 0]
    assert draw_units(4, sampling_prob=0.5, cap=4, source=Told(words)).tolist() == [0, 2, 3]
    assert draw_units(4, sampling_prob=0.5, cap=4, source=Told(words), withdrawn={2}).tolist() == [0, 3]


def test_at_most_k_recordings_of_each_drawn_patient_every_one_alike() -> None:
    owners = np.array([0] * 10 + [1] * 2 + [2] * 10)
    taken = np.zeros(len(owners))
    for _ in range(1500):
        chosen = choose_recordings(owners, np.array([0, 1]), n_most=3, source=SecretSource())
        assert np.bincount(owners[chosen], minlength=3).tolist() == [3, 2, 0]
        taken[chosen] += 1
    assert (np.abs(taken[:10] - 450) < 6 * np.sqrt(450)).all()
    assert (taken[10:12] == 1500).all()


def test_the_first_recordings_need_no_coin() -> None:
    owners = np.array([1, 0, 1, 1, 0, 2])
    assert first_recordings(owners, n_most=2).tolist() == [0, 1, 2, 4, 5]
    assert first_recordings(owners[:0], n_most=2).tolist() == []


@pytest.mark.parametrize("q", [0.0, 1.5, float("nan")])
def test_what_is_no_probability_is_refused(q: float) -> None:
    with pytest.raises(PrivacyError, match="sampling_prob"):
        draw_units(3, sampling_prob=q, cap=3, source=SecretSource())
