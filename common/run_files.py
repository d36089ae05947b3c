"""run.json and rounds.jsonl: what a run states of itself, as frozen dataclasses that writer and reader share.

`docs/metrics.md` explains each field. Everything that a run may not know is optional and left out.

Guarantees:
  - What is written is read back equal.
  - A damaged file is an error that names the file, the line and the field.
  - Keys that a later version adds at the top of run.json or of a line are passed over.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from sottovoce.common import config
from sottovoce.common.errors import RunError
from sottovoce.common.files import write_whole

MAX_RUN_BYTES = 20_000_000
MAX_LINE_BYTES = 1_000_000

_Natural = Annotated[int, config.Interval(0)]
_Seconds = Annotated[float, config.Interval(0.0)]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run took place. `cpu_capability` decides the last bits of a result, so it is recorded."""

    system: str
    cores: _Natural
    cpu_capability: str
    processor: str | None = None
    memory_bytes: _Natural | None = None
    accelerator: str | None = None


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """One corpus as it was used. `losses` says what the mapping of labels lost.

    `synthetic`: the voices were made by the embedded synthesis; the report then says so beside every figure.
    """

    name: str
    adapter: str
    n_utterances: _Natural
    n_speakers: _Natural
    manifest_sha256: str | None = None
    synthetic: bool = False
    losses: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SiteFacts:
    """One site of a simulation."""

    site: str
    n_speakers: _Natural
    n_utterances: _Natural
    labels: Mapping[str, _Natural] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A recording that was left out, and why."""

    recording: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CellFacts:
    """One federation: a seed, a fold and an arm."""

    seed: int
    fold: int
    arm: str
    seconds: _Seconds | None = None
    weights_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class InitialFacts:
    """The initial file of a study: who signed what, and which of the model's tensors began as the file's."""

    sha256: str
    signed_by: str
    public_key: str
    corpora: tuple[str, ...]
    method: str
    figures: tuple[str, ...] = ()
    reductions: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


def check_is_run(folder: Path, file: str = "run.json") -> None:
    """Refuses a folder that is no run's, by a file that every run has; names runs that lie inside it.

    Raises:
        RunError: there is no such file.
    """
    if (folder / file).is_file():
        return
    inside = [path.name for path in sorted(folder.iterdir())] if folder.is_dir() else []
    runs = [name for name in inside if (folder / name / file).is_file()]
    if runs:
        named = ", ".join(runs[:5]) + (", ..." if len(runs) > 5 else "")
        raise RunError(
            f"{folder}: expected one run's folder; this one holds several things: name one of {named}."
        )
    came = f"there is no {file} in it" if folder.is_dir() else "there is no such folder"
    raise RunError(
        f"{folder}: expected a run's folder; {came}. `sottovoce simulate` makes one, in runs/NAME by default."
    )


@dataclass(frozen=True, kw_only=True)
class AddedRows:
    """The rows that sites add to their own, where the study names some; `facts` is what the file says of itself."""

    sha256: str
    per_class: _Natural
    fill: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """run.json. `ended` is missing while the run goes on; times are ISO 8601 with their offset."""

    format: Literal[1]
    name: str
    study_digest: str
    stamp: str = "NOT PRIVATE"
    started: str | None = None
    ended: str | None = None
    engine: str | None = None
    workers: _Natural | None = None
    device: str | None = None
    n_parameters: _Natural | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Machine | None = None
    corpora: tuple[CorpusFacts, ...] = ()
    sites: tuple[SiteFacts, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    cells: tuple[CellFacts, ...] = ()
    initial: InitialFacts | None = None
    added: AddedRows | None = None


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A site whose update was refused in a round, and why."""

    site: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Evaluation counts as they were released: (table, truth, answer), in the order of the study's tables.

    With noise they may be below zero; `deviation` is that of the noise on each of them, in recordings.
    """

    deviation: _Seconds
    tables: tuple[tuple[tuple[int, ...], ...], ...]

    @staticmethod
    def of_table(table: Mapping[str, Any]) -> "Counted":
        """Returns what `asdict` was made from, after JSON."""
        tables = tuple(tuple(map(tuple, one)) for one in table["tables"])
        return Counted(deviation=table["deviation"], tables=tables)


@dataclass(frozen=True, kw_only=True)
class RoundFacts:
    """One line of rounds.jsonl. `loss` is the mean training loss that the sites state, before aggregation.

    `confusion` (truth in rows) is of the withheld speakers after the round; used for curves, for no choice. `counted`
    holds it and the tables of all groups, where the study names some.
    """

    seed: int
    fold: int
    arm: str
    round: _Natural
    loss: float | None = None
    sites: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()
    bytes_down: _Natural | None = None
    bytes_up: _Natural | None = None
    seconds: _Seconds | None = None
    confusion: tuple[tuple[_Natural, ...], ...] | None = None
    counted: Counted | None = None


def write_run(path: Path, facts: RunFacts) -> None:
    """Writes run.json, whole or not at all."""
    text = json.dumps(config.as_plain(facts), indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_whole(path, text.encode())


def read_run(path: Path) -> RunFacts:
    """Reads run.json. Raises: RunError when it is missing or damaged."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RUN_BYTES + 1)
    except OSError as error:
        raise RunError(f"{path.name}: cannot be read ({error.strerror}). {_REMEDY}") from None
    return _build(RunFacts, data, path.name)


def round_line(facts: RoundFacts) -> str:
    """Returns a line of rounds.jsonl, to append."""
    return json.dumps(config.as_plain(facts), separators=(",", ":"), sort_keys=True, allow_nan=False) + "\n"


def read_rounds(path: Path) -> Iterator[RoundFacts]:
    """Yields the lines of rounds.jsonl; a round repeated after a crash comes as often as it is there.

    Raises:
        RunError: the file is missing or a line is damaged.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                yield _build(RoundFacts, line, f"{path.name} line {number}")
    except OSError as error:
        raise RunError(f"{path.name}: cannot be read ({error.strerror}). {_REMEDY}") from None


def last_of_each(rounds: Iterable[RoundFacts]) -> list[RoundFacts]:
    """Returns each (seed, fold, arm, round) once, as it was written last, in order."""
    last = {(facts.arm, facts.seed, facts.fold, facts.round): facts for facts in rounds}
    return [last[key] for key in sorted(last)]


_REMEDY = "Go on with `sottovoce simulate --resume`, or run the study again."


def _build(cls: type[_T], data: bytes, where: str) -> _T:
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise RunError(f"{where}: expected JSON; came something else, perhaps cut short. {_REMEDY}") from None
    if isinstance(content, dict):
        known = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]  # all are dataclasses
        content = {key: value for key, value in content.items() if key in known}
    problems: list[str] = []
    built = config.build(cls, content, "", problems)
    if built is None:
        raise RunError(f"{where}: {problems[0]} {_REMEDY}")
    return built
