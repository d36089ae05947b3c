"""Claims of the coordinator's loop: what is wrong with one run, site or file is said once and holds up nothing else."""

import errno
import functools
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sottovoce.common.errors import DeploymentError
from sottovoce.common.files import write_whole
from sottovoce.common.pki import Authority, is_for, new_node_key, peer_of, read_pem, request_for
from sottovoce.common.study import load
from sottovoce.server import coordinator as coordinators
from sottovoce.server.coordinator import Coordinator
from sottovoce.server.deployed_run import DeployedRun, Plan
from sottovoce.server.home import STATUS, CoordinatorHome
from sottovoce.server.operations import NEW_SERVER, found
from sottovoce.server.registry import Registry
from tests.fakes.fronts import free_ports
from tests.fakes.sites import write_study

PATIENCE_SECONDS = 60.0  # a moment on an idle machine


@dataclass
class FakeSuperLink:
    """Keeps Flower's rule for keys: one that was registered is taken no second time."""

    home: CoordinatorHome
    is_alive: bool = False
    nodes: dict[str, int] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    refused: ClassVar[str] = ""

    @property
    def control(self) -> "FakeSuperLink":
        return self

    def start(self) -> "FakeSuperLink":
        self.is_alive = True
        return self

    def stop(self) -> None:
        self.is_alive = False

    def register(self, key: str) -> int:
        if key in self.nodes or key == FakeSuperLink.refused:
            raise DeploymentError("The SuperLink refused: public key already in use.")
        self.nodes[key] = len(self.nodes) + 1
        return self.nodes[key]

    def unregister(self, node: int) -> None:
        assert node in self.nodes.values()

    def start_run(self, fab: bytes, settings: Mapping[str, str]) -> int:
        self.runs.append(settings["run"])
        return len(self.runs)

    def status(self, run: int) -> str:
        return "running"


class Served:
    """A coordinator at work on a real folder, registry and consortium service."""

    def __init__(self, folder: Path) -> None:
        fleet, consortium = free_ports(2)
        text = NEW_SERVER.format(
            name="t", hosts='"localhost"', fleet=fleet, consortium=consortium, front=0, metrics=0
        )
        self.folder = folder
        self.home, _ = found(folder / "coordinator", text)
        self.registry = Registry.open(self.home.registry)
        self._stop = threading.Event()

    def begin(self) -> None:
        self.coordinator = Coordinator(CoordinatorHome.open(self.home.folder))
        self._thread = threading.Thread(target=self.coordinator.serve, args=(self._stop,))
        self._thread.start()

    @property
    def is_at_work(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def superlink(self) -> Any:
        return self.coordinator._superlink

    def status(self) -> Any:
        try:
            return json.loads((self.home.run / STATUS).read_bytes())
        except (OSError, ValueError):
            return {}

    def enrol(self, site: str, node_key: str, serial: int) -> None:
        self.registry.invite(site, "site", serial=serial, not_after=int(time.time()) + 100)
        self.registry.enrolled(
            invitation=serial,
            request_sha256=str(serial),
            identity=site.ljust(64, "0"),
            node_key_pem=node_key,
            certificate_pem="",
            serial=serial + 1_000,
            not_after=int(time.time()) + 100,
        )

    def run(self, name: str) -> DeployedRun:
        file = write_study(self.folder / "study.toml", n_sites=1)
        plan = Plan(format=1, name=name, study_digest=load(file).digest(), seed=0, fold=-1, sites=("a",))
        return DeployedRun.create(self.home, file.read_text(), plan, b"")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(coordinators, "SuperLink", FakeSuperLink)
    monkeypatch.setattr(coordinators, "bundle", lambda: b"")
    monkeypatch.setattr(coordinators, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(FakeSuperLink, "refused", "")
    made = Served(tmp_path)
    made.begin()
    yield made
    made.end()


def _more_than(n: int, what: Sized) -> bool:
    return len(what) > n


def _is_another(file: Path, pem: str) -> bool:
    return read_pem(file) != pem


def until(what: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["state.json", "plan.json", "study.toml"])
def test_a_run_that_is_damaged_holds_up_no_other(
    served: Served, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    served.run("a-damaged")
    until(lambda: served.superlink.runs == ["a-damaged"])
    (served.home.runs / "a-damaged" / name).write_bytes(b"\xff{")
    served.run("b-sound")
    until(lambda: "b-sound" in served.superlink.runs)
    until(lambda: any("a-damaged" in said for said in served.status().get("problems", ())))
    time.sleep(0.2)
    assert (
        sum("a-damaged" in record.message for record in caplog.records) <= 2
    )  # once each, not at every look
    shutil.rmtree(served.home.runs / "a-damaged")
    until(lambda: served.status().get("problems") == [])


def test_a_site_whose_key_the_superlink_refuses_holds_up_no_other(served: Served) -> None:
    FakeSuperLink.refused = "key of a"
    served.enrol("a", "key of a", 1)
    served.enrol("b", "key of b", 2)
    served.run("pilot")
    until(lambda: "key of b" in served.superlink.nodes and served.superlink.runs)
    until(lambda: served.status().get("registered") == 1)


def test_a_site_that_was_revoked_and_enrols_again_with_its_node_key_takes_part(served: Served) -> None:
    served.enrol("a", "key of a", 1)
    until(lambda: served.status().get("registered") == 1)
    served.registry.revoke("a", person="Ada Example", reason="test")
    until(lambda: served.status().get("registered") == 0)
    served.enrol("a", "key of a", 2)
    until(lambda: served.status().get("registered") == 1)
    until(lambda: served.status().get("problems") == [])


def test_a_full_disk_or_a_defect_does_not_end_the_coordinator(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: served.status().get("registered") == 0)
    for trouble in (OSError(errno.ENOSPC, "No space left on device"), KeyError("a defect")):
        with monkeypatch.context() as patch:
            looks: list[int] = []

            def full(
                *_: object, trouble: Exception = trouble, looks: list[int] = looks, **__: object
            ) -> None:
                looks.append(1)
                raise trouble

            patch.setattr(coordinators, "write_whole", full)
            until(functools.partial(_more_than, 3, looks))
        assert served.is_at_work
    served.enrol("a", "key of a", 1)
    until(lambda: served.status().get("registered") == 1)


def test_the_servers_certificate_is_renewed_before_it_is_over_and_for_new_names(served: Served) -> None:
    pki, authority = served.home.pki, Authority.open(served.home.pki)
    hosts = ("localhost", "127.0.0.1")

    def put(hosts: tuple[str, ...], hours: float, now: float | None = None) -> str:
        pem = authority.issue_server(request_for(pki / "server.key"), hosts=hosts, hours=hours, now=now)
        write_whole(pki / "server.crt", pem.encode())
        return pem

    young = put(hosts, 1.0)
    time.sleep(0.3)
    assert read_pem(pki / "server.crt") == young
    for facts in ((hosts, 1.0, time.time() - 2500), (("elsewhere",), 1.0)):
        other = put(*facts)
        until(functools.partial(_is_another, pki / "server.crt", other))
        fresh = read_pem(pki / "server.crt")
        assert is_for(fresh, hosts)
        assert peer_of(fresh).not_after > time.time() + 3600
    until(lambda: served.status().get("superlink", {}).get("restarts", 0) > 0)  # no run was going


def test_a_node_key_is_of_one_member(served: Served, tmp_path: Path) -> None:
    key = new_node_key(tmp_path / "node.key")
    served.enrol("a", key, 1)
    with pytest.raises(DeploymentError, match="node key"):
        served.enrol("b", key, 2)
    served.enrol("a", key, 3)  # the same member may keep it
