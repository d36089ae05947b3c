"""One site's examples: written once as arrays, read through memory maps, batched without surprises.

Guarantees:
  - Reading a batch costs the memory of that batch, whatever the size of the site.
  - A sequence is cut or zero-padded to the study's fixed number of frames; `lengths` tells what is valid.
  - The same rows in the same order give the same bytes, whatever else the site holds.
  - A folder is complete or it is no site folder: `index.json` is written last.
  - Normalisation reads labels never, padding never, and no other speaker (see `normalise`).

    data = SiteData.open(folder).select(is_training)
    batch = data.batch(np.arange(32))
"""

import hashlib
import json
import mmap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sottovoce.common.encoders import n_rows
from sottovoce.common.errors import RunError
from sottovoce.common.feature_specs import FeatureStream, Frames
from sottovoce.common.files import write_whole
from sottovoce.common.study import Audio, Normalisation

FORMAT = 2
DEVIATION_FLOOR = 1e-5  # relative to a column's mean: below it a column is constant up to rounding

Array = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Columns = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a model is given: (B, T, D) per sequence stream with valid lengths (B,), (B, D) per pooled one."""

    inputs: dict[str, Tensor]
    lengths: dict[str, Tensor]
    labels: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on `device`."""
        return Batch(
            inputs={name: values.to(device) for name, values in self.inputs.items()},
            lengths={name: values.to(device) for name, values in self.lengths.items()},
            labels=self.labels.to(device),
        )

    def filled(self, multiple: int) -> "Batch":
        """Returns the batch with recordings of zeros behind it, up to a multiple of so many.

        The kernel that a matrix product runs in follows from its shape, and kernels differ in the last bit: with equal
        shapes a recording's result is the same bits whoever is with it.
        """
        missing = -len(self.labels) % multiple
        if missing == 0:
            return self
        return Batch(
            inputs={name: _with_rows(values, missing, 0) for name, values in self.inputs.items()},
            lengths={name: _with_rows(values, missing, 1) for name, values in self.lengths.items()},
            labels=_with_rows(self.labels, missing, 0),
        )


def _with_rows(values: Tensor, n_rows: int, value: int) -> Tensor:
    return torch.cat([values, values.new_full((n_rows, *values.shape[1:]), value)])


@dataclass(frozen=True, kw_only=True)
class Example:
    """One recording's features with what is known of it.

    `copy` > 0 is an augmented copy: never scored. `trains` is False for what a simulated label skew drops:
    never trained on. `enrols` marks what a speaker is enrolled by: read by `normalise`, and gone after it.
    `home` is the site whose folds the speaker belongs to, if that is not the site it is written to (the pooled twin).
    """

    key: str
    label: int
    speaker: str
    patient: str
    groups: Mapping[str, str]
    features: Mapping[str, Array]
    copy: int = 0
    trains: bool = True
    enrols: bool = False
    home: str = ""


@dataclass(frozen=True, kw_only=True)
class StreamShape:
    """A stream as stored: `n_frames` is None when it is pooled to one row a recording."""

    width: int
    n_frames: int | None

    @property
    def row(self) -> tuple[int, ...]:
        """Returns the shape of one recording."""
        return (self.width,) if self.n_frames is None else (self.n_frames, self.width)


def clip_frames(audio: Audio, frames: Frames) -> int:
    """Returns T: the frames of a clip of `clip_seconds`, on the centred grid.

    >>> clip_frames(Audio(clip_seconds=4.0), Frames())
    401
    """
    hop = round(frames.hop_seconds * audio.sample_rate_hz)
    return 1 + round(audio.clip_seconds * audio.sample_rate_hz) // hop


def stream_shapes(
    streams: Sequence[FeatureStream], widths: Mapping[str, int], audio: Audio, frames: Frames
) -> dict[str, StreamShape]:
    """Returns how each stream is stored; `widths` are columns per frame, or of the pooled row."""
    return {
        stream.name: StreamShape(width=widths[stream.name], n_frames=_clip_rows(stream, audio, frames))
        for stream in streams
    }


def _clip_rows(stream: FeatureStream, audio: Audio, frames: Frames) -> int | None:
    if stream.pooling != "none":
        return None
    if stream.encoders:  # it stands alone in a sequence, and has frames of its own
        return n_rows(stream.encoders[0], round(audio.clip_seconds * audio.sample_rate_hz))
    return clip_frames(audio, frames)


@dataclass(frozen=True, kw_only=True)
class SiteData:
    """A view of some of one site's examples. `select` makes a smaller view; `batch` alone copies features.

    `enrolled` is the digest of all recordings that the site's features were standardised by; "" where none enrolled.
    """

    site: str
    shapes: Mapping[str, StreamShape]
    keys: tuple[str, ...]
    labels: Rows
    speakers: tuple[str, ...]
    patients: tuple[str, ...]
    groups: tuple[Mapping[str, str], ...]
    copies: Rows
    trains: npt.NDArray[np.bool_]
    enrols: npt.NDArray[np.bool_]
    homes: tuple[str, ...]
    rows: Rows
    arrays: Mapping[str, Array]
    stored_lengths: Mapping[str, Rows]
    enrolled: str = ""

    @staticmethod
    def write(
        folder: Path,
        *,
        site: str,
        shapes: Mapping[str, StreamShape],
        examples: Iterable[Example],
        enrolled: str = "",
    ) -> "SiteData":
        """Writes the examples one by one and opens the result.

        Raises:
            ValueError: an example lacks a stream, or has one of another width, without frames, or not finite.
            FileExistsError: the folder holds a site already.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "index.json").exists():
            raise FileExistsError(
                f"{folder}: expected no site data; there is an index.json. Remove the folder first."
            )
        table: list[Example] = []
        with _Writers(folder, shapes) as writers:
            for example in examples:
                writers.append(example.features)
                table.append(replace(example, features={}))
        index = {
            "format": FORMAT,
            "site": site,
            "streams": {name: [shape.width, shape.n_frames] for name, shape in shapes.items()},
            "keys": [row.key for row in table],
            "labels": [int(row.label) for row in table],
            "speakers": [row.speaker for row in table],
            "patients": [row.patient for row in table],
            "groups": [dict(row.groups) for row in table],
            "copies": [row.copy for row in table],
            "trains": [row.trains for row in table],
            "enrols": [row.enrols for row in table],
            "homes": [row.home or site for row in table],
            "enrolled": enrolled,
        }
        write_whole(folder / "index.json", json.dumps(index, ensure_ascii=True).encode())
        return SiteData.open(folder)

    @staticmethod
    def open(folder: Path) -> "SiteData":
        """Opens a folder made by `write`.

        Raises:
            RunError: the folder is incomplete or damaged.
        """
        try:
            index = json.loads((folder / "index.json").read_text())
            if index["format"] != FORMAT:
                raise RunError(
                    f"{folder}: expected site data of format {FORMAT}; came {index['format']!r}. "
                    "Extract it again."
                )
            shapes = {
                name: StreamShape(width=width, n_frames=n_frames)
                for name, (width, n_frames) in index["streams"].items()
            }
            n = len(index["keys"])
            arrays = {
                name: _mapped(folder / f"{name}.npy", (n, *shape.row)) for name, shape in shapes.items()
            }
            lengths = {
                name: np.asarray(np.load(folder / f"{name}.lengths.npy"), np.int64)
                for name, shape in shapes.items()
                if shape.n_frames is not None
            }
            return SiteData(
                site=index["site"],
                shapes=shapes,
                keys=tuple(index["keys"]),
                labels=np.asarray(index["labels"], np.int64),
                speakers=tuple(index["speakers"]),
                patients=tuple(index["patients"]),
                groups=tuple(index["groups"]),
                copies=np.asarray(index["copies"], np.int64),
                trains=np.asarray(index["trains"], np.bool_),
                enrols=np.asarray(index["enrols"], np.bool_),
                homes=tuple(index["homes"]),
                rows=np.arange(n, dtype=np.int64),
                arrays=arrays,
                stored_lengths=lengths,
                enrolled=str(index.get("enrolled", "")),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{folder}: expected site data (index.json and arrays); came {type(error).__name__}: {error}."
                " Extract it again."
            ) from error

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def widths(self) -> dict[str, int]:
        """Returns the columns of each stream, as `models.build` wants them."""
        return {name: shape.width for name, shape in self.shapes.items()}

    def select(self, choice: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> "SiteData":
        """Returns the view of the chosen examples (a mask, or indices in the wanted order)."""
        picked = np.flatnonzero(choice) if choice.dtype == np.bool_ else np.asarray(choice, np.int64)
        if choice.dtype == np.bool_ and len(choice) != len(self):
            raise ValueError(f"Expected a mask of {len(self)} examples; came one of {len(choice)}.")
        return replace(
            self,
            keys=tuple(self.keys[i] for i in picked),
            labels=self.labels[picked],
            speakers=tuple(self.speakers[i] for i in picked),
            patients=tuple(self.patients[i] for i in picked),
            groups=tuple(self.groups[i] for i in picked),
            copies=self.copies[picked],
            trains=self.trains[picked],
            enrols=self.enrols[picked],
            homes=tuple(self.homes[i] for i in picked),
            rows=self.rows[picked],
        )

    def originals(self) -> "SiteData":
        """Returns the view without augmented copies."""
        return self.select(self.copies == 0)

    def only(self, streams: Collection[str]) -> "SiteData":
        """Returns the view that reads these streams alone."""
        return replace(
            self,
            shapes={name: shape for name, shape in self.shapes.items() if name in streams},
            arrays={name: array for name, array in self.arrays.items() if name in streams},
            stored_lengths={name: n for name, n in self.stored_lengths.items() if name in streams},
        )

    def batch(self, indices: npt.NDArray[np.int64]) -> Batch:
        """Reads the examples at `indices` of this view, in that order."""
        rows = self.rows[indices]
        return Batch(
            inputs={name: torch.from_numpy(array[rows]) for name, array in self.arrays.items()},
            lengths={name: torch.from_numpy(values[rows]) for name, values in self.stored_lengths.items()},
            labels=torch.from_numpy(self.labels[indices]),
        )

    def pooled(self, stream: str) -> Array:
        """Returns a whole pooled stream (n, D), for the classical baselines."""
        if self.shapes[stream].n_frames is not None:
            raise ValueError(f"Expected a stream with pooling = 'statistics'; {stream!r} is a sequence.")
        return self.arrays[stream][self.rows]

    def release(self) -> None:
        """Gives the mapped pages back, which count as this process's memory; reading on maps them again."""
        for array in self.arrays.values():
            if isinstance(array.base, np.memmap):  # `_mapped` hands out plain views
                array.base._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # no public way

    def valid(self, stream: str, index: int) -> Array:
        """Returns one example's valid frames (L, D), or its pooled row as (1, D)."""
        row = self.rows[index]
        values = self.arrays[stream][row]
        if stream in self.stored_lengths:
            return np.asarray(values[: self.stored_lengths[stream][row]])
        return np.asarray(values[None, :])


def pool(folder: Path, *, site: str, parts: Sequence[SiteData]) -> SiteData:
    """Writes several sites' examples as one site: the pooled twin of a federation."""
    examples = (example for part in parts for example in _examples(part))
    return SiteData.write(folder, site=site, shapes=parts[0].shapes, examples=examples)


def normalise(
    data: SiteData, spec: Normalisation, folder: Path, *, maps: Mapping[str, Columns] | None = None
) -> SiteData:
    """Writes `data` standardised by the study's scheme to a new folder, and opens it.

    `maps` are public: a matrix (D, k) for each stream that is reduced.

    Guarantees:
      - `constants`: by the study's public figures; a stream without figures is left as it is.
      - `utterance`: a recording by its own valid frames only.
      - `speaker`: a speaker by the valid frames of the speaker's own recordings, augmented copies left out,
        no label read, nobody else's recording read. Where the study states public figures for the stream,
        n recordings count n / (n + shrinkage) against them.
      - `enrolment`: a speaker by the recordings that enrol this speaker and no others, shrunk in the same way; a
        speaker without any, by the public figures. What enrols is not in the result: nobody trains on it or scores it.
      - Every result is finite and zero in the padding; a column that is constant becomes zero, not infinite.
      - A stream with a map is multiplied by it last, each recording alone: the same bits at every site.

    | speaker has                    | result                                             |
    |--------------------------------|----------------------------------------------------|
    | many clips                     | mean 0, deviation 1 in each column                 |
    | one clip, sequence stream      | that clip's own mean and deviation                 |
    | one clip, pooled, no constants | zeros: a single row says nothing about a deviation |
    | n clips, pooled, no constants  | no value beyond sqrt(n - 1)                        |
    | few clips, constants stated    | mostly standardised by the constants               |
    """
    maps = maps or {}
    examples = (
        replace(example, features={name: _times(row, maps.get(name)) for name, row in features.items()})
        for example, features in zip(_examples(data), _standardised(data, spec), strict=True)
        if not example.enrols
    )
    shapes = {
        name: replace(shape, width=maps[name].shape[1]) if name in maps else shape
        for name, shape in data.shapes.items()
    }
    return SiteData.write(folder, site=data.site, shapes=shapes, examples=examples, enrolled=_enrolled(data))


def _enrolled(data: SiteData) -> str:
    """Returns a digest of what enrols, as it was computed: a site commits to it, since it moves all other features."""
    total, found = hashlib.sha256(b"sottovoce/enrolled/1\n"), np.flatnonzero(data.enrols)
    for index in sorted(found.tolist(), key=lambda i: (data.keys[i], int(data.copies[i]))):
        who = [data.keys[index], data.speakers[index], data.patients[index], int(data.copies[index])]
        total.update(json.dumps(who).encode())
        for name in sorted(data.shapes):
            values = np.ascontiguousarray(data.valid(name, index), "<f4")
            total.update(f"{name!r} {values.shape}\n".encode() + values.tobytes())
    return total.hexdigest() if len(found) else ""


def _times(values: Array, public_map: Columns | None) -> Array:
    """Returns rows times a public map. einsum's own loops: a BLAS rounds by its threads and the matrix's size."""
    if public_map is None:
        return values
    return np.asarray(np.einsum("...i,ij->...j", values.astype(np.float64), public_map), np.float32)


def figures_of(data: SiteData, stream: str) -> tuple[Columns, Columns]:
    """Returns mean and deviation of each column over all valid rows; a deviation of 0 where a column is constant."""
    found = _moments(_Clips(data, stream, range(len(data))))
    return found.centre, found.scale


@dataclass(frozen=True)
class _Affine:
    """Centre and scale of each column. A column of scale 0 is constant: it becomes zero."""

    centre: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]

    def __call__(self, values: Array) -> Array:
        divisor = np.where(self.scale > 0, self.scale, np.inf)
        return np.asarray((values - self.centre) / divisor, np.float32)


def _standardised(data: SiteData, spec: Normalisation) -> Iterator[dict[str, Array]]:
    if spec.by_person:
        # Small: two rows of floats for each speaker and stream. Clips are read one at a time.
        scales = {
            (speaker, name): _of_speaker(data, own, name, spec)
            for speaker, own in _by_speaker(data).items()
            for name in data.shapes
        }
    for index, speaker in enumerate(data.speakers):
        features = {}
        for name in data.shapes:
            values = data.valid(name, index)
            match spec.scheme:
                case "constants":
                    scale = _constants(spec, name)
                case "utterance":
                    scale = _moments([values])
                case "speaker" | "enrolment":
                    scale = scales[speaker, name]
            result = values if scale is None else scale(values)
            features[name] = result if data.shapes[name].n_frames is not None else result[0]
        yield features


def _constants(spec: Normalisation, stream: str) -> _Affine | None:
    if stream not in spec.mean and stream not in spec.deviation:
        return None
    return _Affine(
        np.asarray(spec.mean.get(stream, 0.0), np.float64),
        np.asarray(spec.deviation.get(stream, 1.0), np.float64),
    )


def _by_speaker(data: SiteData) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, speaker in enumerate(data.speakers):
        found.setdefault(speaker, []).append(index)
    return found


def _of_speaker(data: SiteData, own: Sequence[int], stream: str, spec: Normalisation) -> _Affine | None:
    prior = _constants(spec, stream)
    # A speaker of augmented copies alone cannot come from `extract`; then the copies are all there is.
    clips = [i for i in own if data.copies[i] == 0] or own
    if spec.enrols is not None:
        clips = [i for i in clips if data.enrols[i]]
        if not clips:
            return prior
    found = _moments(_Clips(data, stream, clips))
    if prior is None:
        return found
    share = len(clips) / (len(clips) + spec.shrinkage)
    centre = share * found.centre + (1 - share) * prior.centre
    if spec.enrols is not None and spec.enrols.scale == "public":
        return _Affine(centre, prior.scale)
    return _Affine(centre, np.sqrt(share * found.scale**2 + (1 - share) * prior.scale**2))


class _Clips:
    """Some clips of a stream, read anew on each pass: one in memory at a time."""

    def __init__(self, data: SiteData, stream: str, indices: Sequence[int]) -> None:
        self._data, self._stream, self._indices = data, stream, indices

    def __iter__(self) -> Iterator[Array]:
        return (self._data.valid(self._stream, index) for index in self._indices)


def _moments(clips: Iterable[Array]) -> _Affine:
    """Returns mean and deviation over all rows of all clips, in two passes and float64."""
    total, count = 0.0, 0
    for values in clips:
        total, count = total + values.sum(axis=0, dtype=np.float64), count + len(values)
    centre = np.asarray(total / count)
    squares = sum(((values - centre) ** 2).sum(axis=0) for values in clips)
    deviation = np.sqrt(squares / count)
    floor = DEVIATION_FLOOR * np.abs(centre) + np.finfo(np.float32).tiny
    return _Affine(centre, np.where(deviation > floor, deviation, 0.0))


def _examples(data: SiteData) -> Iterator[Example]:
    for index, key in enumerate(data.keys):
        features = {
            name: data.valid(name, index) if shape.n_frames is not None else data.valid(name, index)[0]
            for name, shape in data.shapes.items()
        }
        yield Example(
            key=key,
            label=int(data.labels[index]),
            speaker=data.speakers[index],
            patient=data.patients[index],
            groups=data.groups[index],
            features=features,
            copy=int(data.copies[index]),
            trains=bool(data.trains[index]),
            enrols=bool(data.enrols[index]),
            home=data.homes[index],
        )


class _Writers:
    """One growing .npy file for each stream, and the lengths of its sequences."""

    def __init__(self, folder: Path, shapes: Mapping[str, StreamShape]) -> None:
        self._folder, self._shapes = folder, shapes
        self._files: dict[str, BinaryIO] = {}
        self._lengths: dict[str, list[int]] = {
            name: [] for name, s in shapes.items() if s.n_frames is not None
        }
        self._count = 0

    def __enter__(self) -> "_Writers":
        for name, shape in self._shapes.items():
            self._files[name] = (self._folder / f"{name}.npy").open("wb")
            _npy_header(self._files[name], (0, *shape.row))
        return self

    def append(self, features: Mapping[str, Array]) -> None:
        for name, shape in self._shapes.items():
            values = _checked(name, shape, features)
            if shape.n_frames is not None:
                kept = values[: shape.n_frames]
                self._lengths[name].append(len(kept))
                values = np.zeros(shape.row, np.float32)
                values[: len(kept)] = kept
            self._files[name].write(np.ascontiguousarray(values, "<f4").tobytes())
        self._count += 1

    def __exit__(self, kind: object, *_: object) -> None:
        for name, file in self._files.items():
            if kind is None:
                file.seek(0)
                _npy_header(file, (self._count, *self._shapes[name].row))
            file.close()
        for name, lengths in self._lengths.items():
            np.save(self._folder / f"{name}.lengths.npy", np.asarray(lengths, np.int64))


def _npy_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    # numpy leaves room in the header for the first axis to grow, so both headers have one length.
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


def _checked(name: str, shape: StreamShape, features: Mapping[str, Array]) -> Array:
    values = np.asarray(features[name], np.float32) if name in features else None
    rank = 1 if shape.n_frames is None else 2
    if values is None or values.ndim != rank or values.shape[-1] != shape.width or len(values) == 0:
        came = "nothing" if values is None else f"shape {values.shape}"
        raise ValueError(f"Expected stream {name!r} with {rank} axes and {shape.width} columns; came {came}.")
    if not np.isfinite(values).all():
        raise ValueError(f"Expected finite features in stream {name!r}; some are not.")
    return values


def _mapped(path: Path, shape: tuple[int, ...]) -> Array:
    array: Any = np.load(path, mmap_mode="r") if shape[0] else np.load(path)  # an empty file cannot be mapped
    if array.shape != shape or array.dtype != np.float32:
        raise ValueError(f"{path.name} has shape {array.shape}, expected {shape}")
    return np.asarray(array)  # a plain view of the map: memmap's own indexing is slow
