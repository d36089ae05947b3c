"""metrics.json: its schema as frozen dataclasses, and the reading and writing of it.

`docs/metrics.md` explains each field; a test holds the two together. `summarise.py` computes the figures.

Guarantees:
  - What is written is read back equal.
  - A damaged or contradictory file is an error with the field's path, never a wrong figure in a report.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sottovoce.common import config
from sottovoce.common.errors import RunError
from sottovoce.common.fairness_figures import Fairness
from sottovoce.common.files import write_whole
from sottovoce.common.study import Share

MAX_METRICS_BYTES = 100_000_000

_Gap = Annotated[float, config.Interval(-1.0, 1.0)]
_Natural = Annotated[int, config.Interval(0)]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A share of 1 with its interval; no interval below two speakers."""

    value: Share
    low: Share | None = None
    high: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How UAR differs over the study's seeds. `deviation` divides by n - 1."""

    deviation: Share
    smallest: Share
    largest: Share


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """One class. Counts are over all seeds."""

    name: str
    n_truth: _Natural
    n_answers: _Natural
    recall: Estimate | None = None
    precision: Share | None = None


@dataclass(frozen=True, kw_only=True)
class SeedFigures:
    """One seed: all of its out-of-fold predictions pooled."""

    seed: int
    uar: Share
    war: Share
    macro_f1: Share


@dataclass(frozen=True, kw_only=True)
class CellFigures:
    """One seed and fold: one federation's model on the speakers it had never heard."""

    seed: int
    fold: int
    n_speakers: int
    n_utterances: int
    uar: Share
    never_predicted: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SpeakerFigures:
    """One voice, over all seeds. Only in simulation on public corpora."""

    speaker: str
    site: str
    n_utterances: int
    uar: Share


@dataclass(frozen=True, kw_only=True)
class GroupFigures:
    """The speakers or recordings that share one value of a group, such as sex = female."""

    group: str
    value: str
    n_speakers: int
    n_utterances: int
    few_speakers: bool
    uar: Estimate


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """What the answers of one seed and fold were divided by; fitted on the speakers of its other folds alone."""

    seed: int
    fold: int
    temperature: Annotated[float, config.Interval(0.0, low_open=True)]


@dataclass(frozen=True, kw_only=True)
class CalibrationError:
    """Expected calibration error over bins of equally many recordings. The interval has the bins' bias taken out."""

    value: Share
    if_perfect: Share
    low: Share | None = None
    high: Share | None = None


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Recordings of about one confidence: what was promised, and how many answers were right."""

    n: _Natural
    confidence: Share
    accuracy: Share


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often the surest share of the answers is right."""

    coverage: Share
    accuracy: Estimate


@dataclass(frozen=True, kw_only=True)
class SetFigures:
    """Sets that should hold the truth with probability `level`; `sizes` counts those of 1, 2, ... emotions."""

    score: Literal["least_ambiguous", "adaptive"]
    units: Literal["speakers", "recordings"]
    level: Share
    coverage: Estimate
    mean_size: Annotated[float, config.Interval(0.0)]
    sizes: tuple[_Natural, ...]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Whether probabilities mean what they say, before and after the temperature, on speakers never calibrated on."""

    temperatures: tuple[Temperature, ...]
    error_before: CalibrationError
    error: CalibrationError
    bins_before: tuple[ReliabilityBin, ...]
    bins: tuple[ReliabilityBin, ...]
    coverages: tuple[Coverage, ...]
    sets: tuple[SetFigures, ...]


@dataclass(frozen=True, kw_only=True)
class CountedCalibration:
    """What released counts say of probabilities (`evaluation.calibration`): all that a coordinator can have.

    `temperature` divides an answer's odds; an emotion is in the set where its probability is `least_probability` or
    more, and every emotion is where there is none. Without figures, the counts drowned in their noise.
    """

    n: Annotated[float, config.Interval(0.0)]
    deviation: Annotated[float, config.Interval(0.0)]
    level: Share
    temperature: Annotated[float, config.Interval(0.0, low_open=True)] | None = None
    error_before: CalibrationError | None = None
    error: CalibrationError | None = None
    least_probability: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, scored on all withheld speakers."""

    name: str
    n_utterances: int
    n_speakers: int
    n_classes_in_truth: int
    uar: Estimate
    war: Estimate
    macro_f1: Estimate
    majority_war: Share
    confusion: tuple[tuple[_Natural, ...], ...]
    classes: tuple[ClassFigures, ...]
    seeds: tuple[SeedFigures, ...]
    cells: tuple[CellFigures, ...]
    speakers: tuple[SpeakerFigures, ...]
    groups: tuple[GroupFigures, ...]
    sites: tuple[GroupFigures, ...]
    uar_over_seeds: Spread | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """UAR of one arm minus UAR of another, on the recordings and seeds that both have."""

    arm: str
    minus: str
    value: _Gap
    n_utterances: int
    n_seeds: int
    low: _Gap | None = None
    high: _Gap | None = None


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What was asked of the model: the study's facts that a reader needs beside a figure."""

    folds: str
    k: int
    seeds: tuple[int, ...]
    normalisation: Literal["constants", "utterance", "speaker", "enrolment"]
    transductive: bool
    enrolment: str | None = None
    interval_level: Share
    interval_samples: int
    interval_method: str = "percentiles of a bootstrap over speakers, expanded for few speakers"


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What a random split would have claimed. Nobody should quote it."""

    warning: str
    arms: tuple[Arm, ...]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """metrics.json."""

    schema: Literal[1]
    study: str
    study_digest: str
    privacy: str
    classes: tuple[str, ...]
    chance_uar: Share
    protocol: Protocol
    headline: str
    arms: tuple[Arm, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    leaks: Leaks | None = None
    fairness: tuple[Fairness, ...] = ()
    counted_calibration: CountedCalibration | None = None

    def arm(self, name: str) -> Arm:
        """Returns the arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)


def write(path: Path, summary: Summary) -> None:
    """Writes metrics.json, whole or not at all. What does not exist is left out, never null or NaN."""
    text = json.dumps(config.as_plain(summary), indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_whole(path, text.encode())


def read(path: Path) -> Summary:
    """Reads metrics.json.

    Raises:
        RunError: it is missing or damaged; says how to make it again.
    """
    remedy = "Make it again with `sottovoce simulate --resume`."
    try:
        with path.open("rb") as file:
            data = file.read(MAX_METRICS_BYTES + 1)
        content = json.loads(data)
    except OSError as error:
        raise RunError(f"{path.name}: cannot be read ({error.strerror}). {remedy}") from None
    except (ValueError, RecursionError):
        raise RunError(
            f"{path.name}: expected JSON; came something else, perhaps cut short. {remedy}"
        ) from None
    problems: list[str] = []
    summary = config.build(Summary, content, "", problems)
    if summary is not None:
        problems += _contradictions(summary)
    if summary is None or problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RunError(f"{path.name}: {problems[0]}{more} {remedy}")
    return summary


def _contradictions(summary: Summary) -> list[str]:
    """Returns what `build` cannot see: shapes and names that must agree for a figure to be drawn."""
    n = len(summary.classes)
    every = [*summary.arms, *(summary.leaks.arms if summary.leaks else ())]
    problems = [
        f"arms: expected a confusion of {n} x {n} and {n} classes; {arm.name[:40]!r} has others."
        for arm in every
        if [len(row) for row in arm.confusion] != [n] * n
        or [figures.name for figures in arm.classes] != [*summary.classes]
    ]
    names = [arm.name for arm in summary.arms]
    if summary.headline not in names or len(set(names)) < len(names):
        problems.append("headline: expected the name of one of the arms.")
    return problems
