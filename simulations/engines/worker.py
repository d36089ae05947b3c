"""The process that answers for sites, and the frames it talks in.

A frame is a pickle (protocol 5) whose large arrays stand beside it. Arrays that are the very ones of the
frame before are not sent again: a round's weights cross once to each worker, not once for each site.

Guarantees:
  - One thread of arithmetic in each worker: the number of workers changes no bit.
  - A worker ends when its parent does, however that ended.

Parent and workers are one program on one machine: pickles go between them and nowhere else.
"""

import os
import pickle
import signal
import struct
import sys
from multiprocessing.connection import Connection
from typing import Any

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_HEADER = struct.Struct("<?I")  # are the arrays those of the frame before; how many


class Sender:
    """One end of a connection that frames go into."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last: list[memoryview] = []

    def frame(self, content: object) -> "Frame":
        """Returns what would be sent."""
        buffers: list[pickle.PickleBuffer] = []
        stream = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
        arrays = [buffer.raw() for buffer in buffers]
        return Frame(stream, arrays, self._are_last(arrays))

    def send(self, frame: "Frame") -> None:
        """Sends a frame, waiting until the other end has room for it."""
        lengths = struct.pack(f"<{len(frame.arrays)}Q", *(array.nbytes for array in frame.arrays))
        self._connection.send_bytes(_HEADER.pack(frame.repeats, len(frame.arrays)) + lengths + frame.stream)
        if frame.arrays and not frame.repeats:
            self._connection.send_bytes(b"".join(frame.arrays))
            self._last = frame.arrays

    def _are_last(self, arrays: list[memoryview]) -> bool:
        # The same object, and read-only: then it is the same content too.
        return (
            bool(arrays)
            and len(arrays) == len(self._last)
            and all(new.readonly and new.obj is old.obj for new, old in zip(arrays, self._last, strict=True))
        )


class Frame:
    """A pickle and the arrays beside it."""

    def __init__(self, stream: bytes, arrays: list[memoryview], repeats: bool) -> None:
        self.stream, self.arrays, self.repeats = stream, arrays, repeats


class Receiver:
    """The other end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last = b""

    def receive(self) -> Any:
        """Returns the next frame's content. Raises: EOFError, OSError when the other process is gone."""
        data = self._connection.recv_bytes()
        repeats, n_arrays = _HEADER.unpack_from(data)
        start = _HEADER.size + 8 * n_arrays
        lengths = struct.unpack_from(f"<{n_arrays}Q", data, _HEADER.size)
        if n_arrays and not repeats:
            self._last = self._connection.recv_bytes()
        return pickle.loads(memoryview(data)[start:], buffers=_cut(self._last, lengths))


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
