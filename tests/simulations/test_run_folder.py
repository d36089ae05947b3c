"""A run's folder: one process at a time, nothing replaced by mistake."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import CorpusError, RunError
from sottovoce.common.folds import fold_of
from sottovoce.common.provenance import machine, versions
from sottovoce.common.run_files import RunFacts, write_run
from sottovoce.common.study import SpeakerFolds, Study, load, loads
from sottovoce.simulations.run_folder import (
    Local,
    create,
    locked,
    read_started,
    write_local,
    write_text,
)
from sottovoce.simulations.simulate import _check_scored
from sottovoce.simulations.study_new import study_text
from sottovoce.simulations.study_shape import EMBEDDED
from tests.fakes.sites import write_sites, write_study

TEXT = study_text("demo", EMBEDDED)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    create(run, overwrite=False)
    write_text(run / "study.toml", TEXT)
    write_local(run, Local(twins=True, data={"voices": "/somewhere"}))
    write_run(run / "run.json", RunFacts(format=1, name="run", study_digest=loads(TEXT).digest()))
    return run


def test_what_a_run_began_with_is_read_back(run: Path) -> None:
    study, facts, local = read_started(run)
    assert study == loads(TEXT)
    assert facts.study_digest == study.digest()
    assert local == Local(twins=True, data={"voices": "/somewhere"})


def test_a_run_is_replaced_only_when_told_to(run: Path) -> None:
    with pytest.raises(RunError, match="holds a run already"):
        create(run, overwrite=False)
    create(run, overwrite=True)
    assert not (run / "run.json").exists()


def test_a_folder_that_is_no_run_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="something that is no run"):
        create(tmp_path, overwrite=True)
    with pytest.raises(RunError, match="something that is no run"):
        create(tmp_path / "thesis.txt", overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(run: Path) -> None:
    code = (
        "import sys, time, pathlib; from sottovoce.simulations.run_folder import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(RunError, match="another process works in it"), locked(run):
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    with locked(run):
        pass


def test_a_study_changed_after_the_start_is_noticed(run: Path) -> None:
    write_text(run / "study.toml", TEXT.replace("rounds = 30", "rounds = 31"))
    with pytest.raises(RunError, match="was changed after the run began"):
        read_started(run)


@pytest.mark.parametrize("name", ["study.toml", "run.json", "local.json"])
@pytest.mark.parametrize("damage", [None, b"", b"{", b"\xff\xfe", b"[]"])
def test_a_damaged_run_is_an_error_not_a_crash(run: Path, name: str, damage: bytes | None) -> None:
    from sottovoce.common.errors import SottovoceError

    (run / name).unlink() if damage is None else (run / name).write_bytes(damage)
    with pytest.raises(SottovoceError):
        read_started(run)


def test_no_run_to_go_on_with_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no such folder"):
        read_started(tmp_path / "absent")


def test_what_same_bits_depend_on_is_recorded() -> None:
    assert machine().cpu_capability
    assert {"python", "torch", "flwr", "numpy"} <= set(versions())


def test_folds_that_have_nobody_to_score_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    everybody = SiteData.open(write_sites(tmp_path / "sites", 1)["site-1"])
    study = load(write_study(tmp_path / "tiny.toml", n_sites=1))
    folds = SpeakerFolds(kind="by_speaker", k=50)
    used = set(fold_of(folds, 0, "site-1", everybody.speakers).values())
    empty = min(set(range(50)) - used)

    def asking(*folds_asked: int) -> Study:
        return replace(study, evaluation=replace(study.evaluation, folds=folds, only_folds=folds_asked))

    _check_scored(asking(empty, min(used)), everybody)
    with pytest.raises(CorpusError, match=f"is in fold {empty}"):
        _check_scored(asking(empty), everybody)
