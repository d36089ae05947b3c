"""A deployed run ends where the simulation ends, goes on after a crash, and believes keys alone."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file

from sottovoce.common.errors import QuorumError, RunError
from sottovoce.common.files import lock_file
from sottovoce.common.flower import LocalGrid, Message, Node, load_app
from sottovoce.common.keys import verified
from sottovoce.common.run_files import read_rounds, read_run
from sottovoce.common.weights import digest
from sottovoce.server import conduct as conducting
from sottovoce.server.app import app
from sottovoce.server.conduct import LOCK, MODEL_LABEL, conduct, initial_weights
from sottovoce.server.deployed_run import DeployedRun, State, runs_of
from sottovoce.server.exchange import GridExchange
from sottovoce.server.rounds import run as run_rounds
from sottovoce.server.superlink import HOME_VARIABLE
from sottovoce.simulations.engines.inprocess import InProcessGrid
from tests.fakes.coordinators import APP, Consortium
from tests.fakes.sites import GROUPS, WIDTH, write_study

OPEN_SUMS = "secure_sum = false, deadline_seconds = 600"


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes' features have fewer columns than a study of real recordings gives."""
    monkeypatch.setattr(conducting, "widths_of", lambda study: {"pooled": WIDTH})


def consortium_of(folder: Path, federation: str = OPEN_SUMS) -> Consortium:
    study = write_study(
        folder / "study.toml",
        n_sites=3,
        federation=federation,
        evaluation=f"{GROUPS}, calibration = {{ bins = 5 }}",
    )
    return Consortium(folder, study)


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return consortium_of(tmp_path)


def simulated(consortium: Consortium) -> str:
    """Returns what the plain apps come to on our own grid, without envelopes, folders and approvals."""
    of_study = consortium.study.digest()
    nodes = [
        Node(
            site=site,
            config={
                "site-folder": str(one.features(of_study)),
                "study-file": str(one.study_file(of_study)),
                "without-privacy": True,
            },
        )
        for site, one in consortium.hospitals.items()
    ]
    grid = InProcessGrid(load_app("sottovoce.client.app:app"), nodes, {})
    plan = consortium.run.plan
    start = initial_weights(consortium.study, plan.seed)
    return run_rounds(GridExchange(grid, grid.sites), consortium.study, cell=plan.cell, weights=start).digest


class Dying(InProcessGrid):
    """Ends the coordinator when so many messages were sent."""

    def __init__(self, consortium: Consortium, messages: int) -> None:
        nodes = [
            Node(site=site, config={"home": str(one.folder)}) for site, one in consortium.hospitals.items()
        ]
        super().__init__(load_app(APP), nodes, {})
        self._left = messages

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return super().push_messages(messages)


def state_of(consortium: Consortium) -> str:
    return consortium.run.state.state


def test_a_deployed_run_ends_in_the_bits_of_the_simulation(consortium: Consortium) -> None:
    outcome = conduct(consortium.home, "pilot", consortium.grid())
    assert outcome.digest == simulated(consortium)
    assert state_of(consortium) == "done"
    assert consortium.run.state.weights_sha256 == outcome.digest
    assert consortium.run.state.round == consortium.study.federation.rounds
    assert [one.round for one in read_rounds(consortium.run.folder / "rounds.jsonl")] == [1, 2, 3]
    (cell,) = read_run(consortium.run.folder / "run.json").cells
    assert cell.weights_sha256 == outcome.digest
    said = json.loads((consortium.run.folder / "fairness.json").read_bytes())
    counted = outcome.rounds[-1].counted
    assert counted is not None
    assert [group["group"] for group in said["groups"]] == ["sex female", "sex male"]
    assert [group["n_utterances"] for group in said["groups"]] == [
        sum(map(sum, table)) for table in counted.tables[1:3]
    ]
    sure = json.loads((consortium.run.folder / "calibration.json").read_bytes())
    assert sure["n"] == sum(map(sum, counted.tables[0]))


@pytest.mark.parametrize("messages", [0, 2, 4, 8])
def test_it_goes_on_after_the_coordinator_was_killed_to_the_same_bits(
    consortium: Consortium, messages: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        conduct(consortium.home, "pilot", Dying(consortium, messages))
    assert state_of(consortium) == "running"
    assert conduct(consortium.home, "pilot", consortium.grid()).digest == simulated(consortium)


def test_the_released_model_carries_the_coordinators_word(consortium: Consortium) -> None:
    outcome = conduct(consortium.home, "pilot", consortium.grid())
    said = json.loads((consortium.run.folder / "model.json").read_text())
    signature, key = bytes.fromhex(said.pop("signature")), said.pop("public_key")
    text = json.dumps(said, sort_keys=True).encode()
    assert key == consortium.home.key.public_hex
    assert verified(key, signature, MODEL_LABEL + text)
    assert not verified(key, signature, MODEL_LABEL + text.replace(b"pilot", b"other"))
    assert (
        said["weights_sha256"]
        == outcome.digest
        == digest(
            {name: load_file(consortium.run.folder / "model.safetensors")[name] for name in outcome.weights}
        )
    )
    (published,) = consortium.registry.models()
    assert (published.run, published.sha256) == ("pilot", said["sha256"])


def test_who_was_revoked_has_no_say_and_the_round_goes_on(consortium: Consortium) -> None:
    consortium.registry.revoke("site-2", person="Ada Example", reason="test")
    conduct(consortium.home, "pilot", consortium.grid())
    for facts in read_rounds(consortium.run.folder / "rounds.jsonl"):
        assert facts.sites == ("site-1", "site-3")
        assert [one.site for one in facts.refused] == ["site-2"] * len(facts.refused)
        assert facts.refused


def test_a_quorum_that_is_missed_is_told_and_ends_the_run(tmp_path: Path) -> None:
    consortium = consortium_of(tmp_path, OPEN_SUMS + ", quorum = 3")
    consortium.registry.revoke("site-2", person="Ada Example", reason="test")
    with pytest.raises(QuorumError):
        conduct(consortium.home, "pilot", consortium.grid())
    assert state_of(consortium) == "failed"
    assert "site-2" in consortium.run.state.reason


def test_two_processes_do_not_conduct_one_run(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conducting, "LOCK_SECONDS", 0.2)
    with lock_file(consortium.run.folder / LOCK), pytest.raises(RunError, match="another process"):
        conduct(consortium.home, "pilot", consortium.grid())
    assert state_of(consortium) == "waiting"


@pytest.mark.parametrize("end", ["stopped", "failed", "done"])
def test_a_run_that_is_over_is_not_conducted_and_stays_over(consortium: Consortium, end: Any) -> None:
    consortium.run.change(lambda state: replace(state, state=end, reason="why"))
    with pytest.raises(RunError, match=end):
        conduct(consortium.home, "pilot", Dying(consortium, 0))
    assert (state_of(consortium), consortium.run.state.reason) == (end, "why")


def test_a_stop_between_two_rounds_is_not_written_over(consortium: Consortium) -> None:
    def stop(state: State) -> State:
        return replace(state, state="stopped")

    class Stopping(Dying):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            consortium.run.change(stop)
            return super().push_messages(messages)

    with pytest.raises(RunError, match="stopped"):
        conduct(consortium.home, "pilot", Stopping(consortium, 100))
    assert state_of(consortium) == "stopped"
    assert consortium.run.state.round < consortium.study.federation.rounds


def test_a_study_that_was_changed_after_the_run_began_is_noticed(consortium: Consortium) -> None:
    file = consortium.run.folder / "study.toml"
    file.write_text(file.read_text().replace("rounds = 3", "rounds = 4"))
    with pytest.raises(RunError, match="changed"):
        conduct(consortium.home, "pilot", consortium.grid())


def test_a_run_cannot_be_made_twice_nor_outside_of_its_folder(consortium: Consortium) -> None:
    text = (consortium.run.folder / "study.toml").read_text()
    with pytest.raises(RunError, match="there is a run"):
        DeployedRun.create(consortium.home, text, consortium.run.plan, b"")
    for name in ("../pilot", "", "a/b", ".", "x" * 81):
        with pytest.raises(RunError, match="letters"):
            DeployedRun.open(consortium.home, name)
    assert runs_of(consortium.home) == ["pilot"]


def test_flowers_server_app_conducts_the_run_that_it_is_told(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(**config: str) -> Context:
        return Context(1, 0, {}, RecordDict(), dict(config))

    grid: LocalGrid = consortium.grid()
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    with pytest.raises(RunError, match="sottovoce server run"):
        app(grid, told(run="pilot"))
    monkeypatch.setenv(HOME_VARIABLE, str(consortium.home.folder))
    with pytest.raises(RunError, match="sottovoce server run"):
        app(grid, told())
    app(grid, told(run="pilot"))
    assert state_of(consortium) == "done"
