"""Many small heads at once against a loop over them: 1,000 clients of 60 x 768, three steps of 20, plain SGD.

The loop is `rounds.plain_loop`: every client through `client/train.py`, with one module, features in memory, and
neither messages nor checks. Both draw the same epoch orders.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sottovoce.common.study import load as load_study
from sottovoce.server.rounds import run
from sottovoce.simulations.bench import fixtures
from sottovoce.simulations.bench.rounds import CELL, initial_weights, plain_loop
from sottovoce.simulations.bench.timing import Row, report, take_turns, timed
from sottovoce.simulations.engines.cohort import CohortExchange

N_CLIENTS, N_EXAMPLES, BATCH = 1000, 60, 20
REPEATS = 5
HEADS = {
    "linear 768-8": ('{ kind = "linear", stream = "features" }', 8.0),
    "MLP 768-64-8": ('{ kind = "mlp", stream = "features", hidden = 64, dropout = 0.0 }', 4.5),
}
MAX_DIFFERENCE = 1e-6


def measure(n_clients: int = N_CLIENTS, repeats: int = REPEATS) -> dict[str, Any]:
    """Times both heads, and compares the weights after a round."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sottovoce-bench-") as folder:
        sites = fixtures.write_sites(
            Path(folder) / "sites", n_clients, shape=fixtures.POOLED, n_examples=N_EXAMPLES
        )
        for head, (model, bar) in HEADS.items():
            study_file = fixtures.write_study(
                Path(folder) / f"{head}.toml", n_sites=n_clients, model=model, pooled=True, batch_size=BATCH
            )
            rows += _measure_head(head, bar, study_file, sites, repeats)
    return report(rows)


def _measure_head(head: str, bar: float, study_file: Path, sites: dict[str, Path], repeats: int) -> list[Row]:
    study = load_study(study_file)
    weights = initial_weights(study)
    exchange, loop = CohortExchange(study, sites), plain_loop(study, sites)
    times = take_turns(
        {"loop": timed(loop), "cohort": timed(lambda: run(exchange, study, cell=CELL, weights=weights))},
        repeats,
    )
    apart = _largest_difference(loop(), run(exchange, study, cell=CELL, weights=weights).weights)
    speed_up = times["loop"].ratio(times["cohort"])
    note = f"{repeats} repeats"
    return [
        Row(what=f"{head}: plain loop", value=times["loop"].median, note=note),
        Row(
            what=f"{head}: cohort engine",
            value=times["cohort"].median,
            ratio=speed_up,
            against="the loop, times faster",
            bar=f"at least {bar:g}",
            met=speed_up >= bar,
            note=f"{note}, {times['cohort'].page_faults:g} page faults, "
            f"{times['loop'].cpu_ratio(times['cohort']):.1f} by CPU time",
        ),
        Row(
            what=f"{head}: largest difference of a weight",
            value=apart,
            unit="",
            bar=f"at most {MAX_DIFFERENCE:g}",
            met=apart <= MAX_DIFFERENCE,
        ),
    ]


def _largest_difference(one: Any, other: Any) -> float:
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)
