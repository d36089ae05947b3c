"""The process that answers for sites, and the frames it talks in.

A frame is a pickle (protocol 5) whose large arrays stand beside it. Arrays that are the very ones of the
frame before are not sent again: a round's weights cross once to each worker, not once for each site.

Guarantees:
  - One thread of arithmetic in each worker: the number of workers changes no bit.
  - A worker ends when its parent does, however that ended.

Parent and workers are one program on one machine: pickles go between them and nowhere else.
"""

import mmap
import os
import pickle
import signal
import struct
import sys
import tempfile
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_HEADER = struct.Struct("<BI")  # where the arrays are; how many
_NOWHERE, _AS_BEFORE, _IN_SLAB, _IN_NEW_SLAB = range(4)


class Frame:
    """A pickle and the arrays beside it."""

    def __init__(self, stream: bytes, arrays: list[memoryview]) -> None:
        self.stream, self.arrays = stream, arrays

    @property
    def n_bytes(self) -> int:
        """Returns the size of the arrays together."""
        return sum(array.nbytes for array in self.arrays)


class Sender:
    """One end of a connection that frames go into.

    Arrays do not go through the connection but through a slab of memory that both ends see: a socket would copy
    a model four times in small pieces. The slab is written again with the next frame, so that the other end
    must have received this one; here it has, since each end sends only after it was sent to.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last: list[memoryview] = []
        self._slab: mmap.mmap | None = None

    def frame(self, content: object) -> Frame:
        """Returns what would be sent."""
        buffers: list[pickle.PickleBuffer] = []
        stream = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
        return Frame(stream, [buffer.raw() for buffer in buffers])

    def send(self, frame: Frame) -> None:
        """Sends a frame, waiting until the other end has room for its pickle."""
        place, slab = self._place(frame)
        if place in (_IN_SLAB, _IN_NEW_SLAB):
            self._write(frame)
        lengths = struct.pack(f"<{len(frame.arrays)}Q", *(array.nbytes for array in frame.arrays))
        self._connection.send_bytes(_HEADER.pack(place, len(frame.arrays)) + lengths + frame.stream)
        if slab is not None:
            send_handle(self._connection, slab, None)
            os.close(slab)

    def _place(self, frame: Frame) -> tuple[int, int | None]:
        """Returns where a frame's arrays go, and the descriptor of the slab if it is a new one."""
        if not frame.arrays:
            return _NOWHERE, None
        if self._are_last(frame.arrays):
            return _AS_BEFORE, None
        if self._slab is not None and len(self._slab) >= frame.n_bytes:
            return _IN_SLAB, None
        slab = _nameless_file()
        os.ftruncate(slab, frame.n_bytes)
        self._slab = mmap.mmap(slab, frame.n_bytes)
        return _IN_NEW_SLAB, slab

    def _write(self, frame: Frame) -> None:
        if self._slab is None:
            raise RuntimeError("a slab was promised and not made")
        start = 0
        for array in frame.arrays:
            self._slab[start : start + array.nbytes] = array
            start += array.nbytes
        self._last = frame.arrays

    def _are_last(self, arrays: list[memoryview]) -> bool:
        # The same object, and read-only: then it is the same content too.
        return len(arrays) == len(self._last) and all(
            new.readonly and new.obj is old.obj for new, old in zip(arrays, self._last, strict=True)
        )


class Receiver:
    """The other end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last = b""
        self._slab: mmap.mmap | None = None

    def receive(self) -> Any:
        """Returns the next frame's content. Raises: EOFError, OSError when the other process is gone."""
        data = self._connection.recv_bytes()
        place, n_arrays = _HEADER.unpack_from(data)
        lengths = struct.unpack_from(f"<{n_arrays}Q", data, _HEADER.size)
        if place == _IN_NEW_SLAB:
            self._open(sum(lengths))
        if place in (_IN_SLAB, _IN_NEW_SLAB) and self._slab is not None:
            self._last = self._slab[: sum(lengths)]  # a copy: the slab is written again
        stream = memoryview(data)[_HEADER.size + 8 * n_arrays :]
        return pickle.loads(stream, buffers=_cut(self._last, lengths))

    def _open(self, n_bytes: int) -> None:
        descriptor = recv_handle(self._connection)
        try:
            self._slab = mmap.mmap(descriptor, n_bytes)
        finally:
            os.close(descriptor)


def _nameless_file() -> int:
    """Returns the descriptor of a file that is gone with its last user: nothing is left behind by a crash."""
    if sys.platform == "linux":
        return os.memfd_create("sottovoce")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _cut(block: bytes, lengths: tuple[int, ...]) -> list[memoryview]:
    view, parts, start = memoryview(block), [], 0
    for length in lengths:
        parts.append(view[start : start + length])
        start += length
    return parts


def serve(connection: Connection, app_reference: str) -> None:
    """Answers (message, context) with (reply, state) until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    for name in THREAD_SETTINGS:
        os.environ[name] = "1"
    sender, receiver = Sender(connection), Receiver(connection)
    try:
        _serve(sender, receiver, app_reference)
    except (EOFError, OSError):
        return  # the parent is gone


def _serve(sender: Sender, receiver: Receiver, app_reference: str) -> None:
    from sottovoce.common.flower import answer, load_app  # after the settings, which are read on import

    app = load_app(app_reference)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    while (task := receiver.receive()) is not None:
        message, context = task
        reply = answer(app, message, context)
        sender.send(sender.frame((reply, context.state if len(context.state) else None)))
