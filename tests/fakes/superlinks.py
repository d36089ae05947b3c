"""A real SuperLink over TLS, hospitals that are registered at it, and a run in it that a test conducts.

with started(folder) as place:                       # ~4 s: share it by a module-scoped fixture
    hospital = place.hospital("site-a")              # a folder with certificates and a registered node key
    run = place.run("tests.fakes.site_apps:app")     # submits a codeless bundle and a scripted ServerApp
    run.ask(place.node("site-a"), config={"sleep": 1.0})["config"]
"""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.cli.build import build_fab_from_files

from sottovoce.client.agent import run_agent
from sottovoce.client.home import Coordinator, Hospital
from sottovoce.client.line import CA, CERTIFICATE, CERTIFICATE_KEY, NODE_KEY
from sottovoce.common.pki import new_node_key, new_request
from sottovoce.common.processes import environment
from sottovoce.server.superlink import Control, SuperLink
from tests.fakes import fronts

ROOT = Path(__file__).resolve().parents[2]
ECHO = "tests.fakes.site_apps:app"
PYTHONPATH = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
PYPROJECT = """\
[project]
name = "fake"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr==1.41.0"]
[tool.flwr.app]
publisher = "fake"
[tool.flwr.app.components]
serverapp = "tests.fakes.fleet_server:app"
clientapp = "{app}"
[tool.flwr.app.config]
folder = ""
"""


@dataclass
class Run:
    """A run that does what it is asked, one thing at a time."""

    folder: Path
    number: int
    _asked: "itertools.count[int]" = field(default_factory=itertools.count)

    def nodes(self) -> list[int]:
        """Returns the nodes that are online."""
        found: list[int] = self._wait(self._write({"kind": "nodes"}), 180.0)
        return found

    def start(self, *nodes: int, kind: str = "train", n_bytes: int = 8, floats: int = 0, ttl: float = 180.0,
              patience: float = 180.0, config: Mapping[str, Any] | None = None, **more: Any) -> int:  # fmt: skip
        """Sends a message to nodes, and does not wait. Returns a number to wait with."""
        ask = {
            "kind": kind,
            "nodes": nodes,
            "bytes": n_bytes,
            "floats": floats,
            "ttl": ttl,
            "patience": patience,
        }
        return self._write(ask | {"config": dict(config or {}), **more})

    def wait(self, n: int, patience: float = 300.0) -> Any:
        """Returns what came for a message: {"seconds", "replies": {node: ...}}."""
        return self._wait(n, patience)

    def ask(self, node: int, **how: Any) -> Any:
        """Sends one message to one node and returns the reply: {"config", "arrays"} or {"error"}."""
        replies = self.wait(self.start(node, **how))["replies"]
        return replies.get(str(node), {"error": "none came"})

    def _write(self, ask: dict[str, Any]) -> int:
        n = next(self._asked)
        part = self.folder / f"ask-{n}.part"
        part.write_text(json.dumps(ask))
        part.rename(self.folder / f"ask-{n}.json")
        return n

    def _wait(self, n: int, patience: float) -> Any:
        path, end = self.folder / f"answer-{n}.json", time.monotonic() + patience
        while not path.exists():
            if time.monotonic() > end:
                raise TimeoutError(f"nothing came of message {n}")
            time.sleep(0.005)
        return json.loads(path.read_bytes())


@dataclass
class Superlink:
    """A running SuperLink, with what is around it."""

    folder: Path
    place: fronts.Place
    link: SuperLink
    nodes: dict[str, int] = field(default_factory=dict)
    hospitals: dict[str, Hospital] = field(default_factory=dict)
    _echo: Run | None = None

    def echo(self) -> Run:
        """Returns a run of the echoing app that tests share, while this SuperLink is up."""
        if self._echo is None:
            self._echo = self.run()
        return self._echo

    @property
    def control(self) -> Control:
        """The control API."""
        return self.link.control

    @property
    def address(self) -> str:
        """Where hospitals find it."""
        return f"localhost:{self.place.home.settings.fleet_port}"

    def hospital(
        self, site: str, *, settings: str = "poll_seconds = 0.05\n", registered: bool = True
    ) -> Hospital:
        """Makes a hospital's folder with all that a connection needs, at this SuperLink."""
        hospital = Hospital.create(self.folder / site, f'format = 1\nsite = "{site}"\n{settings}')
        self.equip(hospital, registered=registered)
        return hospital

    def equip(self, hospital: Hospital, *, registered: bool = True, coordinator: str = "0" * 64) -> None:
        """Gives a hospital certificates, a node key and this SuperLink's address, and registers it."""
        hospital.pin(
            Coordinator(
                format=1,
                name="consortium",
                public_key=coordinator,
                fleet=self.address,
                consortium="127.0.0.1:1",
            )
        )
        tls, site = hospital.tls, hospital.site
        (tls / CA).write_text(self.place.authority.certificate_pem)
        request = new_request(tls / CERTIFICATE_KEY)
        (tls / CERTIFICATE).write_text(self.place.authority.issue(request, name=site, role="site", hours=1))
        key = new_node_key(tls / NODE_KEY)
        self.hospitals[site] = hospital
        (hospital.tls / "node.pub").write_text(key)
        if registered:
            self.register(site)

    def register(self, site: str) -> int:
        """Registers a hospital's node key."""
        self.nodes[site] = self.control.register((self.hospitals[site].tls / "node.pub").read_text())
        return self.nodes[site]

    def run(self, app: str = ECHO, *, files: Mapping[str, bytes] | None = None) -> Run:
        """Submits a run that a test conducts, and waits until it does. `files` replace the bundle's."""
        folder = self.folder / f"run-{time.monotonic_ns()}"
        folder.mkdir()
        fab = fab_of(files or {"pyproject.toml": PYPROJECT.format(app=app).encode()})
        made = Run(folder=folder, number=self.submit(fab, folder))
        made.nodes()  # its process takes seconds to start; a node that beats no more is online for 20 s alone
        return made

    def submit(self, fab: bytes, folder: Path) -> int:
        """Submits bytes as a run's bundle."""
        return self.control.start_run(fab, {"folder": str(folder)})

    def free_port(self) -> int:
        """Returns a port of the loopback interface that nobody listens on."""
        return fronts.free_ports(1)[0]

    def restart(self, *, pause: float = 0.0) -> None:
        """Kills the SuperLink and starts it anew: it knows of nothing, and nodes are registered again."""
        self.kill()
        time.sleep(pause)
        self.link.start()
        for site in self.nodes:
            self.register(site)

    def kill(self) -> None:
        """`kill -9`, of the whole group."""
        self._echo = None
        self.control.close()
        with suppress(ProcessLookupError):
            os.killpg(self.link.process_id, 9)
        self.link.stop()


@contextmanager
def started(folder: Path) -> Iterator[Superlink]:
    """Starts a SuperLink in an empty folder; it is ended with all its children, whatever a test does."""
    place = fronts.place(folder, max_message_bytes=50_000_000)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = PYTHONPATH  # a run's process imports `tests.fakes`
    made = Superlink(folder=folder, place=place, link=SuperLink(place.home))
    try:
        made.link.start()
        yield made
    finally:
        made.kill()  # SIGTERM would have it wait for its children
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def fab_of(files: Mapping[str, bytes]) -> bytes:
    """Returns the bundle that Flower builds of files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flower's own use of its libraries
        return build_fab_from_files(dict(files))[0]


# --- agents -------------------------------------------------------------------------------------------------


@contextmanager
def agent_thread(hospital: Hospital, *, app: str = ECHO, **how: Any) -> Iterator[threading.Event]:
    """Runs an agent in a thread of this process (its worker is a process all the same)."""
    stop, failed = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            run_agent(hospital, app=app, stop=stop, **how)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(120)
        if thread.is_alive():
            raise TimeoutError("the agent does not end")
    if failed:
        raise failed[0]


def agent_process(hospital: Hospital, *, app: str = ECHO) -> subprocess.Popen[bytes]:
    """Starts an agent as a process of its own. Whoever starts it ends it: use `ended`."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom sottovoce.client.home import Hospital\n"
        "from sottovoce.client.agent import run_agent\n"
        "if __name__ == '__main__':\n    run_agent(Hospital.open(Path(sys.argv[1])), app=sys.argv[2])\n"
    )
    script = (
        hospital.folder / "start_agent.py"
    )  # a worker imports its parent's main module: it must be a file
    script.write_text(code)
    with (hospital.folder / "agent.out").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, str(script), str(hospital.folder), app],
            env=environment(PYTHONPATH=PYTHONPATH),
            stdout=out,
            stderr=subprocess.STDOUT,
        )


@contextmanager
def agent(hospital: Hospital, *, app: str = ECHO) -> Iterator[subprocess.Popen[bytes]]:
    """Runs an agent as a process of its own."""
    process = agent_process(hospital, app=app)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def supernode(hospital: Hospital, *, app: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Runs Flower's own SuperNode for a hospital, without our agent; it runs what a bundle names, not `app`."""
    (port,) = fronts.free_ports(1)  # of its own, for its children
    command = [str(Path(sys.executable).with_name("flower-supernode"))]
    command += ["--superlink", hospital.coordinator.fleet, "--root-certificates", str(hospital.tls / CA)]
    command += ["--auth-supernode-private-key", str(hospital.tls / NODE_KEY)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--node-config", f'home="{hospital.folder}"']
    (hospital.folder / "flower").mkdir()
    with (hospital.folder / "supernode.out").open("ab") as out:
        process = subprocess.Popen(
            command,
            env=environment(PYTHONPATH=PYTHONPATH, FLWR_HOME=str(hospital.folder / "flower")),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def until(condition: Any, *, seconds: float = 180.0, what: str = "it") -> Any:
    """Waits until a condition holds and returns what it returned. On a busy machine an agent starts in 20 s."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come about within {seconds} s")
        time.sleep(0.01)
    return found
