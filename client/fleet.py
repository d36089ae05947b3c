"""Flower's fleet protocol: how a hospital fetches messages from a SuperLink and gives replies back.

    with connect(hospital, stop=stop) as fleet:
        delivery = fleet.receive()                     # None: nothing is waiting
        message = fleet.pull(delivery, until=...)      # its objects, bounded and checked
        fleet.confirm(delivery, until=...)
        fleet.send(reply, seconds, until=...)

Requests are made by Flower's own client and its interceptors. Its `http_request_response` is not used: it retries for
ever, and ends the process from within when a request is refused.

Guarantees:
  - Only the address in `coordinator.json` is ever connected to: no proxy of the environment, no redirect.
  - The certificate of this site is shown where there is one, and read anew when its file has changed.
  - Nothing larger than the limits is held in memory, and an object is what its digest says, or the message is refused.
  - A failure is one `DeploymentError` with a word and a sentence (`trouble.py`); what may pass is tried again, with
    growing random pauses, until the time that the caller gives.
"""

import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from flwr.app import Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from sottovoce.client import trouble as troubles
from sottovoce.client.home import Hospital
from sottovoce.client.inflating import inflated
from sottovoce.common.errors import DeploymentError
from sottovoce.common.keys import load_node_key

CA, CERTIFICATE, CERTIFICATE_KEY, NODE_KEY = "ca.crt", "site.crt", "site.key", "node.key"

HEARTBEAT_SECONDS = (
    10.0  # Flower's least; after two without one a node is offline, and rounds need not wait for it
)
MAX_RESPONSE_BYTES = 32_000_000  # Flower cuts arrays into pieces of 5 MB; a record is one piece
MAX_OBJECTS = 4_096
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
FIRST_PAUSE, LONGEST_PAUSE, PARTING_SECONDS = 0.1, 3.0, 5.0
TOGETHER = 2  # requests at a time while a message's objects go over the line

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A message that is waiting: who asks what in which run, and the ids of its objects. None of them is here yet."""

    envelope: Message
    tree: ObjectTree

    @property
    def run_id(self) -> int:
        """The run that it belongs to."""
        return self.envelope.metadata.run_id


def connect(hospital: Hospital, *, node_id: int = 0, stop: threading.Event | None = None) -> "Fleet":
    """Shows this site to the SuperLink; `node_id` is the one it had, if it had one and the SuperLink still knows it.

    Raises:
        DeploymentError, KeyFileError: with the cause and the mend.
    """
    fleet = Fleet(hospital, stop or threading.Event())
    try:
        fleet.activate(node_id)
    except BaseException:
        fleet.close()
        raise
    return fleet


class Fleet:
    """A connection that outlives failures of the line: requests share it, also from several threads."""

    def __init__(self, hospital: Hospital, stop: threading.Event) -> None:
        self._address, self._tls = hospital.coordinator.fleet, hospital.tls
        self._limit, self._stop = hospital.settings.max_message_bytes, stop
        self._answers = _Answers(self._address)
        self._interceptors = (
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(*load_node_key(hospital.tls / NODE_KEY)),
            self._answers,  # the innermost: it sees a refusal before an interceptor ends the process for it
        )
        self._public_key = self._interceptors[1]._public_key_bytes
        self._turn = threading.Lock()
        self._seen = _marks(self._tls)
        self._current = self._built()
        self._retired: FleetHttpClient | None = None
        self.node_id = 0

    @property
    def clock_off(self) -> float | None:
        """The coordinator's clock less ours, in seconds, as of its last answer."""
        return self._answers.clock_off

    @property
    def public_key(self) -> bytes:
        """This site's node key, its public half in PEM."""
        return self._public_key

    # --- the node -------------------------------------------------------------------------------------------

    def activate(self, node_id: int = 0) -> None:
        """Puts this site online. A node that is online already (a crash a moment ago) is taken over by its id."""
        if node_id and self._still_knows(node_id):
            self.node_id = node_id
            return
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_SECONDS)
        try:
            self.node_id = self._call(FleetHttpClient.ActivateNode, request).node_id
        except DeploymentError as error:
            if error.reason == "not_registered" and self.is_registered():
                raise troubles.trouble(
                    "online",
                    "Expected this site to be offline; the coordinator still counts it as online, since an agent with "
                    f"this key ended without a word. It is taken back within {2 * HEARTBEAT_SECONDS:.0f} s, unless "
                    "another agent uses the same key.",
                ) from None
            raise

    def is_registered(self) -> bool:
        """Says whether the SuperLink knows this site's key, and changes nothing there."""
        # It looks for the key first, and refuses an impossible interval afterwards.
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=0.0)
        try:
            self._call(FleetHttpClient.ActivateNode, request)
        except DeploymentError as error:
            if error.reason not in ("not_registered", "interval"):
                raise
            return error.reason == "interval"
        return True

    def heartbeat(self) -> None:
        """Says that this site is there. Raises: DeploymentError."""
        request = SendNodeHeartbeatRequest(
            node=Node(node_id=self.node_id), heartbeat_interval=HEARTBEAT_SECONDS
        )
        if not self._call(FleetHttpClient.SendNodeHeartbeat, request).success:
            raise troubles.of_status(401, "", self._address, clock_off=None)

    def leave(self) -> None:
        """Goes offline, so that nobody waits for this site. Raises: DeploymentError."""
        self._call(FleetHttpClient.DeactivateNode, DeactivateNodeRequest(node_id=self.node_id))

    def _still_knows(self, node_id: int) -> bool:
        request = SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=HEARTBEAT_SECONDS)
        try:
            return bool(self._call(FleetHttpClient.SendNodeHeartbeat, request).success)
        except DeploymentError as error:
            if error.reason != "not_registered":
                raise
            return False

    # --- messages -------------------------------------------------------------------------------------------

    def receive(self) -> Delivery | None:
        """Asks once whether a message is waiting. From then on it is ours to answer: nobody else gets it."""
        response = self._call(FleetHttpClient.PullMessages, PullMessagesRequest(node=self._node))
        if not response.messages_list or not response.message_object_trees:
            return None
        envelope, tree = response.messages_list[0], response.message_object_trees[0]
        return Delivery(envelope=message_from_proto(envelope), tree=tree)

    def pull(self, delivery: Delivery, *, until: float) -> Message:
        """Fetches a message's objects and puts it together. `until` is a time of `time.monotonic`.

        Raises:
            DeploymentError: the line failed for so long, or the message is too large or damaged.
        """
        ids = list(dict.fromkeys(one.object_id for one in iterate_object_tree(delivery.tree)))
        if len(ids) > MAX_OBJECTS:
            raise _too_large(f"at most {MAX_OBJECTS} objects; came {len(ids)}")
        budget = _Budget(self._limit)

        def fetch(object_id: str) -> bytes:
            request = PullObjectRequest(node=self._node, run_id=delivery.run_id, object_id=object_id)
            response = self._call(FleetHttpClient.PullObject, request, until=until)
            if not response.object_found:
                raise ObjectPullError(object_id, "not there")
            if not response.object_available:
                raise ObjectUnavailableError(object_id)
            budget.take(len(response.object_content))
            content: bytes = response.object_content
            return content

        try:
            contents = pull_objects(
                ids,
                fetch,
                max_concurrent_pulls=TOGETHER,
                max_time=max(0.0, until - time.monotonic()),
                initial_backoff=0.05,
            )
        except ObjectPullError:
            raise troubles.trouble(
                "run_over", "Expected a message's objects at the coordinator; they are gone."
            ) from None
        return inflated(delivery.envelope, contents, max_bytes=self._limit)

    def confirm(self, delivery: Delivery, *, until: float) -> None:
        """Says that a message is here. The SuperLink then forgets its objects."""
        request = ConfirmMessageReceivedRequest(
            node=self._node,
            run_id=delivery.run_id,
            message_object_id=delivery.envelope.metadata.message_id,
        )
        self._call(FleetHttpClient.ConfirmMessageReceived, request, until=until)

    def send(self, reply: Message, seconds: float, *, until: float) -> None:
        """Gives a reply back. What arrived before a line broke is not sent again."""
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            bare = reply if reply.has_error() else make_message(metadata=reply.metadata, content=_nothing())
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(bare)],
                message_object_trees=[tree],
                clientapp_runtime_list=[seconds],
            )
            response = self._call(FleetHttpClient.PushMessages, request, until=until)
            wanted, session, run_id = (
                set(response.objects_to_push),
                response.session_id,
                reply.metadata.run_id,
            )

            def give(object_id: str, content: bytes) -> None:
                part = PushObjectRequest(
                    node=self._node,
                    run_id=run_id,
                    object_id=object_id,
                    object_content=content,
                    session_id=session,
                )
                self._call(FleetHttpClient.PushObject, part, until=until)

            push_objects(objects, give, object_ids_to_push=wanted, max_concurrent_pushes=TOGETHER)

    def bundle(self, run_id: int, *, until: float) -> tuple[str, bytes]:
        """Returns a run's bundle with the digest that the run says it has. Nothing of it is believed here."""
        asked = GetRunRequest(node=self._node, run_id=run_id)
        run = self._call(FleetHttpClient.GetRun, asked, until=until).run
        request = GetFabRequest(node=self._node, hash_str=run.fab_hash, run_id=run_id)
        return run.fab_hash, self._call(FleetHttpClient.GetFab, request, until=until).fab.content

    @property
    def _node(self) -> Node:
        return Node(node_id=self.node_id)

    # --- the line -------------------------------------------------------------------------------------------

    def _call(
        self,
        method: Callable[[FleetHttpClient, _Request], _Response],
        request: _Request,
        *,
        until: float = 0.0,
    ) -> _Response:
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
                until = min(until, time.monotonic() + PARTING_SECONDS)
            if found.reason not in troubles.TRANSIENT or time.monotonic() + wait > until:
                raise found from None
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _client(self) -> FleetHttpClient:
        with self._turn:
            marks = _marks(self._tls)
            if marks != self._seen:
                try:
                    renewed = self._built()
                except DeploymentError:
                    return (
                        self._current
                    )  # certificate and key are renewed one after the other: a moment later then
                # The one before the last has no request under way any more; the last one may.
                _close(self._retired)
                self._retired, self._current, self._seen = self._current, renewed, marks
            return self._current

    def _built(self) -> FleetHttpClient:
        context = tls_context(self._tls)
        client = FleetHttpClient(f"https://{self._address}", interceptors=self._interceptors, verify=context)
        client._client.close()
        client._client = httpx.Client(
            transport=_Bounded(verify=context, limits=httpx.Limits(max_keepalive_connections=2 * TOGETHER)),
            timeout=TIMEOUT,
            headers={"accept-encoding": "identity"},
            follow_redirects=False,
            trust_env=False,
        )
        return client

    def close(self) -> None:
        """Closes the line. The node stays online until its heartbeats are missed, unless it left."""
        _close(self._retired)
        _close(self._current)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
            context.load_cert_chain(tls / CERTIFICATE, tls / CERTIFICATE_KEY)
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
                raise _too_large(f"an answer of at most {MAX_RESPONSE_BYTES} bytes; more came")
            yield part

    def close(self) -> None:
        self._stream.close()


class _Budget:
    """The bytes that a message may still have; its objects come in from two threads."""

    def __init__(self, limit: int) -> None:
        self._limit, self._left, self._turn = limit, limit, threading.Lock()

    def take(self, n_bytes: int) -> None:
        with self._turn:
            self._left -= n_bytes
            if self._left < 0:
                raise _too_large(f"at most {self._limit} bytes (max_message_bytes); more came")


def fields_of(message: Message) -> dict[str, Any]:
    """Returns a message's metadata as plain values: what a journal keeps of it."""
    return {name: value for name, value in vars(message.metadata).items() if name in _FIELDS}


def envelope_of(fields: Mapping[str, Any]) -> Message:
    """Returns an empty message of such metadata, to be answered with an error. Raises: TypeError, KeyError."""
    metadata = Metadata(**{name.removeprefix("_"): fields[name] for name in _FIELDS})
    return make_message(metadata=metadata, content=_nothing())


_FIELDS = (
    "_run_id",
    "_message_id",
    "_src_node_id",
    "_dst_node_id",
    "_reply_to_message_id",
    "_group_id",
    "_created_at",
    "_ttl",
    "_message_type",
    "_src_task_id",
    "_dst_task_id",
)


def _nothing() -> RecordDict:
    return RecordDict()


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


def _too_large(sentence: str) -> DeploymentError:
    return troubles.trouble("too_large", f"Refused a message: expected {sentence}.")


def _close(client: FleetHttpClient | None) -> None:
    if client is not None:
        client.close()
