"""Taking turns: what every benchmark shares."""

import os
import resource
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

Turn = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a benchmark's table. `ratio` is to `against`; `met` says whether it kept the bar."""

    what: str
    value: float | None
    unit: str = "s"
    ratio: float | None = None
    against: str = ""
    bar: str = ""
    met: bool | None = None
    note: str = ""

    def as_table(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


@dataclass(frozen=True, kw_only=True)
class Times:
    """What one thing took in each repeat, and how many fresh pages it had to be given meanwhile."""

    seconds: tuple[float, ...]
    page_faults: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def ratio(self, other: "Times") -> float:
        """Returns the median of the ratios of single repeats: drift that both felt cancels."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def timed(work: Callable[[], object]) -> Turn:
    """Returns a turn that does `work` and says how long it took."""

    def turn() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return turn


def take_turns(turns: Mapping[str, Turn], repeats: int, *, warm_up: int = 1) -> dict[str, Times]:
    """Runs each turn `repeats` times, one after the other, in an order that alternates."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    faults = dict.fromkeys(turns, 0)
    names = list(turns)
    for repeat in range(-warm_up, repeats):
        for name in names if repeat % 2 else reversed(names):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            took = turns[name]()
            if repeat >= 0:
                seconds[name].append(took)
                faults[name] += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {
        name: Times(seconds=tuple(seconds[name]), page_faults=faults[name] // max(repeats, 1))
        for name in names
    }


def report(rows: Sequence[Row], **facts: Any) -> dict[str, Any]:
    """Returns a benchmark's result with the machine's state."""
    one, five, _ = os.getloadavg()
    machine = {"cores": os.cpu_count(), "load_1_min": round(one, 2), "load_5_min": round(five, 2)}
    return {"rows": [row.as_table() for row in rows], "machine": machine, **facts}


class Environment:
    """A virtual environment of its own, for what cannot stand beside our dependencies. Made once."""

    def __init__(self, name: str, requirements: Sequence[str]) -> None:
        self._folder = ROOT / name
        self._requirements = requirements

    @property
    def python(self) -> Path:
        """Returns its interpreter, made if it is not there. Raises: NotMeasured."""
        done = self._folder / "complete"
        if not done.exists():
            venv.create(self._folder, with_pip=True, clear=True)
            command = [
                self._folder / "bin" / "python",
                "-m",
                "pip",
                "install",
                "--quiet",
                *self._requirements,
            ]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                raise NotMeasured(f"pip could not install {', '.join(self._requirements)}")
            done.touch()
        return self._folder / "bin" / "python"


class NotMeasured(Exception):
    """What could not be measured, and why. It becomes a row, never a silence."""


class Peer:
    """Another program that does one round whenever it is told to, and says how long that took."""

    def __init__(self, python: Path | str, module: str, *arguments: str) -> None:
        paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
        self._process = subprocess.Popen(
            [str(python), "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | ONE_THREAD | {"PYTHONPATH": paths},
        )

    def turn(self) -> float:
        """Asks for a round. Raises: NotMeasured, if the program has ended."""
        if self._process.stdin is None or self._process.stdout is None:
            raise NotMeasured("no pipes")
        try:
            self._process.stdin.write("round\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise NotMeasured(f"it ended with status {self._process.wait()}") from None
        for line in self._process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise NotMeasured(f"it ended with status {self._process.wait()}")

    def close(self) -> None:
        """Ends it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def answer_rounds(work: Callable[[], object]) -> None:
    """The other side of `Peer`: does `work` for each line that comes in."""
    turn = timed(work)
    for _ in sys.stdin:
        print("seconds", turn(), flush=True)
