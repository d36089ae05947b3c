"""Taking turns: what every benchmark shares."""

import functools
import os
import resource
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
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
    part: str = ""  # of a benchmark whose parts can be run alone

    def as_table(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One turn: its seconds, this process's own seconds of computing, and fresh pages it had to be given."""

    seconds: float
    cpu_seconds: float
    page_faults: int


@dataclass(frozen=True)
class Times:
    """All turns of one thing."""

    samples: tuple[Sample, ...]

    @property
    def seconds(self) -> list[float]:
        """Returns what each turn took."""
        return [sample.seconds for sample in self.samples]

    @property
    def median(self) -> float:
        """Returns the seconds of a middling turn."""
        return statistics.median(self.seconds)

    @property
    def page_faults(self) -> float:
        """Returns the page faults of a middling turn."""
        return statistics.median(sample.page_faults for sample in self.samples)

    def ratio(self, other: "Times") -> float:
        """Returns the median of the ratios of turns that were neighbours: drift that both felt cancels."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))

    def cpu_ratio(self, other: "Times") -> float:
        """Returns the same of computing, which others disturb less: for work that stays in this process."""
        pairs = zip(self.samples, other.samples, strict=True)
        return statistics.median(a.cpu_seconds / b.cpu_seconds for a, b in pairs)


def timed(work: Callable[[], object]) -> Turn:
    """Returns a turn that does `work` and says how long it took."""

    def turn() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return turn


def take_turns(turns: Mapping[str, Turn], repeats: int, *, warm_up: int = 1) -> dict[str, Times]:
    """Runs each turn `repeats` times, one after the other, in an order that alternates."""
    samples: dict[str, list[Sample]] = {name: [] for name in turns}
    for repeat in range(-warm_up, repeats):
        for name in sorted(turns, key=list(turns).index, reverse=bool(repeat % 2)):
            sample = _sample(turns[name])
            if repeat >= 0:
                samples[name].append(sample)
    return {name: Times(tuple(found)) for name, found in samples.items()}


def _sample(turn: Turn) -> Sample:
    faults, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
    seconds = turn()
    return Sample(
        seconds=seconds,
        cpu_seconds=time.process_time() - cpu,
        page_faults=resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults,
    )


Parts = Mapping[str, tuple[int, Callable[[int], Sequence[Row]]]]  # full size, and what runs at a size


def parts_run(parts: Parts, **sizes: int) -> list[Row]:
    """Runs every part at its full size or the one in `sizes`, where 0 leaves it out.

    A part's rows are told at once, since a long run may be interrupted; its first row says how long it took.
    """
    if unknown := sizes.keys() - parts.keys():
        raise ValueError(f"Expected parts of {', '.join(parts)}; came {', '.join(sorted(unknown))}.")
    rows = list[Row]()
    for part, (full, work) in parts.items():
        if size := sizes.get(part, full):
            first, *others = _clocked(part, functools.partial(work, size))
            less = f"; a part of the full {full:,}" if size < full else ""
            rows += [replace(first, note=first.note + less), *others]
    return rows


def _clocked(part: str, work: Callable[[], Sequence[Row]]) -> list[Row]:
    began = time.perf_counter()
    rows = [replace(row, part=part) for row in work()]
    took = f"{time.perf_counter() - began:,.0f} s"
    rows[:1] = [replace(row, note=f"{row.note}; {took}" if row.note else took) for row in rows[:1]]
    for row in rows:
        print(row.as_table(), file=sys.stderr, flush=True)
    return rows


def n_workers() -> int:
    """Returns how many processes the long proofs may keep busy: SOTTOVOCE_BENCH_WORKERS, or one for each core."""
    return int(os.environ.get("SOTTOVOCE_BENCH_WORKERS", 0)) or os.cpu_count() or 1


def processes() -> ProcessPoolExecutor:
    """Returns fresh processes, as many as may be busy."""
    return ProcessPoolExecutor(n_workers(), mp_context=get_context("spawn"))


def report(rows: Sequence[Row], **facts: Any) -> dict[str, Any]:
    """Returns a benchmark's result with the machine's state."""
    one, five, _ = os.getloadavg()
    machine = {
        "cores": os.cpu_count(),
        "workers": n_workers(),
        "load_1_min": round(one, 2),
        "load_5_min": round(five, 2),
    }
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
            command = [str(self._folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            command += self._requirements
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
