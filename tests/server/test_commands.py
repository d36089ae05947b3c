"""Claims of `sottovoce server`: what a user mistypes is a sentence, and what is damaged hides nothing else."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sottovoce.common.errors import SottovoceError
from sottovoce.common.study import load
from sottovoce.server.commands import server_app
from sottovoce.server.deployed_run import DeployedRun, Plan
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.registry import Registry
from tests.fakes.sites import write_study


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    folder = tmp_path / "coordinator"
    assert CliRunner().invoke(server_app, ["init", str(folder), "--name", "t"]).exit_code == 0
    return CoordinatorHome.open(folder)


def refused(*arguments: object) -> str:
    found = CliRunner().invoke(server_app, list(map(str, arguments)))
    assert isinstance(found.exception, SottovoceError), found.exception
    return str(found.exception)


def test_an_invitation_that_cannot_be_written_is_none(home: CoordinatorHome, tmp_path: Path) -> None:
    said = refused("invite", home.folder, "hospital-a", "--out", tmp_path / "nowhere" / "a.invitation")
    assert "--out" in said
    assert Registry.open(home.registry).invitations() == ()


@pytest.mark.parametrize("data", [None, b"\xff", b"name = 3"])
def test_a_study_that_is_none_is_not_offered(
    home: CoordinatorHome, tmp_path: Path, data: bytes | None
) -> None:
    file = tmp_path / "study.toml"
    if data is not None:
        file.write_bytes(data)
    assert "study" in refused("offer", home.folder, file)


def test_a_run_that_is_damaged_is_named_and_hides_no_other(home: CoordinatorHome, tmp_path: Path) -> None:
    file = write_study(tmp_path / "study.toml", n_sites=1)
    for name in ("damaged", "sound"):
        plan = Plan(format=1, name=name, study_digest=load(file).digest(), seed=0, fold=-1, sites=("a",))
        DeployedRun.create(home, file.read_text(), plan, b"")
    (home.runs / "damaged" / "state.json").write_text("{")
    shown = CliRunner().invoke(server_app, ["status", str(home.folder), "--json"])
    rows = json.loads(shown.stdout)["runs"]
    assert [(row["run"], row["state"]) for row in rows] == [("damaged", "damaged"), ("sound", "waiting")]
    assert "state.json" in rows[0]["reason"]
    assert "damaged" in CliRunner().invoke(server_app, ["status", str(home.folder)]).stdout


def test_a_stop_is_for_one_run_and_stays(home: CoordinatorHome, tmp_path: Path) -> None:
    file = write_study(tmp_path / "study.toml", n_sites=1)
    plan = Plan(format=1, name="pilot", study_digest=load(file).digest(), seed=0, fold=-1, sites=("a",))
    run = DeployedRun.create(home, file.read_text(), plan, b"")
    for _ in range(2):
        shown = CliRunner().invoke(server_app, ["stop", str(home.folder), "--name", "pilot"])
        assert shown.stdout == "pilot: stopped.\n"
    assert run.state.is_over
