"""The first claim of a real federation: real processes end in the simulation's weights, whoever is killed.

Twenty schedules of kills: `python -m sottovoce.simulations.bench faults --size faults.processes=20`.
"""

from collections.abc import Iterator

import pytest

from sottovoce.common.ledger.store import LEDGER_FILE
from sottovoce.server.deployed_run import DeployedRun
from tests.fakes import process_faults
from tests.fakes.fault_claims import Broken
from tests.fakes.process_faults import Killable, killable, run_with_kills


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killable]:
    with killable(tmp_path_factory.mktemp("killed"), n_runs=1, n_sites=3) as one:
        yield one


def test_with_a_site_and_the_coordinator_killed_in_the_middle_the_weights_are_the_simulation_s(
    made: Killable,
) -> None:
    told = run_with_kills(made, 0, victims=("agent", "coordinator"))
    assert len(told.killed) == 2


def test_other_weights_and_a_lost_entry_would_be_noticed(
    made: Killable, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = DeployedRun.open(made.place.home, "seed-0")
    with monkeypatch.context() as patch:
        patch.setattr(process_faults, "simulated", lambda made, seed: "0" * 64)
        with pytest.raises(Broken, match="2: "):
            process_faults._check(made, run, 0)
    path = made.place.hospitals["site-2"].ledger / LEDGER_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2] + lines[-1:]))
    with pytest.raises(Broken, match="3: the ledger of site-2"):
        process_faults._check(made, run, 0)
