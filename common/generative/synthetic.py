"""The file of rows that nobody said: what a coordinator makes of a public corpus, and sites add to their own.

    digest = write(folder, SyntheticRows(...))            # folder/<sha256>.synthetic.safetensors
    rows = load(path, classes=study.labels.classes)

A study names the file by its SHA-256 (`training.synthetic`), so that every site adds the same bytes. Rows are as a
model sees them: after the study's normalisation.

Guarantees:
  - The same rows and facts give the same bytes, and so the same name.
  - A file of other classes, of another shape, with a number that is not finite, or damaged, is refused.
  - Nothing in it is unpickled.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from sottovoce.common.errors import WeightsError
from sottovoce.common.files import write_whole
from sottovoce.common.generative.networks import Labels, Rows

FORMAT = "sottovoce/synthetic/1"
METADATA = "synthetic"
SUFFIX = ".synthetic.safetensors"
MAX_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class SyntheticRows:
    """Rows of each stream, (n, columns) pooled or (n, frames, columns), with labels; and how they were made."""

    streams: Mapping[str, Rows]
    labels: Labels
    classes: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=dict)

    def of_class(self, label: int, n_most: int) -> Labels:
        """Returns the numbers of the first rows of a class."""
        return np.flatnonzero(self.labels == label)[:n_most]


def write(folder: Path, made: SyntheticRows) -> tuple[Path, str]:
    """Writes the rows under the name of their bytes; returns the file and its SHA-256.

    Raises:
        WeightsError: the folder cannot be written to.
    """
    tensors = {f"rows/{name}": np.ascontiguousarray(rows, np.float32) for name, rows in made.streams.items()}
    tensors["labels"] = made.labels.astype(np.int64)
    said = {"format": FORMAT, "classes": made.classes, "facts": dict(made.facts)}
    # One entry: the order of several is not the same from call to call.
    data = to_bytes(tensors, {METADATA: json.dumps(said, sort_keys=True)})
    digest = hashlib.sha256(data).hexdigest()
    path = folder / f"{digest}{SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise WeightsError(
            f"{folder}: expected a folder that rows can be written into ({error.strerror})."
        ) from None
    return path, digest


def load(path: Path, *, classes: tuple[str, ...]) -> SyntheticRows:
    """Reads a file of rows for these classes.

    Raises:
        WeightsError: it is damaged, too large, or of other classes.
    """
    data = _read(path)
    try:
        tensors, said = from_bytes(data), _metadata(data)
        made = SyntheticRows(
            streams={name.removeprefix("rows/"): rows for name, rows in tensors.items() if name != "labels"},
            labels=tensors["labels"],
            classes=tuple(said["classes"]),
            facts=said["facts"],
        )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{path}: expected rows made by `sottovoce server augment`; {type(error).__name__} on reading it."
        ) from error
    if said.get("format") != FORMAT or not _is_sound(made):
        raise WeightsError(
            f"{path}: expected finite float32 rows with a label each; came others. Make it anew."
        )
    if made.classes != classes:
        raise WeightsError(
            f"{path}: expected rows of the classes {', '.join(classes)}; came {', '.join(made.classes)}."
        )
    return made


def _is_sound(made: SyntheticRows) -> bool:
    labels = made.labels
    if labels.ndim != 1 or labels.dtype != np.int64 or not made.streams:
        return False
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(made.classes)):
        return False
    return all(
        rows.dtype == np.float32
        and rows.ndim in (2, 3)
        and len(rows) == len(labels)
        and bool(np.isfinite(rows).all())
        for rows in made.streams.values()
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(data) > MAX_BYTES:
        raise WeightsError(f"{path}: expected at most {MAX_BYTES:,} bytes of rows; this is more.")
    return data


def _metadata(data: bytes) -> Mapping[str, Any]:
    length = int.from_bytes(data[:8], "little")  # the format's own header: a length, then JSON
    said: Mapping[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][METADATA])
    return said
