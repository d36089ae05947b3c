r"""Plain tables (from TOML) into frozen dataclasses: every problem at once, each with its key.

Guarantees:
  - An unknown key, a missing key, a wrong type or a value out of range is an error, never a default.
  - All problems of a table are reported together.
  - `canonical` gives one text per tree: equal trees have equal text, whatever the file looked like.

The types understood: bool, int, float, str, Literal, tuple[X, ...], Mapping[str, X], X | None, frozen
dataclasses, unions of dataclasses told apart by their first field, say `kind: Literal["name"]`, and a Literal or a
tuple, told apart by whether a list came.
`Annotated[float, Interval(0, 1)]` adds a range.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True, kw_only=True)
... class Step:
...     learning_rate: Annotated[float, Interval(0, 1, low_open=True)]
>>> problems: list[str] = []
>>> build(Step, {"learning_rate": 3, "momentum": 1}, "training", problems)
>>> print(*problems, sep="\n")
training.momentum: unknown key; expected one of learning_rate.
training.learning_rate: expected a number in (0, 1]; came 3.
"""

import dataclasses
import functools
import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")
_BAD: Any = object()  # what could not be built; its problem is already in the list


@dataclass(frozen=True)
class Interval:
    """A range that a number, or a text's or list's length, must lie in."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        left = "(" if self.low_open or math.isinf(self.low) else "["
        right = ")" if self.high_open or math.isinf(self.high) else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


def build(cls: type[_T], table: object, path: str, problems: list[str]) -> _T | None:
    """Builds a `cls` from a table; on any problem appends to `problems` and returns None."""
    built = _dataclass(cls, table, path, problems)
    return None if built is _BAD else built


def canonical(tree: Any) -> str:
    """Returns the one JSON text of a frozen tree: sorted keys, no spaces, defaults written out."""
    return json.dumps(
        as_plain(tree), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def as_plain(value: Any) -> Any:
    """Returns dataclasses as dicts (None fields left out), tuples as lists, integral floats as floats."""
    if value is None or isinstance(value, str | int | float):  # most of every tree
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((name, getattr(value, name)) for name in _fields(type(value)))
        return {name: as_plain(item) for name, item in fields if item is not None}
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_plain(item) for item in value]
    return value


def _dataclass(cls: Any, table: object, path: str, problems: list[str]) -> Any:
    if not isinstance(table, Mapping):
        problems.append(f"{path or 'the file'}: expected a table; came {_show(table)}.")
        return _BAD
    hints = _hints(cls)
    fields = _fields(cls)
    prefix = f"{path}." if path else ""
    before = len(problems)
    for key in table:
        if key not in fields:
            problems.append(f"{prefix}{key}: unknown key; expected one of {', '.join(fields)}.")
    values = {}
    for name, needed in fields.items():
        if name in table:
            values[name] = _value(hints[name], table[name], f"{prefix}{name}", problems)
        elif needed:
            problems.append(f"{prefix}{name}: missing; expected {_describe(hints[name])}.")
    return _BAD if len(problems) > before else cls(**values)


def _value(hint: Any, value: object, path: str, problems: list[str]) -> Any:
    whole = hint
    hint, interval = _unwrapped(hint)
    result = _plain(hint, value, path, problems, whole)
    if interval is not None and result is not _BAD and result is not None:
        size = result if isinstance(result, int | float) else len(result)
        if size not in interval:
            what = "a number" if isinstance(result, int | float) else "a length"
            problems.append(f"{path}: expected {what} in {interval}; came {_show(value)}.")
            return _BAD
    return result


def _plain(hint: Any, value: object, path: str, problems: list[str], whole: Any) -> Any:
    if type(value) is hint and hint is not float:  # plain values, most of all; a float must also be finite
        return value
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _union(hint, value, path, problems)
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, path, problems)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            problems.append(f"{path}: expected {_describe(hint)}; came {_show(value)}.")
            return _BAD
        item = get_args(hint)[0]
        items = [_value(item, entry, f"{path}[{index}]", problems) for index, entry in enumerate(value)]
        return _BAD if any(entry is _BAD for entry in items) else tuple(items)
    if origin is Mapping:
        return _mapping(hint, value, path, problems)
    if origin is Literal:
        matches = [choice for choice in get_args(hint) if type(choice) is type(value) and choice == value]
        if matches:
            return matches[0]
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif type(value) is hint:  # `type(...) is`: TOML's true is not the integer 1
        return value
    problems.append(f"{path}: expected {_describe(whole)}; came {_show(value)}.")
    return _BAD


def _mapping(hint: Any, value: object, path: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{path}: expected a table; came {_show(value)}.")
        return _BAD
    item = get_args(hint)[1]
    items = {key: _value(item, entry, f"{path}.{key}", problems) for key, entry in value.items()}
    return _BAD if any(entry is _BAD for entry in items.values()) else items


def _union(hint: Any, value: object, path: str, problems: list[str]) -> Any:
    members = [member for member in get_args(hint) if member is not type(None)]
    if value is None and len(members) < len(get_args(hint)):
        return None
    if len(members) == 1:
        return _value(members[0], value, path, problems)
    if lists := [member for member in members if get_origin(member) is tuple]:
        others = [member for member in members if member not in lists]
        return _value((lists if isinstance(value, list | tuple) else others)[0], value, path, problems)
    key, kinds = _kinds(tuple(members))
    kind = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in kinds:  # a list would not even hash
        came = _show(kind if isinstance(value, Mapping) else value)
        problems.append(f"{path}.{key}: expected one of {', '.join(kinds)}; came {came}.")
        return _BAD
    return _dataclass(kinds[kind], value, path, problems)


@functools.cache  # resolving annotations costs more than building the object, and a ledger has 100,000
def _hints(cls: Any) -> Mapping[str, Any]:
    return get_type_hints(cls, include_extras=True)


@functools.cache
def _fields(cls: Any) -> Mapping[str, bool]:
    """The names of a dataclass's fields, and whether each is needed."""
    missing = dataclasses.MISSING
    return {
        field.name: field.default is missing and field.default_factory is missing
        for field in dataclasses.fields(cls)
    }


@functools.cache
def _unwrapped(hint: Any) -> tuple[Any, Interval | None]:
    """A type without its annotations, and the range among them."""
    if get_origin(hint) is not Annotated:
        return hint, None
    bare, *extras = get_args(hint)
    return bare, next((extra for extra in extras if isinstance(extra, Interval)), None)


@functools.cache
def _kinds(members: tuple[Any, ...]) -> tuple[str, Mapping[str, Any]]:
    """The name of the first field, which tells the members of a union apart, and the member of each value."""
    key = dataclasses.fields(members[0])[0].name
    return key, {get_args(get_type_hints(member)[key])[0]: member for member in members}


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Annotated:
        base, *extras = get_args(hint)
        return f"{_describe(base)} in {extras[0]}" if isinstance(extras[0], Interval) else _describe(base)
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if origin is tuple:
        return f"a list of {_describe(get_args(hint)[0])}"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in get_args(hint) if arg is not type(None))
    names = {bool: "true or false", int: "an integer", float: "a finite number", str: "a text"}
    return names.get(hint, "a table")


def _show(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
