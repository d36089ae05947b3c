"""explanation.json: what a run's models listen to, as frozen dataclasses; only in simulation on public corpora.

`simulations/explain.py` computes it; the report shows it. `docs/metrics.md` explains each field.

Guarantees:
  - What is written is read back equal; a damaged file is an error that names the field.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sottovoce.common import config
from sottovoce.common.errors import RunError
from sottovoce.common.files import write_whole
from sottovoce.common.study import Share

FILE = "explanation.json"
MAX_BYTES = 10_000_000

_Gap = Annotated[float, config.Interval(-1.0, 1.0)]
_Natural = Annotated[int, config.Interval(0)]


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much UAR is lost when a family of features is taken from another recording; intervals resample speakers.

    `alone` is the UAR that is left when every other family is that of the average recording.
    """

    family: str
    words: str
    n_columns: _Natural
    alone: Share
    lost: _Gap
    low: _Gap | None = None
    high: _Gap | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What speaks for an emotion where it is the truth: mean change of its log probability by family of features."""

    emotion: str
    n_utterances: _Natural
    families: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Which moments count where an emotion is the truth: by twentieths of the recording; 1 is an even share."""

    emotion: str
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """explanation.json."""

    format: Literal[1]
    study_digest: str
    arm: str
    seed: int
    n_speakers: _Natural
    n_utterances: _Natural
    uar: Share
    repeats: _Natural
    chance: Share | None = None
    uar_low: Share | None = None
    uar_high: Share | None = None
    importance: tuple[Importance, ...]
    evidence: tuple[Evidence, ...] = ()
    statistics: Mapping[str, Share] | None = None
    moments: tuple[Curve, ...] = ()
    attention: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_at_chance(self) -> bool:
        """Whether the models may know nothing: the interval of their UAR holds chance. Then nothing is explained."""
        least = self.uar if self.uar_low is None else self.uar_low
        return self.chance is not None and least <= self.chance


def write(folder: Path, explanation: Explanation) -> Path:
    """Writes a run's explanation.json, whole or not at all."""
    text = json.dumps(config.as_plain(explanation), indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_whole(folder / FILE, text.encode())
    return folder / FILE


def read(folder: Path) -> Explanation | None:
    """Reads a run's explanation, or returns None where nobody asked for one.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    remedy = "Make it again with `sottovoce explain`."
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise RunError(f"{FILE}: cannot be read ({error.strerror}). {remedy}") from None
    except (ValueError, RecursionError):
        raise RunError(f"{FILE}: expected JSON; came something else, perhaps cut short. {remedy}") from None
    problems: list[str] = []
    found = config.build(Explanation, content, "", problems)
    if found is None:
        raise RunError(f"{FILE}: {problems[0]} {remedy}")
    return found
