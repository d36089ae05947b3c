"""What pages made of runs share: where things are, how a figure is printed, and a run that is made only once."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from sottovoce.common.errors import SottovoceError
from sottovoce.common.progress import show_progress
from sottovoce.common.run_files import read_run
from sottovoce.common.study import Execution, loads
from sottovoce.common.summary import Estimate
from sottovoce.simulations.run_folder import write_text
from sottovoce.simulations.simulate import resume_run, start_run

SCENARIOS = Path(__file__).parent / "scenarios"
ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """Returns the checkout's commit, for the head of a page."""
    found = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return f"`{found.stdout.strip()}`" if found.returncode == 0 else "unknown (no checkout)"


def made(text: str, run: Path, *, data: Mapping[str, Path], workers: int, twins: bool = False) -> Path:
    """Makes the run of a study's text, goes on with it, or finds it finished; the text is kept beside it."""
    execution, study_file = Execution(workers=workers), run.parent / f"{run.name}.toml"
    with show_progress(quiet=False) as on_event:
        if (run / "run.json").exists() and read_run(run / "run.json").study_digest == loads(text).digest():
            if read_run(run / "run.json").ended is None:
                resume_run(run, execution, data=data, on_event=on_event)
            return run
        run.parent.mkdir(parents=True, exist_ok=True)
        write_text(study_file, text)
        return start_run(
            study_file, execution, data=data, out=run, twins=twins, overwrite=True, on_event=on_event
        )


def percent(share: float) -> str:
    """
    >>> percent(0.7449)
    '74.5'
    """
    return f"{100 * share:.1f}"


def estimate(value: Estimate) -> str:
    """
    >>> estimate(Estimate(value=0.5, low=0.4, high=0.6))
    '50.0 [40.0, 60.0]'
    """
    if value.low is None or value.high is None:
        return percent(value.value)
    return f"{percent(value.value)} [{percent(value.low)}, {percent(value.high)}]"


def points(value: float, low: float | None, high: float | None) -> str:
    """Returns a difference in points, with its sign and its interval.

    >>> points(0.012, -0.003, 0.02)
    '+1.2 [-0.3, +2.0]'
    """
    interval = "" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * value:+.1f}{interval}"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Returns a table of a page. Raises: SottovoceError where a row has more or fewer cells than the head.

    >>> print(table(("a", "b"), [("1", "2")]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    for cells in rows:
        if len(cells) != len(head):
            raise SottovoceError(f"Expected {len(head)} cells in a row of the table; came {len(cells)}.")
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
