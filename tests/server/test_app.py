"""Claims of server/app.py: the same pair of apps, driven as Flower drives them."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import save_file

from sottovoce.common.errors import QuorumError, RunError
from sottovoce.common.study import load
from sottovoce.common.weights import Layout
from sottovoce.server.app import app
from sottovoce.server.checkpoint import Identity
from sottovoce.server.checkpoint import load as load_checkpoint
from sottovoce.server.exchange import GridExchange, roster
from sottovoce.server.rounds import Cell, run
from sottovoce.simulations.engines.inprocess import InProcessGrid
from tests.fakes.federations import honest_app, nodes_of, weights_of
from tests.fakes.sites import write_study


def context_of(**config: str | int) -> Context:
    return Context(1, 0, {}, RecordDict(), dict(config))


def test_the_server_app_ends_where_the_round_loop_ends(tmp_path: Path) -> None:
    study_file, start = write_study(tmp_path / "study.toml", n_sites=4), tmp_path / "start.safetensors"
    save_file(dict(weights_of()), start)
    files = {"study-file": str(study_file), "initial-weights": str(start), "checkpoint": str(tmp_path / "c")}
    app(InProcessGrid(honest_app, nodes_of(4), {}), context_of(**files, seed=3))

    study, cell = load(study_file), Cell(seed=3, fold=-1, arm="federated")
    grid = InProcessGrid(honest_app, nodes_of(4), {})
    outcome = run(GridExchange(grid, grid.sites), study, cell=cell, weights=weights_of())
    # safetensors sorts tensors by name, so the server app's layout is sorted too
    layout = Layout.of({name: weights_of()[name] for name in sorted(weights_of())})
    identity = Identity(study_digest=study.digest(), cell=cell.name)
    state = load_checkpoint(tmp_path / "c", layout, identity).state
    for name, array in layout.unflatten(state.weights).items():
        np.testing.assert_array_equal(array, outcome.weights[name])


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="'study-file'"):
        app(InProcessGrid(honest_app, nodes_of(1), {}), context_of())


def test_a_roster_that_does_not_fill_is_a_quorum_error() -> None:
    with pytest.raises(QuorumError, match=r"Expected 3 sites within 0.3 s; came 2"):
        roster(InProcessGrid(honest_app, nodes_of(2), {}), n_sites=3, timeout=0.3)
