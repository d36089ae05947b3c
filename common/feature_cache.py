"""Features of many recordings: decoded, extracted, and kept on disk so that it is done once.

    for utterance, found in zip(utterances, features_of(utterances, study, folder, workers=2)):
        ...  # found["log_mel"], or an AudioError

Guarantees:
  - What comes from the cache is bit for bit what extraction gave.
  - An entry is found by the recording's bytes, its segment, the audio stages, the frames, the stream (with the SHA-256
    of an encoder's weights and its layers) and the versions of the code: when one of these changes, it is not found.
  - An encoder's part is kept by itself: it is found again beside other parts of a stream.
  - A damaged entry is computed again and a warning says so; it is never returned.
  - Results come in the order of the utterances and do not depend on `workers` or on what was cached.
  - A bad recording is an AudioError in its place; the others are not affected.

On disk: a folder for each recipe (everything but the recording), in it pairs of files, written whole and then
renamed. `<name>.data` holds arrays (little-endian float32) one after another; `<name>.index`, whose name is
its own SHA-256, says where each is and which SHA-256 it has. Folders and files are the user's own (0700, 0600).
"""

import hashlib
import json
import logging
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from sottovoce.common.audio import Decoder, Waveform, digest
from sottovoce.common.augment import augment
from sottovoce.common.config import canonical
from sottovoce.common.encoders.encode import ENCODERS_VERSION
from sottovoce.common.errors import AudioError, SottovoceError
from sottovoce.common.feature_specs import FeatureStream, Frames
from sottovoce.common.features import EXTRACTOR_VERSION, extract, pieces
from sottovoce.common.streams import stream as random_stream
from sottovoce.common.study import Audio, Augmentation, Study

WINDOW = 64  # utterances that are looked up, computed and stored together
MIN_FOR_PROCESSES = 128  # fewer are done before a process has imported torch
BATCH_SECONDS = 300.0  # of sound held at one time
KEPT_BLOBS = 2  # data files of one recipe held in memory

Array = npt.NDArray[np.float32]
Features = dict[str, Array]
Progress = Callable[[int, int], None]

log = logging.getLogger(__name__)


class Recording(Protocol):
    """What of an utterance is needed here."""

    @property
    def path(self) -> Path: ...
    @property
    def start_seconds(self) -> float: ...
    @property
    def end_seconds(self) -> float | None: ...


def features_of(
    utterances: Sequence[Recording],
    study: Study,
    folder: Path,
    *,
    workers: int = 1,
    copy: int = 0,
    progress: Progress | None = None,
) -> list[Features | AudioError]:
    """Returns every utterance's streams by name, or why there are none. See `stream_features`."""
    return list(stream_features(utterances, study, folder, workers=workers, copy=copy, progress=progress))


def stream_features(
    utterances: Sequence[Recording],
    study: Study,
    folder: Path,
    *,
    workers: int = 1,
    copy: int = 0,
    progress: Progress | None = None,
) -> Iterator[Features | AudioError]:
    """Yields every utterance's streams by name, or why there are none; holds a few windows at a time.

    `copy` > 0 gives that augmented copy of each recording, by `study.training.augmentation`.

    Raises:
        SottovoceError: the cache's folder cannot be written, or a worker process was killed.
    """
    task = _Task.of(study, copy)
    caches = {stream.name: _Cache(folder / task.recipe(stream)) for stream in task.streams}
    jobs = _jobs(utterances)
    pending: deque[_Window] = deque()
    done = 0
    with ExitStack() as stack:
        submit, ahead = _computer(stack, task, workers, _n_missing(jobs, caches))
        for first in range(0, len(jobs), WINDOW):
            window = _Window(jobs[first : first + WINDOW], caches)
            window.future = submit(window.todo)
            pending.append(window)
            is_last = first + WINDOW >= len(jobs)
            while pending and (len(pending) > ahead or is_last):
                results = pending.popleft().results(caches)
                yield from (_joined(result, study.streams) for result in results)
                done += len(results)
                if progress is not None:
                    progress(done, len(jobs))
    if damaged := sum(cache.n_damaged for cache in caches.values()):
        log.warning("%d damaged entries of the feature cache were computed again", damaged)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One recording or segment, and what stands for it in the cache."""

    path: Path
    start_seconds: float
    end_seconds: float | None
    entry: str


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What of a study decides features: sent to worker processes, digested into recipes. `streams` are their pieces."""

    audio: Audio
    frames: Frames
    streams: tuple[FeatureStream, ...]
    copy: int
    augmentation: Augmentation

    @classmethod
    def of(cls, study: Study, copy: int) -> "_Task":
        # What a model hears and what becomes of bad recordings is decided later: no part of a recipe.
        audio = replace(study.audio, clip_seconds=Audio.clip_seconds, on_bad_recording=Audio.on_bad_recording)
        return cls(
            audio=audio,
            frames=study.frames,
            streams=tuple(piece for stream in study.streams for piece in pieces(stream)),
            copy=copy,
            augmentation=study.training.augmentation if copy else Augmentation(),
        )

    def recipe(self, stream: FeatureStream) -> str:
        """Returns the name of the folder where this stream's entries are."""
        alone = replace(self, streams=(replace(stream, name="-", reduction=None),))
        versions = f"{EXTRACTOR_VERSION}.{ENCODERS_VERSION}" if stream.encoders else f"{EXTRACTOR_VERSION}"
        text = f"sottovoce/features/{versions}\n{canonical(alone)}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _joined(found: Features | AudioError, streams: Sequence[FeatureStream]) -> Features | AudioError:
    """Returns the study's streams from the pieces that are kept."""
    if isinstance(found, AudioError):
        return found
    return {
        stream.name: found[stream.name]
        if len(mine := pieces(stream)) == 1
        else np.concatenate([found[piece.name] for piece in mine])
        for stream in streams
    }


def _jobs(utterances: Sequence[Recording]) -> list[_Job | AudioError]:
    digests: dict[Path, str | AudioError] = {}  # a long recording is read once for all of its segments
    jobs: list[_Job | AudioError] = []
    for item in utterances:
        if item.path not in digests:
            try:
                digests[item.path] = digest(item.path)
            except AudioError as error:
                digests[item.path] = error
        found = digests[item.path]
        if isinstance(found, AudioError):
            jobs.append(found)
            continue
        place = f"{found} {float(item.start_seconds)!r} {item.end_seconds!r}"
        entry = hashlib.sha256(place.encode()).hexdigest()
        jobs.append(
            _Job(path=item.path, start_seconds=item.start_seconds, end_seconds=item.end_seconds, entry=entry)
        )
    return jobs


def _n_missing(jobs: Sequence[_Job | AudioError], caches: "dict[str, _Cache]") -> int:
    return sum(
        isinstance(job, _Job) and any(job.entry not in cache for cache in caches.values()) for job in jobs
    )


class _Window:
    """Some utterances: what the cache has of them, and what is being computed."""

    future: "Future[list[Features | AudioError]]"

    def __init__(self, jobs: Sequence[_Job | AudioError], caches: "dict[str, _Cache]") -> None:
        self._jobs = jobs
        self._cached: list[Features] = []
        self.todo: list[_Todo] = []
        for job in jobs:
            entries = {} if isinstance(job, AudioError) else {n: c.get(job.entry) for n, c in caches.items()}
            self._cached.append({name: array for name, array in entries.items() if array is not None})
            missing = tuple(name for name, array in entries.items() if array is None)
            if missing and isinstance(job, _Job):
                self.todo.append((job, missing))

    def results(self, caches: "dict[str, _Cache]") -> list[Features | AudioError]:
        """Waits for what is being computed, stores it, and returns the window's results in order."""
        try:
            computed = self.future.result()
        except BrokenProcessPool:
            raise SottovoceError(
                "A process that extracts features was killed, most likely for its memory; use fewer workers."
            ) from None
        by_entry = {job.entry: found for (job, _), found in zip(self.todo, computed, strict=True)}
        for name, cache in caches.items():
            cache.put(
                {e: found[name] for e, found in by_entry.items() if isinstance(found, dict) and name in found}
            )
        return [self._result(place, by_entry) for place in range(len(self._jobs))]

    def _result(self, place: int, computed: dict[str, Features | AudioError]) -> Features | AudioError:
        job = self._jobs[place]
        if isinstance(job, AudioError):
            return job
        found = computed.get(job.entry, {})
        return found if isinstance(found, AudioError) else self._cached[place] | found


_Todo = tuple[_Job, tuple[str, ...]]
_Submit = Callable[[list[_Todo]], "Future[list[Features | AudioError]]"]


def _computer(stack: ExitStack, task: _Task, workers: int, n_missing: int) -> tuple[_Submit, int]:
    """Returns what computes windows, and how many of them it should have before it."""
    if workers == 1 or n_missing < MIN_FOR_PROCESSES:
        extractor = stack.enter_context(_Extractor(task))

        def now(todo: list[_Todo]) -> "Future[list[Features | AudioError]]":
            future: Future[list[Features | AudioError]] = Future()
            future.set_result(extractor.compute(todo))
            return future

        return now, 0
    pool: Executor = stack.enter_context(
        ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_process, initargs=(task,))
    )
    return lambda todo: pool.submit(_compute_in_process, todo), 2 * workers


_of_this_process: list["_Extractor"] = []  # set in worker processes only


def _start_process(task: _Task) -> None:
    torch.set_num_threads(1)
    _of_this_process.append(_Extractor(task))


def _compute_in_process(todo: list[_Todo]) -> list[Features | AudioError]:
    return _of_this_process[0].compute(todo)


class _Extractor:
    """Decodes and extracts, in the process it is in."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        self._decoder = Decoder(task.audio)

    def __enter__(self) -> "_Extractor":
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()

    def compute(self, todo: list[_Todo]) -> list[Features | AudioError]:
        """Returns, for each job, the streams that it misses."""
        out: list[Features | AudioError] = [{} for _ in todo]
        held: list[tuple[int, Waveform]] = []
        for place, (job, _) in enumerate(todo):
            try:
                held.append((place, self._waveform(job)))
            except AudioError as error:
                out[place] = error
            if sum(waveform.seconds for _, waveform in held) > BATCH_SECONDS:
                self._extract(todo, held, out)
                held = []
        self._extract(todo, held, out)
        return out

    def _waveform(self, job: _Job) -> Waveform:
        waveform = self._decoder.load(job.path, job.start_seconds, job.end_seconds)
        if not self._task.copy:
            return waveform
        # Keyed by what is in the recording: the copy is the same wherever the file lies.
        random = random_stream(0, "augmented copy", job.entry, self._task.copy)
        return augment(waveform, self._task.augmentation, random)

    def _extract(
        self, todo: list[_Todo], held: list[tuple[int, Waveform]], out: list[Features | AudioError]
    ) -> None:
        for names in sorted({todo[place][1] for place, _ in held}):
            mine = [(place, waveform) for place, waveform in held if todo[place][1] == names]
            streams = [stream for stream in self._task.streams if stream.name in names]
            found = extract([waveform for _, waveform in mine], streams, self._task.frames)
            for (place, _), features in zip(mine, found, strict=True):
                out[place] = features


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an array is, and what it must be."""

    file: str
    offset: int
    shape: tuple[int, ...]
    sha256: str


class _Cache:
    """The entries of one recipe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.n_damaged = 0
        self._blobs: dict[str, bytes] = {}
        self._places: dict[str, _Place] = {}
        indices = folder.glob("*.index") if folder.is_dir() else ()
        # A later file's entries replace an earlier one's: it was written because those were damaged.
        for path in sorted(indices, key=lambda path: (path.stat().st_mtime_ns, path.name)):
            self._places |= self._index(path)

    def __contains__(self, entry: str) -> bool:
        return entry in self._places

    def get(self, entry: str) -> Array | None:
        """Returns an entry's array (read-only), or None when it is not there or not what was written."""
        place = self._places.get(entry)
        if place is None:
            return None
        count = int(np.prod(place.shape))
        content = memoryview(self._blob(place.file))[place.offset : place.offset + 4 * count]
        if hashlib.sha256(content).hexdigest() != place.sha256:
            self.n_damaged += 1
            del self._places[entry]
            return None
        return np.frombuffer(content, dtype="<f4").reshape(place.shape)

    def put(self, arrays: dict[str, Array]) -> None:
        """Writes new entries, all or none."""
        if not arrays:
            return
        blob, places = bytearray(), {}
        name = secrets.token_hex(16) + ".data"
        for entry, array in arrays.items():
            content = np.ascontiguousarray(array, dtype="<f4").tobytes()
            places[entry] = _Place(name, len(blob), array.shape, hashlib.sha256(content).hexdigest())
            blob += content
        index = json.dumps(
            {
                "file": name,
                "entries": {e: [p.offset, list(p.shape), p.sha256] for e, p in places.items()},
            }
        ).encode()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(self._folder / name, blob)
            # The index comes last: without it the data does not exist.
            _write(self._folder / f"{hashlib.sha256(index).hexdigest()}.index", index)
        except OSError as error:
            raise SottovoceError(
                f"{self._folder}: the feature cache cannot be written ({error.strerror}). "
                "Free some space, or choose another folder."
            ) from None
        self._places |= places

    def _blob(self, file: str) -> bytes:
        if file not in self._blobs:
            while len(self._blobs) >= KEPT_BLOBS:
                del self._blobs[next(iter(self._blobs))]
            try:
                self._blobs[file] = _read(self._folder / file)
            except OSError:
                self._blobs[file] = b""  # gone: none of its entries has its SHA-256 any more
        return self._blobs[file]

    def _index(self, path: Path) -> dict[str, _Place]:
        try:
            content = _read(path)
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() != path.stem:
            self.n_damaged += 1
            path.unlink(missing_ok=True)  # else every start would read it and say so again
            return {}
        table: dict[str, Any] = json.loads(content)
        return {
            entry: _Place(table["file"], offset, tuple(shape), sha256)
            for entry, (offset, shape, sha256) in table["entries"].items()
        }


# Every byte of the cache goes through these two: the place for encryption at rest.


def _write(path: Path, content: bytes | bytearray) -> None:
    """Writes a whole file under its name, or nothing. Not synced: what a power cut damages is noticed."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(path: Path) -> bytes:
    return path.read_bytes()
