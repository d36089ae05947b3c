"""The child process that decodes: a script of its own, so that a hostile recording can only hurt it.

It gets an open file descriptor, never a path, and answers with plain bytes: no pickles, no objects. Memory,
CPU time, open files and forks are limited, files cannot be written, and it ends when its parent does.
`audio.Decoder` starts it, times it, and believes nothing it says.

    parent -> child   REQUEST (start, end, most seconds, container), with the file's descriptor
    child -> parent   frames of FRAME (kind, length) and payload: READY once; then for each request
                      HEAD, BLOCK ..., END, or at any point REFUSED with a reason instead
"""

import math
import os
import resource
import select
import socket
import struct
import sys
from typing import Any

REQUEST = struct.Struct("<dddB")  # start, end (NaN: to the end), most seconds, index into CONTAINERS
FRAME = struct.Struct("<BI")
HEADER = struct.Struct("<IIq")  # sample rate, channels, frames that come at most
COUNT = struct.Struct("<q")
READY, HEAD, BLOCK, END, REFUSED = range(5)
CONTAINERS = ("WAV", "FLAC", "OGG", "MP3")
LIBSNDFILE_NAMES = {"WAV": ("WAV", "WAVEX"), "FLAC": ("FLAC",), "OGG": ("OGG",), "MP3": ("MP3", "MPEG")}
RATES_HZ = (8_000, 48_000)
MAX_CHANNELS = 2
MAX_AMPLITUDE = 16.0  # float recordings may clip a little; integers kept as floats are another scale
MAX_REASON_BYTES = 300
BLOCK_FRAMES = 65_536
MAX_RECORDING_SECONDS = 4 * 3600.0  # of which a segment may be cut
MAX_OVERRUN_SECONDS = 0.1  # published segment tables are rounded
MAX_CHUNKS = 1000
MAX_TAIL_BYTES = 65_536  # tags and read-ahead behind the last frame of a FLAC
UNKNOWN_FRAMES = 1 << 60  # libsndfile states 2^63 - 1 where the header states nothing
PARENT_POLL_SECONDS = 2.0


class Refused(Exception):
    """The recording is not acceptable; the text says why."""


def main() -> None:
    """Serves requests on the inherited socket until the parent is gone."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    import numpy  # noqa: F401  (both before the limits, which leave little room for loading libraries)
    import soundfile

    _restrict(memory_bytes=int(sys.argv[2]))
    _send(channel, READY, b"")
    parent = os.getppid()
    while (request := _receive(channel, parent)) is not None:
        _renew_cpu_limit(seconds=int(sys.argv[3]))
        try:
            _decode(channel, *request)
        except Refused as refusal:
            reason = str(refusal)
        except MemoryError:
            reason = "it takes more memory than decoding may use"
        except (soundfile.SoundFileError, ValueError, OverflowError) as error:
            reason = (
                f"it cannot be decoded ({str(getattr(error, 'error_string', error)).strip().rstrip('.')})"
            )
        else:
            continue
        _send(channel, REFUSED, reason.encode("ascii", "backslashreplace")[:MAX_REASON_BYTES])


def _restrict(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # no forks (root is not bound by this one)


def _renew_cpu_limit(seconds: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used.ru_utime + used.ru_stime) + seconds, hard))


def _receive(channel: socket.socket, parent: int) -> tuple[float, float, float, str, int] | None:
    # A forked copy of the parent may hold our socket open after the parent's death: hence getppid.
    while not select.select([channel], [], [], PARENT_POLL_SECONDS)[0]:
        if os.getppid() != parent:
            return None
    data, descriptors, _, _ = socket.recv_fds(channel, REQUEST.size, 1)
    if len(data) != REQUEST.size or len(descriptors) != 1:
        return None
    start, end, most, container = REQUEST.unpack(data)
    return start, end, most, CONTAINERS[container], descriptors[0]


def _send(channel: socket.socket, kind: int, payload: bytes) -> None:
    channel.sendall(FRAME.pack(kind, len(payload)))
    channel.sendall(payload)


def _decode(
    channel: socket.socket, start: float, end: float, most: float, container: str, descriptor: int
) -> None:
    """Sends one recording, or the segment [start, end) of it, as mono float32 blocks.

    The steps, each before the next may cost anything:
      1. What the header states is on the allow-list.
      2. What is asked for lies in the recording and is not too long.
      3. Block by block: finite, and mixed to mono.
      4. As many frames came as the header stated.
    """
    import soundfile

    try:
        os.lseek(descriptor, 0, os.SEEK_SET)  # a child that died of it may have left its offset elsewhere
        wav_frames = _wav_frames(descriptor) if container == "WAV" else None
        file = soundfile.SoundFile(descriptor, closefd=False)
        with file:
            _check_header(file, container)
            stated = wav_frames if wav_frames is not None else file.frames
            first, count = _range(file, stated, start, end, most)
            _send(channel, HEAD, HEADER.pack(file.samplerate, file.channels, count))
            if first and file.seek(first) != first:
                raise Refused(f"frame {first} cannot be reached")
            came = _send_blocks(channel, file, count)
            whole = first == 0 and math.isnan(end)
            _check_count(file, descriptor, container, came, count, stated if whole else None)
        _send(channel, END, COUNT.pack(came))
    finally:
        os.close(descriptor)


def _check_header(file: Any, container: str) -> None:
    if file.format not in LIBSNDFILE_NAMES[container]:
        raise Refused(f"expected {container} content; came {file.format}")
    if not RATES_HZ[0] <= file.samplerate <= RATES_HZ[1]:
        raise Refused(f"expected a sample rate of {RATES_HZ[0]} to {RATES_HZ[1]} Hz; came {file.samplerate}")
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise Refused(f"expected 1 or {MAX_CHANNELS} channels; came {file.channels}")
    if file.frames <= 0:
        raise Refused("expected at least one sample; came none")
    if file.frames >= UNKNOWN_FRAMES:
        raise Refused("its header states no length; re-encode it")


def _range(file: Any, stated: int, start: float, end: float, most: float) -> tuple[int, int]:
    """Returns the first frame and how many frames may come at most."""
    rate = file.samplerate
    if math.isnan(end) and start == 0:
        limit = math.floor(most * rate)
        if stated > limit:
            raise Refused(f"expected at most {most:g} s; the header states {stated / rate:.1f} s")
        return 0, stated
    if stated > MAX_RECORDING_SECONDS * rate:
        raise Refused(f"expected a recording of at most {MAX_RECORDING_SECONDS:g} s to cut a segment from")
    last = stated if math.isnan(end) else min(round(end * rate), stated + round(MAX_OVERRUN_SECONDS * rate))
    if not math.isnan(end) and last < round(end * rate):
        raise Refused(f"the segment ends at {end:g} s, the recording at {stated / rate:.1f} s")
    first, last = round(start * rate), min(last, stated)
    if not 0 <= first < last:
        raise Refused(f"expected a segment with 0 <= start < end; came {start:g} to {last / rate:g} s")
    if last - first > math.floor(most * rate):
        raise Refused(f"expected a segment of at most {most:g} s; came {(last - first) / rate:.1f} s")
    return first, last - first


def _send_blocks(channel: socket.socket, file: Any, count: int) -> int:
    import numpy as np

    came = 0
    while came < count:
        block = file.read(min(BLOCK_FRAMES, count - came), dtype="float32", always_2d=True)
        if not len(block):
            break
        with np.errstate(over="ignore", invalid="ignore"):  # looked at in the next line
            mono = block[:, 0] if file.channels == 1 else block.mean(axis=1, dtype=np.float32)
            finite = bool(np.isfinite(block).all() and np.isfinite(mono).all())
        if not finite:
            raise Refused("expected finite samples; some are NaN or infinite")
        if np.abs(mono).max() > MAX_AMPLITUDE:
            raise Refused(f"expected samples between -1 and 1; some are beyond {MAX_AMPLITUDE:g}: rescale it")
        _send(channel, BLOCK, np.ascontiguousarray(mono, dtype="<f4").tobytes())
        came += len(block)
    return came


def _check_count(
    file: Any, descriptor: int, container: str, came: int, count: int, stated: int | None
) -> None:
    if came != count:
        raise Refused(f"the header states {count} samples, {came} came: the file is cut or its header lies")
    # A body longer than the header states is not decoded, so it costs nothing; but one of the two is wrong.
    if stated is not None and container == "FLAC":
        tail = os.fstat(descriptor).st_size - os.lseek(descriptor, 0, os.SEEK_CUR)
        if tail > MAX_TAIL_BYTES:
            raise Refused(f"the header states {count} samples, {tail} bytes are left over: its header lies")


def _wav_frames(descriptor: int) -> int | None:
    """Returns the frames that the `data` chunk's length stands for; None where the coding has no fixed frame.

    libsndfile shortens a data chunk that runs past the end of the file, without a word: this does not.
    """
    size = os.fstat(descriptor).st_size
    stated = struct.unpack("<I", _pread(descriptor, 4, 4))[0] + 8
    if stated > size + 1:  # some writers count the padding byte of an odd last chunk that they left out
        raise Refused(f"the header states {stated} bytes, the file has {size}: it is cut or its header lies")
    offset, frame_bytes = 12, None
    for _ in range(MAX_CHUNKS):
        name, length = struct.unpack("<4sI", _pread(descriptor, 8, offset))
        offset += 8
        if name == b"data":
            break
        if name == b"fmt ":
            coding, _, _, _, block_align, _ = struct.unpack("<HHIIHH", _pread(descriptor, 16, offset))
            frame_bytes = block_align if coding in (1, 3, 6, 7, 0xFFFE) else None  # PCM, float, A- and mu-law
        offset += length + (length & 1)
    else:
        raise Refused(f"expected its samples within {MAX_CHUNKS} chunks")
    if offset + length > size:
        raise Refused(
            f"the header states {length} bytes of samples, {size - offset} came: "
            "the file is cut or its header lies"
        )
    return length // frame_bytes if frame_bytes else None


def _pread(descriptor: int, count: int, offset: int) -> bytes:
    data = os.pread(descriptor, count, offset)
    if len(data) < count:
        raise Refused("its header is cut")
    return data


if __name__ == "__main__":
    main()
