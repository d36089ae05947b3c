"""CTranslate2 model files with the encoder of a small Whisper of random weights, written by hand.

sha256 = write_whisper(tmp_path)     # then: with looking_in(tmp_path): ...
"""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
Arrays = Mapping[str, npt.NDArray[Any]]


def write_model(path: Path, variables: Arrays, aliases: Mapping[str, str] | None = None) -> Path:
    """Writes variables as CTranslate2's converters do."""
    path.write_bytes(model_bytes(variables, aliases or {}))
    return path


def model_bytes(variables: Arrays, aliases: Mapping[str, str]) -> bytes:
    """Returns the file's bytes."""
    pieces = [struct.pack("<I", 6), _text("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for key, values in variables.items():
        kind = struct.pack("<B", TYPES[values.dtype.name])
        shape = struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
        pieces += [_text(key), shape, kind, struct.pack("<I", values.nbytes), values.tobytes()]
    pieces += [struct.pack("<I", len(aliases)), *(_text(a) + _text(b) for a, b in aliases.items())]
    return b"".join(pieces)


def whisper_variables(*, width: int, blocks: int, heads: int, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Returns an encoder's variables by their names in the file, float16, of sizes at which it is no constant."""
    random = np.random.default_rng(seed)

    def some(*shape: int) -> npt.NDArray[Any]:
        size = np.sqrt(np.prod(shape[1:]) or 1)
        return np.asarray(random.normal(size=shape) / size, np.float16)

    def norm(place: str) -> dict[str, npt.NDArray[Any]]:
        return {f"{place}/gamma": 1 + some(width), f"{place}/beta": some(width)}

    def layer(place: str, *shape: int) -> dict[str, npt.NDArray[Any]]:
        return {f"{place}/weight": some(*shape), f"{place}/bias": some(shape[0])}

    found = layer("encoder/conv1", width, 80, 3) | layer("encoder/conv2", width, width, 3)
    for number in range(blocks):
        place = f"encoder/layer_{number}"
        found |= norm(f"{place}/self_attention/layer_norm") | norm(f"{place}/ffn/layer_norm")
        found |= layer(f"{place}/self_attention/linear_0", 3 * width, width)
        found |= layer(f"{place}/self_attention/linear_1", width, width)
        found |= layer(f"{place}/ffn/linear_0", 4 * width, width)
        found |= layer(f"{place}/ffn/linear_1", width, 4 * width)
    found |= norm("encoder/layer_norm")
    found["encoder/num_heads"] = np.array(heads, np.int16)
    found["encoder/position_encodings/encodings"] = some(1500, width)
    return found


def write_whisper(folder: Path, *, width: int = 384, blocks: int = 4, heads: int = 6, seed: int = 0) -> str:
    """Writes an encoder with random weights, by default of the tiny size, into a folder; returns its SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = whisper_variables(width=width, blocks=blocks, heads=heads, seed=seed)
    path = write_model(folder / f"whisper-{width}-{seed}.bin", variables)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def small_whisper() -> tuple[bytes, str]:
    """Returns a file with an encoder of 6 columns and 3 blocks, and its SHA-256: always the same."""
    content = model_bytes(whisper_variables(width=6, blocks=3, heads=2, seed=7), {})
    return content, hashlib.sha256(content).hexdigest()


def _text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"
