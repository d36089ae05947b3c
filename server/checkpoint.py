"""One file that a federation goes on from: state of the server after a round, and what led there.

Guarantees:
  - A crash at any moment, `kill -9` included, leaves the old file or the new one, whole: written beside,
    synchronised, renamed, folder synchronised.
  - `load` returns what `save` was given, to the bit, or raises; it never returns part of it.
  - A file of another study, another cell or another model, and one with any bit changed, is refused.

The format is safetensors: tensors `weights/NAME`, `m/NAME`, `v/NAME`; the rest is text in its metadata.
Nothing in it is unpickled.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from sottovoce.common.errors import RunError
from sottovoce.common.files import write_whole
from sottovoce.common.weights import Layout
from sottovoce.common.weights import digest as weights_digest
from sottovoce.server.strategies import ServerState, Vector, frozen

FORMAT = "1"
OTHERS = "others"  # vectors of a strategy that are not as long as the weights


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a checkpoint belongs to."""

    study_digest: str
    cell: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A server's state with the records of the rounds before it, as plain tables."""

    state: ServerState
    records: tuple[Mapping[str, Any], ...]


def save(path: Path, checkpoint: Checkpoint, layout: Layout, identity: Identity) -> None:
    """Writes the file in one step that cannot be seen half done."""
    state = checkpoint.state
    tensors = _named("weights", layout, state.weights)
    for moment, vector in state.moments.items():
        tensors |= _named(moment, layout, vector)
    tensors |= {f"{OTHERS}/{name}": vector for name, vector in state.others.items()}
    metadata = {
        "format": FORMAT,
        "study": identity.study_digest,
        "cell": identity.cell,
        "round": str(state.round),
        "records": json.dumps(checkpoint.records, separators=(",", ":")),
    }
    metadata["sha256"] = _seal(metadata, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, to_bytes(tensors, metadata))


def load(path: Path, layout: Layout, identity: Identity) -> Checkpoint:
    """Reads a checkpoint of this study, cell and model.

    Raises:
        RunError: the file is damaged, or belongs to something else.
    """
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT or metadata.pop("sha256", None) != _seal(metadata, tensors):
        raise RunError(f"{path}: expected a whole checkpoint; this one is damaged. Start the run anew.")
    for what, expected in (("study", identity.study_digest), ("cell", identity.cell)):
        if metadata[what] != expected:
            raise RunError(
                f"{path}: expected the {what} {expected[:40]}; came a checkpoint of {metadata[what][:40]}. "
                "Resume with the study that began the run."
            )
    others = {
        name.removeprefix(f"{OTHERS}/"): frozen(tensors.pop(name))
        for name in list(tensors)
        if name.startswith(f"{OTHERS}/")
    }
    vectors = {name: _vector(path, name, layout, tensors) for name in _groups(tensors)}
    state = ServerState(
        round=int(metadata["round"]), weights=vectors.pop("weights"), moments=vectors, others=others
    )
    return Checkpoint(state=state, records=tuple(json.loads(metadata["records"])))


def _named(group: str, layout: Layout, vector: Vector) -> dict[str, Vector]:
    return {f"{group}/{name}": array for name, array in layout.unflatten(vector).items()}


def _groups(tensors: Mapping[str, Vector]) -> list[str]:
    return list(dict.fromkeys(name.split("/", 1)[0] for name in tensors))


def _vector(path: Path, group: str, layout: Layout, tensors: Mapping[str, Vector]) -> Vector:
    own = {name.split("/", 1)[1]: array for name, array in tensors.items() if name.startswith(f"{group}/")}
    # safetensors sorts by name; the model's order is the layout's.
    if own.keys() != set(layout.names) or any(own[name].shape != shape for name, shape in layout.entries):
        raise RunError(f"{path}: expected a checkpoint of this model; came one of another.")
    return frozen(layout.flatten(own))


def _read(path: Path) -> tuple[dict[str, str], dict[str, Vector]]:
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: np.array(file.get_tensor(name)) for name in sorted(file.keys())}
            return dict(file.metadata() or {}), tensors
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{path}: expected a checkpoint; {type(error).__name__} on reading it. Start the run anew."
        ) from error


def _seal(metadata: Mapping[str, str], tensors: Mapping[str, Vector]) -> str:
    text = json.dumps(metadata, sort_keys=True)
    ordered = {name: tensors[name] for name in sorted(tensors)}
    return hashlib.sha256(f"sottovoce/checkpoint/1\n{text}\n{weights_digest(ordered)}".encode()).hexdigest()
