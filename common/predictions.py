"""predictions.jsonl: one line per scored recording, study seed and arm. Every figure is computed from it.

    {"arm":"federated","fold":1,"groups":{"sex":"female"},"log_probs":[-0.1,-2.3],"seed":0,"site":"site-1",
     "speaker":"04","truth":0,"utterance":"Actor_04/03-01-05.flac"}

Guarantees:
  - What is written is read back equal, float by float.
  - The bytes of a file do not depend on the order in which cells ended.
  - A damaged, contradictory or doubled line is an error that names the line, never skipped.

Only for simulation on public corpora: a hospital's predictions never leave it.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sottovoce.common.errors import RunError
from sottovoce.common.files import write_whole

MAX_LINE_BYTES = 100_000
LEAKS = " (random split, leaks)"  # how the name of an arm ends whose speakers are on both sides of the split

_FIELDS = ("arm", "fold", "groups", "log_probs", "seed", "site", "speaker", "truth", "utterance")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What one model said of one recording. `log_probs` are natural logarithms, one per class."""

    seed: int
    fold: int
    arm: str
    utterance: str
    speaker: str
    site: str
    groups: Mapping[str, str]
    truth: int
    log_probs: tuple[float, ...]

    @property
    def predicted(self) -> int:
        """The most probable class; of equals the first."""
        return max(range(len(self.log_probs)), key=self.log_probs.__getitem__)


def leaks(arm: str) -> bool:
    """Returns whether an arm was scored on a random split."""
    return arm.endswith(LEAKS)


def log_probs_of(probs: Sequence[float], floor: float = 1e-12) -> tuple[float, ...]:
    """Returns logarithms of probabilities that may be 0 (as a tree's): raised to `floor`, then scaled."""
    raised = [max(float(prob), floor) for prob in probs]
    total = sum(raised)
    return tuple(math.log(prob / total) for prob in raised)


def write(path: Path, predictions: Iterable[Prediction]) -> None:
    """Writes a file in one canonical order, whole or not at all."""
    ordered = sorted(predictions, key=lambda row: (row.arm, row.seed, row.fold, row.utterance))
    write_whole(path, "".join(map(to_line, ordered)).encode())


def read(path: Path, *, n_classes: int) -> list[Prediction]:
    """Reads a file and checks it as a whole.

    Raises:
        RunError: the file is missing, a line is damaged, or two lines contradict each other.
    """
    predictions: list[Prediction] = []
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                predictions.append(from_line(line, n_classes=n_classes, number=len(predictions) + 1))
    except OSError as error:
        raise RunError(f"{path.name}: cannot be read ({error.strerror}). {_REMEDY}") from None
    check(predictions)
    return predictions


def to_line(row: Prediction) -> str:
    """Returns a row as a line of JSON, keys in order."""
    table = {name: getattr(row, name) for name in _FIELDS} | {"groups": dict(row.groups)}
    return json.dumps(table, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n"


def from_line(line: bytes, *, n_classes: int, number: int = 1) -> Prediction:
    """Parses one line. Raises: RunError with the line's number and what is wrong with it."""
    if len(line) > MAX_LINE_BYTES:
        _refuse(number, f"at most {MAX_LINE_BYTES} bytes", "more")
    try:
        table = json.loads(line)
    except (ValueError, RecursionError):
        _refuse(number, "a JSON object", "something else, perhaps a line cut short")
    if not isinstance(table, dict) or tuple(sorted(table)) != _FIELDS:
        _refuse(number, f"an object with the keys {', '.join(_FIELDS)}", "others")
    for name in ("arm", "site", "speaker", "utterance"):
        if not _is_text(table[name]) or not table[name]:
            _refuse(number, f"{name} to be a text")
    for name, end in (("seed", 1 << 63), ("fold", 1000), ("truth", n_classes)):
        if type(table[name]) is not int or not 0 <= table[name] < end:
            _refuse(number, f"{name} to be an integer in [0, {end})")
    return Prediction(
        **table | {"groups": _groups(table, number), "log_probs": _log_probs(table, n_classes, number)}
    )


def check(predictions: Iterable[Prediction]) -> None:
    """Checks that rows agree with each other.

    Raises:
        RunError: a recording is there twice in one arm and seed; or its speaker, site, groups or truth differ
            between arms or seeds; or a speaker is in two folds of one arm and seed without the arm being
            named as one that leaks.
    """
    seen: set[tuple[str, int, str]] = set()
    facts: dict[str, tuple[str, str, int, Mapping[str, str]]] = {}
    folds: dict[tuple[str, int, str], int] = {}
    for number, row in enumerate(predictions, start=1):
        if (row.arm, row.seed, row.utterance) in seen:
            _refuse(number, "each recording once per arm and seed", "one that is there twice")
        seen.add((row.arm, row.seed, row.utterance))
        fact = (row.speaker, row.site, row.truth, row.groups)
        if facts.setdefault(row.utterance, fact) != fact:
            _refuse(number, "one speaker, site, truth and groups per recording", "two that differ")
        if not leaks(row.arm) and folds.setdefault((row.arm, row.seed, row.speaker), row.fold) != row.fold:
            _refuse(
                number,
                "each speaker in one fold per arm and seed",
                f"a speaker in two, so the split leaks; end the arm's name in {LEAKS!r} if it is meant to",
            )


_REMEDY = "Run the study again, or go on with `sottovoce simulate --resume`."


def _groups(table: Mapping[str, Any], number: int) -> dict[str, str]:
    groups = table["groups"]
    if not isinstance(groups, dict) or not all(map(_is_text, [*groups, *groups.values()])):
        _refuse(number, "groups to be a table of texts")
    return groups


def _log_probs(table: Mapping[str, Any], n_classes: int, number: int) -> tuple[float, ...]:
    values = table["log_probs"]
    if not isinstance(values, list) or len(values) != n_classes:
        _refuse(number, f"log_probs to be {n_classes} numbers")
    if not all(type(value) in (int, float) and -1e6 < value < 1e-3 for value in values):  # NaN is in no range
        _refuse(number, "log_probs to be finite numbers of at most 0")
    if abs(math.fsum(map(math.exp, values)) - 1.0) > 1e-3:
        _refuse(number, "the exponentials of log_probs to add up to 1", "another sum; see log_probs_of")
    return tuple(float(value) for value in values)


def _is_text(value: object) -> bool:
    # JSON can write half of a surrogate pair, which no file can hold as UTF-8.
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _refuse(number: int, expected: str, came: str = "something else") -> NoReturn:
    # What came is not shown: it may describe a person.
    raise RunError(f"predictions.jsonl line {number}: expected {expected}; came {came}. {_REMEDY}")
