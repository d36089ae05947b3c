"""The consortium's server: gRPC over mutual TLS, with a certificate that renews itself.

    served = serve(home, registry, authority)
    served.port
    served.stop()

Guarantees:
  - Nobody without a certificate of this consortium's authority gets as far as a request.
  - The server's certificate is renewed before it is over, with no restart and no refused connection.
  - No reflection: what can be called stands in consortium.proto, and `rules` says by whom.
"""

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from sottovoce.common.consortium.schema import SERVICE
from sottovoce.common.errors import DeploymentError, SottovoceError
from sottovoce.common.pki import Authority, Role, new_request, peer_of, renewal_due, request_for
from sottovoce.server.consortium.gate import Gate, Refused, Rule, Visitor
from sottovoce.server.consortium.members import Members
from sottovoce.server.consortium.studies import Studies
from sottovoce.server.consortium.witnessing import Witnessing
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.registry import Registry

MAX_REQUEST_BYTES = 1_000_000  # above it grpc itself refuses; each call's own limit is lower
CALLS_AT_ONCE = 128  # a thread each: a stream that is read slowly holds one, and a peer has at most four
STOP_SECONDS = 2.0
KEY_FILE = "consortium.key"
LOOPBACK = {"localhost", "127.0.0.1", "::1"}

INVITED: frozenset[Role] = frozenset({"invitation"})
SITES: frozenset[Role] = frozenset({"site"})
PERSONS: frozenset[Role] = frozenset({"coordinator", "admin", "auditor"})

_log = logging.getLogger("sottovoce.server.consortium")


def rules(home: CoordinatorHome, registry: Registry, authority: Authority) -> Mapping[str, Rule]:
    """Returns who may make which call, and what answers it."""
    members = Members(registry, authority, hours=home.settings.certificate_hours, own_key=home.key.public_hex)
    studies, witnessing = Studies(registry, home), Witnessing(registry)
    return {
        "Enrol": Rule(roles=INVITED, answer=members.enrol, max_bytes=40_000, writes=True),
        "Renew": Rule(roles=SITES | PERSONS, answer=members.renew, max_bytes=20_000, writes=True),
        "ListOffers": Rule(roles=SITES | PERSONS, answer=studies.list_offers),
        "FetchOffer": Rule(roles=SITES | PERSONS, answer=studies.fetch_offer),
        "SendApproval": Rule(roles=SITES, answer=studies.send_approval, writes=True),
        "SendCheckpoint": Rule(roles=SITES, answer=witnessing.send_checkpoint, max_bytes=8_000, writes=True),
        "FetchCheckpoints": Rule(
            roles=SITES | {"auditor"}, answer=witnessing.fetch_checkpoints, max_bytes=100_000
        ),
        "SendCosignature": Rule(roles=SITES, answer=witnessing.send_cosignature, writes=True),
        "FetchCosignatures": Rule(roles=SITES | PERSONS, answer=witnessing.fetch_cosignatures),
        "ListModels": Rule(roles=SITES | PERSONS, answer=studies.list_models),
        "FetchModel": Rule(roles=SITES | PERSONS, answer=studies.fetch_model),
        "Status": Rule(roles=PERSONS, answer=studies.status),
        "Health": Rule(roles=SITES | PERSONS, answer=_health),
    }


@dataclass(frozen=True)
class Served:
    """A running server."""

    port: int
    _server: Any

    def stop(self, grace_seconds: float = STOP_SECONDS) -> None:
        """Takes no new calls, gives those that are open a moment, and returns when it has ended."""
        self._server.stop(grace_seconds).wait()


def serve(
    home: CoordinatorHome, registry: Registry, authority: Authority, *, port: int | None = None
) -> Served:
    """Starts the server, on the loopback interface where its hosts are loopback names alone.

    Raises:
        DeploymentError: the port cannot be had.
    """
    identity = _ServerIdentity(home, authority)
    server = grpc.server(
        ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="consortium"),
        handlers=[Gate(rules(home, registry, authority), registry)],
        maximum_concurrent_rpcs=CALLS_AT_ONCE,
        options=[
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ("grpc.max_metadata_size", 16_384),
            ("grpc.so_reuseport", 0),  # a second server on the port is an error, not half of the calls
            ("grpc.server_handshake_timeout_ms", 10_000),
            ("grpc.http2.max_concurrent_streams", 16),  # of one connection
        ],
    )
    wanted = home.settings.consortium_port if port is None else port
    host = "127.0.0.1" if LOOPBACK.issuperset(home.settings.hosts) else "0.0.0.0"
    credentials = grpc.dynamic_ssl_server_credentials(
        identity.configuration(), identity.renewed, require_client_authentication=True
    )
    try:
        bound = server.add_secure_port(f"{host}:{wanted}", credentials)
    except RuntimeError:
        raise DeploymentError(
            f"{host}:{wanted}: the consortium service cannot listen there; another program does. Set consortium_port."
        ) from None
    server.start()
    return Served(bound, server)


class _ServerIdentity:
    """The server's key and its certificate of now."""

    def __init__(self, home: CoordinatorHome, authority: Authority) -> None:
        self._home, self._authority, self._lock = home, authority, threading.Lock()
        self._due = 0.0

    def configuration(self) -> Any:
        """Returns a configuration with a new certificate. Raises: CertificateError, OSError."""
        key_file, settings = self._home.pki / KEY_FILE, self._home.settings
        request = request_for(key_file) if key_file.exists() else new_request(key_file)
        hosts = self._home.server_hosts
        pem = self._authority.issue_server(request, hosts=hosts, hours=settings.certificate_hours)
        self._due = renewal_due(peer_of(pem))
        return grpc.ssl_server_certificate_configuration(
            [(key_file.read_bytes(), pem.encode())], self._authority.certificate_pem.encode()
        )

    def renewed(self) -> Any:
        """Returns a new configuration when two thirds of the life are over; asked by grpc at each handshake."""
        with self._lock:
            if time.time() < self._due:
                return None
            try:
                return self.configuration()
            except (SottovoceError, OSError) as error:  # the old one still holds
                _log.error("the server's certificate could not be renewed: %s", error)
                return None


def _health(visitor: Visitor, request: Any) -> Any:
    if request.service not in ("", SERVICE):
        raise Refused(grpc.StatusCode.NOT_FOUND, f"Expected service {SERVICE} or none; came another.")
    return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
