"""`synthesize`: a specification to a folder of recordings with `manifest.csv` and `corpus.json`.

The folder is made under the name `NAME.partial` and renamed when it is whole. A second call finds it and
returns at once; a call after an interruption keeps the recordings that are already there.

Guarantees:
  - The same specification gives the same bytes in every file, for any number of workers and after the
    process was ended at any moment: on one machine with the same wheels. Another processor may differ by
    the last bit of a sample; the manifest is the same everywhere.
  - A folder with `corpus.json` under its final name is whole.
  - A folder that this function did not make is never written to, and none is ever deleted.
"""

import csv
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from threading import Event

from sottovoce.common.config import as_plain, canonical
from sottovoce.common.errors import CorpusError, SynthesisError
from sottovoce.common.study import Synthetic
from sottovoce.simulations.voices.parameters import PARAMETERS, Parameters, digest
from sottovoce.simulations.voices.plan import Recording, Speaker, age_band, check, recordings, speakers
from sottovoce.simulations.voices.rooms import draw_take
from sottovoce.simulations.voices.speech import job
from sottovoce.simulations.voices.synthesiser import Synthesiser

COLUMNS = ("path", "label", "speaker", "patient", "sex", "age", "language", "site")
MAX_WORKERS = 256
_SHARE_ENDED = -1  # among the sizes of recordings
Progress = Callable[[int, int], None]  # recordings made, recordings in all


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What every recording of one corpus has in common."""

    folder: Path
    seed: int
    parameters: Parameters


def synthesize(
    spec: Synthetic,
    out: Path,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    parameters: Parameters = PARAMETERS,
) -> Path:
    """Makes the corpus of `spec` in the folder `out`, or finds it there; returns `out`.

    `parameters` other than the frozen ones make another corpus, with another digest (to study the generator).

    Raises:
        CorpusError: the specification is out of bounds, the folder is not ours or cannot be written, the
            disk is full, or the speech library failed. Nothing half-made bears the name `out`.
    """
    check(spec, parameters)
    if not 1 <= workers <= MAX_WORKERS:
        raise CorpusError(f"Expected workers={workers} in [1, {MAX_WORKERS}].")
    identity = corpus_digest(spec, parameters)
    if _is_whole(out, identity):
        return out
    try:
        with _partial(out) as partial:
            if not _is_whole(out, identity):  # another process may have finished while we waited
                os.rename(_fill(partial, spec, identity, workers, progress, parameters), out)
    except OSError as error:
        raise CorpusError(
            f"Expected to write the embedded corpus to {out}; {error.strerror or error}. "
            f"Free space or choose another folder, then run again: finished recordings are kept."
        ) from None
    return out


def corpus_digest(spec: Synthetic, parameters: Parameters = PARAMETERS) -> str:
    """Returns what makes a corpus itself: specification, parameters and the speech library's version."""
    library = version("espeakng-loader")
    text = "\n".join(["sottovoce/embedded-corpus/1", digest(parameters), library, canonical(spec)])
    return hashlib.sha256(text.encode()).hexdigest()


def _is_whole(out: Path, identity: str) -> bool:
    """Returns whether `out` is the finished corpus.

    Raises:
        CorpusError: it is anything but that, absent, or empty.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "corpus.json").read_bytes())
        files, n_bytes = found["n_recordings"], found["audio_bytes"]
        stated = found["digest"]
    except (OSError, ValueError, TypeError, KeyError):
        raise CorpusError(
            f"Expected {out} to be empty, absent or an embedded corpus; it is something else. "
            "Choose another folder."
        ) from None
    if stated != identity:
        raise CorpusError(
            f"Expected {out} to hold the embedded corpus {identity[:12]}; it holds another one "
            "(other settings or another version). Delete it or choose another folder."
        )
    sizes = [path.stat().st_size for path in out.rglob("*.flac")]
    if (len(sizes), sum(sizes)) != (files, n_bytes):
        raise CorpusError(
            f"Expected {files} recordings of {n_bytes} bytes in {out}; came {len(sizes)} of {sum(sizes)}. "
            "The folder was changed: delete it and run again."
        )
    return True


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """Gives the folder for unfinished work to one process at a time; others wait.

    Whoever leaves it after success removes it. A process that waited on the removed lock finds `out` whole,
    so that two holders of two locks never both write.
    """
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock_path = partial / ".lock"
    with lock_path.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the kernel, however the process ends
        yield partial
        lock_path.unlink(missing_ok=True)
        if not any(partial.iterdir()):  # unfinished work of other settings stays
            partial.rmdir()


def _fill(
    partial: Path,
    spec: Synthetic,
    identity: str,
    workers: int,
    progress: Progress | None,
    parameters: Parameters,
) -> Path:
    folder = partial / identity[:16]  # recordings kept from a run with other settings would be wrong
    folder.mkdir(parents=True, exist_ok=True)
    cast = list(speakers(spec, parameters))
    order = _Order(folder=folder, seed=spec.seed, parameters=parameters)
    n_bytes = _speak_all(order, cast, workers, progress)
    rows = [_row(recording) for speaker in cast for recording in recordings(speaker, spec.seed, parameters)]
    _write_durably(folder / "manifest.csv", _csv(sorted(rows)))
    about = {
        "format": 1,
        "digest": identity,
        "parameters_sha256": digest(parameters),
        "espeakng_loader": version("espeakng-loader"),
        "n_recordings": len(rows),
        "audio_bytes": n_bytes,
        "n_speakers": len(cast),
        "spec": as_plain(spec),
        "sites": {speaker.site.name: as_plain(speaker.site) for speaker in cast},
    }
    _write_durably(folder / "corpus.json", json.dumps(about, indent=1, sort_keys=True).encode() + b"\n")
    os.sync()  # a finished name must not outlive a power cut that the recordings did not
    return folder


def _speak_all(order: _Order, cast: list[Speaker], workers: int, progress: Progress | None) -> int:
    """Makes the missing recordings of all speakers; returns the size of all. Each worker has a share."""
    total = sum(sum(speaker.counts.values()) for speaker in cast)
    sizes: SimpleQueue[int] = SimpleQueue()
    stop = Event()
    n_running = min(workers, len(cast))
    n_bytes = n_made = 0
    with ThreadPoolExecutor(n_running) as pool:
        shares = [
            pool.submit(_speak_share, order, cast[first::n_running], sizes, stop)
            for first in range(n_running)
        ]
        try:
            while n_running:
                size = sizes.get()
                if size == _SHARE_ENDED:
                    n_running -= 1
                    continue
                n_bytes, n_made = n_bytes + size, n_made + 1
                if progress is not None:
                    progress(n_made, total)
            for share in shares:
                share.result()
        finally:
            stop.set()  # also on Ctrl-C: the threads end after the recording in hand
    return n_bytes


def _speak_share(order: _Order, share: list[Speaker], sizes: SimpleQueue[int], stop: Event) -> None:
    try:
        with Synthesiser() as synthesiser:
            for speaker in share:
                for recording in recordings(speaker, order.seed, order.parameters):
                    if stop.is_set():
                        return
                    sizes.put(_speak(synthesiser, order, recording))
    except SynthesisError as error:
        stop.set()
        raise CorpusError(
            f"The embedded corpus could not be made: {str(error).rstrip('.')}. "
            "Mend this and run again: finished recordings are kept."
        ) from None
    finally:
        sizes.put(_SHARE_ENDED)


def _speak(synthesiser: Synthesiser, order: _Order, recording: Recording) -> int:
    path = order.folder / recording.path
    if path.exists():  # whole, since it was renamed into place
        return path.stat().st_size
    work = job(
        recording.text,
        recording.speaker.voice,
        recording.emotion,
        take=recording.take,
        channel=recording.speaker.site.channel,
        recording=draw_take(order.seed, recording.path, order.parameters),
        parameters=order.parameters,
    )
    return int(synthesiser.make(replace(work, path=path)))


def _row(recording: Recording) -> tuple[str, ...]:
    voice = recording.speaker.voice
    return (
        recording.path,
        recording.emotion,
        voice.name,
        voice.name,
        voice.sex,
        age_band(voice.age),
        voice.language,
        recording.speaker.site.name,
    )


def _csv(rows: list[tuple[str, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    return text.getvalue().encode()


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
