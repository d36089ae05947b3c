"""Reads the variables of a CTranslate2 model file, and runs nothing of it.

    variables = read_variables(path, prefix="encoder/")
    variables["conv1/weight"].shape  # (384, 80, 3), float32

The format (CTranslate2's `model_spec.py`, binary version 6), little-endian: version, name of the specification and its
revision, number of variables; of each its name, number of axes, axes, type, number of bytes, bytes; then aliases, pairs
of names. A text is its length with a closing zero in two bytes, then itself. A quantised variable `x` has a variable
`x_scale` beside it, by which it was multiplied: one number for each row (8 bits) or one for all (16 bits).

Guarantees:
  - Every size is held against the bytes that are there before anything is allocated for it.
  - A file that breaks the format is a WeightsError; no byte beyond the file is read, none of it is code.
  - Quantised and half-precision variables come out as float32 of their stated values.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import WeightsError

BINARY_VERSION = 6
MAX_VARIABLES = 10_000
MAX_NAME_BYTES = 500
MAX_AXES = 4
TYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")  # CTranslate2's numbers 0 to 4; bfloat16 (5) is not read

Array = npt.NDArray[np.float32]


class _Broken(Exception):
    """What is wrong with the file, in one sentence."""


def read_variables(path: Path, *, prefix: str, specification: str) -> dict[str, Array]:
    """Returns the variables whose names start with `prefix`, without it, as float32.

    Raises:
        WeightsError: the file is of another specification, or broken.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _Reader(content).variables(specification)
            mine = {name.removeprefix(prefix): one for name, one in found.items() if name.startswith(prefix)}
            scales = {name for name in mine if name.endswith("_scale")}
            return {name: _as_float(name, mine) for name in mine if name not in scales}
    except (_Broken, OSError, ValueError) as error:  # an empty file cannot be mapped: ValueError
        raise WeightsError(
            f"{path.name}: expected a CTranslate2 model of specification {specification!r}; {error}. "
            "Use the file that the study's SHA-256 was taken of."
        ) from None


class _Reader:
    """A place in the file that only moves forwards."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._place = content, 0

    def variables(self, specification: str) -> dict[str, npt.NDArray[Any]]:
        version = self._number("I")
        if version != BINARY_VERSION:
            raise _Broken(f"binary version {version} came, and only {BINARY_VERSION} is read")
        name = self._text()
        if name != specification:
            raise _Broken(f"specification {name!r} came")
        self._number("I")  # revision: what it changed in the variables shows in their names and shapes
        found = {}
        for _ in range(self._number("I", most=MAX_VARIABLES)):
            name = self._text()
            found[name] = self._array()
        return found | {alias: found[one] for alias, one in self._aliases() if one in found}

    def _aliases(self) -> list[tuple[str, str]]:
        return [(self._text(), self._text()) for _ in range(self._number("I", most=MAX_VARIABLES))]

    def _array(self) -> npt.NDArray[Any]:
        shape = tuple(self._number("I") for _ in range(self._number("B", most=MAX_AXES)))
        kind = np.dtype(TYPES[self._number("B", most=len(TYPES) - 1)])
        n_bytes = self._number("I")
        if n_bytes != math.prod(shape) * kind.itemsize:
            raise _Broken("the size of a variable is not that of its shape")
        return np.frombuffer(self._bytes(n_bytes), kind).reshape(shape)

    def _text(self) -> str:
        content = self._bytes(self._number("H", most=MAX_NAME_BYTES))
        if not content.endswith(b"\0"):
            raise _Broken("a text without its end came")
        return content[:-1].decode("ascii", errors="strict")

    def _number(self, kind: str, *, most: int | None = None) -> int:
        (number,) = struct.unpack("<" + kind, self._bytes(struct.calcsize("<" + kind)))
        if most is not None and number > most:
            raise _Broken(f"{number} came where at most {most} can be")
        return int(number)

    def _bytes(self, count: int) -> bytes:
        if count > len(self._content) - self._place:
            raise _Broken("it ends in the middle of something")
        self._place += count
        return self._content[self._place - count : self._place]


def _as_float(name: str, variables: Mapping[str, npt.NDArray[Any]]) -> Array:
    values = variables[name]
    floats = np.asarray(values, np.float32)
    scale = variables.get(f"{name}_scale")
    if scale is not None and values.dtype.kind == "i":
        if scale.shape not in ((), values.shape[:1]):
            raise _Broken(f"the scale of {name!r} has shape {scale.shape}")
        floats = floats / np.asarray(scale, np.float32).reshape(
            scale.shape + (1,) * (values.ndim - scale.ndim)
        )
    if not np.isfinite(floats).all():
        raise _Broken(f"{name!r} holds numbers that are not finite")
    return floats
