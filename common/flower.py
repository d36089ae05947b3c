"""The one door to Flower's messages: lazy arrays, messages in and out, and the base of our own grids.

Flower 1.41.0 serialises every tensor with `np.save` on the way into a record and `np.load` on the way out,
also when sender and receiver are one process. A `LazyArray` is a Flower `Array` that keeps the ndarray and
serialises only if somebody asks for the bytes. Flower's own code cannot tell the difference, which
`tests/common/test_flower.py` holds for the pinned version.

Guarantees:
  - A receiver gets copies: whatever an app does to its tensors, no other app and no later round sees it.
  - A lazy array has the dtype, shape, bytes and object id of Flower's own array of the same numbers.
  - `decode` reads nothing but exactly the bytes that an array of the expected dtype and shape has.
  - Our grids answer each message once: with the app's reply, or with an error reply that names its kind.
"""

import logging
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from typing import Any, cast

import flwr
import numpy as np
import numpy.typing as npt
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode, SType
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from sottovoce.common.errors import RunError, SottovoceError
from sottovoce.common.weights import Shape, Weights

VERSION = "1.41.0"
FLOAT32 = np.dtype(np.float32)
FOREVER_SECONDS = 1e9
POLL_SECONDS = 0.02  # on Flower's own grids, which cannot be waited on; they themselves sleep 0.1 s or 3 s
ARRAYS, METRICS, CONFIG, LEDGER, SECAGG = "arrays", "metrics", "config", "ledger", "secagg"
CONTROL, COUNTED = "control", "counted"  # SCAFFOLD's record of arrays, and its setting
PERSONAL = "personal"  # the setting of studies whose sites have models of their own
MAX_CHECKPOINT_CHARS = 1000

Scalar = str | int | float | bool
Metric = int | float | list[int] | list[float]
NDArray = npt.NDArray[Any]

_log = logging.getLogger(__name__)

if flwr.__version__ != VERSION:
    raise ImportError(
        f"Expected flwr=={VERSION}; came {flwr.__version__}. Sottovoce relies on parts of Flower that change "
        "from release to release: install it with its own constraints."
    )


# --- arrays ---------------------------------------------------------------------------------------------


class LazyArray(Array):
    """A Flower array that keeps its ndarray; the four serialised fields come into being when asked for.

    `Array` is a dataclass without defaults, so its fields are no class attributes and `__getattr__` is asked
    for those an instance does not have.
    """

    def __init__(self, ndarray: NDArray) -> None:
        self.__dict__["_ndarray"] = ndarray

    def __getattr__(self, name: str) -> Any:
        ndarray: NDArray | None = self.__dict__.get("_ndarray")
        if ndarray is None:
            raise AttributeError(name)
        match name:
            case "dtype":
                return str(ndarray.dtype)
            case "shape":
                return tuple(ndarray.shape)
            case "stype":
                return SType.NUMPY
            case "data":
                self.__dict__["data"] = data = _npy(ndarray)
                return data
        raise AttributeError(name)

    def numpy(self) -> NDArray:
        """Returns a copy, as Flower's own array does."""
        return np.array(self.kept) if self.is_lazy else super().numpy()

    @property
    def is_lazy(self) -> bool:
        """Says whether no field was assigned since."""
        own = self.__dict__
        return not ("dtype" in own or "shape" in own or "stype" in own)

    @property
    def kept(self) -> NDArray:
        """Returns the ndarray itself, for readers that neither change nor keep it."""
        return cast(NDArray, self.__dict__["_ndarray"])

    def __reduce__(self) -> tuple[Callable[[NDArray], "LazyArray"], tuple[NDArray]]:
        # numpy pickles an ndarray as a block of its own under protocol 5, which `processes.py` sends once.
        return _lazy, (self.kept,)


def _lazy(ndarray: NDArray) -> LazyArray:
    return LazyArray(ndarray)  # pickle could not find the class itself, because of the next line


# Flower writes the class's name into what it sends, and looks it up at the other end.
LazyArray.__name__ = LazyArray.__qualname__ = "Array"


def array_record(weights: Weights) -> ArrayRecord:
    """Returns the record of `weights`, without copying them: they must not change any more."""
    record = ArrayRecord()
    # What `record[name] = ...` ends in. Its checks of type cost more than all the rest of a message.
    record.__dict__["_data"] = {name: LazyArray(array) for name, array in weights.items()}
    return record


def config_record(settings: Mapping[str, Scalar]) -> ConfigRecord:
    """Returns the record of `settings`."""
    return ConfigRecord(dict(settings))


def read_weights(record: ArrayRecord) -> Weights:
    """Returns a record's arrays, to be read and not kept or changed."""
    return {
        name: array.kept if isinstance(array, LazyArray) and array.is_lazy else array.numpy()
        for name, array in record.items()
    }


def decode(array: Array, shape: Shape, dtype: npt.DTypeLike = FLOAT32) -> NDArray:
    """Returns an array of exactly the expected dtype and shape, read-only or not, to be read and not kept.

    Raises:
        ValueError: the array says or holds anything else.
    """
    if isinstance(array, LazyArray) and array.is_lazy:
        kept = array.kept
        if kept.dtype != dtype or kept.shape != shape:
            raise ValueError(
                f"expected {_described(dtype, shape)}; came {_described(kept.dtype, kept.shape)}"
            )
        return kept
    if array.stype != SType.NUMPY:
        raise ValueError(f"expected the serialisation {SType.NUMPY!r}; came {str(array.stype)[:40]!r}")
    # The one header that numpy writes for this dtype and shape: nothing a stranger wrote is ever parsed.
    header = _npy_header(np.dtype(dtype).str, shape)
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if len(array.data) != len(header) + n_bytes or not array.data.startswith(header):
        came = f"{str(array.dtype)[:40]} {str(array.shape)[:60]} in {len(array.data)} bytes"
        expected = f"{_described(dtype, shape)} in {len(header) + n_bytes} bytes"
        raise ValueError(f"expected {expected}; came {came}")
    return np.frombuffer(array.data, dtype, offset=len(header)).reshape(shape)


def _described(dtype: npt.DTypeLike, shape: Shape) -> str:
    return f"{np.dtype(dtype)} {shape}"


def _npy(ndarray: NDArray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, ndarray, allow_pickle=False)
    return buffer.getvalue()


@lru_cache(maxsize=1024)
def _npy_header(dtype: str, shape: Shape) -> bytes:
    buffer = BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


# --- messages, as the server sees them ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back for one message. Nothing in it has been checked but `node_id` against the question."""

    node_id: int
    group: str
    error: str | None = None
    arrays: Mapping[str, Array] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    checkpoint: str | None = None
    surplus: tuple[str, ...] = ()
    n_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class SumReply:
    """What came back in a phase of a secure sum. Nothing in it has been checked; bytes are as they came."""

    node_id: int
    group: str
    error: str | None = None
    body: bytes = b""
    complaint: bytes = b""
    checkpoint: str | None = None


def sum_message(
    kind: str,
    node_id: int,
    body: bytes,
    model: str,
    config: ConfigRecord,
    *,
    arrays: ArrayRecord | None,
    control: ArrayRecord | None = None,
    group: str,
    ttl: float,
) -> Message:
    """Returns a phase's message to one node: `kind` is "train.mask" and the like, `model` the weights' digest."""
    content = RecordDict({CONFIG: config.copy(), SECAGG: ConfigRecord({"body": body, "model": model})})
    for name, record in ((ARRAYS, arrays), (CONTROL, control)):
        if record is not None:
            content[name] = record.copy()
    return Message(content, node_id, kind, group_id=group, ttl=ttl)


def sum_reply_of(message: Message) -> SumReply:
    """Opens a phase's reply without believing it; whatever is not bytes under a known name is an error."""
    node_id, group = message.metadata.src_node_id, message.metadata.group_id
    if message.has_error():
        reason = message.error.reason or f"code {message.error.code}"
        return SumReply(node_id=node_id, group=group, error=f"no answer: {reason[:200]}")
    record = message.content.get(SECAGG)
    said = dict(record) if isinstance(record, ConfigRecord) else {}
    body, complaint = said.get("body", b""), said.get("complaint", b"")
    if len(said) != 1 or not isinstance(body, bytes) or not isinstance(complaint, bytes):
        return SumReply(
            node_id=node_id, group=group, error="expected one answer or one complaint; came others"
        )
    return SumReply(
        node_id=node_id,
        group=group,
        body=body,
        complaint=complaint,
        checkpoint=_checkpoint(message.content),
    )


def instruction(
    kind: str,
    node_id: int,
    arrays: ArrayRecord,
    config: ConfigRecord,
    *,
    control: ArrayRecord | None = None,
    group: str,
    ttl: float,
) -> Message:
    """Returns a message to one node. The records are copied, the arrays in them are shared."""
    content = RecordDict({ARRAYS: arrays.copy(), CONFIG: config.copy()})
    if control is not None:
        content[CONTROL] = control.copy()
    return Message(content, node_id, kind, group_id=group, ttl=ttl)


def reply_of(message: Message) -> Reply:
    """Opens a reply without believing it."""
    node_id, group = message.metadata.src_node_id, message.metadata.group_id
    if message.has_error():
        return Reply(node_id=node_id, group=group, error=message.error.reason or f"code {message.error.code}")
    content = message.content
    arrays, metrics, checkpoint = content.get(ARRAYS), content.get(METRICS), _checkpoint(content)
    known = {ARRAYS, METRICS} if checkpoint is None else {ARRAYS, METRICS, LEDGER}
    return Reply(
        node_id=node_id,
        group=group,
        arrays=dict(arrays.items()) if isinstance(arrays, ArrayRecord) else {},
        metrics=cast(Mapping[str, Metric], metrics) if isinstance(metrics, MetricRecord) else {},
        checkpoint=checkpoint,
        surplus=tuple(sorted(content.keys() - known)),
        n_bytes=_n_bytes(arrays) if isinstance(arrays, ArrayRecord) else 0,
    )


def _checkpoint(content: RecordDict) -> str | None:
    """Returns the signed checkpoint of a site's ledger, if the record holds that and nothing else."""
    record = content.get(LEDGER)
    if not isinstance(record, ConfigRecord) or list(record) != ["checkpoint"]:
        return None
    note = record["checkpoint"]
    return note if isinstance(note, str) and len(note) <= MAX_CHECKPOINT_CHARS else None


def _n_bytes(arrays: Mapping[str, Array]) -> int:
    """Returns the size of the numbers; what a wire adds is the wire's."""
    return sum(
        array.kept.nbytes if isinstance(array, LazyArray) and array.is_lazy else len(array.data)
        for array in arrays.values()
    )


def exchange(
    grid: Grid, messages: Iterable[Message], *, window: int, timeout: float
) -> Iterator[Message | None]:
    """Sends messages and yields for each, in their order, its reply or None, whatever order replies come in.

    At most `window` messages are ahead of the last yielded one, so that memory does not grow with the cohort.
    After `timeout` seconds what has not come is None, and nothing more is sent.

    Guarantees:
      - A reply that answers none of these messages, or one that was answered, is not yielded.
    """
    deadline = time.monotonic() + timeout
    waiting, overdue = iter(messages), False
    flight: deque[str] = deque()  # ids in the order of sending; "" for a message that no node took
    arrived: dict[str, Message | None] = {"": None}
    while _refill(grid, waiting, flight, 0 if overdue else window):
        if flight[0] in arrived:
            key = flight.popleft()
            yield arrived.pop(key) if key else None
            continue
        left = deadline - time.monotonic()
        # A grid of Flower's may have been busy with one reply for long: what else came meanwhile was in time.
        if left <= 0 and (overdue or getattr(grid, "waits", False)):
            break
        overdue = left <= 0
        open_keys = [key for key in flight if key not in arrived]
        for reply in _pull(grid, open_keys, max(left, 0.0)):
            if (key := reply.metadata.reply_to_message_id) in open_keys:
                arrived.setdefault(key, reply)
    yield from (arrived.get(key) for key in flight)
    yield from (None for _ in waiting)


def _refill(grid: Grid, waiting: Iterator[Message], flight: deque[str], window: int) -> bool:
    while len(flight) < window and (message := next(waiting, None)) is not None:
        flight.append(next(iter(grid.push_messages([message])), ""))
    return bool(flight)


def _pull(grid: Grid, keys: list[str], timeout: float) -> list[Message]:
    if getattr(grid, "waits", False):
        return list(grid.pull_messages(keys, timeout=timeout))  # type: ignore[call-arg]
    replies = list(grid.pull_messages(keys))
    if not replies:
        time.sleep(min(timeout, POLL_SECONDS))
    return replies


def site_names(grid: Grid, *, timeout: float) -> dict[int, str]:
    """Asks each node for the name of its site; a node that does not say it is left out.

    Good for simulation, where all nodes are ours. In a hospital federation names are pinned to keys.
    """
    if isinstance(grid, LocalGrid):
        return dict(grid.sites)
    nodes = sorted(grid.get_node_ids())
    questions = (Message(RecordDict(), node, MessageType.QUERY, ttl=timeout) for node in nodes)
    names = {}
    for node, reply in zip(nodes, exchange(grid, questions, window=1_000, timeout=timeout), strict=True):
        said = reply.content.get(CONFIG) if reply is not None and reply.has_content() else None
        if isinstance(said, ConfigRecord) and isinstance(said.get("site"), str):
            names[node] = str(said["site"])
    return names


# --- nodes and grids ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Node:
    """One simulated SuperNode: a site by name, and what its operator configured."""

    site: str
    config: Mapping[str, Scalar] = field(default_factory=dict)


class LocalGrid(Grid):
    """Flower's `Grid` over nodes on this machine. Node ids count from 1, in the order of the nodes.

    `pull_messages` waits for at least one reply, up to `timeout` seconds: nobody polls.
    """

    waits = True

    def __init__(self, nodes: Sequence[Node], run_config: Mapping[str, Scalar]) -> None:
        self.sites = {number: node.site for number, node in enumerate(nodes, start=1)}
        self._run = Run.create_empty(run_id=adopt_task_identity().run_id)
        self._contexts = {
            number: Context(self._run.run_id, number, dict(node.config), RecordDict(), dict(run_config))
            for number, node in enumerate(nodes, start=1)
        }
        self._n_messages = 0

    def set_run(self, run: Run) -> None:
        """Takes the run as it is."""
        self._run = run

    @property
    def run(self) -> Run:
        """Returns the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Returns a message; Flower deprecates this in favour of its constructor."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Returns all nodes: a local node is always there."""
        return list(self.sites)

    @abstractmethod
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Takes messages and returns their ids."""

    @abstractmethod
    def pull_messages(self, message_ids: Iterable[str], *, timeout: float | None = None) -> Iterable[Message]:
        """Returns replies that are there; waits for the first one."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Returns the replies that come within `timeout` seconds, in the order of the messages."""
        questions = list(messages)
        within = FOREVER_SECONDS if timeout is None else timeout
        replies = exchange(self, questions, window=max(1, len(questions)), timeout=within)
        return [reply for reply in replies if reply is not None]

    def _accept(self, message: Message) -> str:
        """Gives a message its id."""
        if message.metadata.dst_node_id not in self._contexts:
            raise RunError(
                f"Expected a node of 1 to {len(self._contexts)}; came {message.metadata.dst_node_id}."
            )
        self._n_messages += 1
        return stamp(message, f"message-{self._n_messages}")

    def _finish(self, reply: Message) -> Message:
        self._n_messages += 1
        stamp(reply, f"message-{self._n_messages}")
        return reply


def stamp(message: Message, message_id: str) -> str:
    """Sets a message's id, as Flower's own grids do: the class has no public way."""
    message.metadata.__dict__["_message_id"] = message_id
    return message_id


def has_expired(message: Message) -> bool:
    """Says whether nobody waits for an answer any more."""
    return time.time() > message.metadata.created_at + message.metadata.ttl


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """Calls an app and returns its reply, or an error reply for whatever went wrong in it."""
    try:
        reply = app(message, context)
    except SottovoceError as error:
        return error_reply(message, str(error))
    except Exception as error:
        # The text of a stranger's exception may quote a value; type and place are enough to find a defect.
        _log.debug("a client app raised", exc_info=True)
        return error_reply(message, f"{type(error).__name__} in {_place(error)}")
    if not isinstance(reply, Message):
        return error_reply(message, f"expected a reply; the app returned {type(reply).__name__}")
    return reply


def error_reply(message: Message, reason: str, code: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION) -> Message:
    """Returns an error in the place of a reply."""
    return Message(Error(code, reason), reply_to=message)


def _place(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "no known place"
    code = traceback.tb_frame.f_code
    return f"{'/'.join(code.co_filename.split('/')[-2:])}:{traceback.tb_lineno}"


def load_app(reference: str) -> ClientApp:
    """Imports a ClientApp by `module:attribute`."""
    import importlib

    module, _, attribute = reference.partition(":")
    app: Callable[..., Any] = getattr(importlib.import_module(module), attribute or "app")
    if not isinstance(app, ClientApp):
        raise RunError(f"Expected a Flower ClientApp at {reference!r}; came {type(app).__name__}.")
    return app


def adopt_task_identity() -> type[TaskIdentity]:
    """Gives this process the identity that Flower's `Message` asks for, unless a Flower run gave it one."""
    for name, value in {"task_id": 1, "run_id": 1, "node_id": SUPERLINK_NODE_ID}.items():
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:
            setattr(TaskIdentity, name, value)
    return TaskIdentity


__all__ = [
    "Array",
    "ArrayRecord",
    "ClientApp",
    "ConfigRecord",
    "Context",
    "ErrorCode",
    "Grid",
    "LazyArray",
    "LocalGrid",
    "Message",
    "MessageType",
    "MetricRecord",
    "Node",
    "RecordDict",
    "Reply",
    "SumReply",
]
