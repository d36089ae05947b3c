"""Flower's fleet protocol: how a hospital fetches messages from a SuperLink and gives replies back.

    with connect(hospital, stop=stop) as fleet:
        delivery = fleet.receive()                     # None: nothing is waiting
        message = fleet.pull(delivery, until=...)      # its objects, bounded and checked
        fleet.confirm(delivery, until=...)
        fleet.send(reply, until=...)

Flower's `http_request_response` is not used: it retries for ever, and ends the process from within when a request is
refused. What carries the requests, and what is wrong when they fail, is in `line.py` and `trouble.py`.

Guarantees:
  - Nothing larger than the limits is held in memory, and an object is what its digest says, or the message is refused.
  - What arrived before a line broke is not fetched or sent again.
  - A node that was online when its agent was killed is taken over, not locked out.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

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
from flwr.supernode.fleet_http_client import FleetHttpClient

from sottovoce.client import trouble as troubles
from sottovoce.client.home import Hospital
from sottovoce.client.line import Line
from sottovoce.common.errors import DeploymentError
from sottovoce.common.inflating import inflated

# Flower's least. After two without one a node is offline, and no round waits for it.
HEARTBEAT_SECONDS = 10.0
MAX_OBJECTS = 4_096
TOGETHER = 3  # requests at a time while a message's objects go over the line


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
    """A site at a SuperLink. Made by `connect`."""

    def __init__(self, hospital: Hospital, stop: threading.Event) -> None:
        self.address, self._limit = hospital.coordinator.fleet, hospital.settings.max_message_bytes
        self._line = Line(self.address, hospital.tls, stop=stop)
        self.node_id = 0

    @property
    def clock_off(self) -> float | None:
        """The coordinator's clock less ours, in seconds, as of its last answer."""
        return self._line.clock_off

    # --- the node -------------------------------------------------------------------------------------------

    def activate(self, node_id: int = 0) -> None:
        """Puts this site online. A node that is online already (a crash a moment ago) is taken over by its id."""
        if node_id and self._still_knows(node_id):
            self.node_id = node_id
            return
        request = ActivateNodeRequest(public_key=self._line.public_key, heartbeat_interval=HEARTBEAT_SECONDS)
        try:
            self.node_id = self._line.call(FleetHttpClient.ActivateNode, request).node_id
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
        request = ActivateNodeRequest(public_key=self._line.public_key, heartbeat_interval=0.0)
        try:
            self._line.call(FleetHttpClient.ActivateNode, request)
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
        if not self._line.call(FleetHttpClient.SendNodeHeartbeat, request).success:
            raise troubles.not_registered(self.address)

    def leave(self) -> None:
        """Goes offline: nobody waits for this site, nor for a reply that lies there still. Raises: DeploymentError."""
        self._line.call(FleetHttpClient.DeactivateNode, DeactivateNodeRequest(node_id=self.node_id))

    def _still_knows(self, node_id: int) -> bool:
        request = SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=HEARTBEAT_SECONDS)
        try:
            return bool(self._line.call(FleetHttpClient.SendNodeHeartbeat, request).success)
        except DeploymentError as error:
            if error.reason != "not_registered":
                raise
            return False

    # --- messages -------------------------------------------------------------------------------------------

    def receive(self) -> Delivery | None:
        """Asks once whether a message is waiting. From then on it is ours to answer: nobody else gets it."""
        response = self._line.call(FleetHttpClient.PullMessages, PullMessagesRequest(node=self._node))
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
            raise troubles.too_large(f"at most {MAX_OBJECTS} objects; came {len(ids)}")
        budget = _Budget(self._limit)

        def fetch(object_id: str) -> bytes:
            request = PullObjectRequest(node=self._node, run_id=delivery.run_id, object_id=object_id)
            response = self._line.call(FleetHttpClient.PullObject, request, until=until)
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
        self._line.call(FleetHttpClient.ConfirmMessageReceived, request, until=until)

    def send(self, reply: Message, *, until: float) -> None:
        """Gives a reply back. How long it took here is not told: that depends on who was drawn."""
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            bare = reply if reply.has_error() else make_message(metadata=reply.metadata, content=_nothing())
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(bare)],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],
            )
            response = self._line.call(FleetHttpClient.PushMessages, request, until=until)
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
                self._line.call(FleetHttpClient.PushObject, part, until=until)

            push_objects(objects, give, object_ids_to_push=wanted, max_concurrent_pushes=TOGETHER)

    def holds(self, run_id: int, reply_id: str) -> bool:
        """Says whether a reply still lies at the SuperLink, which forgets it when the coordinator has all of it.

        Raises:
            DeploymentError: the line fails, or the run is over.
        """
        # A message's own object is its metadata: a few hundred bytes.
        request = PullObjectRequest(node=self._node, run_id=run_id, object_id=reply_id)
        return bool(self._line.call(FleetHttpClient.PullObject, request).object_found)

    def bundle(self, run_id: int, *, until: float) -> tuple[str, bytes]:
        """Returns a run's bundle with the digest that the run says it has. Nothing of it is believed here."""
        asked = GetRunRequest(node=self._node, run_id=run_id)
        run = self._line.call(FleetHttpClient.GetRun, asked, until=until).run
        request = GetFabRequest(node=self._node, hash_str=run.fab_hash, run_id=run_id)
        return run.fab_hash, self._line.call(FleetHttpClient.GetFab, request, until=until).fab.content

    @property
    def _node(self) -> Node:
        return Node(node_id=self.node_id)

    def close(self) -> None:
        """Closes the line. The node stays online until its heartbeats are missed, unless it left."""
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Budget:
    """The bytes that a message may still have; its objects come in from several threads."""

    def __init__(self, limit: int) -> None:
        self._limit, self._left, self._turn = limit, limit, threading.Lock()

    def take(self, n_bytes: int) -> None:
        with self._turn:
            self._left -= n_bytes
            if self._left < 0:
                raise troubles.too_large(f"at most {self._limit} bytes (max_message_bytes); more came")


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
