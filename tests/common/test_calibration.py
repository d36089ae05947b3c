"""Calibration: by hand, by simulation, and never on the labels of those who are tested."""

import dataclasses
import itertools

import numpy as np
import pytest

from sottovoce.common import calibration, conformal
from sottovoce.common.calibrated import Answers, answers_of, calibrate, calibrated
from sottovoce.common.calibration import Floats, Reliability
from sottovoce.common.predictions import Prediction
from sottovoce.common.streams import stream
from tests.fakes.runs import FakeRun, predictions_of

RUN = FakeRun(repetitions=2, seeds=(0,), skill=(("federated", 2.0),))
ROWS = predictions_of(RUN)
ANSWERS = answers_of(ROWS)[0]


def answers(seed: int, n: int, *, temperature: float = 1.0, n_classes: int = 4) -> tuple[Floats, np.ndarray]:
    """Labels drawn from probabilities that are then stated as if they were colder by `temperature`."""
    random = stream(seed, "calibration test")
    logits = random.normal(size=(n, n_classes)) * 2.0
    probs = np.exp(calibration.tempered(logits, 1.0))
    truth = (probs.cumsum(axis=1) < random.random((n, 1))).sum(axis=1)
    return calibration.tempered(logits * temperature, 1.0), truth.astype(np.int64)


# ---- temperature


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    log_probs, truth = answers(1, 8_000, temperature=temperature)
    assert calibration.fit_temperature(log_probs, truth) == pytest.approx(temperature, rel=0.05)


def test_the_fitted_temperature_has_the_smallest_loss_and_changes_no_answer() -> None:
    log_probs, truth = answers(2, 500, temperature=3.0)
    best = calibration.fit_temperature(log_probs, truth)
    losses = [
        calibration.negative_log_likelihood(calibration.tempered(log_probs, best * factor), truth)
        for factor in (1.0, 0.97, 1.03)
    ]
    assert losses[0] < min(losses[1:])
    assert (calibration.tempered(log_probs, best).argmax(axis=1) == log_probs.argmax(axis=1)).all()


def test_a_model_that_is_always_right_or_always_wrong_gets_the_coldest_or_the_hottest() -> None:
    log_probs = np.log(np.array([[0.6, 0.4]] * 5))
    assert calibration.fit_temperature(log_probs, np.zeros(5, np.int64)) == pytest.approx(calibration.COLDEST)
    assert calibration.fit_temperature(log_probs, np.ones(5, np.int64)) == pytest.approx(calibration.HOTTEST)
    with pytest.raises(ValueError, match="came none"):
        calibration.fit_temperature(log_probs[:0], np.zeros(0, np.int64))


# ---- nobody is calibrated on his own labels


def corrupted(fold: int) -> Answers:
    own = ANSWERS.fold == fold
    truth, log_probs = ANSWERS.truth.copy(), ANSWERS.log_probs.copy()
    truth[own] = (truth[own] + 3) % 8
    log_probs[own] = calibration.tempered(log_probs[own][::-1], 0.3)
    return Answers(log_probs=log_probs, truth=truth, speaker=ANSWERS.speaker, fold=ANSWERS.fold)


@pytest.mark.parametrize("fold", range(RUN.k))
def test_labels_and_answers_of_tested_speakers_change_nothing_that_is_applied_to_them(fold: int) -> None:
    before, after = calibrate(ANSWERS), calibrate(corrupted(fold))
    assert after.temperatures[fold] == before.temperatures[fold]
    others = [one for one in before.temperatures if one != fold]
    assert all(after.temperatures[one] != before.temperatures[one] for one in others)
    for score in ("least_ambiguous", "adaptive"):
        scores = [conformal.class_scores(own.answers.log_probs, score) for own in (before, after)]
        thresholds = [
            conformal.cross_thresholds(
                values[np.arange(len(ANSWERS.truth)), own.answers.truth], ANSWERS.speaker, ANSWERS.fold
            )[fold]
            for values, own in zip(scores, (before, after), strict=True)
        ]
        assert thresholds[0] == thresholds[1]


def test_labels_of_a_fold_change_none_of_its_sets() -> None:
    own = ANSWERS.fold == 2
    truth = np.where(own, (ANSWERS.truth + 1) % 8, ANSWERS.truth)
    changed = Answers(log_probs=ANSWERS.log_probs, truth=truth, speaker=ANSWERS.speaker, fold=ANSWERS.fold)
    kept, now = (calibrate(one).sets("adaptive", "speakers") for one in (ANSWERS, changed))
    assert (kept[own] == now[own]).all()
    assert (kept[~own] != now[~own]).any()


def test_calibrating_on_the_tested_labels_is_noticed() -> None:
    """The twin: fold 1's voices are heard worse. Fitted on their own labels, sets would seem to hold all the same."""
    hard = corrupted(1)
    cheated = conformal.class_scores(hard.log_probs, "adaptive")[np.arange(len(hard.truth)), hard.truth]
    own = hard.fold == 1
    threshold = conformal.threshold_of(cheated[own], hard.speaker[own], units="recordings")
    seems = conformal.sets_of(hard.log_probs, threshold, "adaptive")[np.arange(len(own)), hard.truth][own]
    truly = calibrate(hard).sets("adaptive", "recordings")[np.arange(len(own)), hard.truth][own]
    assert seems.mean() >= 0.9
    assert truly.mean() < 0.6


def test_with_one_fold_there_are_no_figures() -> None:
    assert calibrated([row for row in ROWS if row.fold == 0], samples=100, seed=0) is None
    with pytest.raises(ValueError, match="at least two folds"):
        calibration.cross_temperatures(ANSWERS.log_probs[:3], ANSWERS.truth[:3], np.zeros(3, np.int64))


# ---- expected calibration error


def test_the_calibration_error_agrees_with_a_sum_by_hand() -> None:
    confidence = np.array([0.5, 0.9, 0.6, 0.7, 0.8, 0.95])
    correct = np.array([True, True, False, False, True, True])
    # bins of two: (0.5, 0.6) one right, (0.7, 0.8) one right, (0.9, 0.95) two right
    by_hand = (abs(1 - 1.1) + abs(1 - 1.5) + abs(2 - 1.85)) / 6
    assert calibration.expected_error(calibration.reliability(confidence, correct, 3)) == pytest.approx(
        by_hand
    )


def test_bins_hold_equally_many() -> None:
    bins = calibration.equal_mass_bins(stream(0, "bins").random(1000) ** 4, 15)
    assert set(np.bincount(bins).tolist()) == {66, 67}


def test_what_chance_leaves_is_what_a_perfect_model_shows_and_no_more() -> None:
    log_probs, _ = answers(3, 1_000)
    confidence, random = calibration.confidences(log_probs), stream(0, "perfect")
    tables = [calibration.reliability(confidence, random.random(1_000) < confidence) for _ in range(200)]
    shown = np.mean([calibration.expected_error(table) for table in tables])
    assert calibration.if_perfect(tables[0]) == pytest.approx(float(shown), rel=0.08)
    sure = Reliability(*(np.array([value]) for value in (10.0, 9.0, 4.0, 0.9)))
    assert calibration.expected_error(sure) > 4 * calibration.if_perfect(sure)


def test_the_error_tells_a_model_that_is_too_unsure_and_the_temperature_takes_it_out() -> None:
    found = calibrated(ROWS, samples=300, seed=0)
    assert found is not None
    assert None not in (found.error.low, found.error_before.low)
    unsure = [_hotter(row, 4.0) for row in ROWS]
    worse = calibrated(unsure, samples=300, seed=0)
    assert worse is not None
    assert worse.error_before.value > 0.3 > found.error_before.value
    assert (worse.error_before.low or 0.0) > 0.25
    # The temperature takes the defect back out, whatever it was: the figures after it are the same.
    assert worse.error.value == pytest.approx(found.error.value, abs=1e-6)
    assert found.error.value < 0.09


def _hotter(row: Prediction, factor: float) -> Prediction:
    values = calibration.tempered(np.array([row.log_probs]), factor)[0]
    return dataclasses.replace(row, log_probs=tuple(np.minimum(values, 0.0).tolist()))


# ---- accuracy at coverage


def test_accuracy_at_coverage_counts_the_surest_and_a_part_of_the_next() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    correct = np.array([True, True, False, False])
    found = calibration.accuracy_at([0.5, 0.625, 1.0], confidence, correct)
    assert found == pytest.approx([1.0, 2 / 2.5, 0.5])


def test_weights_count_as_repeated_recordings_do() -> None:
    random = stream(0, "coverage")
    confidence, correct = random.random(30), random.random(30) < 0.5
    times = random.integers(0, 4, 30)
    repeated = calibration.accuracy_at([0.7], np.repeat(confidence, times), np.repeat(correct, times))
    weighted = calibration.accuracy_at([0.7], confidence, correct, times[None].astype(np.float64))
    assert weighted[0] == pytest.approx(repeated)


def test_a_margin_is_the_lead_over_the_second() -> None:
    log_probs = np.log(np.array([[0.5, 0.3, 0.2]]))
    assert calibration.confidences(log_probs, by="margin") == pytest.approx([0.2])
    with pytest.raises(ValueError, match="came 'luck'"):
        calibration.confidences(log_probs, by="luck")


# ---- sets


def voices(seed: int, n: int, *, shift: float = 0.0, crowded: bool = False) -> tuple[Floats, np.ndarray]:
    """Scores of the truth by voices of different difficulty: strange where a voice is hard."""
    random = stream(seed, "voices")
    hard = random.random(n) < 0.3
    sizes = np.where(hard, 5, 200) if crowded else random.integers(5, 40, n)
    level = np.where(hard, 0.6, 0.0) + random.normal(0.0, 0.2, n) + shift
    speakers = np.repeat(np.arange(n), sizes)
    return level[speakers] + random.normal(0.0, 0.3, len(speakers)), speakers


def coverage(*, units: conformal.Units, shift: float = 0.0, crowded: bool = False, n: int = 19) -> float:
    held = []
    for seed in range(200):
        scores, speakers = voices(seed, n + 1, crowded=crowded)
        known = speakers < n
        threshold = conformal.threshold_of(scores[known], speakers[known], units=units)
        held.append((scores[~known] + shift <= threshold).mean())
    return float(np.mean(held))


def test_sets_hold_for_a_new_voice_of_the_same_kind() -> None:
    assert 0.9 <= coverage(units="speakers") <= 0.9 + 1 / 20 + 0.02
    assert coverage(units="speakers", crowded=True) >= 0.9


def test_sets_do_not_hold_for_a_voice_of_another_kind_and_it_shows() -> None:
    assert coverage(units="speakers", shift=0.7) < 0.8


def test_recordings_as_the_unit_break_the_promise_where_easy_voices_speak_most() -> None:
    assert coverage(units="recordings", crowded=True) < 0.88


def test_too_few_voices_promise_nothing() -> None:
    scores, speakers = voices(0, 5)
    assert conformal.threshold_of(scores, speakers) == np.inf
    assert conformal.sets_of(np.log(np.full((2, 4), 0.25)), np.inf, "adaptive").all()
    with pytest.raises(ValueError, match=r"level=1\.5"):
        conformal.threshold_of(scores, speakers, level=1.5)


@pytest.mark.parametrize("score", ["least_ambiguous", "adaptive"])
def test_a_set_is_never_empty_and_grows_with_the_threshold(score: conformal.Score) -> None:
    log_probs, _ = answers(5, 200)
    sizes = [conformal.sets_of(log_probs, at, score).sum(axis=1) for at in (-1.0, 0.0, 0.5, 0.9, 1.0)]
    assert (sizes[1] >= 1).all()
    assert all((wider >= narrower).all() for narrower, wider in itertools.pairwise(sizes))
    assert (sizes[-1] == 4).all()


def test_figures_of_sets_agree_with_the_sets() -> None:
    found, sets = (
        calibrated(ROWS, samples=200, seed=0),
        calibrate(ANSWERS).sets("least_ambiguous", "speakers"),
    )
    assert found is not None
    figures = found.sets[0]
    assert figures.coverage.value == pytest.approx(sets[np.arange(len(sets)), ANSWERS.truth].mean())
    assert figures.mean_size == pytest.approx(sets.sum(axis=1).mean())
    assert sum(figures.sizes) == len(sets)
    assert figures.coverage.low is not None
    assert figures.coverage.low < 0.94
