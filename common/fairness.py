"""Whether a model serves groups of speakers alike: figures, intervals and thresholds from confusion tables.

    found = of_released(counted, study.tables, names=study.labels.classes, minimum_size=30, arm="federated")
    found = of_speakers(counts, parts, ...)      # in simulation: exact tables of each speaker

Thresholds are those of audEERING's ser-tests for sex (the largest gaps of 1,000 unbiased random models on groups of
1,000 recordings): 0.075 in UAR against all, 0.175 in each emotion's recall, 0.075 in its precision. Ours are asked of
intervals: a gap is `beyond` only where all of its interval is, so that few recordings flag nobody by chance.

Guarantees:
  - A group is suppressed unless its counted size, less what noise may have added (95 %), is the minimum or more.
  - Intervals of released counts include their noise: each draw takes a noise off that may have been added, and draws
    the rates anew that so many recordings leave open. They take recordings as independent: those of one patient are
    not, so that the truth is wider, at most by the root of `counts_utterances`.
  - A group is compared with all over the emotions that occur in both.
  - Figures agree with fairlearn's, one emotion against the rest (a test).
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sottovoce.common import metrics
from sottovoce.common.fairness_figures import (
    AttributeFairness,
    Between,
    ClassGaps,
    Collapse,
    Fairness,
    Gap,
    GroupFairness,
    ParityFigures,
    Verdict,
)
from sottovoce.common.groups import Tables
from sottovoce.common.metrics import Counts, Floats, known_mean
from sottovoce.common.run_files import Counted
from sottovoce.common.streams import stream

UAR_THRESHOLD, RECALL_THRESHOLD, PRECISION_THRESHOLD = 0.075, 0.175, 0.075
# Of half of the emotions nothing is left then: whatever the others' recalls, UAR is about one half at best.
COLLAPSED_BELOW = 0.5
ONE_SIDED = 1.6449  # deviations: 95 % on one side
READABLE = 2.0  # deviations of its noise that a class's count must be above, to be divided by
N_DRAWS = 1000
MANY = 10**6  # as many speakers: plain percentiles
_BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class Rates:
    """Shares by (..., table, class): recall, precision, and how often a class is answered. NaN where undefined."""

    recall: Floats
    precision: Floats
    answered: Floats

    @staticmethod
    def of(counts: Floats) -> "Rates":
        """Returns the rates of exact tables (..., table, truth, answer)."""
        answers = counts.sum(axis=-2)
        total = answers.sum(axis=-1, keepdims=True)
        shares = np.divide(answers, total, out=np.full(answers.shape, np.nan), where=total > 0)
        return Rates(metrics.recalls(counts), metrics.precisions(counts), shares)

    @staticmethod
    def stacked(parts: "Sequence[Rates]") -> "Rates":
        """Returns blocks of draws as one."""
        return Rates(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("recall", "precision", "answered")
            )
        )

    def over_seeds(self) -> "Rates":
        """Returns the mean over the axis before the tables'."""
        return Rates(
            known_mean(self.recall, -3), known_mean(self.precision, -3), known_mean(self.answered, -3)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What is known of some groups: rates as they are and as they may be, and how large the groups are.

    The first table is of all; `attributes` gives the tables of each attribute's values. `low_sizes` are sizes that the
    groups surely have; `n_speakers` is None where nobody may know.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    attributes: Mapping[str, tuple[int, ...]]
    rates: Rates
    draws: Rates
    sizes: Floats
    low_sizes: Floats
    truth: Floats
    n_speakers: tuple[int, ...] | None
    never_answered: tuple[str, ...]


def of_released(
    counted: Counted,
    tables: Tables,
    *,
    classes: tuple[str, ...],
    minimum_size: int,
    arm: str,
    seed: int = 0,
    n_draws: int = N_DRAWS,
) -> Fairness:
    """Returns the figures of counts as they were released, all that a coordinator has."""
    counts, noise = np.asarray(counted.tables, np.float64)[: len(tables.all)], counted.deviation
    n = len(classes)
    rows, answers, right = counts.sum(axis=2), counts.sum(axis=1), np.diagonal(counts, axis1=1, axis2=2)
    least = READABLE * noise * np.sqrt(n)
    sizes = counts.sum(axis=(1, 2))
    known, given = (np.where(whole > least, whole, np.nan) for whole in (rows, answers))
    total = np.where(sizes > READABLE * noise * n, sizes, np.nan)[:, None]
    with np.errstate(invalid="ignore"):
        point = Rates(
            *(np.clip(share, 0.0, 1.0) for share in (right / known, right / given, answers / total))
        )
    seen = Seen(
        classes=classes,
        names=tuple(table.name for table in tables.all),
        attributes={name: tables.of_attribute(name) for name in tables.attributes},
        rates=point,
        draws=_plausible(point, counts, noise, seed, n_draws),
        sizes=sizes,
        low_sizes=sizes - ONE_SIDED * noise * n,
        truth=np.maximum(rows[0], 0.0),
        n_speakers=None,
        never_answered=tuple(
            name
            for name, row, column in zip(classes, rows[0], answers[0], strict=True)
            if row > least >= column
        ),
    )
    return judged(seen, arm=arm, minimum_size=minimum_size, noise=noise, source="released counts")


def of_speakers(
    counts: Counts,
    parts: Sequence[tuple[str, Counts]],
    attributes: Mapping[str, tuple[int, ...]],
    *,
    classes: tuple[str, ...],
    minimum_size: int,
    arm: str,
    samples: int,
    seed: int,
) -> Fairness:
    """Returns the exact figures of a simulation, with intervals over speakers.

    `counts` is (seeds, speakers, truth, answer) of all, and `parts` names each group and gives its part of them;
    `attributes` counts tables from 1, as 0 is that of all.
    """
    stack = np.stack([counts, *(part for _, part in parts)], axis=2).astype(np.float64)
    by_speaker = stack.transpose(1, 0, 2, 3, 4)  # (speakers, seeds, tables, truth, answer)
    sums = by_speaker.sum(axis=0)
    sizes = sums[0].sum(axis=(1, 2))
    n_speakers = tuple(int(n) for n in (stack.sum(axis=(0, 3, 4)) > 0).sum(axis=0))
    confusion = metrics.Confusion(sums[:, 0].sum(axis=0).astype(np.int64))
    seen = Seen(
        classes=classes,
        names=("all", *(name for name, _ in parts)),
        attributes=attributes,
        rates=Rates.of(sums).over_seeds(),
        draws=_resampled(by_speaker, samples=samples, seed=seed),
        sizes=sizes,
        low_sizes=sizes,
        truth=sums[:, 0].sum(axis=(0, 2)),
        n_speakers=n_speakers,
        never_answered=tuple(classes[index] for index in confusion.never_predicted),
    )
    return judged(seen, arm=arm, minimum_size=minimum_size, noise=0.0, source="answers")


def judged(seen: Seen, *, arm: str, minimum_size: int, noise: float, source: str) -> Fairness:
    """Returns all figures of what is known."""
    shown = tuple(size >= minimum_size for size in seen.low_sizes)
    groups = tuple(_group(seen, index, shown[index]) for index in range(1, len(seen.names)))
    stated = [group for group in groups if group.uar is not None]
    gaps = [gap for group in groups for gap in group.gaps]
    return Fairness(
        arm=arm,
        source="answers" if source == "answers" else "released counts",
        noise_deviation=noise,
        minimum_size=minimum_size,
        groups=groups,
        attributes=tuple(
            _attribute(seen, name, [index for index in indices if shown[index]])
            for name, indices in seen.attributes.items()
        ),
        collapse=_collapse(seen),
        n_flagged=sum(gap.verdict == "beyond" for gap in gaps),
        worst_group=min(stated, key=lambda group: group.uar or 0.0).group if stated else None,
    )


def effective_number(shares: Floats) -> Floats:
    """Returns over how many classes shares (..., classes) spread: the exponential of their entropy.

    >>> effective_number(np.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])).tolist()
    [4.0, 1.0]
    """
    whole = shares.sum(axis=-1, keepdims=True)
    parts = np.divide(shares, whole, out=np.zeros(shares.shape), where=whole > 0)
    logs = np.log(np.where(parts > 0, parts, 1.0))
    number: Floats = np.exp(-(parts * logs).sum(axis=-1))
    return number


def verdict(low: float | None, high: float | None, threshold: float) -> Verdict:
    """Returns what an interval says of a threshold on the size of a difference.

    >>> verdict(-0.02, 0.05, 0.075), verdict(-0.02, 0.1, 0.075), verdict(0.08, 0.2, 0.075)
    ('within', 'open', 'beyond')
    """
    if low is None or high is None:
        return "open"
    if -threshold <= low and high <= threshold:
        return "within"
    return "beyond" if low > threshold or high < -threshold else "open"


def _plausible(point: Rates, counts: Floats, noise: float, seed: int, n_draws: int) -> Rates:
    """Draws rates that may be the true ones behind noised counts; undefined where the rates themselves are.

    A count's noise is symmetric, so what was counted less a draw of it is as likely as not the true count. What k of n
    recordings leave open of a rate is a beta distribution (Jeffreys).
    """
    random = stream(seed, "fairness intervals", len(counts))
    n = counts.shape[1]
    right = np.diagonal(counts, axis1=1, axis2=2)
    rows, answers = counts.sum(axis=2), counts.sum(axis=1)
    shape = (n_draws, *right.shape)

    def noisy(values: Floats, n_cells: int) -> Floats:
        taken_off: Floats = values - noise * np.sqrt(n_cells) * random.standard_normal(shape)
        return taken_off

    hits = noisy(right, 1)
    misses, wrong = noisy(rows - right, n - 1), noisy(answers - right, n - 1)
    total = noisy(counts.sum(axis=(1, 2))[:, None], n * n - n)

    def rate(part: Floats, whole: Floats, defined: Floats) -> Floats:
        size = np.maximum(whole, 0.0)
        share = np.clip(np.divide(part, size, out=np.full(shape, 0.5), where=size > 0), 0.0, 1.0)
        drawn = random.beta(size * share + 0.5, size * (1.0 - share) + 0.5)
        return np.where(np.isnan(defined), np.nan, drawn)

    return Rates(
        rate(hits, hits + misses, point.recall),
        rate(hits, hits + wrong, point.precision),
        rate(hits + wrong, np.broadcast_to(total, shape), point.answered),
    )


def _resampled(by_speaker: Floats, *, samples: int, seed: int) -> Rates:
    n_speakers, shape = len(by_speaker), by_speaker.shape[1:]
    flat = by_speaker.reshape(n_speakers, -1)
    at_once = max(1, _BLOCK // flat.shape[1])
    return Rates.stacked(
        [
            Rates.of((some @ flat).reshape(-1, *shape)).over_seeds()
            for weights in metrics.speaker_draws(n_speakers, samples=samples, seed=seed)
            for some in np.split(weights, range(at_once, len(weights), at_once))
        ]
    )


def _group(seen: Seen, index: int, shown: bool) -> GroupFairness:
    n_speakers = None if seen.n_speakers is None else seen.n_speakers[index]
    size = round(float(seen.sizes[index]))
    uar = float(known_mean(seen.rates.recall[index]))
    if not shown or np.isnan(uar):
        return GroupFairness(
            group=seen.names[index], n_utterances=size, suppressed=not shown, n_speakers=n_speakers
        )
    low, high = _ends(known_mean(seen.draws.recall[:, index]), _least(seen, index))
    return GroupFairness(
        group=seen.names[index],
        n_utterances=size,
        suppressed=False,
        n_speakers=n_speakers,
        uar=uar,
        low=low,
        high=high,
        minus_all=_compared(seen, index, 0, _uar_gap, UAR_THRESHOLD),
        classes=tuple(_classes(seen, index)),
    )


def _classes(seen: Seen, index: int) -> Iterator[ClassGaps]:
    for column, name in enumerate(seen.classes):
        yield ClassGaps(
            name=name,
            recall=_compared(seen, index, 0, _of("recall", column), RECALL_THRESHOLD),
            precision=_compared(seen, index, 0, _of("precision", column), PRECISION_THRESHOLD),
        )


def _attribute(seen: Seen, name: str, indices: Sequence[int]) -> AttributeFairness:
    return AttributeFairness(
        attribute=name,
        uar=_largest(seen, indices, _uar_gap),
        classes=tuple(
            ParityFigures(
                name=label,
                demographic_parity=_largest(seen, indices, _of("answered", column)),
                equal_opportunity=_largest(seen, indices, _of("recall", column)),
            )
            for column, label in enumerate(seen.classes)
        ),
    )


Statistic = Callable[[Rates, int, int], Floats]


def _uar_gap(rates: Rates, one: int, other: int) -> Floats:
    """Returns the difference in UAR over the emotions that occur in both."""
    return known_mean(rates.recall[..., one, :] - rates.recall[..., other, :])


def _of(what: str, column: int) -> Statistic:
    """Returns the difference in one class's rate."""

    def gap(rates: Rates, one: int, other: int) -> Floats:
        values: Floats = getattr(rates, what)[..., column]
        difference: Floats = values[..., one] - values[..., other]
        return difference

    return gap


def _largest(seen: Seen, indices: Sequence[int], statistic: Statistic) -> Between | None:
    """Returns the largest difference between two groups, with the interval of these two."""
    pairs = [
        (float(statistic(seen.rates, one, other)), one, other)
        for one, other in itertools.permutations(indices, 2)
    ]
    known = [pair for pair in pairs if not np.isnan(pair[0])]
    if not known:
        return None
    _, more, less = max(known)
    gap = _compared(seen, more, less, statistic, None)
    return None if gap is None else Between(more=seen.names[more], less=seen.names[less], gap=gap)


def _compared(seen: Seen, one: int, other: int, statistic: Statistic, threshold: float | None) -> Gap | None:
    value = float(statistic(seen.rates, one, other))
    if np.isnan(value):
        return None
    low, high = _ends(statistic(seen.draws, one, other), min(_least(seen, one), _least(seen, other)))
    return Gap(
        value=value,
        low=low,
        high=high,
        threshold=threshold,
        verdict=None if threshold is None else verdict(low, high, threshold),
    )


def _least(seen: Seen, index: int) -> int:
    return MANY if seen.n_speakers is None else seen.n_speakers[index]


def _ends(draws: npt.NDArray[np.float64], n_speakers: int) -> tuple[float | None, float | None]:
    known = draws[~np.isnan(draws)]
    bounds = metrics.interval(known, n_speakers=n_speakers) if len(known) else None
    return (None, None) if bounds is None else (float(bounds[0]), float(bounds[1]))


def _collapse(seen: Seen) -> Collapse:
    shares = seen.rates.answered[0]
    if np.isnan(shares).any():  # too few answers, or too much noise
        return Collapse(in_truth=float(effective_number(seen.truth)), verdict="open")
    draws = np.nan_to_num(seen.draws.answered[:, 0])
    low, high = _ends(effective_number(draws), _least(seen, 0))
    answered, in_truth = float(effective_number(shares)), float(effective_number(seen.truth))
    limit = COLLAPSED_BELOW * in_truth
    if low is None or high is None or low <= limit < high:
        judged: Literal["spread", "open", "collapsed"] = "open"
    else:
        judged = "collapsed" if high <= limit else "spread"
    return Collapse(
        most_answered=seen.classes[int(shares.argmax())],
        share=float(shares.max()),
        answered=answered,
        in_truth=in_truth,
        verdict=judged,
        low=low,
        high=high,
        never_answered=seen.never_answered,
    )
