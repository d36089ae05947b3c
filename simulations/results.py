"""The accuracy table of docs/results.md, from runs made here and now: `make results`.

    python -m sottovoce.simulations.results --ravdess DIR [--seeds 5] [--scenario NAME] [--out docs/results.md]

Guarantees:
  - Every figure comes out of a metrics.json that this command has just written, or found finished with the same
    study digest; none is typed in.
  - The table says commit, machine, versions, seeds and intervals, and how many configurations met the outer folds.
"""

import argparse
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from sottovoce.common.errors import SottovoceError
from sottovoce.common.progress import show_progress
from sottovoce.common.run_files import RunFacts, read_run
from sottovoce.common.study import Execution, loads
from sottovoce.common.summary import Arm, Difference, Estimate, Summary
from sottovoce.common.summary import read as read_summary
from sottovoce.simulations.run_folder import write_text
from sottovoce.simulations.simulate import resume_run, start_run

SCENARIOS = Path(__file__).parent / "scenarios"
ROOT = Path(__file__).resolve().parents[1]
OUTER_LOG = ROOT / "docs" / "outer-folds.md"  # every configuration that ever met the outer folds


def with_seeds(text: str, n_seeds: int) -> str:
    """Returns a study's text with seeds 0 ... n - 1. Raises: SottovoceError where it states no `seeds = [0]`."""
    seeds = ", ".join(map(str, range(n_seeds)))
    changed, count = re.subn(r"^seeds = \[0\]$", f"seeds = [{seeds}]", text, flags=re.MULTILINE)
    if count != 1:
        raise SottovoceError(f"Expected one line `seeds = [0]` in the scenario; found {count}.")
    return changed


def run_scenario(name: str, ravdess: Path, n_seeds: int, runs: Path, workers: int) -> Path:
    """Runs a scenario with its twins, goes on with it, or finds it finished."""
    text = with_seeds((SCENARIOS / f"{name}.toml").read_text(encoding="utf-8"), n_seeds)
    run = runs / f"{name}-{n_seeds}-seeds"
    execution = Execution(workers=workers)
    with show_progress(quiet=False) as on_event:
        if (run / "run.json").exists() and read_run(run / "run.json").study_digest == loads(text).digest():
            if read_run(run / "run.json").ended is None:
                resume_run(run, execution, data={"ravdess": ravdess}, on_event=on_event)
            return run
        study_file = runs / f"{name}-{n_seeds}-seeds.toml"
        runs.mkdir(parents=True, exist_ok=True)
        write_text(study_file, text)
        return start_run(
            study_file,
            execution,
            data={"ravdess": ravdess},
            out=run,
            twins=True,
            overwrite=True,
            on_event=on_event,
        )


def page(runs: Sequence[Path], command: str) -> str:
    """Returns docs/results.md."""
    blocks = [_HEAD.format(commit=commit(), command=command)]
    for run in runs:
        blocks += _run_block(read_summary(run / "metrics.json"), read_run(run / "run.json"))
    return "\n".join(blocks).rstrip() + "\n"


_HEAD = """\
# Results

Made by `{command}` at commit {commit}. Speaker-independent: no model has heard the speakers it is scored on.
UAR (unweighted average recall) over all pooled out-of-fold predictions, mean over seeds; brackets hold the 95 %
interval of a bootstrap over speakers (`docs/metrics.md`). Chance is 12.5 % with 8 classes.
How many configurations ever met these folds: `docs/outer-folds.md`.
"""


def _run_block(summary: Summary, facts: RunFacts) -> Iterator[str]:
    seeds = ", ".join(map(str, summary.protocol.seeds))
    yield f"## {summary.study}\n"
    known = (
        "transductive (features normalised by all of a speaker's unlabelled recordings)"
        if summary.protocol.transductive
        else "nothing known of the speaker before"
    )
    yield (
        f"Study digest `{summary.study_digest[:16]}`; folds {summary.protocol.folds}; seeds {seeds}; {known}.\n"
    )
    yield "| arm | UAR % | over seeds: sd, min, max | WAR % | macro F1 % | worst speaker UAR % |"
    yield "|---|---|---|---|---|---|"
    yield from (_arm_row(arm) for arm in summary.arms)
    if summary.leaks is not None:
        yield from (_arm_row(arm) for arm in summary.leaks.arms)
    yield "\n| paired difference, UAR points | value |"
    yield "|---|---|"
    yield from (_difference_row(difference) for difference in summary.differences)
    yield "\n" + _machine_line(facts) + "\n"


def _arm_row(arm: Arm) -> str:
    spread = arm.uar_over_seeds
    over = (
        "one seed"
        if spread is None
        else f"{_percent(spread.deviation)}, {_percent(spread.smallest)}, {_percent(spread.largest)}"
    )
    worst = _percent(arm.speakers[0].uar) if arm.speakers else ""
    cells = (arm.name, _estimate(arm.uar), over, _estimate(arm.war), _estimate(arm.macro_f1), worst)
    return f"| {' | '.join(cells)} |"


def _difference_row(difference: Difference) -> str:
    interval = (
        ""
        if difference.low is None or difference.high is None
        else f" [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    )
    return f"| {difference.arm} − {difference.minus} | {100 * difference.value:+.1f}{interval} |"


def _estimate(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return _percent(estimate.value)
    return f"{_percent(estimate.value)} [{_percent(estimate.low)}, {_percent(estimate.high)}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _machine_line(facts: RunFacts) -> str:
    seconds = sum(cell.seconds or 0.0 for cell in facts.cells)
    where = facts.machine
    machine = (
        ""
        if where is None
        else f"{where.cores} cores, {where.processor or where.system}, {where.cpu_capability}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items()))
    return f"Machine: {machine}; {seconds / 60:.0f} core minutes in {len(facts.cells)} cells. Versions: {versions}."


def commit() -> str:
    """Returns the checkout's commit, for the head of a page."""
    found = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return f"`{found.stdout.strip()}`" if found.returncode == 0 else "unknown (no checkout)"


def main() -> None:
    """Runs the scenarios and writes the page."""
    parser = argparse.ArgumentParser(description="Make the accuracy tables of docs/results.md.")
    parser.add_argument("--ravdess", type=Path, required=True, help="folder of the RAVDESS speech corpus")
    parser.add_argument(
        "--scenario",
        action="append",
        help="name in simulations/scenarios; ravdess-fast by default, ravdess is slower",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results.md")
    arguments = parser.parse_args()
    if not arguments.ravdess.is_dir():
        parser.error(f"--ravdess: expected the folder of the corpus; came {arguments.ravdess}")
    names = arguments.scenario or ["ravdess-fast"]
    runs = [
        run_scenario(name, arguments.ravdess, arguments.seeds, arguments.runs, arguments.workers)
        for name in names
    ]
    command = f"make results RAVDESS=DIR SEEDS={arguments.seeds}"
    write_text(arguments.out, page(runs, command))
    print(arguments.out)


if __name__ == "__main__":
    main()
