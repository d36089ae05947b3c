"""From the out-of-fold answers of one arm to its calibration figures, with intervals that resample speakers.

    figures = calibrated(rows, n_classes=8, samples=2000, seed=0)   # rows: predictions of one arm, all seeds

Guarantees:
  - What is applied to a fold (temperature, thresholds of sets) is fitted on the speakers of the other folds of the same
    seed: labels and answers of a fold's own speakers change neither.
  - Figures are means over seeds; intervals draw speakers, each with all recordings of all seeds, as everywhere.
  - The interval of an expected calibration error has the bias of binning taken out of it; the value has it.
  - With one fold there is nobody to calibrate on, and there are no figures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sottovoce.common import calibration, conformal, metrics
from sottovoce.common.calibration import Counts, Flags, Floats
from sottovoce.common.conformal import LEVEL, Score, Units
from sottovoce.common.predictions import Prediction
from sottovoce.common.summary import (
    Calibration,
    CalibrationError,
    Coverage,
    Estimate,
    ReliabilityBin,
    SetFigures,
    Temperature,
)

COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
SETS: tuple[tuple[Score, Units], ...] = (
    ("least_ambiguous", "speakers"),
    ("least_ambiguous", "recordings"),
    ("adaptive", "speakers"),
    ("adaptive", "recordings"),
)
_BLOCK = 1 << 22  # numbers in a block of draws


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of one arm and seed. `speaker` counts the arm's speakers, in order of their names."""

    log_probs: Floats
    truth: Counts
    speaker: Counts
    fold: Counts

    @property
    def correct(self) -> Flags:
        """Which answers are right."""
        return np.asarray(self.log_probs.argmax(axis=1) == self.truth)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """The same answers at their folds' temperatures, with what was fitted."""

    answers: Answers
    temperatures: dict[int, float]

    @cached_property
    def log_probs(self) -> Floats:
        """Log probabilities at the temperatures."""
        each = np.array([self.temperatures[int(fold)] for fold in self.answers.fold])
        return calibration.tempered(self.answers.log_probs, each)

    @cached_property
    def _at_each(self) -> list[Floats]:
        # Each fold sees the others' answers at its own temperature: at theirs, scores would not be comparable.
        return [
            calibration.tempered(self.answers.log_probs, at) for _, at in sorted(self.temperatures.items())
        ]

    def sets(self, score: Score, units: Units, level: float = LEVEL) -> Flags:
        """Returns which classes are in each recording's set."""
        own = self.answers
        scores = [_of_truth(at_own, own.truth, score) for at_own in self._at_each]
        thresholds = conformal.cross_thresholds(
            np.array(scores), own.speaker, own.fold, level=level, units=units
        )
        each = np.array([thresholds[int(fold)] for fold in own.fold])
        return conformal.sets_of(self.log_probs, each, score)


def calibrate(answers: Answers) -> Calibrated:
    """Fits each fold's temperature on the other folds. Raises: ValueError where there is one fold only."""
    return Calibrated(answers, calibration.cross_temperatures(answers.log_probs, answers.truth, answers.fold))


def answers_of(rows: Sequence[Prediction]) -> dict[int, Answers]:
    """Returns the answers of one arm, by seed."""
    names = sorted({row.speaker for row in rows})
    index = {name: position for position, name in enumerate(names)}
    found = {}
    for seed in sorted({row.seed for row in rows}):
        own = sorted((row for row in rows if row.seed == seed), key=lambda row: row.utterance)
        found[seed] = Answers(
            log_probs=np.array([row.log_probs for row in own], np.float64),
            truth=np.array([row.truth for row in own], np.int64),
            speaker=np.array([index[row.speaker] for row in own], np.int64),
            fold=np.array([row.fold for row in own], np.int64),
        )
    return found


def calibrated(
    rows: Sequence[Prediction], *, samples: int, seed: int, level: float = LEVEL
) -> Calibration | None:
    """Computes the calibration figures of one arm; None where a seed has one fold only."""
    by_seed = answers_of(rows)
    if not by_seed or any(len(np.unique(answers.fold)) < 2 for answers in by_seed.values()):
        return None
    found = {one: calibrate(answers) for one, answers in by_seed.items()}
    n_speakers = len({row.speaker for row in rows})
    draws = _Draws(n_speakers, samples, seed)
    before = [_table(answers.log_probs, answers) for answers in by_seed.values()]
    after = [_table(one.log_probs, one.answers) for one in found.values()]
    return Calibration(
        temperatures=tuple(
            Temperature(seed=one, fold=fold, temperature=value)
            for one, its in found.items()
            for fold, value in its.temperatures.items()
        ),
        error_before=_error(before, draws),
        error=_error(after, draws),
        bins=_bins(after),
        bins_before=_bins(before),
        coverages=tuple(_coverages(list(found.values()), draws)),
        sets=tuple(_sets(list(found.values()), score, units, level, draws) for score, units in SETS),
    )


@dataclass(frozen=True)
class _Draws:
    """Draws of speakers; the same for every figure."""

    n_speakers: int
    samples: int
    seed: int

    def blocks(self, width: int) -> Iterator[Floats]:
        """Yields weights (draws, speakers), few enough draws that `width` numbers for each fit a block."""
        step = max(1, _BLOCK // max(width, 1))
        for weights in metrics.speaker_draws(self.n_speakers, samples=self.samples, seed=self.seed):
            for start in range(0, len(weights), step):
                yield weights[start : start + step]

    def estimate(self, value: float, draws: Floats) -> Estimate:
        """Returns a share with the percentile interval of its draws."""
        bounds = metrics.interval(draws, n_speakers=self.n_speakers)
        low, high = (None, None) if bounds is None else (float(side) for side in bounds)
        return Estimate(value=value, low=low, high=high)


@dataclass(frozen=True, eq=False)
class _Table:
    """Of one seed: the reliability table, and by speaker (speakers, bins) how far right answers are from expected."""

    whole: calibration.Reliability
    distance: Floats
    n: Floats


def _table(log_probs: Floats, answers: Answers) -> _Table:
    confidence = calibration.confidences(log_probs)
    bins = calibration.equal_mass_bins(confidence)
    n_speakers = int(answers.speaker.max()) + 1
    cell, shape = answers.speaker * calibration.N_BINS + bins, (n_speakers, calibration.N_BINS)

    def by_speaker(values: Floats | None) -> Floats:
        return (
            np.bincount(cell, weights=values, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
        )

    whole = calibration.reliability(confidence, answers.correct)
    return _Table(whole, by_speaker(answers.correct - confidence), by_speaker(None))


def _error(tables: Sequence[_Table], draws: _Draws) -> CalibrationError:
    value = float(np.mean([calibration.expected_error(table.whole) for table in tables]))
    drawn = np.concatenate([_drawn_errors(tables, weights) for weights in draws.blocks(calibration.N_BINS)])
    bounds = metrics.interval(drawn, n_speakers=draws.n_speakers)
    # The basic bootstrap: draws lie above the value by as much as the value lies above the truth, so turn them around.
    low, high = (
        (None, None) if bounds is None else (max(0.0, float(2 * value - side)) for side in bounds[::-1])
    )
    return CalibrationError(
        value=value,
        if_perfect=float(np.mean([calibration.if_perfect(table.whole) for table in tables])),
        low=low,
        high=high,
    )


def _drawn_errors(tables: Sequence[_Table], weights: Floats) -> Floats:
    errors = []
    for table in tables:
        drawn = weights[:, : len(table.n)]  # a seed may lack the last speakers
        errors.append(np.abs(drawn @ table.distance).sum(axis=1) / (drawn @ table.n).sum(axis=1))
    return metrics.known_mean(np.stack(errors, axis=1))


def _bins(tables: Sequence[_Table]) -> tuple[ReliabilityBin, ...]:
    """Returns the bins of all seeds together: the surest n-th of each."""
    whole = [table.whole for table in tables]
    n, confidence, right = (
        np.sum([getattr(one, name) for one in whole], axis=0) for name in ("n", "confidence", "right")
    )
    return tuple(
        ReliabilityBin(
            n=int(n[i]), confidence=float(min(confidence[i] / n[i], 1.0)), accuracy=float(right[i] / n[i])
        )
        for i in np.flatnonzero(n)
    )


def _coverages(found: Sequence[Calibrated], draws: _Draws) -> Iterator[Coverage]:
    def at(weights: Floats | None) -> Floats:
        each = []
        for one in found:
            drawn = None if weights is None else weights[:, one.answers.speaker]
            confidence = calibration.confidences(one.log_probs)
            each.append(calibration.accuracy_at(COVERAGES, confidence, one.answers.correct, drawn))
        return np.asarray(np.mean(each, axis=0))

    values = at(None)
    width = max(len(one.answers.truth) for one in found)
    drawn = np.concatenate([at(weights) for weights in draws.blocks(width)])
    for index, coverage in enumerate(COVERAGES):
        accuracy = draws.estimate(float(values[index]), drawn[:, index])
        yield Coverage(coverage=coverage, accuracy=accuracy)


def _sets(found: Sequence[Calibrated], score: Score, units: Units, level: float, draws: _Draws) -> SetFigures:
    covered, sizes, tables = [], [], []
    for one in found:
        inside, own = one.sets(score, units, level), one.answers
        hit = inside[np.arange(len(own.truth)), own.truth]
        covered.append(hit.mean())
        sizes.append(inside.sum(axis=1))
        n = np.bincount(own.speaker, minlength=draws.n_speakers).astype(np.float64)
        hits = np.bincount(own.speaker, weights=hit.astype(np.float64), minlength=draws.n_speakers)
        tables.append((hits, n))
    drawn = np.concatenate(
        [
            metrics.known_mean(np.stack([(w @ hits) / (w @ n) for hits, n in tables], axis=1))
            for w in draws.blocks(draws.n_speakers)
        ]
    )
    every = np.concatenate(sizes)
    counts = np.bincount(every, minlength=found[0].log_probs.shape[1] + 1)[1:]
    return SetFigures(
        score=score,
        units=units,
        level=level,
        coverage=draws.estimate(float(np.mean(covered)), drawn),
        mean_size=float(every.mean()),
        sizes=tuple(int(count) for count in counts),
    )


def _of_truth(log_probs: Floats, truth: Counts, score: Score) -> Floats:
    return np.asarray(conformal.class_scores(log_probs, score)[np.arange(len(truth)), truth])
