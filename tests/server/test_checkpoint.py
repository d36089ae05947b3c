"""Claims of server/checkpoint.py, and the proof by `kill -9`."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sottovoce.common.errors import RunError
from sottovoce.common.weights import Layout
from sottovoce.server.checkpoint import Checkpoint, Identity, load, save
from sottovoce.server.strategies import ServerState
from tests.fakes.federations import study_of, weights_of

LAYOUT = Layout.of(weights_of())
IDENTITY = Identity(study_digest="ab" * 32, cell="seed0-fold1-federated")


def checkpoint_of(seed: int = 0) -> Checkpoint:
    draw = np.random.default_rng(seed)
    vectors = [draw.normal(size=LAYOUT.size).astype(np.float32) for _ in range(3)]
    state = ServerState(round=7, weights=vectors[0], moments={"m": vectors[1], "v": vectors[2]})
    return Checkpoint(state=state, records=({"round": 7, "loss": 0.1 + 0.2, "sites": ["é"]},))


def saved(path: Path, checkpoint: Checkpoint | None = None) -> Path:
    save(path, checkpoint or checkpoint_of(), LAYOUT, IDENTITY)
    return path


def test_what_was_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    found, expected = load(saved(tmp_path / "c.safetensors"), LAYOUT, IDENTITY), checkpoint_of()
    np.testing.assert_array_equal(found.state.weights, expected.state.weights)
    assert found.state.moments.keys() == expected.state.moments.keys()
    for name, vector in expected.state.moments.items():
        np.testing.assert_array_equal(found.state.moments[name], vector)
    assert (found.state.round, found.records) == (7, expected.records)


@pytest.mark.parametrize(
    "other",
    [
        Identity(study_digest="cd" * 32, cell=IDENTITY.cell),
        Identity(study_digest=IDENTITY.study_digest, cell="seed1-fold1-federated"),
    ],
    ids=["study", "cell"],
)
def test_a_checkpoint_of_another_study_or_cell_is_refused(tmp_path: Path, other: Identity) -> None:
    with pytest.raises(RunError, match="Resume with the study"):
        load(saved(tmp_path / "c.safetensors"), LAYOUT, other)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    other = Layout((("layer.weight", (2, 3)), ("layer.bias", (3,)), ("scale", ())))
    with pytest.raises(RunError, match="of another"):
        load(saved(tmp_path / "c.safetensors"), other, IDENTITY)


def test_no_changed_bit_goes_unnoticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.safetensors")
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(RunError):
            load(path, LAYOUT, IDENTITY)


def test_no_cut_off_or_foreign_file_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.safetensors")
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(RunError):
            load(path, LAYOUT, IDENTITY)
    for content in [whole + b"x", b"\x80\x04N.", os.urandom(4096), b"\xff" * 64]:
        path.write_bytes(content)
        with pytest.raises(RunError):
            load(path, LAYOUT, IDENTITY)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "c.safetensors")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        saved(path, checkpoint_of(seed=1))
    np.testing.assert_array_equal(load(path, LAYOUT, IDENTITY).state.weights, checkpoint_of().state.weights)


def test_what_a_crash_left_beside_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "c.safetensors.partial").write_bytes(b"half a file")
    saved(tmp_path / "c.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


# A federation of 40 rounds of at least 40 ms each, in a process that can be killed.
PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
from sottovoce.common import study as studies
from sottovoce.server.exchange import GridExchange
from sottovoce.server.rounds import Cell, run
from sottovoce.simulations.engines.inprocess import InProcessGrid
from tests.fakes.federations import nodes_of, slow_app, study_of, weights_of

strategy = studies.FedYogi(kind="fedyogi", server_learning_rate=0.1)
grid = InProcessGrid(slow_app, nodes_of(4), {})
path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
outcome = run(
    GridExchange(grid, grid.sites), study_of(rounds=40, strategy=strategy), weights=weights_of(),
    cell=Cell(seed=0, fold=1, arm="federated"), checkpoint=path, resume=True,
)
print(outcome.digest, len(outcome.rounds))
"""


def start(path: Path | None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, *([] if path is None else [str(path)])]
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}:{root}"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def kill_somewhere(process: subprocess.Popen[str], path: Path, draw: random.Random) -> None:
    """Kills it at a moment of its own choice, once a round of this process is on disk."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == before):
        time.sleep(0.005)
    time.sleep(draw.uniform(0.0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_and_resumed_runs_end_in_the_same_bits(tmp_path: Path) -> None:
    draw = random.Random(4)
    whole, paths = start(None), [tmp_path / f"{number}.safetensors" for number in range(2)]
    for _ in range(2):
        victims = [start(path) for path in paths]
        for victim, path in zip(victims, paths, strict=True):
            kill_somewhere(victim, path, draw)
    assert all(path.exists() for path in paths)
    expected = whole.communicate(timeout=300)[0].split()
    assert expected[1] == "40"
    for process in [start(path) for path in paths]:
        assert process.communicate(timeout=300)[0].split() == expected


def test_the_study_in_the_proof_is_not_done_before_the_first_kill() -> None:
    assert study_of(rounds=40).federation.rounds * 4 * 0.01 > 2 * 0.5
