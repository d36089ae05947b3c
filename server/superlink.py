"""Flower's SuperLink as a child of the coordinator: started, asked, ended. Behind the pinned version.

    superlink = SuperLink(home).start()
    node_id = superlink.control.register(node_key_pem)
    flower_run = superlink.control.start_run(bundle(), {"run": "pilot"})

The SuperLink keeps its state in memory: nothing of it need survive. Who takes part stands in our registry, and nodes
are registered anew at each start; where a run has come to stands in its folder, and a run is submitted again.

Guarantees:
  - TLS and node authentication are on; telemetry, update checks and the installation of packages at run time are off.
  - The bundle holds one file, `pyproject.toml`, that names modules of the installed wheel: no code travels.
  - A reply that cannot be put together, or is too large, is an error reply, not the end of the run.
  - A SuperLink that an earlier coordinator left behind is ended before a new one begins, and nobody else's process is.
"""

import functools
import hashlib
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    pull_objects,
)
from flwr.superlink.grid import http_grid

from sottovoce.common.envelope import MAX_BODY_BYTES
from sottovoce.common.errors import DeploymentError
from sottovoce.common.flower import VERSION
from sottovoce.common.inflating import unfolded
from sottovoce.common.processes import Child
from sottovoce.server.home import CoordinatorHome

START_SECONDS = 60.0
LOOPBACK = "127.0.0.1"
HOME_VARIABLE = "SOTTOVOCE_SERVER_HOME"
PULL_BACKOFF_SECONDS = 0.05  # Flower waits 1 s for what of a reply has not come yet
PULL_BACKOFF_CAP_SECONDS = 1.0
MAX_REPLY_OBJECTS, OVERHEAD_BYTES = 4_096, 1_000_000  # what stands around a body
STALL_SECONDS = 20.0  # a chunk of 5 MB needs 2 Mbit/s
_PYPROJECT = f"""\
[project]
name = "sottovoce"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr=={VERSION}"]

[tool.flwr.app]
publisher = "sottovoce"

[tool.flwr.app.components]
serverapp = "sottovoce.server.app:app"
clientapp = "sottovoce.client.hospital:app"

[tool.flwr.app.config]
run = ""
"""


@functools.lru_cache(maxsize=1)
def bundle() -> bytes:
    """Returns the Flower app bundle: names of installed modules, and no code."""
    return packed({"pyproject.toml": _PYPROJECT.encode()})


def packed(files: Mapping[str, bytes]) -> bytes:
    """Returns the Flower app bundle of files by their names."""
    fab, _ = build_fab_from_files(dict(files))
    return fab


def answer_quickly(*, max_bytes: int = MAX_BODY_BYTES) -> None:
    """Lets Flower's grid look again after 50 ms, not 1 s, for what of a reply has not arrived. For this process.

    Flower waits for a reply whose sender died in the middle of sending it until the SuperLink forgets it, minutes past
    any deadline, and hears nobody else meanwhile. Here a reply of which nothing more comes for `STALL_SECONDS` is an
    error reply; and so is one of more than `max_bytes`, or whose objects make no message: at those Flower's grid would
    end, and the run with it.
    """
    flower: Any = http_grid
    flower.pull_objects = functools.partial(_pulled, max_bytes=max_bytes)


def _pulled(
    object_ids: list[str], pull_object_fn: Callable[[str], bytes], *, max_bytes: int
) -> dict[str, bytes]:
    """Stands in the place of Flower's `pull_objects` in its grid. The last id is the message's own."""
    message_id = object_ids[-1]
    ids = list(dict.fromkeys(object_ids))
    if len(ids) > MAX_REPLY_OBJECTS:
        raise ObjectPullError(message_id, f"more than {MAX_REPLY_OBJECTS} objects")
    contents = _fetched(ids, pull_object_fn, max_bytes)
    try:
        unfolded(message_id, dict(contents), max_bytes=max_bytes)
    except DeploymentError as error:
        raise ObjectPullError(message_id, str(error)) from None
    return contents


def _fetched(
    object_ids: list[str], pull_object_fn: Callable[[str], bytes], max_bytes: int
) -> dict[str, bytes]:
    last, sizes = time.monotonic(), dict[str, int]()

    def pull(object_id: str) -> bytes:
        nonlocal last
        try:
            content = pull_object_fn(object_id)
        except ObjectUnavailableError:
            if time.monotonic() - last > STALL_SECONDS:
                raise ObjectPullError(object_id, "nothing more of it came") from None
            raise
        last, sizes[object_id] = time.monotonic(), len(content)
        if sum(sizes.values()) > max_bytes + OVERHEAD_BYTES:
            raise ObjectPullError(object_id, f"a reply of more than {max_bytes} bytes")
        return content

    return pull_objects(
        object_ids, pull, initial_backoff=PULL_BACKOFF_SECONDS, backoff_cap=PULL_BACKOFF_CAP_SECONDS
    )


class Control:
    """The SuperLink's control API, which only this machine reaches.

    Every method raises DeploymentError where the SuperLink refuses, and httpx.TransportError where it is not there.
    """

    def __init__(self, address: str, root_certificate: bytes) -> None:
        self._client = ControlHttpClient.from_server_address(
            address, False, root_certificate, interceptors=[]
        )

    def register(self, node_key_pem: str) -> int:
        """Lets a node in, by the public half of its key (PEM), and returns its number."""
        answer = self._ask(self._client.RegisterNode, RegisterNodeRequest(public_key=node_key_pem.encode()))
        return int(answer.node_id)

    def unregister(self, node_id: int) -> None:
        """Refuses a node from its next request on."""
        self._ask(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node_id))

    def start_run(self, fab: bytes, settings: Mapping[str, str]) -> int:
        """Submits a run and returns Flower's number of it."""
        packed = fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {}))
        request = StartRunRequest(
            fab=packed, override_config=user_config_to_proto(dict(settings)), federation=""
        )
        answer = self._ask(self._client.StartRun, request)
        if not answer.HasField("run_id"):
            raise DeploymentError(f"Expected the SuperLink to start a run; it did not: {answer.note[:200]}")
        return int(answer.run_id)

    def status(self, flower_run: int) -> str:
        """Returns "starting", "running" and the like, or "finished:failed"; "unknown" for what it never heard of."""
        try:
            answer = self._ask(self._client.ListRuns, ListRunsRequest(run_id=flower_run))
        except DeploymentError as error:
            cause = error.__context__
            if (
                isinstance(cause, httpx.HTTPStatusError)
                and cause.response.status_code == httpx.codes.NOT_FOUND
            ):
                return "unknown"
            raise
        found = answer.run_dict.get(flower_run)
        if found is None:
            return "unknown"
        return ":".join(part for part in (found.status.status, found.status.sub_status) if part)

    def stop_run(self, flower_run: int) -> None:
        """Ends a run."""
        self._ask(self._client.StopRun, StopRunRequest(run_id=flower_run))

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    @staticmethod
    def _ask(call: Any, request: Any) -> Any:
        try:
            return call(request)
        except httpx.HTTPStatusError as error:
            raise DeploymentError(
                f"The SuperLink refused {error.request.url.path}: {error.response.status_code} "
                f"{error.response.text[:300]}"
            ) from None


class SuperLink:
    """A running SuperLink."""

    def __init__(self, home: CoordinatorHome) -> None:
        self._home = home
        settings = home.settings
        # Behind a front nobody but this machine reaches it.
        self._host = LOOPBACK if settings.front_port or _is_local(settings.hosts) else "0.0.0.0"
        self.address = f"{LOOPBACK}:{settings.fleet_port}"
        self._child: Child | None = None

    def start(self) -> Self:
        """Starts it and waits until it answers. Raises: DeploymentError."""
        home, command = self._home, self._command()
        (home.run / "flower").mkdir(exist_ok=True, mode=0o700)
        self._child = Child.start(
            "superlink",
            command,
            folder=home.run,
            extra={
                HOME_VARIABLE: str(home.folder.resolve()),
                "FLWR_HOME": str((home.run / "flower").resolve()),
                "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
                "FLWR_LOG_LEVEL": "WARNING",  # else several lines for each message, for ever
            },
        )
        self.control = Control(self.address, (home.pki / "ca.crt").read_bytes())
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if not self.is_alive or time.monotonic() > end:
                self.stop()
                raise DeploymentError(
                    f"Expected the SuperLink to answer on port {home.settings.fleet_port}; it did not. The end of "
                    f"{home.run / 'superlink.log'} says: {self._child.last_words()}"
                )
            time.sleep(0.1)
        return self

    @property
    def is_alive(self) -> bool:
        """Says whether the process is there."""
        return self._child is not None and self._child.is_alive

    @property
    def process_id(self) -> int:
        """The process's number."""
        return 0 if self._child is None else self._child.process_id

    def stop(self) -> None:
        """Ends it, with everything it started."""
        if self._child is not None:
            self._child.stop()

    def _answers(self) -> bool:
        with suppress(httpx.TransportError):
            self.control.status(0)
            return True
        return False

    def _command(self) -> list[str]:
        home, pki = self._home, self._home.pki
        return [
            str(Path(sys.executable).with_name("flower-superlink")),
            *("--host", self._host, "--port", str(home.settings.fleet_port)),
            *("--ssl-ca-certfile", str(pki / "ca.crt")),
            *("--ssl-certfile", str(pki / "server.crt"), "--ssl-keyfile", str(pki / "server.key")),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
        ]


def _is_local(hosts: tuple[str, ...]) -> bool:
    return set(hosts) <= {"localhost", LOOPBACK, "::1"}
