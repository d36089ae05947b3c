"""The signed file that a public corpus leaves behind: weights to start from, public figures, public reductions.

    initial = save(Path("voices.initial.safetensors"), statement, key, weights=weights, mean=mean, deviation=deviation)
    verify(load(path), public_key)

It is made by `sottovoce server pretrain` from public recordings alone; a study names it by its SHA-256 and by the key
that signed it. Safetensors: tensors `weights/NAME`, `mean/STREAM`, `deviation/STREAM` and `reduction/STREAM`, which is
columns x k; the signed statement is text in its metadata. Nothing in it is unpickled.

Guarantees:
  - `load` returns what `save` was given, to the bit, or raises: damaged, unsigned, too long, shapes that do not fit one
    another, numbers that are not finite.
  - The signature covers every word of the statement and every bit, name and shape of the tensors.
  - The SHA-256 is of the very bytes that were read.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from sottovoce.common.config import Interval, as_plain, build, canonical
from sottovoce.common.errors import WeightsError
from sottovoce.common.files import write_whole
from sottovoce.common.keys import SigningKey, verified
from sottovoce.common.weights import digest

LABEL = "sottovoce/initial/1\n"
MAX_BYTES = 1_000_000_000
MAX_HEADER_BYTES = 1_000_000
MAX_COLUMNS = 100_000

Array = npt.NDArray[np.float32]
Figures = npt.NDArray[np.float64]

Name = Annotated[str, Interval(1, 200)]
Sha256 = Annotated[str, Interval(64, 64)]
Count = Annotated[int, Interval(0)]


@dataclass(frozen=True, kw_only=True)
class PublicCorpus:
    """What the numbers were learned from."""

    name: Name
    adapter: Name
    manifest_sha256: Sha256
    n_recordings: Count
    n_speakers: Count


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What whoever signs an initial file says of it. `features` is a digest of what each stream was computed by.

    `study` is the digest of the study as it was trained: without what it takes from an initial file.
    """

    format: Literal[1] = 1
    signed_by: Name
    corpora: Annotated[tuple[PublicCorpus, ...], Interval(1, 20)]
    study: Sha256
    study_name: Name
    features: Mapping[str, Sha256]
    normalisation: Name
    classes: tuple[Name, ...]
    method: Literal["statistics", "supervised", "masked_frames"]
    reduction_by: Literal["none", "pca", "whitened", "labels"] = "none"
    n_epochs: Count = 0
    seed: int = 0
    made: Name
    versions: Mapping[str, Name] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Initial:
    """A whole file whose signature is good. Whether the key is one to be trusted is what `verify` asks."""

    statement: Statement
    public_key: str
    sha256: str
    weights: Mapping[str, Array]
    mean: Mapping[str, Figures]
    deviation: Mapping[str, Figures]
    reduction: Mapping[str, Figures]


def save(
    path: Path,
    statement: Statement,
    key: SigningKey,
    *,
    mean: Mapping[str, Figures],
    deviation: Mapping[str, Figures],
    weights: Mapping[str, Array] | None = None,
    reduction: Mapping[str, Figures] | None = None,
) -> Initial:
    """Signs and writes the file, whole or not at all, and reads it again.

    Raises:
        WeightsError: the tensors do not fit one another, or the file cannot be written.
    """
    groups = {"weights": weights or {}, "mean": mean, "deviation": deviation, "reduction": reduction or {}}
    tensors: dict[str, Any] = {
        f"{group}/{name}": np.ascontiguousarray(array, "<f4" if group == "weights" else "<f8")
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }
    metadata = {
        "statement": canonical(statement),
        "public_key": key.public_hex,
        "signature": key.sign(_signed(statement, tensors)).hex(),
    }
    data = to_bytes(tensors, metadata)
    made = _read(data, path.name)
    try:
        write_whole(path, data)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror}).") from None
    return made


def load(path: Path) -> Initial:
    """Reads a file. Raises: WeightsError for one that is missing, too long, damaged or not signed."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}).") from None
    return _read(data, path.name)


def verify(initial: Initial, public_key: str) -> None:
    """Asks whether the file is signed by this key. Raises: WeightsError where another key signed it."""
    if initial.public_key != public_key.lower():
        raise WeightsError(
            f"Expected an initial file signed by the key {public_key[:16]}…; {initial.public_key[:16]}… signed this "
            f"one ({initial.statement.signed_by}). Ask whoever offers the study whose key that is, before "
            "`initial_signed_by` names it."
        )


def _read(data: bytes, name: str) -> Initial:
    if len(data) > MAX_BYTES:
        _refuse(name, f"at most {MAX_BYTES:,} bytes")
    # 1. Bounds of the header, before anything of it is parsed.
    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= header_bytes <= MAX_HEADER_BYTES:
        _refuse(name, f"a header of at most {MAX_HEADER_BYTES:,} bytes")
    # 2. The tensors: safetensors checks that they tile the file exactly.
    try:
        tensors: dict[str, Any] = from_bytes(data)
        metadata = json.loads(data[8 : 8 + header_bytes]).get("__metadata__", {})
        statement = _statement(metadata.get("statement", ""))
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        _refuse(name, "tensors and a statement")
    # 3. The signature, by the file's own key: a changed bit is noticed whoever signed.
    public_key, signature = str(metadata.get("public_key", "")), str(metadata.get("signature", ""))
    if not _is_signed(public_key, signature, _signed(statement, tensors)):
        _refuse(name, "a signature over its statement and tensors")
    # 4. Shapes that fit one another; the study's own streams and model are held against them where it is used.
    groups = _groups(name, tensors)
    if problem := _shape_problem(groups):
        _refuse(name, problem)
    return Initial(
        statement=statement,
        public_key=public_key,
        sha256=hashlib.sha256(data).hexdigest(),
        weights=groups["weights"],
        mean=groups["mean"],
        deviation=groups["deviation"],
        reduction=groups["reduction"],
    )


def _refuse(name: str, expected: str) -> NoReturn:
    raise WeightsError(
        f"{name}: expected an initial file with {expected}; this one is damaged or no such file. "
        "Get it again from whoever signed it; `sottovoce server pretrain` makes one."
    )


def _statement(text: str) -> Statement:
    problems: list[str] = []
    statement = build(Statement, json.loads(text), "statement", problems)
    if statement is None:
        raise ValueError(problems)
    # It is shown at a terminal, to whoever approves a study: no sign of it may be one that a terminal obeys.
    if not all(word.isprintable() for word in _words(as_plain(statement))):
        raise ValueError("signs that cannot be printed")
    return statement


def _words(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _words(item)
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)


def _signed(statement: Statement, tensors: Mapping[str, Any]) -> bytes:
    ordered = {name: tensors[name] for name in sorted(tensors)}
    text = f"{canonical(statement)}\n{digest(ordered)}"
    return f"{LABEL}{hashlib.sha256(text.encode()).hexdigest()}".encode()


def _is_signed(public_key: str, signature: str, message: bytes) -> bool:
    try:
        return verified(public_key, bytes.fromhex(signature), message)
    except ValueError:
        return False


def _groups(name: str, tensors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"weights": {}, "mean": {}, "deviation": {}, "reduction": {}}
    for key, array in tensors.items():
        group, _, rest = key.partition("/")
        wanted = np.float32 if group == "weights" else np.float64
        if group not in found or not rest or array.dtype != wanted or not np.isfinite(array).all():
            _refuse(name, "finite tensors weights/, mean/, deviation/ and reduction/ alone")
        array.flags.writeable = False
        found[group][rest] = array
    return found


def _shape_problem(groups: Mapping[str, Mapping[str, Any]]) -> str | None:
    mean, deviation = groups["mean"], groups["deviation"]
    if mean.keys() != deviation.keys() or not groups["reduction"].keys() <= mean.keys():
        return "a mean and a deviation of each stream"
    for stream, centre in mean.items():
        if centre.ndim != 1 or not 0 < len(centre) <= MAX_COLUMNS or deviation[stream].shape != centre.shape:
            return "one mean and one deviation for each column of a stream"
        if (deviation[stream] < 0).any():
            return "deviations of at least 0"
        public_map = groups["reduction"].get(stream)
        if public_map is not None and (
            public_map.ndim != 2
            or public_map.shape[0] != len(centre)
            or not 0 < public_map.shape[1] <= len(centre)
        ):
            return "reductions of as many rows as their stream has columns"
    return None
