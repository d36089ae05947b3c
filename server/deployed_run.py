"""A run of a study among hospitals: its folder, its plan, and where it has come to.

    run = DeployedRun.create(home, "pilot", study_text, plan, roster)
    run.state, run.change(lambda state: replace(state, round=3))

    runs/NAME/study.toml plan.json roster.json run.json rounds.jsonl checkpoints/ ledgers/ state.json model.safetensors
              fairness.json (where the study names groups, and counts were released)

Guarantees:
  - The plan does not change after the run began; a study or a plan that was changed is noticed when it is opened.
  - `state.json` is whole at any time, and what one process writes into it no other one undoes without having read it:
    the coordinator, its operator and the process of the run all do.
  - Only `done`, `failed` and `stopped` are ends: in all other states the run goes on when the coordinator starts again.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from sottovoce.common.config import Interval, as_plain, build, canonical
from sottovoce.common.errors import RunError
from sottovoce.common.files import lock_file, write_whole
from sottovoce.common.provenance import now
from sottovoce.common.study import Study, loads
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.rounds import Cell

PLAN, STATE, STUDY, ROSTER = "plan.json", "state.json", "study.toml", "roster.json"
ROUNDS, MODEL, MODEL_FACTS = "rounds.jsonl", "model.safetensors", "model.json"
FAIRNESS = "fairness.json"
CALIBRATION = "calibration.json"
STATE_LOCK = ".state"
MAX_FILE_BYTES = 1_000_000
ENDS = ("done", "failed", "stopped")

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is of: which study, which cell of it (fold -1 withholds nobody), which sites."""

    format: Literal[1]
    name: Annotated[str, Interval(1, 80)]
    study_digest: Annotated[str, Interval(64, 64)]
    seed: int
    fold: int
    sites: tuple[str, ...]

    @property
    def cell(self) -> Cell:
        """The cell of the study."""
        return Cell(seed=self.seed, fold=self.fold, arm="federated")


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run has come to."""

    state: Literal["waiting", "running", "done", "failed", "stopped"] = "waiting"
    reason: str = ""
    round: int = 0
    rounds: int = 0
    weights_sha256: str = ""
    updated: str = ""

    @property
    def is_over(self) -> bool:
        """Says whether nothing more will happen."""
        return self.state in ENDS


def ended(state: State, how: Literal["failed", "stopped"], reason: str) -> State:
    """Returns the state of a run that ends before its last round; one that is over stays as it is."""
    return state if state.is_over else replace(state, state=how, reason=reason)


class DeployedRun:
    """An open run folder."""

    def __init__(self, folder: Path, plan: Plan, study: Study) -> None:
        self.folder, self.plan, self.study = folder, plan, study

    @classmethod
    def create(cls, home: CoordinatorHome, text: str, plan: Plan, roster: bytes) -> "DeployedRun":
        """Makes a run's folder; the plan comes last: a folder without one is no run yet.

        Raises:
            RunError: there is a run of this name, or the name is none for a folder.
        """
        folder = _folder(home, plan.name)
        if (folder / PLAN).exists():
            raise RunError(
                f"{folder}: there is a run of this name. Name another, or look at it: `server status`."
            )
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(folder / STUDY, text.encode())
        if roster:
            write_whole(folder / ROSTER, roster)
        run = cls(folder, plan, loads(text))
        run._write(State(rounds=run.study.federation.rounds))
        write_whole(folder / PLAN, canonical(plan).encode())
        return run

    @classmethod
    def open(cls, home: CoordinatorHome, name: str) -> "DeployedRun":
        """Opens a run. Raises: RunError for one that is missing, damaged, or whose study was changed."""
        folder = _folder(home, name)
        plan = _read(Plan, folder / PLAN)
        try:
            study = loads((folder / STUDY).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{folder / STUDY}: cannot be read ({error}).") from None
        if study.digest() != plan.study_digest:
            raise RunError(f"{folder}: {STUDY} was changed after the run began; put the old file back.")
        return cls(folder, plan, study)

    @property
    def state(self) -> State:
        """Where the run has come to."""
        return _read(State, self.folder / STATE)

    def change(self, how: Callable[[State], State]) -> State:
        """Writes where the run has come to, by what stands there now, and returns it. One process at a time."""
        with lock_file(self.folder / STATE_LOCK, wait=True):
            state = replace(how(self.state), updated=now())
            self._write(state)
            return state

    def _write(self, state: State) -> None:
        write_whole(self.folder / STATE, (json.dumps(as_plain(state), sort_keys=True) + "\n").encode())

    @property
    def checkpoint(self) -> Path:
        """The file that the round loop goes on from."""
        return self.folder / "checkpoints" / f"{self.plan.cell.name}.safetensors"


def runs_of(home: CoordinatorHome) -> list[str]:
    """Returns the names of all runs, by name."""
    return sorted(path.parent.name for path in home.runs.glob(f"*/{PLAN}"))


def _folder(home: CoordinatorHome, name: str) -> Path:
    plain = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    if not name or len(name) > 80 or not set(name) <= plain:
        raise RunError(f"Expected a run's name of letters, digits, - and _; came {name[:80]!r}.")
    return home.runs / name


def _read(kind: type[_T], path: Path) -> _T:
    problems: list[str] = []
    try:
        table: Any = json.loads(path.read_bytes()[: MAX_FILE_BYTES + 1])
    except FileNotFoundError:
        raise RunError(
            f"{path.parent}: expected a run; there is none. `sottovoce server status` names all."
        ) from None
    except (OSError, ValueError, RecursionError):
        raise RunError(f"{path}: expected JSON; it is damaged. Put back a copy.") from None
    found = build(kind, table, path.name, problems)
    if found is None:
        raise RunError(f"{path}: {problems[0]}")
    return found
