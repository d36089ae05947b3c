"""A coordinator's folder with an authority, a front on it, and people with certificates, in a temporary place."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from sottovoce.common.pki import Authority, Role, new_request
from sottovoce.common.processes import environment
from sottovoce.server.front import Front
from sottovoce.server.home import CoordinatorHome

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 60.0  # on a machine with much else to do; 3 s on an idle one
PROTOBUF = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


def free_ports(count: int) -> list[int]:
    with ExitStack() as open_sockets:
        found = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for listener in found:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in found]


@dataclass(frozen=True, kw_only=True)
class Place:
    folder: Path
    home: CoordinatorHome
    authority: Authority

    @property
    def url(self) -> str:
        return f"https://localhost:{self.home.settings.front_port}"

    def certify(self, name: str, role: Role, *, by: Authority | None = None) -> tuple[Path, Path]:
        """Makes a certificate and its key in files of their own."""
        number = len(list(self.folder.glob("*.key")))
        key, leaf = self.folder / f"{number}.key", self.folder / f"{number}.crt"
        leaf.write_text((by or self.authority).issue(new_request(key), name=name, role=role, hours=1))
        return leaf, key

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.home.pki / "ca.crt"))

    def client(self, files: tuple[Path, Path] | None, **how: Any) -> httpx.Client:
        context = self.trusting()
        if files:
            context.load_cert_chain(*files)
        return httpx.Client(verify=context, base_url=self.url, trust_env=False, headers=PROTOBUF, **how)

    def serve(self) -> None:
        """Gives the server a certificate, a new one each time."""
        key = self.home.pki / "server.key"
        key.unlink(missing_ok=True)
        leaf = self.authority.issue_server(new_request(key), hosts=self.home.settings.hosts, hours=1)
        (self.home.pki / "server.crt").write_text(leaf)

    def revoke(self, *serials: int) -> None:
        (self.home.pki / "crl.pem").write_text(self.authority.revocation_list(serials))


def place(
    folder: Path, *, hosts: str = '"localhost", "127.0.0.1"', max_message_bytes: int = 200_000
) -> Place:
    fleet, consortium, front = free_ports(3)
    settings = (
        f'format = 1\nname = "consortium"\nhosts = [{hosts}]\nfleet_port = {fleet}\n'
        f"consortium_port = {consortium}\nfront_port = {front}\nmax_message_bytes = {max_message_bytes}\n"
    )
    home = CoordinatorHome.create(folder / "home", settings)
    made = Place(folder=folder, home=home, authority=Authority.create(home.pki, name="Consortium"))
    made.serve()
    made.revoke()
    return made


@contextmanager
def fronted(at: Place) -> Iterator[Front]:
    front = Front(at.home).start()
    try:
        yield front
    finally:
        front.stop()


def lines(front: Front) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (front.folder / "access.log").read_text().splitlines()]


def asked(front: Front, client: httpx.Client, path: str, **how: Any) -> tuple[int, dict[str, Any]]:
    """Asks by POST, or as told; returns the answer's status and the line that the front logged of it."""
    before = len(lines(front))
    status = client.request(**{"method": "POST", "url": path} | how).status_code
    until(lambda: len(lines(front)) > before, "a line of the log")
    return status, lines(front)[-1]


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < end, f"waited {WAIT_SECONDS} s for {what}"
        time.sleep(0.02)


def fleet(at: Place, files: tuple[Path, Path], node_key: Path) -> FleetHttpClient:
    """Flower's own connection of a node, which shows a certificate too."""
    context, private = at.trusting(), load_ssh_private_key(node_key.read_bytes(), None)
    context.load_cert_chain(*files)
    assert isinstance(private, EllipticCurvePrivateKey)
    signed = NodeAuthHttpInterceptor(private, private.public_key())
    return FleetHttpClient(at.url, interceptors=[signed], verify=context)


class running:
    """A process for as long as the block lasts."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command, self._log = command, log

    def __enter__(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environment(), start_new_session=True
            )

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(5)


def site_proxy(at: Place, folder: Path, port: int) -> list[str]:
    """Sets up deploy/nginx/site-proxy.conf as its own comment says."""
    text = (ROOT / "deploy" / "nginx" / "site-proxy.conf").read_text()
    for ours, theirs in (
        ("coordinator.example.org:9443", f"localhost:{at.home.settings.front_port}"),
        ("coordinator.example.org", "localhost"),
        ("127.0.0.1:9444", f"127.0.0.1:{port}"),
    ):
        assert ours in text
        text = text.replace(ours, theirs)
    (folder / "site-proxy.conf").write_text(text)
    tls = folder / "tls"
    tls.mkdir(mode=0o700)
    leaf, key = at.certify("stock", "site")
    for source, name in ((at.home.pki / "ca.crt", "ca.crt"), (leaf, "site.crt"), (key, "site.key")):
        (tls / name).write_bytes(source.read_bytes())
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"),
            *(
                "-days",
                "365",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1",
            ),
            *("-keyout", str(tls / "loopback.key"), "-out", str(tls / "loopback.crt")),
        ],
        check=True,
        capture_output=True,
    )
    assert NGINX
    return [NGINX, "-p", str(folder), "-e", "error.log", "-c", "site-proxy.conf"]


def supernode(folder: Path, port: int) -> list[str]:
    (api,) = free_ports(1)
    return [
        str(Path(sys.executable).with_name("flower-supernode")),
        *("--superlink", f"127.0.0.1:{port}", "--root-certificates", str(folder / "tls" / "loopback.crt")),
        *("--auth-supernode-private-key", str(folder / "node.key")),
        *("--host", "127.0.0.1", "--port", str(api)),
    ]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answer_once(context: ssl.SSLContext, listener: socket.socket) -> None:
    line, _ = listener.accept()
    try:
        with context.wrap_socket(line, server_side=True) as secured:
            secured.recv(1000)
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    except (ssl.SSLError, ConnectionError):
        pass
