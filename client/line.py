"""The line to a coordinator: one address, TLS by the consortium's own authority, bounded answers, patient retries.

    line = Line(address, hospital.tls, stop=stop)
    response = line.call(FleetHttpClient.PullMessages, request, until=time.monotonic() + 60)

Requests are made by Flower's own client and its interceptors.

Guarantees:
  - Only the given address is ever connected to: no proxy of the environment, no redirect.
  - The certificate of this site is shown where there is one, and read anew when its file has changed.
  - An answer larger than `MAX_RESPONSE_BYTES` is given up while it comes; one that would only grow by being unpacked,
    before.
  - A failure is one `DeploymentError` with a word and a sentence (`trouble.py`); what may pass is tried again, with
    growing random pauses, until the time that the caller gives.
"""

import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from sottovoce.client import trouble as troubles
from sottovoce.client.tls_folder import CURRENT
from sottovoce.common.errors import DeploymentError
from sottovoce.common.keys import load_node_key

CA, CERTIFICATE, CERTIFICATE_KEY, NODE_KEY = "ca.crt", "site.crt", "site.key", "node.key"

MAX_RESPONSE_BYTES = 32_000_000  # Flower cuts arrays into pieces of 5 MB; a record is one piece
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0
PARTING_SECONDS = 5.0  # for what is under way when the end is asked for
KEPT_CONNECTIONS = 4

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Line:
    """A connection that outlives failures of the network: requests share it, also from several threads."""

    def __init__(self, address: str, tls: Path, *, stop: threading.Event) -> None:
        """Connects at the first call. Raises: DeploymentError, KeyFileError for files that cannot be used."""
        self._address, self._tls, self._stop = address, tls, stop
        keys = load_node_key(tls / NODE_KEY)
        self._answers = _Answers(address)
        self._interceptors = (
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(*keys),
            self._answers,  # the innermost: it sees a refusal before an interceptor ends the process for it
        )
        self.public_key = self._interceptors[1]._public_key_bytes
        self._turn = threading.Lock()
        self._seen = _marks(tls)
        self._current = self._built()
        self._retired: FleetHttpClient | None = None

    @property
    def clock_off(self) -> float | None:
        """The coordinator's clock less ours, in seconds, as of its last answer."""
        return self._answers.clock_off

    def call(
        self,
        method: Callable[[FleetHttpClient, _Request], _Response],
        request: _Request,
        *,
        until: float = 0.0,
    ) -> _Response:
        """Makes a request, again and again until `until` (of `time.monotonic`) while what is wrong may pass.

        Raises:
            DeploymentError: with the cause and the mend.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                return method(self._client(), request)
            except DeploymentError as error:
                found = error
            except httpx.HTTPError as error:
                found = troubles.of_transport(error, self._address)
            except ValueError:  # what Flower's client raises for bytes that are no message of its protocol
                found = troubles.not_ours(self._address)
            wait = pause * random.uniform(0.5, 1.5)
            if self._stop.is_set():
                until, wait = min(until, time.monotonic() + PARTING_SECONDS), min(wait, FIRST_PAUSE)
            if found.reason not in troubles.TRANSIENT or time.monotonic() + wait > until:
                raise found from None
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    def close(self) -> None:
        """Closes the line."""
        _close(self._retired)
        _close(self._current)

    def _client(self) -> FleetHttpClient:
        with self._turn:
            marks = _marks(self._tls)
            if marks != self._seen:
                try:
                    renewed = self._built()
                except DeploymentError:
                    return (
                        self._current
                    )  # certificate and key change one after the other: a moment later then
                # The one before the last has no request under way any more; the last one may.
                _close(self._retired)
                self._retired, self._current, self._seen = self._current, renewed, marks
            return self._current

    def _built(self) -> FleetHttpClient:
        context = tls_context(self._tls)
        client = FleetHttpClient(f"https://{self._address}", interceptors=self._interceptors, verify=context)
        client._client.close()
        client._client = httpx.Client(
            transport=_Bounded(
                verify=context, limits=httpx.Limits(max_keepalive_connections=KEPT_CONNECTIONS)
            ),
            timeout=TIMEOUT,
            headers={"accept-encoding": "identity"},
            follow_redirects=False,
            trust_env=False,
        )
        return client


def tls_context(tls: Path) -> ssl.SSLContext:
    """Returns what a connection trusts, `ca.crt` and nothing else, and what it shows: `site.crt`, where there is one.

    Raises:
        DeploymentError: one of the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=str(tls / CA))
    except (OSError, ssl.SSLError):
        raise troubles.trouble(
            "ca_file",
            f"Expected the consortium's authority in {tls / CA}; it is missing or no certificate. Enrol again with "
            "`sottovoce client init`.",
        ) from None
    if (tls / CERTIFICATE).exists():
        try:
            # The link is followed once (`tls_folder.py`): a renewal in this moment must not mix two pairs.
            pair = (tls / CURRENT).resolve() if (tls / CURRENT).is_symlink() else tls
            context.load_cert_chain(pair / CERTIFICATE, pair / CERTIFICATE_KEY)
        except (OSError, ssl.SSLError):
            raise troubles.trouble(
                "own_certificate",
                f"Expected {tls / CERTIFICATE} with its own key beside it; they do not belong together, or one of "
                "them cannot be read. Enrol again with `sottovoce client init`.",
            ) from None
    return context


# --- between Flower's client and the wire -------------------------------------------------------------------


class _Answers:
    """Raises what is no success, before Flower's interceptors see it; notes how the coordinator's clock goes."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.clock_off: float | None = None

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        response = call_next(context)
        self.clock_off = _clock_off(response.headers.get("date", ""))
        if not response.is_success:
            body = response.content[:10_000].decode(errors="replace")
            raise troubles.of_status(response.status_code, body, self._address, clock_off=self.clock_off)
        if not response.headers.get("content-type", "").startswith(PROTOBUF_MEDIA_TYPE):
            raise troubles.not_ours(self._address)
        return response


class _Bounded(httpx.HTTPTransport):
    """Refuses an answer that is too large while it comes, and one that would only grow by being unpacked."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            response.close()
            raise troubles.not_ours(request.url.netloc.decode())
        stream: Any = response.stream
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_Limited(stream),
            extensions=response.extensions,
        )


class _Limited(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        n_bytes = 0
        for part in self._stream:
            n_bytes += len(part)
            if n_bytes > MAX_RESPONSE_BYTES:
                raise troubles.too_large(f"an answer of at most {MAX_RESPONSE_BYTES} bytes; more came")
            yield part

    def close(self) -> None:
        self._stream.close()


def _marks(tls: Path) -> tuple[tuple[int, int], ...]:
    """Returns what changes when a file of a connection is replaced."""
    found = []
    for name in (CA, CERTIFICATE, CERTIFICATE_KEY):
        try:
            facts = os.stat(tls / name)
            found.append((facts.st_ino, facts.st_mtime_ns))
        except OSError:
            found.append((0, 0))
    return tuple(found)


def _clock_off(date: str) -> float | None:
    """Returns the server's clock less ours, as far as a header of whole seconds says."""
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError, IndexError):
        return None


def _close(client: FleetHttpClient | None) -> None:
    if client is not None:
        client.close()
