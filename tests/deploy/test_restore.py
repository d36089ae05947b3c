"""Backups, and a hospital's put back as the runbook says it: by the commands, with what others had seen meanwhile."""

import itertools
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sottovoce.cli import app
from sottovoce.client.consortium import ConsortiumClient
from sottovoce.client.personal import RELEASED, PersonalState
from sottovoce.client.site_ledger import SiteLedger
from sottovoce.common.errors import LedgerError
from sottovoce.common.ledger.store import Move
from tests.fakes.consortium import Consortium, consortium

SCRIPT = Path(__file__).parents[2] / "deploy" / "backup.sh"


def told(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


def hand_in(made: Consortium) -> None:
    """Every hospital shows its ledger, and looks at the others'."""
    hospitals = [made.join(f"hospital-{letter}") for letter in "abc"]
    for act in (ConsortiumClient.send_checkpoint, ConsortiumClient.witness):
        for hospital in hospitals:
            with ConsortiumClient(hospital) as client:
                act(client)


@pytest.mark.parametrize("meanwhile", [False, True], ids=["nothing was spent", "something was spent"])
def test_a_backup_is_put_back_only_if_nobody_saw_more_of_the_ledger(tmp_path: Path, meanwhile: bool) -> None:
    with consortium(tmp_path) as made:
        hospital = made.join("hospital-a")
        hand_in(made)
        shutil.copytree(hospital.folder, tmp_path / "restored", symlinks=True)
        with SiteLedger.open(hospital.ledger) as site:
            first_key = site.budget.state.public_key
            if meanwhile:
                site.rotate_key(person="Ada", reason="yearly")
        hand_in(made)
        shutil.rmtree(hospital.folder)

        restored = tmp_path / "restored"
        code, said = told("ledger", "identity", restored / "ledger")
        assert (code != 0, "ledger move" in said) == (True, True)
        assert told("client", "witnessed", restored, "--out", tmp_path / "seen")[0] == 0
        assert told("server", "witnessed", made.home.folder, "--out", tmp_path / "all")[0] == 0
        (mine,) = (tmp_path / "seen").glob("*.cosigned.txt")
        assert mine.read_text() == (tmp_path / "all" / mine.name).read_text()
        verify = ("ledger", "verify", restored / "ledger", "--public-key", first_key, "--seen", mine)
        code, said = told(*verify)
        if meanwhile:
            assert code == 1
            assert "NOT VALID" in said
            return
        assert code == 0
        assert told("ledger", "move", restored / "ledger", "--person", "Ada", "--reason", "restored")[0] == 0
        assert told("ledger", "identity", restored / "ledger")[0] == 0


@pytest.fixture(scope="module")
def recipient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipient")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"),
            *("-days", "2", "-subj", "/CN=backup", "-keyout", str(folder / "backup.key")),
            *("-out", str(folder / "backup.crt")),
        ],
        check=True,
        capture_output=True,
    )
    return folder


def backup(*words: Path | str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    command = ["bash", str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_restored_ledger_is_refused_until_a_person_moves_it(recipient: Path, tmp_path: Path) -> None:
    home, out, back = tmp_path / "home", tmp_path / "out.backup", tmp_path / "back"
    home.mkdir()
    (home / "hospital.toml").write_text('format = 1\nsite = "hospital-a"\n')
    SiteLedger.create(home / "ledger", site="hospital-a")
    (home / "studies" / "d" / "features").mkdir(parents=True)
    (home / "studies" / "d" / "features" / "mfcc.npy").write_text("planted-canary")
    assert backup(home, recipient / "backup.crt", out).returncode == 0
    assert b"PRIVATE KEY" not in out.read_bytes()
    assert backup("--open", out, recipient / "backup.key", back).returncode == 0
    assert not list(back.rglob("mfcc.npy"))
    with pytest.raises(LedgerError, match="ledger move"):
        SiteLedger.open(back / "ledger")
    with SiteLedger.open(home / "ledger") as site:  # meanwhile life went on, and others saw it
        site.rotate_key(person="Ada", reason="yearly")
        seen = site.ledger.checkpoint()
    move = Move(person="Ada", reason="restored")
    with pytest.raises(LedgerError, match="rolled back"):
        SiteLedger.open(back / "ledger", move=move, seen=(seen,))
    with SiteLedger.open(
        back / "ledger", move=move
    ) as site:  # without that note nobody can tell: hence the runbook's order
        assert site.budget.state.site == "hospital-a"


def test_a_backup_holds_nothing_that_a_withdrawal_must_remove(recipient: Path, tmp_path: Path) -> None:
    home, out, back = tmp_path / "home", tmp_path / "out.backup", tmp_path / "back"
    for fold, series in itertools.product((-1, 0, 11), ("", "0" * 31 + "a", RELEASED)):
        state = PersonalState(home / "state", study_digest="d", seed=0, fold=fold, series=series)
        state.write(1, {"head.weight": np.ones(3, np.float32)}, oldest=1)
    (home / "hospital.toml").write_text('format = 1\nsite = "hospital-a"\n')
    assert backup(home, recipient / "backup.crt", out).returncode == 0
    assert backup("--open", out, recipient / "backup.key", back).returncode == 0
    kept = sorted(place.name for place in (back / "state" / "d").iterdir())
    assert kept == [f"seed0-fold{fold}-released" for fold in (-1, 0, 11)]


def test_a_registry_is_copied_while_it_is_written(recipient: Path, tmp_path: Path) -> None:
    home, out, back = tmp_path / "home", tmp_path / "out.backup", tmp_path / "back"
    home.mkdir()
    (home / "server.toml").write_text("format = 1\n")
    writer = sqlite3.connect(home / "registry.sqlite", isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE sites (name TEXT)")
    writer.execute("INSERT INTO sites VALUES ('hospital-a')")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO sites VALUES ('hospital-b')")
    try:
        assert backup(home, recipient / "backup.crt", out).returncode == 0
    finally:
        writer.close()
    assert backup("--open", out, recipient / "backup.key", back).returncode == 0
    reader = sqlite3.connect(back / "registry.sqlite")
    assert reader.execute("SELECT name FROM sites").fetchall() == [("hospital-a",)]
    reader.close()


def test_a_backup_touches_nothing_that_is_there(recipient: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    (tmp_path / "server.toml").write_text("format = 1\n")
    assert backup(tmp_path, recipient / "backup.crt", there).returncode == 2
    assert backup("--open", there, recipient / "backup.key", there).returncode == 2
    assert backup(tmp_path / "nowhere", recipient / "backup.crt", tmp_path / "out").returncode == 2
    assert there.read_text() == "mine"
