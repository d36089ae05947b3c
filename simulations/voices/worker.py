"""The process that speaks and records; `synthesiser.py` starts it with a connection's descriptor.

It takes `Job`s from the connection and answers each with ("samples", array), ("written", size) or
("refused", reason). It ends when its parent closes the connection or dies.

Guarantees:
  - A recording appears under its name whole or not at all.
"""

import io
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.common.errors import SynthesisError
from sottovoce.simulations.voices.espeak import Library, Phrase
from sottovoce.simulations.voices.rooms import RATE_HZ, Channel, Shaping, Take, record


@dataclass(frozen=True, kw_only=True)
class Job:
    """One recording to make: into the file `path`, or back to the caller when that is None."""

    phrase: Phrase
    shaping: Shaping
    channel: Channel | None
    take: Take | None
    path: Path | None


def serve(connection: Connection) -> None:
    """Answers jobs until the other end is closed."""
    library = Library()
    while True:
        try:
            connection.send(_answer(library, connection.recv()))
        except (EOFError, OSError):  # the parent is gone or wants no more: an error while making is an answer
            return


def _answer(library: Library, job: Job) -> tuple[str, Any]:
    try:
        pcm = np.frombuffer(library.speak(job.phrase), dtype="<i2")
        samples = record(pcm, job.shaping, job.channel, job.take)
        return ("samples", samples) if job.path is None else ("written", _write(job.path, samples))
    except (SynthesisError, OSError) as error:
        reason = (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
        return "refused", reason


def _write(path: Path, samples: np.ndarray) -> int:
    import soundfile

    flac = io.BytesIO()  # to memory first: only a plain write says that the disk is full
    soundfile.write(flac, np.rint(samples * 32767).astype(np.int16), RATE_HZ, format="FLAC", subtype="PCM_16")
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    size = part.write_bytes(flac.getvalue())
    os.replace(part, path)
    return size


def main(descriptor: int) -> None:
    """Runs the worker until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    serve(Connection(descriptor))
