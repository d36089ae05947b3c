"""Calls to the consortium's service: a deadline on each, retries that change nothing, errors in words.

    with Connection("coordinator.example:8444", authority=pem, certificate=pem, key=pem) as connection:
        offers = connection.call("ListOffers", schema.ListOffersRequest())

Guarantees:
  - Every call ends: by its answer, or after `seconds` an attempt and `patience_seconds` in all.
  - Only what did not reach the service, or was cut off from it (UNAVAILABLE), is tried again, with growing pauses.
    Every call of the schema may come twice: the second changes nothing.
  - Nothing is asked but the coordinator's address: no proxy of the environment, no service configuration by DNS.
"""

import random
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import grpc

from sottovoce.common.consortium.schema import METHODS
from sottovoce.common.errors import DeploymentError

CALL_SECONDS, PATIENCE_SECONDS = 20.0, 30.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
MAX_ANSWER_BYTES = 8_000_000

# What no second attempt mends.
_FINAL = ("CERTIFICATE_VERIFY_FAILED", "is not in peer certificate")


class Connection:
    """A connection with one certificate. A new certificate needs a new connection."""

    def __init__(
        self,
        address: str,
        *,
        authority: str,
        certificate: str,
        key: str,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._address, self._patience = address, patience_seconds
        credentials = grpc.ssl_channel_credentials(authority.encode(), key.encode(), certificate.encode())
        self._channel = grpc.secure_channel(
            address,
            credentials,
            options=[
                ("grpc.enable_http_proxy", 0),
                ("grpc.service_config_disable_resolution", 1),
                ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 2_000),
                ("grpc.keepalive_time_ms", 60_000),
                # A channel of its own for each object: a renewed certificate must not meet the old connection.
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    def call(self, name: str, request: Any, *, seconds: float = CALL_SECONDS) -> Any:
        """Returns the answer. Raises: DeploymentError."""
        method = METHODS[name]
        ask = self._channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        end, pause, heard = time.monotonic() + self._patience, FIRST_PAUSE_SECONDS, ""
        while True:
            try:
                return ask(request, timeout=seconds)
            except grpc.RpcError as error:
                heard += error.details() or ""  # of two addresses the last one tried may say the least
                if not _passes(error) or time.monotonic() + pause > end:
                    raise self._in_words(name, error, heard) from None
            time.sleep(pause * random.uniform(0.5, 1.0))  # all sites lost the coordinator in the same moment
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def stream(self, name: str, request: Any, *, seconds: float) -> Iterator[Any]:
        """Yields the answers of one attempt. Raises: BrokenStream where another may go on, DeploymentError."""
        method = METHODS[name]
        ask = self._channel.unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        answers = ask(request, timeout=seconds)
        try:
            yield from answers
        except grpc.RpcError as error:
            words = self._in_words(name, error, error.details() or "")
            going_on = (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
            raise (
                BrokenStream(str(words)) if _passes(error) or error.code() in going_on else words
            ) from None
        finally:
            answers.cancel()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _in_words(self, name: str, error: grpc.RpcError, details: str) -> DeploymentError:
        code = error.code()
        match code:
            case grpc.StatusCode.UNAVAILABLE:
                said = _why_unavailable(details)
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                said = "it did not answer in time. Look at the line; the call can be made again."
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                said = f"it has too much to do, or this is too large: {details[:300]}"
            case _:
                said = details[:1000] or code.name
        return DeploymentError(f"Consortium service at {self._address}, {name}: {said}")


class BrokenStream(DeploymentError):
    """A stream that ended early; one that begins where it ended may go on."""


def _passes(error: grpc.RpcError) -> bool:
    final = any(sign in (error.details() or "") for sign in _FINAL)
    return error.code() is grpc.StatusCode.UNAVAILABLE and not final


def _why_unavailable(details: str) -> str:
    for sign, said in _CAUSES.items():
        if sign in details.lower():
            return said
    return f"it cannot be reached ({details[-200:]}). Look at the line and at the coordinator's process."


_REFUSED = (
    "it closed the connection while that was made: it refuses this certificate (over, or of another authority), or was "
    "stopped in this moment. `sottovoce client doctor` says which."
)
_CAUSES = {  # the most telling first
    "certificate_verify_failed": (
        "its certificate is not of the authority that was pinned (tls/ca.crt), or is over. Compare the fingerprint "
        "with the coordinator by telephone; do not go on before it is the same."
    ),
    "is not in peer certificate": (
        "its certificate is for another name. The coordinator puts this address into `hosts` of its server.toml."
    ),
    "socket closed": _REFUSED,
    "connection reset": _REFUSED,
    "domain name not found": "this name is not known. Look at the address, and at this machine's name server.",
    "dns resolution failed": "this name is not known. Look at the address, and at this machine's name server.",
    "connection refused": "nothing listens there. Is the coordinator started, and the port right?",
}
