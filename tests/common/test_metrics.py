"""Metrics: counts that add, figures that scikit-learn confirms, intervals that cover."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_score, recall_score

from sottovoce.common import metrics
from sottovoce.common.metrics import Confusion
from sottovoce.common.streams import stream

N = 5
PAIRS = st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, N - 1)), min_size=1, max_size=80)


def confusion(pairs: list[tuple[int, int]]) -> Confusion:
    return Confusion.of([truth for truth, _ in pairs], [predicted for _, predicted in pairs], n_classes=N)


@given(PAIRS)
def test_figures_agree_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = (list(side) for side in zip(*pairs, strict=True))
    ours = confusion(pairs)
    with warnings.catch_warnings():  # it warns of classes that were answered and never occur
        warnings.simplefilter("ignore", UserWarning)
        assert ours.uar == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert ours.war == pytest.approx(accuracy_score(truth, predicted))
    assert ours.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))


@given(PAIRS)
def test_recall_and_precision_agree_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = (list(side) for side in zip(*pairs, strict=True))
    counts = confusion(pairs).counts.astype(np.float64)
    theirs: dict[str, Any] = {"labels": range(N), "average": None, "zero_division": np.nan}
    np.testing.assert_allclose(metrics.recalls(counts), recall_score(truth, predicted, **theirs))
    np.testing.assert_allclose(metrics.precisions(counts), precision_score(truth, predicted, **theirs))


@given(PAIRS, PAIRS)
def test_confusions_add(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    total = confusion(left) + confusion(right)
    assert np.array_equal(total.counts, confusion(right + left).counts)
    assert np.array_equal((total + Confusion.zero(N)).counts, total.counts)
    assert total.n == len(left) + len(right)


@given(PAIRS, st.permutations(range(N)))
def test_the_names_of_classes_do_not_matter(pairs: list[tuple[int, int]], names: list[int]) -> None:
    renamed = confusion([(names[truth], names[predicted]) for truth, predicted in pairs])
    assert renamed.uar == pytest.approx(confusion(pairs).uar)
    assert renamed.macro_f1 == pytest.approx(confusion(pairs).macro_f1)


def test_uar_is_over_the_classes_in_the_truth() -> None:
    counts = Confusion.of([0, 0, 2], [0, 1, 2], n_classes=4)
    assert (counts.uar, counts.n_classes_in_truth) == (0.75, 2)


def test_a_collapsed_model_is_named_however_good_its_accuracy() -> None:
    counts = Confusion.of([0] * 98 + [1, 1], [0] * 100, n_classes=3)
    assert counts.war == 0.98
    assert counts.never_predicted == (1,)
    assert counts.majority_war == 0.98
    assert counts.uar == 0.5


def test_nothing_counted_has_no_figure() -> None:
    empty = Confusion.zero(3)
    assert np.isnan([empty.uar, empty.war, empty.macro_f1, empty.majority_war]).all()


@pytest.mark.parametrize(("truth", "predicted"), [([0], [3]), ([-1], [0]), ([0, 1], [0])])
def test_an_index_that_is_no_class_is_refused(truth: list[int], predicted: list[int]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Confusion.of(truth, predicted, n_classes=3)


def test_confusions_of_different_classes_do_not_add() -> None:
    with pytest.raises(ValueError, match="one shape"):
        Confusion.zero(2) + Confusion.zero(3)


# ---- intervals


def test_a_draw_takes_all_recordings_of_a_speaker() -> None:
    """Three speakers with 1, 10 and 100 right answers: each total is a sum of three of these."""
    counts = np.zeros((1, 3, 2, 2), dtype=np.int64)
    counts[0, :, 0, 0] = [1, 10, 100]
    totals = metrics.resampled(counts, lambda stack: stack[:, 0, 0, 0], samples=300, seed=0)
    possible = {a + b + c for a in (1, 10, 100) for b in (1, 10, 100) for c in (1, 10, 100)}
    assert {int(total) for total in totals} <= possible
    assert totals.std() > 0


def test_draws_are_the_same_for_every_arm_and_block(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(metrics.speaker_draws(7, samples=50, seed=3)))
    monkeypatch.setattr(metrics, "_BLOCK", 21)
    blocks = list(metrics.speaker_draws(7, samples=50, seed=3))
    assert len(blocks) > 1
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert (whole.sum(axis=1) == 7).all()


def test_resampling_agrees_with_a_plain_loop() -> None:
    random = stream(0, "test")
    counts = random.integers(0, 9, (2, 6, N, N))
    fast = metrics.resampled(counts, lambda stack: metrics.uars(stack).mean(axis=1), samples=20, seed=5)
    weights = np.concatenate(list(metrics.speaker_draws(6, samples=20, seed=5)))
    for draw, value in zip(weights, fast, strict=True):
        drawn = [
            Confusion(sum(int(w) * table for w, table in zip(draw, seed, strict=True))) for seed in counts
        ]
        assert value == pytest.approx(np.mean([table.uar for table in drawn]))


def test_a_difference_between_equal_arms_is_exactly_zero_in_every_draw() -> None:
    counts = stream(0, "test").integers(0, 9, (1, 12, N, N))
    twice = np.concatenate([counts, counts])
    gaps = metrics.resampled(
        twice, lambda stack: metrics.uars(stack[:, 0]) - metrics.uars(stack[:, 1]), samples=100, seed=0
    )
    assert not gaps.any()


def test_one_speaker_has_no_interval() -> None:
    assert metrics.interval(np.zeros(100), n_speakers=1) is None


@settings(max_examples=20)
@given(n=st.integers(2, 40))
def test_intervals_are_wider_for_few_speakers_and_plain_for_many(n: int) -> None:
    draws = stream(1, "test").normal(size=20_000)

    def width(n_speakers: int) -> float:
        bounds = metrics.interval(draws, n_speakers=n_speakers)
        assert bounds is not None
        return float(bounds[1] - bounds[0])

    assert width(n) > width(n + 1)
    assert width(100_000) == pytest.approx(2 * 1.96, rel=0.03)


def simulated(random: np.random.Generator, n_speakers: int, n_clips: int) -> npt.NDArray[np.int64]:
    """Returns (speakers, 2, 2) counts: each speaker has a recall of its own, 0.6 on average."""
    recall = random.beta(3.0, 2.0, size=(n_speakers, 2))
    right = random.binomial(n_clips, recall)
    counts = np.zeros((n_speakers, 2, 2), dtype=np.int64)
    counts[:, [0, 1], [0, 1]] = right
    counts[:, [0, 1], [1, 0]] = n_clips - right
    return counts


def as_utterances(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns the same recordings, each as if it were a speaker."""
    kinds = np.eye(4, dtype=np.int64).reshape(4, 2, 2)
    return np.repeat(kinds, counts.sum(axis=0).reshape(4), axis=0)


def coverage(n_studies: int, n_speakers: int, *, over_utterances: bool = False) -> float:
    """Returns the share of simulated studies whose interval contains the true UAR, 0.6."""
    hits = 0
    for study in range(n_studies):
        counts = simulated(stream(study, "coverage", n_speakers), n_speakers, n_clips=20)
        counts = as_utterances(counts) if over_utterances else counts
        draws = metrics.resampled(
            counts[None], lambda stack: metrics.uars(stack[:, 0]), samples=400, seed=study
        )
        bounds = metrics.interval(draws, n_speakers=len(counts))
        assert bounds is not None
        hits += bool(bounds[0] <= 0.6 <= bounds[1])
    return hits / n_studies


@pytest.mark.parametrize("n_speakers", [6, 24])
def test_intervals_over_speakers_cover_the_truth(n_speakers: int) -> None:
    # 95 % of 500 studies: standard deviation 1 point; four of them, and 2 points for 400 draws.
    assert 0.91 <= coverage(500, n_speakers) <= 0.99


def test_intervals_over_utterances_do_not_cover_the_truth() -> None:
    """The twin that must fail: recordings of one voice are not independent."""
    assert coverage(40, 24, over_utterances=True) < 0.85
