"""One round of federated averaging: our engines, a plain loop, Flower on Ray, and pfl.

10, 100 and 1,000 clients of 20 recordings (40 mel bands x 100 frames), a CNN of about 57,000 parameters, one local
epoch in batches of 10, plain SGD. Every engine trains by `client/train.py`, but for pfl, which has its own loop over
the same network. Flower on Ray is Flower as its users have it: `FedAvg`, stock arrays, two actors.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sottovoce.client.train import train
from sottovoce.common import models
from sottovoce.common.dataset import SiteData
from sottovoce.common.study import Execution, Study
from sottovoce.common.study import load as load_study
from sottovoce.common.weights import Weights, from_state_dict, to_state_dict
from sottovoce.server.rounds import ALL_SPEAKERS, Cell, run
from sottovoce.simulations.bench import fixtures
from sottovoce.simulations.bench.timing import (
    Environment,
    NotMeasured,
    Peer,
    Row,
    Times,
    Turn,
    report,
    take_turns,
    timed,
)
from sottovoce.simulations.engines import open_exchange

CELL = Cell(seed=0, fold=ALL_SPEAKERS, arm="benchmark")
REPEATS = {10: 15, 100: 9, 1000: 5}
PLAIN, IN_PROCESS, TWO_WORKERS = "plain loop", "in process", "two workers"
ON_RAY, PFL = "Flower on Ray, two actors", "pfl 0.6.0"
RAY_ENVIRONMENT = Environment(".venv-bench-ray", ["flwr[simulation]==1.41.0", "torch==2.13.0", "safetensors"])
PFL_ENVIRONMENT = Environment(".venv-bench-pfl", ["pfl[pytorch]==0.6.0", "torch==2.13.0"])
# what, against what, at most
BARS = {(IN_PROCESS, PLAIN): 1.05, (TWO_WORKERS, PLAIN): 0.6, (TWO_WORKERS, ON_RAY): 0.4}
BARS_AT = 100


def measure(
    clients: tuple[int, ...] = (10, 100, 1000), *, peers: bool = True, repeats: int | None = None
) -> dict[str, Any]:
    """Times rounds and returns seconds and ratios."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sottovoce-bench-") as folder:
        for n in clients:
            rows += _measure_at(Path(folder) / str(n), n, peers, repeats or REPEATS.get(n, 5))
    return report(rows)


def _measure_at(folder: Path, n: int, peers: bool, repeats: int) -> list[Row]:
    folder.mkdir()
    sites, study_file = (
        fixtures.write_sites(folder / "sites", n),
        fixtures.write_study(folder / "study.toml", n_sites=n),
    )
    study = load_study(study_file)
    with ExitStack() as stack:
        turns: dict[str, Turn] = {PLAIN: timed(plain_loop(study, sites))}
        for name, execution in {
            IN_PROCESS: Execution(engine="inprocess"),
            TWO_WORKERS: Execution(engine="processes", workers=2),
        }.items():
            turns[name] = stack.enter_context(_engine(execution, study, sites, study_file))
        missing = {}
        for name, environment, module in (
            (ON_RAY, RAY_ENVIRONMENT, "flower_on_ray"),
            (PFL, PFL_ENVIRONMENT, "pfl_loop"),
        ):
            try:
                turns[name] = stack.enter_context(
                    _peer(environment, module, study_file, folder / "sites", peers)
                )
                turns[name]()
            except NotMeasured as reason:
                turns.pop(name, None)
                missing[name] = str(reason)
        times = take_turns(turns, repeats)
    return [*_rows(n, times, repeats), *(_missing(n, name, why) for name, why in missing.items())]


def _rows(n: int, times: Mapping[str, Times], repeats: int) -> list[Row]:
    rows = []
    for name, taken in times.items():
        against = [other for other in (PLAIN, ON_RAY) if other in times and other != name]
        for other in against or [""]:
            bar = BARS.get((name, other)) if n == BARS_AT else None
            ratio = taken.ratio(times[other]) if other else None
            rows.append(
                Row(
                    what=f"{n:,} clients: {name}",
                    value=taken.median,
                    ratio=ratio,
                    against=other,
                    bar="" if bar is None else f"at most {bar:g}",
                    met=None if bar is None or ratio is None else ratio <= bar,
                    note=_note(name, taken, times, repeats),
                )
            )
    return rows


def _note(name: str, taken: Times, times: Mapping[str, Times], repeats: int) -> str:
    note = f"{repeats} repeats, {taken.page_faults:g} page faults here"
    return f"{note}, CPU time {taken.cpu_ratio(times[PLAIN]):.3f} of plain" if name == IN_PROCESS else note


def _missing(n: int, name: str, why: str) -> Row:
    return Row(what=f"{n:,} clients: {name}", value=None, note=f"not measured: {why}")


def initial_weights(study: Study) -> Weights:
    """Returns the weights that every engine starts from."""
    shape = fixtures.POOLED if study.streams[0].pooling == "statistics" else fixtures.SEQUENCE
    model = models.build(study.model, {"features": shape.width}, fixtures.N_CLASSES, 0)
    return from_state_dict(model.state_dict())


def in_memory(folder: Path) -> SiteData:
    """Opens a site and reads it whole, as a plain loop would hold it."""
    data = SiteData.open(folder)
    return replace(data, arrays={name: np.array(array) for name, array in data.arrays.items()})


def plain_loop(study: Study, sites: Mapping[str, Path]) -> Callable[[], Weights]:
    """Returns a round as one would write it without any framework: one module, a sum, a division."""
    data = [in_memory(folder) for folder in sites.values()]
    weights = to_state_dict(initial_weights(study))
    shape = next(iter(data[0].shapes.values()))
    model = models.build(study.model, {"features": shape.width}, fixtures.N_CLASSES, 0)

    def round() -> Weights:
        total = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        for own in data:
            model.load_state_dict(weights)
            train(model, own, study.training, seed=0, site=own.site, round=1, rounds=1)
            for name, tensor in model.state_dict().items():
                total[name] += tensor
        return from_state_dict({name: tensor / len(data) for name, tensor in total.items()})

    return round


@contextmanager
def _engine(
    execution: Execution, study: Study, sites: Mapping[str, Path], study_file: Path
) -> Iterator[Turn]:
    weights = initial_weights(study)
    with open_exchange(execution, sites, study_file=study_file) as exchange:
        yield timed(lambda: run(exchange, study, cell=CELL, weights=weights))


@contextmanager
def _peer(
    environment: Environment, module: str, study_file: Path, sites: Path, wanted: bool
) -> Iterator[Turn]:
    if not wanted:
        raise NotMeasured("not asked for")
    peer = Peer(environment.python, f"sottovoce.simulations.bench.{module}", str(study_file), str(sites))
    try:
        yield peer.turn
    finally:
        peer.close()


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
