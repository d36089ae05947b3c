"""Claims of the agent: what it answers, what it refuses, and that nothing short of its operator ends it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from sottovoce.client import agent, agent_files
from sottovoce.client.agent import run_agent
from sottovoce.client.agent_files import Journal, Status, read_status, write_stop
from sottovoce.client.chores import Chore, Chores
from sottovoce.client.home import Hospital
from sottovoce.client.worker import Answered, Worker
from sottovoce.common import models
from sottovoce.common import study as studies
from sottovoce.common.envelope import COORDINATOR, Envelope, header_digest, opened, seal
from sottovoce.common.errors import DeploymentError
from sottovoce.common.flower import ConfigRecord, Context, Message, RecordDict, adopt_task_identity
from sottovoce.common.keys import SigningKey
from sottovoce.common.processes import environment
from sottovoce.common.records import pack, unpack
from sottovoce.common.sealing import unwrapped, wrapped
from sottovoce.common.study import Study
from sottovoce.common.weights import from_state_dict
from tests.fakes import superlinks
from tests.fakes.hospitals import make_hospital
from tests.fakes.sites import N_CLASSES, SGD, WIDTH, write_sites, write_study
from tests.fakes.superlinks import ECHO, agent_thread, until


def connected(hospital: Hospital) -> bool:
    return bool(read_status(hospital.run).get("connected"))


def counts(hospital: Hospital) -> Mapping[str, float]:
    found: Mapping[str, float] = read_status(hospital.run).get("counts", {})
    return found


@pytest.fixture(scope="module")
def site(superlink: superlinks.Superlink) -> Iterator[tuple[Hospital, int]]:
    """A hospital whose agent runs, for tests that leave it as it was."""
    settings = f"poll_seconds = 0.05\nmetrics_port = {superlink.free_port()}\n"
    hospital = superlink.hospital("agent-site", settings=settings)
    with agent_thread(hospital):
        until(lambda: connected(hospital))
        yield hospital, superlink.nodes["agent-site"]


# --- messages -----------------------------------------------------------------------------------------------


def test_a_message_comes_back_through_the_worker_to_the_bit(
    superlink: superlinks.Superlink, site: tuple[Hospital, int]
) -> None:
    reply = superlink.echo().ask(site[1], n_bytes=1000, floats=1_300_000)  # arrays travel in pieces of 5 MB
    assert reply["config"]["body"] == bytes(1000).hex()
    assert len(bytes.fromhex(reply["arrays"]["0"])) == 5_200_000 + 128


def test_state_of_a_run_follows_it_and_ends_with_a_worker_that_dies(
    superlink: superlinks.Superlink, site: tuple[Hospital, int]
) -> None:
    run, node = superlink.echo(), site[1]
    before = run.ask(node)["config"]["n"]
    assert run.ask(node)["config"]["n"] == before + 1
    assert run.ask(node, config={"kill": 1})["error"] == agent.ENDINGS["died"]
    assert run.ask(node)["config"]["n"] == 1, "what the worker had in hand is lost, not handed out again"
    assert counts(site[0])["worker_died"] >= 1


def test_an_app_that_fails_costs_its_message_alone(
    superlink: superlinks.Superlink, site: tuple[Hospital, int]
) -> None:
    error = superlink.echo().ask(site[1], config={"fail": 1})["error"]
    assert error.startswith("ValueError in")
    assert "secret" not in error
    assert "config" in superlink.echo().ask(site[1])


def test_a_message_whose_time_is_over_ends_its_worker(
    superlink: superlinks.Superlink, site: tuple[Hospital, int]
) -> None:
    began, run = time.monotonic(), superlink.echo()

    def is_late() -> bool:  # on a busy machine a message's time may be over before it is fetched
        run.ask(site[1], config={"sleep": 600.0}, ttl=1.5, patience=2.0)
        return counts(site[0]).get("worker_late", 0) > 0

    until(is_late)
    assert time.monotonic() - began < 300, "it would have slept for ten minutes"
    assert "config" in superlink.echo().ask(site[1])


def test_the_worker_has_no_proxies_and_calls_nobody(
    superlink: superlinks.Superlink, site: tuple[Hospital, int]
) -> None:
    names = "HTTPS_PROXY https_proxy OMP_NUM_THREADS FLWR_TELEMETRY_ENABLED"
    reply = superlink.echo().ask(site[1], config={"environment": names})
    assert reply["config"]["environment"] == ["FLWR_TELEMETRY_ENABLED", "OMP_NUM_THREADS"]


def test_the_status_holds_counts_and_durations_and_the_log_a_line_a_message(
    superlink: superlinks.Superlink, site: tuple[Hospital, int]
) -> None:
    hospital = site[0]
    superlink.echo().ask(site[1])
    last = until(lambda: read_status(hospital.run).get("last"))
    log = hospital.run / agent_files.LOG
    assert set(last) == {"run", "round", "phase", "when", "seconds", "outcome", "why"}
    assert (last["round"], last["phase"]) == ("round 1 attempt 0", "train")
    said = until(lambda: "certificate_ends" in read_status(hospital.run) and read_status(hospital.run))
    assert said["certificate_ends"] > time.time()
    assert abs(said["clock_off_seconds"]) < 30
    # The line follows the count, and both the reply.
    until(lambda: log.read_text().count("round 1 attempt 0, train") == counts(hospital)["messages"])


def test_metrics_are_counts_and_coarse_durations_for_this_machine(
    superlink: superlinks.Superlink, site: tuple[Hospital, int]
) -> None:
    superlink.echo().ask(site[1])
    port = site[0].settings.metrics_port

    def shown() -> str:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=60).text
        return text if 'sottovoce_messages_total{outcome="answered",phase="train"}' in text else ""

    text = until(shown, what="the message's count")
    assert "agent-site" not in text


# --- what is refused ----------------------------------------------------------------------------------------


def test_a_run_with_code_gets_nothing_but_refusals(
    superlink: superlinks.Superlink, site: tuple[Hospital, int], tmp_path: Path
) -> None:
    hospital, node = site
    pyproject = superlinks.PYPROJECT.format(app=ECHO).encode()
    with_code = {"pyproject.toml": pyproject, "evil.py": f"open({str(tmp_path / 'x')!r}, 'w')".encode()}
    run = superlink.run(files=with_code)
    for _ in range(2):
        assert "Refused the run's bundle" in run.ask(node)["error"]
    (run.folder / "end").touch()
    assert not (tmp_path / "x").exists()
    lines = [json.loads(line) for line in (hospital.run / agent_files.SECURITY).read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["bundle"] * 2
    assert "config" in superlink.echo().ask(node), "another run is answered"


def test_a_full_disk_refuses_messages_with_a_sentence_until_there_is_room(
    superlink: superlinks.Superlink, site: tuple[Hospital, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital, node = site

    def full(self: Journal, fields: Mapping[str, Any]) -> None:
        Path("/dev/full").write_bytes(b"x" * 10_000)  # a real ENOSPC, from the kernel

    monkeypatch.setattr(Journal, "begin", full)
    assert superlink.echo().ask(node)["error"] == agent.FULL_DISK
    assert "No space left on device" in read_status(hospital.run)["error"]
    monkeypatch.undo()
    assert "config" in superlink.echo().ask(node)
    until(lambda: read_status(hospital.run)["error"] == "")


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    status = Status(tmp_path / "gone", {})
    status.set(connected=True)
    (tmp_path / "gone").mkdir()
    status.set(connected=False)
    assert read_status(tmp_path / "gone")["connected"] is False
    agent_files.add_refusal(tmp_path / "nowhere", {"reason": "bundle"})


def test_a_second_agent_is_refused_and_the_first_one_stays(site: tuple[Hospital, int]) -> None:
    with pytest.raises(DeploymentError, match="one is running"):
        run_agent(site[0], app=ECHO)
    assert agent_files.is_locked(site[0].run)


def test_a_stopped_hospital_does_not_begin(superlink: superlinks.Superlink) -> None:
    hospital = superlink.hospital("stopped-site")
    write_stop(hospital.run, agent_files.Stop(now=False))
    with pytest.raises(DeploymentError, match="--resume"):
        run_agent(hospital, app=ECHO)
    (hospital.run / agent_files.STOPPED).write_text("damaged")
    with pytest.raises(DeploymentError, match="--resume"):
        run_agent(hospital, app=ECHO)
    assert not agent_files.is_locked(hospital.run)


# --- ends and beginnings ------------------------------------------------------------------------------------


def test_kill_minus_nine_in_the_middle_is_answered_at_the_next_start(
    superlink: superlinks.Superlink, tmp_path: Path
) -> None:
    hospital = superlink.hospital("killed")
    run, mark = superlink.echo(), tmp_path / "at-work"
    with superlinks.agent(hospital) as process:
        until(lambda: connected(hospital))
        asked = run.start(superlink.nodes["killed"], config={"sleep": 600.0, "touch": str(mark)})
        worker = int(until(lambda: mark.exists() and mark.read_text()))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (hospital.run / agent_files.JOURNAL).exists()
    until(lambda: is_dead(worker), what="the worker's end")
    with agent_thread(hospital):
        assert run.wait(asked)["replies"] == {str(superlink.nodes["killed"]): {"error": agent.RESTARTED}}
        until(lambda: not (hospital.run / agent_files.JOURNAL).exists())
        assert "config" in run.ask(superlink.nodes["killed"])


def test_an_agent_whose_reply_is_not_fetched_in_time_ends_without_a_word(
    superlink: superlinks.Superlink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "FETCHED_SECONDS", 0.0)
    hospital, run, gate = superlink.hospital("unfetched"), superlink.echo(), tmp_path / "gate"
    node = superlink.nodes["unfetched"]
    with agent_thread(hospital):
        until(lambda: connected(hospital))
        asked = run.start(node, gate=str(gate))
        until(lambda: counts(hospital).get("answered"))
    gate.touch()
    assert agent.UNFETCHED in (hospital.run / agent_files.LOG).read_text()
    assert "config" in run.wait(asked)["replies"][str(node)]
    assert node in run.nodes(), "it is online until it is missed"


def is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_journal_of_a_message_that_nobody_waits_for_is_dropped(superlink: superlinks.Superlink) -> None:
    hospital = superlink.hospital("old-journal")
    for left in ('{"_run_id": 1}', "no json", json.dumps({"_created_at": 0})):
        (hospital.run / agent_files.JOURNAL).write_text(left)
        with agent_thread(hospital):
            until(lambda: connected(hospital))
            until(lambda: not (hospital.run / agent_files.JOURNAL).exists())


def test_a_journal_of_a_run_that_a_new_superlink_never_heard_of_is_dropped(
    superlink: superlinks.Superlink,
) -> None:
    hospital = superlink.hospital("unheard-of")
    left = {
        "_run_id": 12345,
        "_message_id": "ab" * 32,
        "_src_node_id": 1,
        "_dst_node_id": superlink.nodes["unheard-of"],
        "_reply_to_message_id": "",
        "_group_id": "round 1 attempt 1",
        "_created_at": time.time(),
        "_ttl": 600.0,
        "_message_type": "train",
        "_src_task_id": 1,
        "_dst_task_id": None,
    }
    (hospital.run / agent_files.JOURNAL).write_text(json.dumps(left))
    with agent_thread(hospital):
        until(lambda: not (hospital.run / agent_files.JOURNAL).exists())
        assert "config" in superlink.echo().ask(superlink.nodes["unheard-of"])


def test_chores_that_fail_or_hang_stop_no_training(superlink: superlinks.Superlink) -> None:
    hospital, release, done = superlink.hospital("chores"), threading.Event(), list[int]()

    def fails() -> None:
        raise DeploymentError("the consortium service is down")

    chores = [
        Chore(name="works", period_seconds=0.05, work=lambda: done.append(1)),
        Chore(name="fails", period_seconds=3600, work=fails),
        Chore(name="hangs", period_seconds=3600, work=lambda: release.wait(300)),
    ]
    with agent_thread(hospital, chores=chores):
        until(lambda: connected(hospital))
        assert "config" in superlink.echo().ask(superlink.nodes["chores"])
        until(lambda: read_status(hospital.run).get("chores", {}).get("fails", {}).get("failed"))
        said = read_status(hospital.run)["chores"]
        assert said["fails"]["error"] == "the consortium service is down"
        assert said["works"]["error"] == ""
        release.set()
    assert done


def test_a_chore_that_failed_is_tried_again_soon_and_a_done_one_at_its_period() -> None:
    calls = list[str]()

    def fails() -> None:
        calls.append("fails")
        raise OSError("no line")

    done = Chore(name="b", period_seconds=3600, work=lambda: calls.append("b"))
    chores = Chores([Chore(name="a", period_seconds=0.1, work=fails), done])
    chores.start()
    until(lambda: calls.count("fails") >= 3)
    chores.close()
    assert calls.count("b") == 1
    assert chores.report()["a"]["failed"] >= 2


# --- the worker by itself -----------------------------------------------------------------------------------


def question() -> tuple[Message, Context]:
    adopt_task_identity()
    content = RecordDict({"config": ConfigRecord({"body": b"x"})})
    return Message(content, 1, "train"), Context(1, 1, {}, RecordDict(), {})


def test_a_worker_ends_with_its_agent_also_in_mid_training(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom sottovoce.client.worker import Worker\n"
        "if __name__ == '__main__':\n    worker = Worker('tests.fakes.site_apps:app')\n"
        "    worker.wait_ready()\n    print(worker.process_id, flush=True)\n    time.sleep(600)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        env=environment(PYTHONPATH=superlinks.PYTHONPATH),
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    until(lambda: is_dead(worker))


def test_an_app_that_cannot_be_imported_is_said() -> None:
    worker = Worker("tests.fakes.nowhere:app")
    with pytest.raises(DeploymentError, match="ModuleNotFoundError"):
        worker.wait_ready()
    worker.kill()


def test_a_worker_answers_dies_and_gives_up_as_it_says() -> None:
    worker, (message, context) = Worker(ECHO), question()
    answer = worker.ask(message, context, until=time.monotonic() + 300, give_up=lambda: False)
    assert isinstance(answer, Answered)
    assert answer.state["calls"]["n"] == 1
    os.kill(worker.process_id, 15)  # the agent's to handle
    os.kill(worker.process_id, 2)
    assert worker.ask(message, context, until=time.monotonic() + 300, give_up=lambda: False) != "died"
    content: Any = message.content
    content["config"]["sleep"] = 60
    assert worker.ask(message, context, until=time.monotonic() + 300, give_up=lambda: True) == "stopped"
    assert not worker.is_alive
    assert worker.ask(message, context, until=time.monotonic() + 300, give_up=lambda: False) == "died"


# --- the coordinator's own ends -----------------------------------------------------------------------------


def sealed_question(ward: Hospital, key: SigningKey, study: Study) -> Envelope:
    """Returns round 1 of a study, as its coordinator asks it."""
    model = models.build(study.model, {"pooled": WIDTH}, N_CLASSES, seed=0)
    config = {"round": 1, "rounds": 3, "seed": 0, "fold": -1, "proximal-mu": 0.0}
    return seal(
        key,
        run=study.digest(),
        round=1,
        phase="train",
        sender=COORDINATOR,
        recipient=ward.site,
        sequence=time.time_ns() // 1000,
        body=pack({"arrays": from_state_dict(model.state_dict()), "config": config}),
        not_after=int(time.time()) + 300,
    )


def opened_reply(ward: Hospital, question: Envelope, said: Mapping[str, str]) -> Any:
    """Returns the content of a sealed reply, as a coordinator opens it."""
    records = recorddict_from_proto(ProtoRecordDict.FromString(bytes.fromhex(said["sealed"])))
    envelope = unwrapped(records)
    opened(
        envelope,
        public_key=ward.identity.public_hex,
        sender=ward.site,
        recipient=COORDINATOR,
        phase="train",
        answers=header_digest(question),
        now=time.time(),
    )
    return unpack(envelope.body)


def test_the_hospitals_app_gives_the_same_bits_under_a_stock_supernode_and_under_our_agent(
    superlink: superlinks.Superlink, tmp_path: Path
) -> None:
    key, study_file = SigningKey.generate(), write_study(tmp_path / "study.toml", n_sites=1, training=SGD)
    data = write_sites(tmp_path / "sites", 1)["site-1"]
    study, run = studies.load(study_file), superlink.run(agent.HOSPITAL_APP)
    trained = []
    for carrier in (superlinks.supernode, agent_thread):  # two hospitals of one name, with equal recordings
        ward = make_hospital(tmp_path / carrier.__name__, "site-1", study_file, data, key.public_hex)
        superlink.equip(ward, coordinator=key.public_hex)
        question, node = sealed_question(ward, key, study), superlink.nodes.pop("site-1")
        asked = recorddict_to_proto(wrapped(question)).SerializeToString().hex()
        with carrier(ward, app=agent.HOSPITAL_APP):
            until(lambda: node in run.nodes())  # noqa: B023 - called here
            trained.append(opened_reply(ward, question, run.ask(node, sealed=asked, ttl=120.0)))
    (run.folder / "end").touch()
    assert set(trained[0]) == {"arrays", "metrics"}
    for name, array in trained[0]["arrays"].items():
        assert array.tobytes() == trained[1]["arrays"][name].tobytes()
    assert trained[0]["metrics"] == trained[1]["metrics"]


def test_a_superlink_that_was_killed_and_comes_back_is_found_again_soon(
    superlink: superlinks.Superlink,
) -> None:
    hospital = superlink.hospital("reconnects")
    with agent_thread(hospital):
        until(lambda: connected(hospital))
        superlink.kill()
        try:
            until(lambda: "was refused" in read_status(hospital.run)["error"])
            assert not connected(hospital)
        finally:
            superlink.restart(pause=3.0)  # long enough for the pauses between tries to have grown
        began = time.monotonic()
        until(lambda: connected(hospital))
        assert time.monotonic() - began < 60, "5 s on an idle machine"
        assert "config" in superlink.echo().ask(superlink.nodes["reconnects"])
        assert read_status(hospital.run)["error"] == ""
