"""What skewed hospitals cost, and what a strategy wins back: federated against pooled, on the same recordings.

    python -m sottovoce.simulations.skew --data ravdess=DIR [--study FILE] [--seeds 5] --page docs/skew.md

For each seed the hospitals are skewed anew (the partition has that seed). The pooled twin is trained once for each
seed; a strategy's gap is its UAR less the twin's, in points, on the same recordings of speakers whom nobody heard.

Guarantees:
  - Every figure comes out of runs with the study's digest, made here or found finished.
  - The pooled twin trains on exactly the recordings that the hospitals kept.
  - Intervals are paired: each draw takes the same speakers on both sides, and all seeds.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sottovoce.common import metrics, predictions
from sottovoce.common.errors import SottovoceError
from sottovoce.common.predictions import Prediction
from sottovoce.common.study import load
from sottovoce.simulations.cells import FEDERATED
from sottovoce.simulations.pages import ROOT, SCENARIOS, commit, made, points
from sottovoce.simulations.run_folder import write_text

POOLED = "central"
BASE = "fedavg"
STRATEGIES: Mapping[str, str] = {
    BASE: '{ kind = "fedavg" }',
    "fedprox": '{ kind = "fedprox", mu = 1.0 }',
    "fedadam": '{ kind = "fedadam", server_learning_rate = 0.03 }',
    "scaffold": '{ kind = "scaffold" }',
}
GAP = 0.03  # from here on FedAvg's gap is one that somebody should close
CLOSED = 0.8  # of it


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One side's UAR less another's, with the interval of a bootstrap over speakers."""

    value: float
    low: float
    high: float


def study_text(base: str, strategy: str, seed: int) -> str:
    """Returns the scenario with a strategy, for one seed of hospitals and training.

    Raises:
        SottovoceError: the scenario has no line of its own for what is replaced.
    """
    changes = {
        r"^(partition = .*\bseed = )\d+(.*)$": rf"\g<1>{seed}\2",
        r"^seeds = \[0\]$": f"seeds = [{seed}]",
        r"^strategy = .*$": f"strategy = {strategy}",
    }
    for pattern, line in changes.items():
        base, count = re.subn(pattern, line, base, flags=re.MULTILINE)
        if count != 1:
            raise SottovoceError(f"Expected one line like {pattern!r} in the scenario; found {count}.")
    return base


def run_all(
    base: str, names: Sequence[str], n_seeds: int, runs: Path, data: Mapping[str, Path], workers: int
) -> dict[str, list[Path]]:
    """Runs each strategy with each seed, or finds it finished; the pooled twin runs beside FedAvg."""
    return {
        name: [
            made(
                study_text(base, STRATEGIES[name], seed),
                runs / f"{name}-seed{seed}",
                data=data,
                workers=workers,
                twins=name == BASE,
            )
            for seed in range(n_seeds)
        ]
        for name in names
    }


def arm(runs: Sequence[Path], name: str) -> list[Prediction]:
    """Returns an arm's predictions of all seeds."""
    n_classes = len(load(runs[0] / "study.toml").labels.classes)
    rows = [row for run in runs for row in predictions.read(run / "predictions.jsonl", n_classes=n_classes)]
    return [row for row in rows if row.arm == name]


def uar(rows: Sequence[Prediction], n_classes: int) -> float:
    """Returns the mean UAR over seeds."""
    seeds = sorted({row.seed for row in rows})
    counts = np.stack([counts_of(rows, seed, None, n_classes) for seed in seeds]).sum(axis=1)
    return float(metrics.known_mean(metrics.uars(counts.astype(np.float64)), axis=0))


def difference(
    ours: Sequence[Prediction], theirs: Sequence[Prediction], n_classes: int, *, samples: int = 2000
) -> Difference:
    """Returns our UAR less theirs, paired by speaker and seed.

    Raises:
        SottovoceError: the two did not score the same recordings.
    """
    check_same_recordings(ours, theirs)
    speakers, seeds = sorted({row.speaker for row in ours}), sorted({row.seed for row in ours})
    counts = [counts_of(side, seed, speakers, n_classes) for side in (ours, theirs) for seed in seeds]

    def gap(stack: metrics.Floats) -> metrics.Floats:
        uars = metrics.uars(stack)
        return metrics.known_mean(uars[:, : len(seeds)] - uars[:, len(seeds) :], axis=1)[:, None]

    (found,) = differences(np.stack(counts), gap, samples=samples, seed=seeds[0])
    return found


def check_same_recordings(ours: Sequence[Prediction], theirs: Sequence[Prediction]) -> None:
    """Raises: SottovoceError where two arms did not score the same recordings."""
    scored = [{(row.seed, row.utterance) for row in side} for side in (ours, theirs)]
    if scored[0] != scored[1]:
        raise SottovoceError("Expected two arms that scored the same recordings; these differ.")


def differences(
    counts: metrics.Counts, statistic: metrics.Statistic, *, samples: int, seed: int
) -> list[Difference]:
    """Returns what a statistic (draws, n) makes of counts (replicates, speakers, classes, classes), n of them.

    All come from the same draws of speakers.

    Raises:
        SottovoceError: there is one speaker alone.
    """
    values = statistic(counts.astype(np.float64).sum(axis=1)[None])[0]
    draws = metrics.resampled(counts, statistic, samples=samples, seed=seed)
    bounds = metrics.interval(draws, n_speakers=counts.shape[1])
    if bounds is None:
        raise SottovoceError("Expected two speakers or more for an interval; came one.")
    return [
        Difference(value=float(value), low=float(low), high=float(high))
        for value, low, high in zip(values, *bounds, strict=True)
    ]


def counts_of(
    rows: Sequence[Prediction], seed: int, speakers: Sequence[str] | None, n_classes: int
) -> metrics.Counts:
    """Returns a seed's confusion counts (speakers, classes, classes); of the rows' own speakers, if None are named."""
    names = sorted({row.speaker for row in rows}) if speakers is None else speakers
    place = {speaker: index for index, speaker in enumerate(names)}
    mine = [(place[row.speaker], row.truth, row.predicted) for row in rows if row.seed == seed]
    who, truth, predicted = np.array(mine, np.int64).T
    return metrics.counts_by(who, truth, predicted, n_units=len(names), n_classes=n_classes)


def page(runs: Mapping[str, Sequence[Path]], command: str) -> str:
    """Returns the page: a row for each strategy, and what became of FedAvg's gap."""
    study = load(runs[BASE][0] / "study.toml")
    n_classes, n_seeds = len(study.labels.classes), len(runs[BASE])
    pooled = arm(runs[BASE], POOLED)
    sides = {name: arm(paths, FEDERATED) for name, paths in runs.items()}
    gaps = {name: difference(rows, pooled, n_classes) for name, rows in sides.items()}
    lines = [
        "# Skewed hospitals\n",
        f"Made by `{command}` at commit {commit()}. Study `{study.name}`: {study.federation.n_sites} hospitals, each",
        f"keeps a Dirichlet share of each emotion, skewed anew for each of {n_seeds} seeds; the pooled twin trains on",
        "the same recordings. UAR over all pooled out-of-fold predictions, mean over seeds; brackets hold the 95 %",
        "interval of a paired bootstrap over speakers (`docs/metrics.md`). It knows nothing of other skews: how far",
        "apart those are is in the column beside it, the smallest and the largest over seeds.\n",
        f"Pooled twin: UAR {100 * uar(pooled, n_classes):.1f} %.\n",
        "| strategy | UAR % | less the pooled twin, points | over seeds | less FedAvg | of FedAvg's gap closed |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in sides.items():
        against = "" if name == BASE else told(difference(rows, sides[BASE], n_classes))
        spread = _over_seeds(rows, pooled, n_classes)
        cells = (
            name,
            f"{100 * uar(rows, n_classes):.1f}",
            told(gaps[name]),
            spread,
            against,
            _share(gaps, name),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _verdict(gaps)]) + "\n"


def _over_seeds(ours: Sequence[Prediction], theirs: Sequence[Prediction], n_classes: int) -> str:
    """Returns the smallest and the largest gap over seeds: each has other hospitals."""
    found = [
        uar([row for row in ours if row.seed == seed], n_classes)
        - uar([row for row in theirs if row.seed == seed], n_classes)
        for seed in sorted({row.seed for row in ours})
    ]
    return f"{100 * min(found):+.1f} to {100 * max(found):+.1f}"


def _share(gaps: Mapping[str, Difference], name: str) -> str:
    lost = -gaps[BASE].value
    return "" if name == BASE or lost <= 0 else f"{100 * (gaps[name].value + lost) / lost:.0f} %"


def _verdict(gaps: Mapping[str, Difference]) -> str:
    lost = -gaps[BASE].value
    if lost <= GAP:
        return f"FedAvg loses {100 * lost:.1f} points: no gap above {100 * GAP:.0f} points that anybody could close."
    won = {name: (gap.value + lost) / lost for name, gap in gaps.items() if name != BASE}
    best = max(won, key=lambda name: won[name])
    said = "" if won[best] >= CLOSED else f" That is less than the {100 * CLOSED:.0f} % that were wanted."
    return f"FedAvg loses {100 * lost:.1f} points; {best} closes {100 * won[best]:.0f} % of that.{said}"


def told(found: Difference) -> str:
    """Returns a difference in points, as a page prints it."""
    return points(found.value, found.low, found.high)


def main() -> None:
    """Makes the runs that are missing and writes the page."""
    parser = argparse.ArgumentParser(description="Measure what skewed hospitals cost, by strategy.")
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=DIR", help="a corpus and its folder"
    )
    parser.add_argument("--study", type=Path, default=SCENARIOS / "skew.toml")
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/skew"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "skew.md")
    arguments = parser.parse_args()
    folders = {name: Path(folder) for name, _, folder in (item.partition("=") for item in arguments.data)}
    names = [BASE, *(name for name in arguments.strategies if name != BASE)]
    base = arguments.study.read_text(encoding="utf-8")
    runs = run_all(base, names, arguments.seeds, arguments.runs, folders, arguments.workers)
    named = [f"--data {name}=DIR" for name in folders]
    parts = ["python -m sottovoce.simulations.skew", *named]
    if arguments.study != SCENARIOS / "skew.toml":
        parts.append(f"--study {arguments.study.name}")
    write_text(arguments.page, page(runs, " ".join([*parts, f"--seeds {arguments.seeds}"])))
    print(arguments.page)


if __name__ == "__main__":
    main()
