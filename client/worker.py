"""The one process in which a hospital's training runs, apart from the agent that talks to the network.

    worker = Worker("sottovoce.client.hospital:app")       # starts importing at once
    match worker.ask(message, context, until=..., give_up=stop_now):
        case Answered(reply=reply, state=state): ...
        case failure: ...                                  # "late" | "died" | "stopped": it was ended, start another

Guarantees:
  - One message at a time, one thread of arithmetic, no proxies or telemetry in its environment, no core dumps.
  - A message whose time is over ends the process, at whatever it is; so does its agent's end, however that came.
  - Signals to the agent's group are the agent's to handle: a worker ends only when it is told to, or killed.

Agent and worker are one program on one machine: pickles go between them and nowhere else.
"""

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Literal

from sottovoce.common.errors import DeploymentError

if TYPE_CHECKING:  # the child's environment is set before anything heavy is imported
    from sottovoce.common.flower import Context, Message, RecordDict

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
# What an app imports with its first message that gets so far. Here it is waiting for one: seconds, and only once.
LATER = {"sottovoce.client.hospital:app": "sottovoce.client.app"}
READY_SECONDS = 120.0
GLANCE_SECONDS = 0.05  # how soon a stop is seen while the worker is at work
CLOSE_SECONDS = 1.0

Failure = Literal["late", "died", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A reply, and what the app left in `Context.state`."""

    reply: "Message"
    state: "RecordDict"


class Worker:
    """A process, from its start to its end. It is used by one thread."""

    def __init__(self, app_reference: str) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy locks that other threads hold
        self._connection, theirs = context.Pipe()
        # Held and never used: that it closes tells the child that this process is gone, also in mid-training.
        self._lifeline, its_end = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, its_end, app_reference), daemon=True)
        self._process.start()
        theirs.close()
        its_end.close()
        self._app_reference, self._is_ready = app_reference, False

    @property
    def process_id(self) -> int:
        """The id of the process."""
        return self._process.pid or 0

    @property
    def is_alive(self) -> bool:
        """Says whether it could take a message."""
        return self._process.is_alive()

    def wait_ready(self, seconds: float = READY_SECONDS, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Returns whether the app is imported, within so many seconds.

        Raises:
            DeploymentError: it cannot be imported, or the process ended.
        """
        if self._is_ready:
            return True
        try:
            if not self._waited(time.monotonic() + seconds, give_up):
                return False
            said = self._connection.recv()
        except (EOFError, OSError):
            raise DeploymentError(
                "Expected this site's worker process to start; it ended. Memory may be short: see the system's log."
            ) from None
        if said != "ready":
            raise DeploymentError(f"Expected the app {self._app_reference} to be importable; {said}.")
        self._is_ready = True
        return True

    def ask(
        self, message: "Message", context: "Context", *, until: float, give_up: Callable[[], bool]
    ) -> Answered | Failure:
        """Answers one message; the worker is at its end where it could not. `until` is of `time.monotonic`.

        Raises:
            DeploymentError: the app cannot be imported.
        """
        try:
            if self.wait_ready(until - time.monotonic(), give_up):
                self._connection.send((message, context))
                if self._waited(until, give_up):
                    reply, state = self._connection.recv()
                    return Answered(reply=reply, state=state)
        except (EOFError, OSError):
            self.kill()
            return "died"
        self.kill()
        return "stopped" if give_up() else "late"

    def kill(self) -> None:
        """Ends the process, at whatever it is."""
        self._process.kill()
        self._process.join()
        self._close_pipes()

    def close(self) -> None:
        """Lets an idle worker end by itself."""
        self._close_pipes()
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _waited(self, until: float, give_up: Callable[[], bool]) -> bool:
        """Returns True once something came, False when the time is over or the caller gives up."""
        while not self._connection.poll(max(0.0, min(GLANCE_SECONDS, until - time.monotonic()))):
            if give_up() or time.monotonic() >= until:
                return False
        return True

    def _close_pipes(self) -> None:
        self._connection.close()
        self._lifeline.close()


def serve(connection: Connection, lifeline: Connection, app_reference: str) -> None:
    """Answers (message, context) with (reply, state) until the agent closes the connection."""
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    _shield()
    with suppress(EOFError, OSError):  # the agent is gone
        _serve(connection, app_reference)


def _serve(connection: Connection, app_reference: str) -> None:
    try:
        from sottovoce.common.flower import adopt_task_identity, answer, load_app

        app = load_app(app_reference)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {str(error)[:300]}")
        return
    adopt_task_identity()
    connection.send("ready")
    if app_reference in LATER:
        importlib.import_module(LATER[app_reference])
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    while True:
        message, context = connection.recv()
        reply = answer(app, message, context)
        connection.send((reply, context.state))


def _shield() -> None:
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold features of patients
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    os.environ.update(ENVIRONMENT)


def _end_with(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.poll(None)
    os.kill(os.getpid(), signal.SIGKILL)
