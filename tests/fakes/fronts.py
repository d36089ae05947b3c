"""A coordinator's folder with an authority, a front on it, and people with certificates, in a temporary place."""

import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from sottovoce.common.pki import Authority, Role, new_request
from sottovoce.server.front import Front
from sottovoce.server.home import CoordinatorHome

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
