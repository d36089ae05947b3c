"""The hardened front: nginx between the hospitals and a SuperLink whose every API is open to whoever reaches its port.

    front = Front(home).start()
    front.reload()      # after a certificate was renewed or revoked
    front.stop()

The configuration is `server/front.conf.template`, filled from `server.toml`; nginx runs as a child with a folder of its
own, `run/front`, needs no root, and reads nothing of the system's configuration.

Guarantees:
  - Whoever shows no certificate of our authority, a revoked one, or one whose role is not `site` reaches nothing.
  - A site reaches, by POST, the ten routes of `ROUTES`; every other path, method and query is refused and logged.
  - Of what passes, every exchange is logged, and of a node that merely asks the first request of each connection.
  - A body above the bound, too many requests and too many connections are refused before the SuperLink sees them.
  - No body is written to the disk or the log; of a certificate the SuperLink is told nothing.
  - `reload` returns when the new certificates and the new list of the revoked hold for every new connection; a
    configuration that nginx cannot use changes nothing. Requests on their way are answered.
  - nginx ends with the thread that started it, and what a crash left behind is ended at the next start.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Self

from sottovoce.common.errors import DeploymentError
from sottovoce.common.files import write_whole
from sottovoce.common.processes import Child, began, end_left_behind, environment
from sottovoce.server.home import CoordinatorHome, ServerSettings

# What a node that is registered needs. `register-node` and `unregister-node` are the coordinator's, by the control API.
ROUTES = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "pull-object",
    "push-object",
    "confirm-message-received",
)
HEADERS = (
    "flwr-public-key",
    "flwr-signature",
    "flwr-timestamp",
    "flwr-package-name",
    "flwr-package-version",
    "flwr-component-name",
)
MAX_BODY_BYTES = 16_000_000  # of one request: Flower sends a message in parts, arrays in chunks of 5 MiB
REQUESTS_PER_SECOND, REQUESTS_BURST = 200, 400
CONNECTIONS_PER_SITE, CONNECTIONS_PER_ADDRESS = 32, 256
MAX_LOG_BYTES = 20_000_000
START_SECONDS = RELOAD_SECONDS = 30.0
LOOPBACK = "127.0.0.1"
_NEEDED = ("ca.crt", "server.crt", "server.key", "crl.pem")
_LOGS = ("access.log", "error.log")
_SHUTTING_DOWN = b"shutting down"


class Front:
    """The proxy in front of a coordinator's SuperLink."""

    def __init__(self, home: CoordinatorHome) -> None:
        self._home, self.folder = home, home.run / "front"
        self.address = f"{home.settings.hosts[0]}:{home.settings.front_port}"
        self._child: Child | None = None

    def start(self) -> Self:
        """Starts nginx and waits until it listens. It ends with the calling thread: call from one that stays.

        Raises:
            DeploymentError: nginx or a certificate is not there, the port is taken, or the settings cannot be used.
        """
        command = self._command()
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(self.folder / "nginx.conf", configuration(self._home).encode(), mode=0o600)
        self._put_logs_aside()
        self._check(command)
        end_left_behind(self.folder / "nginx.pid")
        end_orphans(self.folder)
        self._expect_a_free_port()
        # A front must not outlive the coordinator that renews its list of the revoked.
        leashed = [_found("setpriv"), "--pdeathsig", "TERM", "--", *command]
        self._child = Child.start("nginx", leashed, folder=self.folder, extra={})
        self._wait_for_start()
        return self

    @property
    def is_alive(self) -> bool:
        """Says whether nginx runs."""
        return self._child is not None and self._child.is_alive

    @property
    def process_id(self) -> int:
        """The number of nginx's first process."""
        return 0 if self._child is None else self._child.process_id

    def reload(self) -> None:
        """Lets new certificates and the new list of the revoked hold, without losing a request.

        A connection that is open is closed after the request that it is busy with.

        Raises:
            DeploymentError: nginx cannot use the new files (it goes on with the old ones), or it does not run.
        """
        if not self.is_alive:
            raise DeploymentError("Expected the front to run; it does not. Start the coordinator again.")
        self._check(self._command())
        self._put_logs_aside()
        before = set(_workers(self.process_id))
        os.kill(self.process_id, signal.SIGHUP)
        limit = time.monotonic() + RELOAD_SECONDS
        while not self._has_taken_over(before):
            if time.monotonic() > limit:
                raise DeploymentError(
                    f"The front took no new certificates within {RELOAD_SECONDS:g} s. {self._end_of_log()}"
                )
            time.sleep(0.01)

    def tidy(self) -> None:
        """Puts a log that has grown beyond `MAX_LOG_BYTES` aside as `.1`, over the one before. Call it now and then."""
        if any(_size(self.folder / log) > MAX_LOG_BYTES for log in _LOGS):
            self.reload()

    def stop(self) -> None:
        """Ends nginx, with requests that are on their way. Nothing to end is no error."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _command(self) -> list[str]:
        missing = [name for name in _NEEDED if not (self._home.pki / name).is_file()]
        if missing:
            raise DeploymentError(
                f"{self._home.pki}: the front needs {', '.join(_NEEDED)}; {', '.join(missing)} not there. "
                "Make them with `sottovoce server init`."
            )
        prefix = str(self.folder.resolve())
        return [_found("nginx"), "-p", prefix, "-e", f"{prefix}/error.log", "-c", f"{prefix}/nginx.conf"]

    def _check(self, command: list[str]) -> None:
        done = subprocess.run([*command, "-t", "-q"], capture_output=True, env=environment(), check=False)
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())
            raise DeploymentError(f"nginx cannot use {self.folder / 'nginx.conf'}: {said[-400:]}")

    def _expect_a_free_port(self) -> None:
        # nginx itself would try for 2.5 s, and say it in its log alone.
        settings = self._home.settings
        try:
            socket.create_server((_listen_address(settings), settings.front_port)).close()
        except OSError as error:
            raise DeploymentError(
                f"Expected port {settings.front_port} for the front to be free; it is not ({error.strerror}). "
                "Set another front_port, or end what listens there."
            ) from None

    def _put_logs_aside(self) -> None:
        # Then a reload: nginx's signal to reopen fails where workers have given up root and the folder is closed.
        for log in _LOGS:
            if _size(self.folder / log) > MAX_LOG_BYTES:
                (self.folder / log).replace(self.folder / f"{log}.1")

    def _wait_for_start(self) -> None:
        limit = time.monotonic() + START_SECONDS
        while not (self.is_alive and _workers(self.process_id) and self._listens()):
            if not self.is_alive or time.monotonic() > limit:
                self.stop()
                raise DeploymentError(
                    f"Expected the front to listen on port {self._home.settings.front_port}; it does not. "
                    f"{self._end_of_log()}"
                )
            time.sleep(0.02)

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection((LOOPBACK, self._home.settings.front_port), 1.0):
            return True
        return False

    def _has_taken_over(self, before: set[int]) -> bool:
        """Says whether new workers listen, and no old one takes another connection."""
        now = set(_workers(self.process_id))
        old = [_read(f"/proc/{worker}/cmdline") for worker in before & now]
        return bool(now - before) and all(not title or _SHUTTING_DOWN in title for title in old)

    def _end_of_log(self) -> str:
        log = self.folder / "error.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return f"The end of {log} says: {lines[-1][-300:] if lines else 'nothing'}"


def configuration(home: CoordinatorHome) -> str:
    """Returns nginx's configuration for a coordinator. Raises: DeploymentError for what cannot be written there."""
    settings, text = home.settings, (files("sottovoce.server") / "front.conf.template").read_text()
    if not settings.front_port:
        raise DeploymentError("server.toml: front_port is 0, which means no front; expected a port.")
    values = {
        "PREFIX": _quotable(home.run / "front"),
        "PKI": _quotable(home.pki),
        "LISTEN": f"{_listen_address(settings)}:{settings.front_port}",
        "FLEET_PORT": str(settings.fleet_port),
        "MAX_BODY_BYTES": str(min(settings.max_message_bytes, MAX_BODY_BYTES)),
        "REQUESTS_PER_SECOND": str(REQUESTS_PER_SECOND),
        "REQUESTS_BURST": str(REQUESTS_BURST),
        "CONNECTIONS_PER_SITE": str(CONNECTIONS_PER_SITE),
        "CONNECTIONS_PER_ADDRESS": str(CONNECTIONS_PER_ADDRESS),
        "HEADERS": "\n".join(_header(name) for name in HEADERS),
        "ROUTES": "\n".join(_route(name) for name in ROUTES),
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def end_orphans(folder: Path) -> None:
    """Ends workers whose first process was killed: they go on listening, and nobody tells them of the revoked.

    They are known by what only they have: nginx's name and a log of this folder open.
    """
    log = str((folder / "access.log").resolve())
    left = [process for process in Path("/proc").glob("[0-9]*") if _is_orphan(process, log)]
    for process in left:
        with suppress(ProcessLookupError):
            os.kill(int(process.name), signal.SIGKILL)
    limit = time.monotonic() + START_SECONDS
    while any(began(int(process.name)) for process in left) and time.monotonic() < limit:
        time.sleep(0.01)


def _is_orphan(process: Path, log: str) -> bool:
    with suppress(OSError):
        return (
            (process / "comm").read_text().strip() == "nginx"
            and _alone(process)
            and log in _open_files(process)
        )
    return False


def _alone(process: Path) -> bool:
    """Says whether a process has lost its first process: another of its name is its parent while that lives."""
    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
    return _read(f"/proc/{parent}/comm").strip() != b"nginx"


def _open_files(process: Path) -> set[str]:
    return {os.readlink(entry) for entry in (process / "fd").iterdir()}


def _workers(process_id: int) -> list[int]:
    """Returns the numbers of nginx's workers."""
    children = _read(f"/proc/{process_id}/task/{process_id}/children").split()
    return [int(child) for child in children]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _header(name: str) -> str:
    return f"        proxy_set_header {name} $http_{name.replace('-', '_')};"


def _route(name: str) -> str:
    # The path goes on as it stands here, not as it came: no second spelling of it reaches the SuperLink.
    path = f"/v1/fleet/{name}"
    return (
        f"        location = {path} {{\n"
        "            limit_except POST { deny all; }\n"
        "            if ($is_args) { rewrite ^ /refused last; }\n"
        f"            proxy_pass https://superlink{path};\n"
        "        }"
    )


def _quotable(path: Path) -> str:
    text = str(path.resolve())
    if any(sign in '"\\$;{}' or not sign.isprintable() for sign in text):
        raise DeploymentError(f"{text!r}: the front cannot work in a folder with such a sign in its name.")
    return text


def _found(command: str) -> str:
    found = shutil.which(command, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        package = {"nginx": "nginx-light", "setpriv": "util-linux"}[command]
        raise DeploymentError(
            f"The front needs {command}, which is not here. Install it (Debian: {package})."
        )
    return found


def _listen_address(settings: ServerSettings) -> str:
    return LOOPBACK if set(settings.hosts) <= {"localhost", LOOPBACK, "::1"} else "0.0.0.0"
