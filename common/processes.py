"""Child processes that do not outlive their purpose, and an environment in which nothing calls home.

Guarantees:
  - A child that an earlier start left behind is ended before a new one begins; a stranger who has its number now is
    not: the time at which a process began is compared.
  - Children have no telemetry, no update check, no proxy, one thread per process, and no core dumps.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from sottovoce.common.files import write_whole

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "NO_PROXY": "*",
}
_PROXIES = {"http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "no_proxy"}
STOP_SECONDS = 5.0
LAST_WORDS_CHARS = 300


def environment(**extra: str) -> dict[str, str]:
    """Returns this process's environment without proxies, with everything switched off that calls home."""
    kept = {name: value for name, value in os.environ.items() if name.lower() not in _PROXIES}
    # Flower finds its own commands by name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, **QUIET, "PATH": path, **extra}


def began(process_id: int) -> str | None:
    """Returns when a process began, in the kernel's ticks since boot; None where there is no such process."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def end(process_id: int, *, since: str, seconds: float = STOP_SECONDS) -> bool:
    """Ends the process that began at `since`, and its group: asks, waits, kills. Says whether it was there."""
    if began(process_id) != since:
        return False
    for how, wait in ((signal.SIGTERM, seconds), (signal.SIGKILL, STOP_SECONDS)):
        with suppress(ProcessLookupError):
            os.killpg(process_id, how)
        limit = time.monotonic() + wait
        while began(process_id) == since and time.monotonic() < limit:
            with suppress(ChildProcessError):
                os.waitpid(process_id, os.WNOHANG)
            time.sleep(0.02)
        if began(process_id) != since:
            break
    with suppress(ProcessLookupError):  # whoever of the group did not listen
        os.killpg(process_id, signal.SIGKILL)
    return True


def write_mark(path: Path, process_id: int) -> None:
    """Writes down which process this is: its number, and when it began."""
    write_whole(path, json.dumps([process_id, began(process_id)]).encode())


def read_mark(path: Path) -> tuple[int, str] | None:
    """Returns the process that `path` names and when it began, if it still runs."""
    try:
        process_id, since = json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    if not isinstance(process_id, int) or not isinstance(since, str) or began(process_id) != since:
        return None
    return process_id, since


class Child:
    """A child process with a log, in a group of its own; its number is on disk while it lives."""

    def __init__(self, name: str, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._log, self._mark, self._process = folder / f"{name}.log", folder / f"{name}.pid", process
        self._since = began(process.pid) or ""

    @classmethod
    def start(cls, name: str, command: Sequence[str], *, folder: Path, extra: Mapping[str, str]) -> "Child":
        """Starts `command`, after the end of the one that a crash left under this name."""
        end_left_behind(folder / f"{name}.pid")
        with (folder / f"{name}.log").open("ab") as log:
            child = cls(name, folder, _started(command, log, extra))
        write_mark(child._mark, child.process_id)
        return child

    @property
    def process_id(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Says whether it runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends it and its group."""
        end(self.process_id, since=self._since)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._mark.unlink(missing_ok=True)

    def last_words(self) -> str:
        """Returns the end of its log, on one line."""
        text = self._log.read_bytes()[-LAST_WORDS_CHARS:].decode(errors="replace")
        return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def end_left_behind(mark: Path) -> None:
    """Ends the process whose number a crash left in `mark`, if it is still that process."""
    if (found := read_mark(mark)) is not None:
        end(found[0], since=found[1])
    mark.unlink(missing_ok=True)


def _started(command: Sequence[str], log: IO[bytes], extra: Mapping[str, str]) -> subprocess.Popen[bytes]:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    try:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(**extra),
            start_new_session=True,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
