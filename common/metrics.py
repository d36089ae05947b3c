"""Figures of a classifier from counts that add, and intervals that resample speakers.

A confusion is a table of counts, truth in rows and prediction in columns. Counts of folds, sites and speakers
add; rates do not. So everything here is computed from sums of counts, and as the last step.

The functions in the plural (`uars`, `wars`, ...) take any stack of tables (..., classes, classes).

Guarantees:
  - UAR is the mean recall over the classes that occur in the truth; how many they are is stated beside it.
  - Figures agree with scikit-learn's (balanced accuracy, accuracy, macro F1).
  - Confusions add: the figure of a sum does not depend on how its parts were split or ordered.
  - Intervals resample speakers, with all of a speaker's recordings at once: recordings of one voice are not
    independent, and an interval over recordings is too narrow (a test shows it).
  - The same seed and the same number of speakers give the same draws, for every arm and every study seed, so
    that differences between them are paired.

>>> counts = Confusion.of([0, 0, 1, 1], [0, 1, 1, 1], n_classes=2)
>>> counts.uar, counts.war
(0.75, 0.75)
>>> (counts + counts).n
8
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.common.streams import stream

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

LEVEL = 0.95
_BLOCK = 1 << 22  # entries of a block of draws: 32 MiB, whatever the number of speakers


@dataclass(frozen=True, eq=False)
class Confusion:
    """Counts of (truth, prediction) pairs. They add."""

    counts: Counts

    @staticmethod
    def zero(n_classes: int) -> "Confusion":
        """Returns the confusion of no recordings."""
        return Confusion(np.zeros((n_classes, n_classes), dtype=np.int64))

    @staticmethod
    def of(truth: npt.ArrayLike, predicted: npt.ArrayLike, *, n_classes: int) -> "Confusion":
        """Counts pairs of class indices.

        Raises:
            ValueError: the lengths differ, or an index is not a class.
        """
        rows, columns = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
        return Confusion(counts_by(np.zeros_like(rows), rows, columns, n_units=1, n_classes=n_classes)[0])

    def __add__(self, other: "Confusion") -> "Confusion":
        if self.counts.shape != other.counts.shape:
            raise ValueError(
                f"Expected confusions of one shape; came {self.counts.shape} and {other.counts.shape}."
            )
        return Confusion(self.counts + other.counts)

    @property
    def n(self) -> int:
        """How many recordings were counted."""
        return int(self.counts.sum())

    @property
    def n_classes_in_truth(self) -> int:
        """Over how many classes the UAR is a mean."""
        return int((self.counts.sum(axis=1) > 0).sum())

    @property
    def uar(self) -> float:
        """Unweighted average recall, NaN when nothing was counted."""
        return float(uars(self.counts.astype(np.float64)))

    @property
    def war(self) -> float:
        """Weighted average recall, which is plain accuracy; NaN when nothing was counted."""
        return float(wars(self.counts.astype(np.float64)))

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur in the truth or among the predictions."""
        return float(macro_f1s(self.counts.astype(np.float64)))

    @property
    def majority_war(self) -> float:
        """The accuracy of always answering the most frequent class."""
        return float(self.counts.sum(axis=1).max() / self.n) if self.n else float("nan")

    @property
    def never_predicted(self) -> tuple[int, ...]:
        """Classes that occur in the truth but were never answered: a collapsed model, whatever its WAR."""
        missed = (self.counts.sum(axis=1) > 0) & (self.counts.sum(axis=0) == 0)
        return tuple(int(index) for index in np.flatnonzero(missed))


def recalls(counts: Floats) -> Floats:
    """Returns the recall of each class (..., classes); NaN for a class that is not in the truth."""
    return _ratio(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1))


def precisions(counts: Floats) -> Floats:
    """Returns the precision of each class (..., classes); NaN for a class that was never answered."""
    return _ratio(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-2))


def uars(counts: Floats) -> Floats:
    """Returns the mean recall over the classes in the truth (...)."""
    return known_mean(recalls(counts))


def wars(counts: Floats) -> Floats:
    """Returns the share of right answers (...)."""
    return _ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum(axis=(-2, -1)))


def macro_f1s(counts: Floats) -> Floats:
    """Returns the mean F1 over the classes in the truth or among the predictions (...)."""
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    return known_mean(_ratio(2.0 * right, counts.sum(axis=-1) + counts.sum(axis=-2)))


def counts_by(unit: Counts, truth: Counts, predicted: Counts, *, n_units: int, n_classes: int) -> Counts:
    """Returns one table of counts per unit (a speaker, say): (units, classes, classes).

    Raises:
        ValueError: the lengths differ, or an index is out of range.
    """
    if not len(unit) == len(truth) == len(predicted):
        raise ValueError(f"Expected one length; came {len(unit)}, {len(truth)} and {len(predicted)}.")
    for name, values, end in (
        ("unit", unit, n_units),
        ("truth", truth, n_classes),
        ("class", predicted, n_classes),
    ):
        if len(values) and not (values.min() >= 0 and values.max() < end):
            raise ValueError(
                f"Expected each {name} index in [0, {end}); came {values.min()} to {values.max()}."
            )
    flat = (unit * n_classes + truth) * n_classes + predicted
    return np.bincount(flat, minlength=n_units * n_classes**2).reshape(n_units, n_classes, n_classes)


def resampled(counts: Sequence[Counts] | Counts, statistic: Statistic, *, samples: int, seed: int) -> Floats:
    """Returns a statistic under `samples` draws of as many speakers, with replacement: (samples, ...).

    `counts` is (replicates, speakers, classes, classes). Replicates are the study's seeds, or arms: each draw
    weighs the speakers of all replicates alike. `statistic` takes (draws, replicates, classes, classes).
    """
    tables = np.asarray(counts, dtype=np.float64)
    n_replicates, n_speakers, n_classes, _ = tables.shape
    by_speaker = tables.transpose(1, 0, 2, 3).reshape(n_speakers, -1)
    shape = (-1, n_replicates, n_classes, n_classes)
    blocks = speaker_draws(n_speakers, samples=samples, seed=seed)
    return np.concatenate([statistic((weights @ by_speaker).reshape(shape)) for weights in blocks])


def speaker_draws(n_speakers: int, *, samples: int, seed: int) -> Iterator[Floats]:
    """Yields how often each speaker is in each draw, in blocks (draws, speakers)."""
    random = stream(seed, "speaker bootstrap", n_speakers)
    block = max(1, _BLOCK // n_speakers)
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        yield random.multinomial(n_speakers, np.full(n_speakers, 1.0 / n_speakers), size=rows).astype(
            np.float64
        )


def interval(draws: Floats, *, n_speakers: int, level: float = LEVEL) -> tuple[Floats, Floats] | None:
    """Returns the expanded percentile interval of draws (samples, ...), or None for fewer than two speakers.

    Plain percentiles of n speakers are too narrow: they use n for n - 1 and the normal for Student's t. The
    expanded ones (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 4.2) take further
    percentiles instead. For many speakers both are the same; for four, it is about the worst to the best.
    """
    if n_speakers < 2:
        return None
    from scipy.special import ndtr, stdtrit  # here, since start-up does not need it

    tail = float(ndtr(stdtrit(n_speakers - 1, (1.0 - level) / 2.0) * np.sqrt(n_speakers / (n_speakers - 1))))
    low, high = np.nanquantile(draws, [tail, 1.0 - tail], axis=0)
    return low, high


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Returns part / whole, NaN where the whole is nothing."""
    ratio: Floats = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=ratio, where=np.asarray(whole) > 0)


def known_mean(values: Floats, axis: int = -1) -> Floats:
    """Returns the mean over an axis of what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=axis), known.sum(axis=axis).astype(np.float64))
