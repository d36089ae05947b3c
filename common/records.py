"""What a sealed message says, as one body of bytes: arrays, metrics and settings; no pickle, no `np.load`, no protobuf.

    body = pack({"arrays": weights, "config": {"round": 3, "seed": 0}})
    unpack(body)["arrays"]["layer.weight"]          # a read-only view of the body

A body is a line that says what it is, the length of an index, the index in canonical JSON, and blobs. The index names
each record and its items in their order; blobs (of arrays, and of settings that are bytes) follow in that order, each
filled up with zeros to a multiple of 16 bytes, so that arrays lie aligned.

| record              | an item is                                                           |
|---------------------|----------------------------------------------------------------------|
| `arrays`            | an array of float32, float64, int64 or uint8, in at most 8 dimensions |
| `metrics`           | an int, a float, or a list of ints or of floats                       |
| `config`, `secagg`, `ledger` | a bool, an int, a float, a text, or bytes                    |

Guarantees:
  - `unpack(pack(content))` has the same names in the same order, the same types, and the same bits.
  - A body has one form: other bytes of the same content are refused.
  - Of whatever bytes come, sizes are compared with what is there before anything is made of them; what is made is at
    most the index and views of the body. Every refusal is an EnvelopeRefused of reason `content`.
  - A float of metrics and settings is finite: NaN and infinities are refused, at both ends. In arrays they are bits
    like all others, and the contract of updates refuses them.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import EnvelopeRefused

MAGIC = b"sottovoce/records/1\n"
MAX_INDEX_BYTES = 1_000_000
MAX_ITEMS = 10_000  # of one record
MAX_NAME_CHARS = 200
MAX_TEXT_CHARS = 100_000
MAX_LIST = 65_536  # counts of 256 classes
MAX_DIMENSIONS = 8
ALIGNMENT = 16

Kind = Literal["arrays", "metrics", "config"]
KINDS: Mapping[str, Kind] = {
    "arrays": "arrays",
    "control": "arrays",
    "metrics": "metrics",
    "config": "config",
    "secagg": "config",
    "ledger": "config",
}
DTYPES: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype("u1"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

NDArray = npt.NDArray[Any]
Item = NDArray | bool | int | float | str | bytes | list[int] | list[float]
Record = Mapping[str, Item]
Content = Mapping[str, Record]

_LENGTH = struct.Struct("<I")


def pack(content: Content) -> bytes:
    """Returns the body of a content. Raises: EnvelopeRefused for what a body does not carry."""
    blobs: list[bytes] = []
    index = [[name, _packed(_kind(name), record, blobs)] for name, record in content.items()]
    try:
        text = _canonical(index)
    except ValueError:
        raise _refused("finite numbers") from None
    if len(text) > MAX_INDEX_BYTES:
        raise _refused(f"an index of at most {MAX_INDEX_BYTES} bytes")
    _check_names(content)
    head = MAGIC + _LENGTH.pack(len(text)) + text
    return b"".join([head, _padding(len(head)), *blobs])


def unpack(body: bytes) -> dict[str, dict[str, Item]]:
    """Returns the content of a body; arrays are read-only views of it. Raises: EnvelopeRefused."""
    index, start = _index(body)
    cursor = _Cursor(body, start)
    content = {}
    for name, items in _pairs(index, len(KINDS)):
        kind = _kind(name)
        content[name] = {item: _OPENERS[kind](said, cursor) for item, said in _pairs(items, MAX_ITEMS)}
    cursor.finish()
    return content


class _Cursor:
    """Takes the blobs of a body one after the other, and never more than there is."""

    def __init__(self, body: bytes, start: int) -> None:
        self._body, self._at = body, start

    def take(self, n_bytes: int) -> memoryview:
        """Returns the next bytes."""
        end = self._at + n_bytes
        filled = end + len(_padding(end))
        if filled > len(self._body):
            raise _refused("as many bytes as the index says")
        if any(self._body[end:filled]):
            raise _refused("zeros between blobs")
        blob, self._at = memoryview(self._body)[self._at : end], filled
        return blob

    def finish(self) -> None:
        """Refuses bytes that the index does not speak of."""
        if self._at != len(self._body):
            raise _refused("no bytes beyond those of the index")


# --- the index ----------------------------------------------------------------------------------------


def _index(body: bytes) -> tuple[object, int]:
    """Returns the index and where the blobs begin."""
    start = len(MAGIC) + _LENGTH.size
    if len(body) < start or not body.startswith(MAGIC):
        raise _refused("a body of records")
    (length,) = _LENGTH.unpack_from(body, len(MAGIC))
    if length > min(MAX_INDEX_BYTES, len(body) - start):
        raise _refused("an index that is there")
    text = body[start : start + length]
    try:
        index: object = json.loads(text.decode("ascii"))
        canonical = _canonical(index)
    except (ValueError, RecursionError):
        raise _refused("an index in JSON") from None
    if canonical != text:
        raise _refused("an index in canonical form")
    cursor = _Cursor(body, start)
    cursor.take(length)
    return index, start + length + len(_padding(start + length))


def _canonical(index: object) -> bytes:
    return json.dumps(index, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def _pairs(listed: object, n_most: int) -> Iterator[tuple[str, Any]]:
    """Yields name and value of each pair of a list, each name once."""
    if not isinstance(listed, list) or len(listed) > n_most:
        raise _refused(f"a list of at most {n_most} items")
    seen: set[str] = set()
    for pair in listed:
        if not isinstance(pair, list) or len(pair) != 2 or not _is_name(pair[0]) or pair[0] in seen:
            raise _refused("names, each once")
        seen.add(pair[0])
        yield pair[0], pair[1]


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARS and name.isprintable()


def _check_names(content: Content) -> None:
    for record in content.values():
        if len(record) > MAX_ITEMS or not all(_is_name(name) for name in record):
            raise _refused(f"at most {MAX_ITEMS} items with printable names")


def _kind(name: str) -> Kind:
    if name not in KINDS:
        raise _refused(f"records of {', '.join(KINDS)}")
    return KINDS[name]


# --- each kind of item, in and out --------------------------------------------------------------------


def _packed(kind: Kind, record: Record, blobs: list[bytes]) -> list[list[object]]:
    match kind:
        case "arrays":
            return [[name, _packed_array(item, blobs)] for name, item in record.items()]
        case "metrics":
            return [[name, _checked_metric(item)] for name, item in record.items()]
        case "config":
            return [[name, _packed_setting(item, blobs)] for name, item in record.items()]


def _packed_array(item: Item, blobs: list[bytes]) -> list[object]:
    if not isinstance(item, np.ndarray) or item.dtype not in _NAMES or item.ndim > MAX_DIMENSIONS:
        raise _refused(f"arrays of {', '.join(DTYPES)} in at most {MAX_DIMENSIONS} dimensions")
    _append(blobs, item.tobytes())
    return [_NAMES[item.dtype], list(item.shape)]


def _array(said: object, cursor: _Cursor) -> NDArray:
    if not isinstance(said, list) or len(said) != 2 or not isinstance(said[0], str) or said[0] not in DTYPES:
        raise _refused(f"arrays of {', '.join(DTYPES)}")
    dtype, shape = DTYPES[said[0]], said[1]
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 2**40 for size in shape)
    ):
        raise _refused("the sizes of an array")
    blob = cursor.take(math.prod(shape) * dtype.itemsize)  # of whole numbers: it cannot wrap round
    return np.frombuffer(blob, dtype).reshape(shape)


def _checked_metric(item: object, cursor: _Cursor | None = None) -> Any:
    if isinstance(item, list):
        kinds = {type(number) for number in item}
        if len(item) <= MAX_LIST and (kinds <= {int} or kinds <= {float}):
            return [_number(number) for number in item]
    elif type(item) in (int, float):
        return _number(item)
    raise _refused("metrics of numbers, or of lists of one kind of number")


def _packed_setting(item: Item, blobs: list[bytes]) -> object:
    if isinstance(item, bytes):
        _append(blobs, item)
        return [len(item)]
    return _plain_setting(item)


def _setting(said: object, cursor: _Cursor) -> Any:
    if isinstance(said, list):
        if len(said) != 1 or type(said[0]) is not int or not 0 <= said[0] < 2**40:
            raise _refused("the number of bytes of a setting")
        return bytes(cursor.take(said[0]))
    return _plain_setting(said)


def _plain_setting(item: object) -> object:
    if type(item) is bool:
        return item
    if type(item) is str and len(item) <= MAX_TEXT_CHARS and not any("\ud800" <= c <= "\udfff" for c in item):
        return item
    if type(item) in (int, float):
        return _number(item)
    raise _refused("settings of bool, int, float, text or bytes")


def _number(number: Any) -> int | float:
    # That floats are finite the index sees to: its JSON has no other.
    if isinstance(number, int) and not -(2**63) <= number < 2**63:
        raise _refused("whole numbers of 64 bits")
    checked: int | float = number
    return checked


_OPENERS: Mapping[Kind, Callable[[Any, _Cursor], Item]] = {
    "arrays": _array,
    "metrics": _checked_metric,
    "config": _setting,
}


def _append(blobs: list[bytes], data: bytes) -> None:
    blobs.append(data)
    blobs.append(_padding(len(data)))


def _padding(n_bytes: int) -> bytes:
    return bytes(-n_bytes % ALIGNMENT)


def _refused(expected: str) -> EnvelopeRefused:
    return EnvelopeRefused("content", f"Expected {expected} in the body of a message; came something else.")
