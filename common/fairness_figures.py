"""What is said of fairness in metrics.json: one `Fairness` for each arm, and one for counts as they were released.

`docs/metrics.md` explains each field; `fairness.py` computes them.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from sottovoce.common import config

Verdict = Literal["within", "open", "beyond"]

_Share = Annotated[float, config.Interval(0.0, 1.0)]
_Signed = Annotated[float, config.Interval(-1.0, 1.0)]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A difference of two shares with its interval. `within`, `beyond`: all of the interval is on one side of the

    threshold. `open`: it is on both, and nothing is shown.
    """

    value: _Signed
    low: _Signed | None = None
    high: _Signed | None = None
    threshold: _Share | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class Between:
    """The largest difference between two groups of one attribute, and which two they are."""

    more: str
    less: str
    gap: Gap


@dataclass(frozen=True, kw_only=True)
class ClassGaps:
    """One emotion: a group's recall and precision, minus those of all. Missing where there is nothing to compare."""

    name: str
    recall: Gap | None = None
    precision: Gap | None = None


@dataclass(frozen=True, kw_only=True)
class GroupFairness:
    """One group. Of a suppressed one nothing is stated but that, and its size as it was counted, noise and all."""

    group: str
    n_utterances: int
    suppressed: bool
    n_speakers: Annotated[int, config.Interval(0)] | None = None
    uar: _Share | None = None
    low: _Share | None = None
    high: _Share | None = None
    minus_all: Gap | None = None
    classes: tuple[ClassGaps, ...] = ()

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Every comparison with all that has a threshold."""
        of_classes = (gap for one in self.classes for gap in (one.recall, one.precision))
        return tuple(gap for gap in (self.minus_all, *of_classes) if gap is not None)


@dataclass(frozen=True, kw_only=True)
class ParityFigures:
    """One emotion against the rest, between the groups of an attribute.

    `demographic_parity`: how much oftener it is answered for one group than for another, whatever is true.
    `equal_opportunity`: how much oftener it is answered where it is true.
    """

    name: str
    demographic_parity: Between | None = None
    equal_opportunity: Between | None = None


@dataclass(frozen=True, kw_only=True)
class AttributeFairness:
    """The groups of one attribute against each other: in UAR, and emotion by emotion."""

    attribute: str
    uar: Between | None = None
    classes: tuple[ParityFigures, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """Whether the answers still spread over the emotions.

    `answered` and `in_truth` are effective numbers of emotions: the exponential of the entropy of their shares. A
    model has collapsed where its answers spread over at most half as many as there are. Where noise drowns the
    answers, nothing is known but what is true.
    """

    in_truth: float
    verdict: Literal["spread", "open", "collapsed"]
    most_answered: str | None = None
    share: _Share | None = None
    answered: float | None = None
    low: float | None = None
    high: float | None = None
    never_answered: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Offsets:
    """What offsets for each group would do to an arm: fitted on the speakers of the other folds alone.

    `gap_before` and `gap_after` are the largest differences in UAR between groups of `attribute`, and `change` is
    after minus before: below 0 is a gain. `price` is the UAR of all after minus before: below 0 is a price.
    """

    attribute: str
    gap_before: _Share
    gap_after: _Share
    change: Gap
    price: Gap


@dataclass(frozen=True, kw_only=True)
class Fairness:
    """One arm. `answers`: exact, from predictions, with intervals over speakers. `released counts`: from noised counts

    alone, as a coordinator has them, with intervals that include the noise. `n_flagged` counts comparisons beyond
    their threshold.
    """

    arm: str
    source: Literal["answers", "released counts"]
    noise_deviation: Annotated[float, config.Interval(0.0)]
    minimum_size: int
    groups: tuple[GroupFairness, ...]
    attributes: tuple[AttributeFairness, ...]
    collapse: Collapse
    n_flagged: Annotated[int, config.Interval(0)]
    worst_group: str | None = None
    offsets: tuple[Offsets, ...] = ()
