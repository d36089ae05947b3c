"""Servers that say one thing, over TLS on loopback: what a hospital may meet in the place of its coordinator."""

import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from sottovoce.common.pki import Authority, new_request

PROTOBUF = {"content-type": PROTOBUF_MEDIA_TYPE}


@contextmanager
def serving(
    folder: Path,
    authority: Authority,
    *,
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
    now: float | None = None,
    hours: float = 1.0,
    status: int = 200,
    headers: Mapping[str, str] = PROTOBUF,
    body: bytes = b"",
    clients: Authority | None = None,
    date: str = "",
    fail_first: int = 0,
) -> Iterator[str]:
    """Serves one answer to every request; yields the address. `clients`: who must have issued a client's certificate.

    `fail_first` requests are answered with 503 before. `date` is the header's, empty for the true one.
    """
    (folder / "server").mkdir(exist_ok=True)
    key, leaf = folder / "server" / "tls.key", folder / "server" / "tls.crt"
    key.unlink(missing_ok=True)
    leaf.write_text(authority.issue_server(new_request(key), hosts=hosts, hours=hours, now=now))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf, key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=clients.certificate_pem)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        left = fail_first

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            now_status = status
            if type(self).left > 0:
                type(self).left -= 1
                now_status = 503
            self.send_response_only(now_status)
            self.send_header("date", date or self.date_time_string())
            self.send_header("content-length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that goes away is what these tests are about."""

        def get_request(self) -> tuple[ssl.SSLSocket, object]:
            line, address = super().get_request()
            line.settimeout(10)
            return context.wrap_socket(line, server_side=True, do_handshake_on_connect=False), address

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
