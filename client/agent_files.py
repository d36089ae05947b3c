"""What the agent keeps in `run/` from one start to the next: lock, status, journal, the flag of a stop, security lines.

    agent.lock     held while an agent runs; in it its process id and its worker's, with the times they started
    status.json    what `client status` shows: connection, last message, counts and durations; never a body
    inflight.json  metadata of the message being worked on: answered with an error by the next start after a crash
    stopped        nothing is trained while this file is there
    security.jsonl one line for each message that was refused
    agent.log      one line for each message, and for each thing that went wrong

Guarantees:
  - Two agents never hold one folder's lock, and the lock ends with its process.
  - Nothing here holds anything of a message but its metadata.
  - A journal's line is durable before `begin` returns; a status is whole or the one before.
"""

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from sottovoce.common.errors import DeploymentError
from sottovoce.common.files import write_whole
from sottovoce.common.processes import began

LOCK, STATUS, JOURNAL, STOPPED = "agent.lock", "status.json", "inflight.json", "stopped"
SECURITY, LOG = "security.jsonl", "agent.log"
MAX_FILE_BYTES = 100_000
MAX_SECURITY_BYTES = 10_000_000  # of the file in use; the one before it is kept beside it
LOCK_TRIES = 5
LOG_BYTES, LOG_FILES = 1_000_000, 5

_log = logging.getLogger("sottovoce.client.agent")


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process by its id and when it began: another one that is given the same id is not it."""

    pid: int
    since: str

    @property
    def is_running(self) -> bool:
        """Says whether this very process still runs."""
        return began(self.pid) == self.since


class AgentLock:
    """The lock of a hospital's agent, from start to end."""

    def __init__(self, folder: Path) -> None:
        """Takes the lock. Raises: DeploymentError where another agent holds it, or the folder cannot be written."""
        self._descriptor = _open_lock(folder)
        for _ in range(LOCK_TRIES):  # `is_locked` holds it for a moment
            if _locked(self._descriptor):
                return
            time.sleep(0.05)
        os.close(self._descriptor)
        raise DeploymentError(
            f"Expected no other agent for this hospital; one is running (see {folder / STATUS}). "
            "Stop it first with `sottovoce client stop`."
        )

    def note(self, worker: int) -> None:
        """Writes down which processes these are, for `stopping`."""
        rows = [{"pid": pid, "since": since} for pid in (os.getpid(), worker) if (since := began(pid))]
        data = json.dumps(rows).encode()
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))

    def close(self) -> None:
        """Gives the lock back."""
        os.close(self._descriptor)


def is_locked(folder: Path) -> bool:
    """Says whether an agent runs for this hospital."""
    if not (folder / LOCK).exists():
        return False
    descriptor = _open_lock(folder)
    try:
        return not _locked(descriptor)
    finally:
        os.close(descriptor)


def processes(folder: Path) -> tuple[Process, ...]:
    """Returns the agent and its worker, as the lock's holder wrote them down; those that still run."""
    try:
        rows = json.loads((folder / LOCK).read_bytes()[:MAX_FILE_BYTES])
        found = tuple(Process(pid=int(row["pid"]), since=str(row["since"])) for row in rows)
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(one for one in found if one.is_running)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _open_lock(folder: Path) -> int:
    try:
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DeploymentError(
            f"{folder / LOCK}: expected a folder that this account may write to ({error.strerror}). Run the agent "
            "under the account that owns the hospital's folder."
        ) from None


@dataclass(frozen=True, kw_only=True)
class Stop:
    """What an operator decided: that nothing is trained here, and whether what is under way ends as well."""

    now: bool


def stop_of(folder: Path) -> Stop | None:
    """Returns the operator's decision; None where this hospital takes part. A damaged file stops it."""
    try:
        said = json.loads((folder / STOPPED).read_bytes()[:MAX_FILE_BYTES])
        return Stop(now=said["now"] is not False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Stop(now=True)


def write_stop(folder: Path, stop: Stop) -> None:
    """Makes the decision durable. Raises: OSError where the disk takes nothing."""
    write_whole(folder / STOPPED, json.dumps({"now": stop.now, "since": now()}).encode(), mode=0o600)


def allow(folder: Path) -> None:
    """Takes the decision back."""
    (folder / STOPPED).unlink(missing_ok=True)


class Journal:
    """The message being worked on, if there is one."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL

    def begin(self, fields: Mapping[str, Any]) -> None:
        """Makes the message durable. Raises: OSError where the disk takes nothing."""
        write_whole(self._path, json.dumps(dict(fields), sort_keys=True).encode(), mode=0o600)

    def end(self) -> None:
        """Forgets it. A line too many costs an answer that nobody waits for."""
        self._path.unlink(missing_ok=True)

    def left_over(self) -> Mapping[str, Any] | None:
        """Returns what a crash left behind: fields of a message, or none of them where the file is damaged."""
        try:
            found = json.loads(self._path.read_bytes()[:MAX_FILE_BYTES])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {}


class Status:
    """What the agent says of itself. Writing it may fail; training does not stop for that."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._path, self._turn = folder / STATUS, threading.Lock()
        self._facts: dict[str, Any] = {"format": 1, "since": now(), **facts}
        self._written: dict[str, Any] = {}

    def set(self, **facts: Any) -> None:
        """Changes some facts and writes them all, if one of them is another."""
        with self._turn:
            self._facts.update(facts)
            if self._facts != self._written:
                self._write()

    def count(self, name: str, n: float = 1) -> None:
        """Adds to a count; it is written with the next fact."""
        with self._turn:
            counts = dict(self._facts.get("counts", {}))
            counts[name] = round(counts.get(name, 0) + n, 3)
            self._facts["counts"] = counts

    def fact(self, name: str) -> Any:
        """Returns a fact."""
        with self._turn:
            return self._facts.get(name)

    def _write(self) -> None:
        # Not synchronised: it is for people, and after a power cut nobody is there to be shown it.
        partial = self._path.with_name(self._path.name + ".partial")
        try:
            partial.write_text(json.dumps({**self._facts, "written": now()}, indent=1))
            partial.replace(self._path)
            self._written = dict(self._facts)
        except OSError:
            return


def read_status(folder: Path) -> Mapping[str, Any]:
    """Returns what an agent last said of itself; nothing where none ever ran."""
    try:
        found = json.loads((folder / STATUS).read_bytes()[:MAX_FILE_BYTES])
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def add_refusal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Adds a line to what was refused here, with the time. A full disk loses the line, not the refusal."""
    path = folder / SECURITY
    line = json.dumps({"time": round(time.time(), 3), **facts}, sort_keys=True)
    try:
        if path.exists() and path.stat().st_size > MAX_SECURITY_BYTES:
            path.replace(path.with_name(path.name + ".1"))
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(line.encode() + b"\n")  # one write: lines of two processes do not mix
    except OSError as error:
        _log.error("%s cannot be written (%s)", SECURITY, error.strerror)


def log_to(log: logging.Logger, folder: Path) -> logging.Handler:
    """Lets a logger write into `agent.log`, which is bounded. Raises: DeploymentError where it cannot."""
    try:
        handler = _Quietly(folder / LOG, maxBytes=LOG_BYTES, backupCount=LOG_FILES, delay=True)
    except OSError as error:
        raise DeploymentError(f"{folder / LOG}: cannot be written ({error.strerror}).") from None
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    return handler


class _Quietly(RotatingFileHandler):
    """A log that loses a line when the disk is full, and nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Loses the line."""


def now() -> str:
    """Returns the time in UTC, to the millisecond."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
