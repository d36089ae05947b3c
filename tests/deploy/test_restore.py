"""A hospital's backup put back, as the runbook says it: with the commands, and with what others had seen meanwhile."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sottovoce.cli import app
from sottovoce.client.consortium import ConsortiumClient
from sottovoce.client.site_ledger import SiteLedger
from tests.fakes.consortium import Consortium, consortium


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
