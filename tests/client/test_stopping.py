"""Claims of a stop: training ends within 5 s, nobody else's process does, and what had left is named."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sottovoce.client import agent_files, stopping
from sottovoce.client.agent import run_agent
from sottovoce.client.agent_files import read_status
from sottovoce.client.home import Hospital
from sottovoce.client.stopping import allow, stop
from sottovoce.common.errors import DeploymentError
from sottovoce.common.ledger.entries import Burn
from sottovoce.common.ledger.reading import read_ledger, readable_entries
from sottovoce.common.processes import began
from tests.fakes import hospitals, superlinks
from tests.fakes.sites import private_study
from tests.fakes.superlinks import agent, agent_thread, until

APP = "tests.fakes.site_apps:releasing"


@pytest.fixture(scope="module")
def run(superlink: superlinks.Superlink) -> Iterator[superlinks.Run]:
    made = superlink.run(APP)
    yield made
    (made.folder / "end").touch()


def ready(superlink: superlinks.Superlink, site: str) -> Hospital:
    """Makes a hospital that approved a private study, at this SuperLink."""
    folder = superlink.folder / site
    hospital = hospitals.enrolled(folder, site, "0" * 64, settings="poll_seconds = 0.05\n")
    study_file = private_study(folder / "study.toml", rounds=3)
    hospitals.approve(hospital, hospitals.offer(hospital, study_file, None))
    superlink.equip(hospital)
    return hospital


def burns(hospital: Hospital) -> list[Burn]:
    entries, problem = readable_entries(read_ledger(hospital.ledger).ledger)
    assert problem is None
    return [entry.body for entry in entries if isinstance(entry.body, Burn)]


def test_a_stop_while_an_agent_starts_is_seen_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = hospitals.enrolled(tmp_path / "home", "site-1", "0" * 64)
    take, stopped = agent_files.AgentLock.__init__, list[str]()

    def taken(lock: agent_files.AgentLock, folder: Path) -> None:
        stopped.append(stop(hospital, now=True).agent)  # its name is not in the lock yet
        take(lock, folder)

    monkeypatch.setattr(agent_files.AgentLock, "__init__", taken)
    with pytest.raises(DeploymentError, match="--resume"):
        run_agent(hospital, app=superlinks.ECHO)
    assert stopped == ["was not running"]


def test_stop_now_ends_training_within_five_seconds_burns_and_names_what_had_left(
    superlink: superlinks.Superlink, run: superlinks.Run, tmp_path: Path
) -> None:
    hospital, mark = ready(superlink, "stop-now"), tmp_path / "at-work"
    node = superlink.nodes["stop-now"]
    with agent(hospital, app=APP) as process:
        until(lambda: read_status(hospital.run).get("connected"))
        assert run.ask(node, config={"round": 1})["config"]["body"] == b"an update".hex()
        asked = run.start(node, config={"round": 2, "sleep": 300.0, "touch": str(mark)}, ttl=600.0)
        worker = int(until(lambda: mark.exists() and mark.read_text()))
        since = began(worker)
        assert burns(hospital) == []
        start = time.monotonic()
        stopped = stop(hospital, now=True)
        assert stopped.seconds < 5.0
        assert began(worker) != since, "the process that trained is gone"
        assert time.monotonic() - start < 60.0, "and the ledger is read soon after"
        # It has `PATIENCE_SECONDS` to end by itself, which on a machine with much else to do may be too few.
        assert (process.wait(60), stopped.agent) in ((0, "ended"), (-signal.SIGKILL, "was killed"))
    assert [(left.what, left.rounds, left.n_releases) for left in stopped.left] == [("update", (1,), 1)]
    assert stopped.left[0].name == "tiny"
    assert stopped.left[0].epsilon is not None
    assert stopped.left[0].epsilon > 0.0
    assert [burn.release for burn in burns(hospital)] == list(stopped.burned)
    assert len(stopped.burned) == 1
    if stopped.agent == "ended":
        assert "stopped" in run.wait(asked)["replies"][str(node)]["error"], "the round need not wait"


def test_an_agent_that_is_stopped_in_training_says_so_to_the_round_and_ends_by_itself(
    superlink: superlinks.Superlink, run: superlinks.Run, tmp_path: Path
) -> None:
    hospital, mark = ready(superlink, "stop-told"), tmp_path / "at-work"
    node = superlink.nodes["stop-told"]
    with agent_thread(hospital, app=APP) as ending:
        until(lambda: read_status(hospital.run).get("connected"))
        asked = run.start(node, config={"round": 1, "sleep": 600.0, "touch": str(mark)}, ttl=600.0)
        until(mark.exists)
        agent_files.write_stop(hospital.run, agent_files.Stop(now=True))
        ending.set()
        assert "stopped" in run.wait(asked)["replies"][str(node)]["error"]


def test_a_stop_outlives_restarts_until_it_is_taken_back_and_one_without_now_waits_for_the_message(
    superlink: superlinks.Superlink, run: superlinks.Run, tmp_path: Path
) -> None:
    hospital, mark = ready(superlink, "stop-later"), tmp_path / "at-work"
    node = superlink.nodes["stop-later"]
    assert stop(hospital, now=True).agent == "was not running"
    with pytest.raises(DeploymentError, match="--resume"):
        run_agent(hospital, app=APP)
    allow(hospital)
    with agent(hospital, app=APP) as process:
        until(lambda: read_status(hospital.run).get("connected"))
        # A coordinator that looks for replies once in a second: the agent had left by then.
        config = {"round": 1, "sleep": 600.0, "touch": str(mark), "end": str(tmp_path / "enough")}
        asked = run.start(node, config=config, pause=1.0)
        until(mark.exists)
        with pytest.raises(DeploymentError, match="--now"):
            stop(hospital, now=False, within=0.2)
        (tmp_path / "enough").touch()
        stopped = stop(hospital, now=False, within=120.0)
        assert process.wait(60) == 0
    assert stopped.burned == ()
    assert stopped.left[0].rounds == (1,)
    assert "config" in run.wait(asked)["replies"][str(node)], (
        "SIGTERM finishes the message, and its reply is not lost"
    )
    assert node not in run.nodes(), "and the agent said that it left"


def deaf(tmp_path: Path) -> subprocess.Popen[bytes]:
    """Starts a process that does not listen to SIGTERM."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def lock_of(hospital: Hospital, *processes: tuple[int, str]) -> None:
    rows = [{"pid": pid, "since": since} for pid, since in processes]
    (hospital.run / agent_files.LOCK).write_text(json.dumps(rows))


def test_an_agent_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "PATIENCE_SECONDS", 0.3)
    hospital = Hospital.create(tmp_path / "h", hospitals.SETTINGS.format(site="a"))
    agent_process, worker = deaf(tmp_path), deaf(tmp_path)
    with agent_process, worker:
        try:
            lock_of(hospital, *((one.pid, began(one.pid) or "") for one in (agent_process, worker)))
            assert stop(hospital, now=True).agent == "was killed"
            assert agent_process.wait(60) == worker.wait(60) == -signal.SIGKILL
        finally:
            agent_process.kill()
            worker.kill()


def test_a_stranger_with_the_agents_old_number_is_not_killed(tmp_path: Path) -> None:
    hospital = Hospital.create(tmp_path / "h", hospitals.SETTINGS.format(site="a"))
    lock_of(hospital, (os.getpid(), "12345"))  # this very process, which began at another time
    assert stop(hospital, now=True).agent == "was not running"
    (hospital.run / agent_files.LOCK).write_text("damaged")
    assert stop(hospital, now=True).agent == "was not running"


def test_a_stop_that_cannot_be_made_durable_says_so(tmp_path: Path) -> None:
    hospital = Hospital.create(tmp_path / "h", hospitals.SETTINGS.format(site="a"))
    (hospital.run / f"{agent_files.STOPPED}.partial").symlink_to(
        "/dev/full"
    )  # a real ENOSPC, from the kernel
    with pytest.raises(DeploymentError, match="No space left"):
        stop(hospital, now=True)
