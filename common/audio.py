"""From a recording to a waveform, whatever the file holds: decoding happens in one supervised child process.

    with Decoder(study.audio) as decoder:
        waveform = decoder.load(Path("03-01-05-01-02-01-12.flac"))

Guarantees:
  - `load` returns finite mono samples at the study's rate, or raises AudioError: one line,
    which names the file.
  - No file hangs or kills the caller: a child that crashes, stalls or lies is killed and replaced.
  - A file is blamed for a crash only when it took down two children in a row.
  - Nothing the child says is believed: its bytes are counted and checked, never unpickled.
  - The child ends when its parent does, and leaves no zombie.

| the file                                    | what happens                                    |
|---------------------------------------------|-------------------------------------------------|
| not a regular file (folder, FIFO, device)   | refused before it is read                       |
| name says one container, bytes another      | refused: rename it                              |
| rate outside 8-48 kHz, more than 2 channels | refused from the header                         |
| longer than `max_seconds`                   | refused from the header, or when too much came  |
| header and content disagree (cut, bomb)     | refused; never decoded beyond the stated length |
| NaN, infinite or gigantic samples           | refused                                         |

soundfile (libsndfile) is imported by the child only.
"""

import hashlib
import math
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from sottovoce.common import audio_child as wire
from sottovoce.common.audio_stages import prepare
from sottovoce.common.errors import AudioError, SottovoceError
from sottovoce.common.study import Audio

MAX_NAME_CHARACTERS = 200
CONTAINER_OF_SUFFIX = {
    ".wav": "WAV",
    ".wave": "WAV",
    ".flac": "FLAC",
    ".ogg": "OGG",
    ".oga": "OGG",
    ".opus": "OGG",
    ".mp3": "MP3",
}


@dataclass(frozen=True, kw_only=True)
class Waveform:
    """Mono float32 samples."""

    samples: npt.NDArray[np.float32]
    sample_rate_hz: int

    @property
    def seconds(self) -> float:
        """The length."""
        return len(self.samples) / self.sample_rate_hz


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one recording may cost. Far above any honest recording, so that they need no tuning."""

    file_bytes: int = 1 << 30
    memory_bytes: int = 1 << 30
    cpu_seconds: int = 20
    wall_seconds: float = 60.0
    start_seconds: float = 60.0


class Decoder:
    """Decodes recordings in one child process; see the module's guarantees. Threads take turns."""

    def __init__(self, spec: Audio, limits: Limits | None = None) -> None:
        self._spec, self._limits = spec, limits or Limits()
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child. A later `load` starts a new one."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    @property
    def child_pid(self) -> int | None:
        """The process id of the child, if there is one."""
        return self._child.pid if self._child is not None else None

    def load(self, path: Path, start_seconds: float = 0.0, end_seconds: float | None = None) -> Waveform:
        """Decodes a recording, or a segment of it, and takes it through the study's audio stages.

        Raises:
            AudioError: the recording is not acceptable; one line that names the file.
        """
        with self._lock:
            try:
                samples, rate = self._decode(path, start_seconds, end_seconds)
            except _Unacceptable as problem:
                raise AudioError(f"{printable(path)}: {problem}.") from None
        prepared = prepare(samples, rate, self._spec)
        return Waveform(samples=prepared, sample_rate_hz=self._spec.sample_rate_hz)

    def _decode(self, path: Path, start: float, end: float | None) -> tuple[npt.NDArray[np.float32], int]:
        descriptor = _open(path, self._limits.file_bytes)
        try:
            container = _container(descriptor, path)
            for _ in range(2):  # a child killed from outside is no fault of the file: one more try
                try:
                    return self._request(descriptor, container, start, end)
                except _ChildDied as death:
                    last = death
                    self.close()
                except BaseException:
                    if self._child is not None and self._child.busy:
                        self.close()
                    raise
            raise _Unacceptable(f"it made the decoder end twice ({last}); leave it out or re-encode it")
        finally:
            os.close(descriptor)

    def _request(
        self, descriptor: int, container: str, start: float, end: float | None
    ) -> tuple[npt.NDArray[np.float32], int]:
        if self._child is None or not self._child.alive:
            self.close()
            self._child = _Child(self._limits)
        return self._child.decode(descriptor, container, start, end, self._spec.max_seconds)


def digest(path: Path, limits: Limits | None = None) -> str:
    """Returns the SHA-256 of a recording's bytes, as 64 hexadecimal digits.

    Raises:
        AudioError: it is no regular file, is empty, too large or cannot be read.
    """
    try:
        with os.fdopen(_open(path, (limits or Limits()).file_bytes), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except _Unacceptable as problem:
        raise AudioError(f"{printable(path)}: {problem}.") from None
    except OSError as error:
        raise AudioError(f"{printable(path)}: it cannot be read ({error.strerror}).") from None


def printable(path: Path) -> str:
    """Returns a file's name as one short line, whatever bytes it is made of.

    >>> print(printable(Path("a\\nb.wav")))
    a\\nb.wav
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(path))
    if len(text) <= MAX_NAME_CHARACTERS:
        return text
    return f"...{text[-MAX_NAME_CHARACTERS:]}"


class _Unacceptable(Exception):
    """Why a recording is refused; the sentence after its name."""


class _ChildDied(Exception):
    """The child ended in the middle of a request."""


def _open(path: Path, most_bytes: int) -> int:
    try:
        # Neither a FIFO without a writer nor a terminal may hold us up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name holds a NUL"
        raise _Unacceptable(f"it cannot be opened ({reason})") from None
    status = os.fstat(descriptor)
    problem = None
    if not stat.S_ISREG(status.st_mode):
        problem = "expected a regular file; came a folder, pipe or device"
    elif status.st_size == 0:
        problem = "expected a recording; the file is empty"
    elif status.st_size > most_bytes:
        problem = f"expected at most {most_bytes} bytes; came {status.st_size}"
    if problem:
        os.close(descriptor)
        raise _Unacceptable(problem)
    return descriptor


def _container(descriptor: int, path: Path) -> str:
    head = os.pread(descriptor, 12, 0)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        container = "WAV"
    elif head[:4] in (b"fLaC", b"OggS"):
        container = "FLAC" if head[:4] == b"fLaC" else "OGG"
    elif head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0):
        container = "MP3"
    else:
        raise _Unacceptable("expected WAV, FLAC, OGG or MP3; its first bytes are none of these")
    named = CONTAINER_OF_SUFFIX.get(path.suffix.lower(), container)
    if named != container:
        raise _Unacceptable(f"its name says {named}, its bytes say {container}; rename it")
    return container


class _Child:
    """One child process and the socket to it."""

    def __init__(self, limits: Limits) -> None:
        self.busy = False
        self._limits = limits
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",  # the script's folder holds our modules, not the library's
                    wire.__file__,
                    str(theirs.fileno()),
                    str(limits.memory_bytes),
                    str(limits.cpu_seconds),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders print what hostile files make them print
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the parent, which then closes the socket
            )
        self._finalizer = weakref.finalize(self, _end, self._process, self._channel)
        self._deadline = time.monotonic() + limits.start_seconds
        try:
            kind, _ = self._frame()
        except (_ChildDied, _Unacceptable) as problem:
            self.kill()
            raise SottovoceError(
                f"The audio decoder did not start ({problem}). "
                "Expected `python -c 'import soundfile'` to work; install the package again."
            ) from None
        if kind != wire.READY:
            self.kill()
            raise SottovoceError("The audio decoder did not start: another program answered.")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends the process and waits for it, so that no zombie stays."""
        self._finalizer()

    def decode(
        self, descriptor: int, container: str, start: float, end: float | None, most: float
    ) -> tuple[npt.NDArray[np.float32], int]:
        self.busy = True
        self._deadline = time.monotonic() + self._limits.wall_seconds
        request = wire.REQUEST.pack(
            start, math.nan if end is None else end, most, wire.CONTAINERS.index(container)
        )
        try:
            socket.send_fds(self._channel, [request], [descriptor])
        except OSError:
            raise self._death() from None
        answer = self._answer(most)
        self.busy = False  # only now: whatever raised before leaves the channel in an unknown state
        if isinstance(answer, str):
            raise _Unacceptable(answer)
        return answer

    def _answer(self, most: float) -> tuple[npt.NDArray[np.float32], int] | str:
        """Returns samples and their rate, or the child's reason to refuse."""
        kind, payload = self._frame()
        if kind == wire.REFUSED:
            return _reason(payload)
        if kind != wire.HEAD or len(payload) != wire.HEADER.size:
            raise self._liar()
        rate, _, count = wire.HEADER.unpack(payload)
        if not wire.RATES_HZ[0] <= rate <= wire.RATES_HZ[1] or not 0 < count <= most * rate + 1:
            raise self._liar()
        samples, came = np.empty(count, dtype="<f4"), 0
        for kind, payload in self._frames():
            if kind == wire.REFUSED:
                return _reason(payload)
            if kind == wire.END:
                break
            block = np.frombuffer(payload, dtype="<f4") if len(payload) % 4 == 0 else np.empty(0, "<f4")
            if kind != wire.BLOCK or not 0 < len(block) <= count - came or not _plausible(block):
                raise self._liar()
            samples[came : came + len(block)] = block
            came += len(block)
        if came == 0 or payload != wire.COUNT.pack(came):
            raise self._liar()
        return samples[:came].astype(np.float32, copy=False), rate

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        while True:
            yield self._frame()

    def _frame(self) -> tuple[int, bytes]:
        kind, length = wire.FRAME.unpack(self._exactly(wire.FRAME.size))
        if length > 4 * wire.BLOCK_FRAMES:
            raise self._liar()
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        buffer, came = bytearray(count), 0
        view = memoryview(buffer)
        while came < count:
            left = self._deadline - time.monotonic()
            try:
                self._channel.settimeout(max(left, 1e-3))
                got = self._channel.recv_into(view[came:])
            except TimeoutError:
                self.kill()
                raise _Unacceptable("decoding it took too long and was stopped") from None
            except OSError:
                got = 0
            if got == 0:
                raise self._death()
            came += got
        return bytes(buffer)

    def _death(self) -> _ChildDied:
        self._process.kill()
        code = self._process.wait()
        known = {-member.value: member.name for member in signal.Signals}
        return _ChildDied(known.get(code, f"exit status {code}"))

    def _liar(self) -> _Unacceptable:
        self.kill()
        return _Unacceptable("it made the decoder break its protocol; leave it out or re-encode it")


def _plausible(block: npt.NDArray[np.float32]) -> bool:
    return bool((np.abs(block) <= wire.MAX_AMPLITUDE).all())  # NaN is not


def _reason(payload: bytes) -> str:
    text = payload[: wire.MAX_REASON_BYTES].decode("ascii", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)


def _end(process: subprocess.Popen[bytes], channel: socket.socket) -> None:
    channel.close()
    process.kill()
    process.wait()
