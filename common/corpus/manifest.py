"""A plain manifest, CSV or JSON lines: one row a recording.

    path,label,speaker,patient,sex,age,language,site,start_seconds,end_seconds,split,group_accent
    ward-3/0001.wav,sad,S12,P07,female,61,de,north,0.0,4.2,,saxon

Only path, label and speaker are needed. Columns named `group_...` become groups; others are not used.

Guarantees:
  - A row whose path leaves the folder, is absolute, goes through a link, or is no recording is a problem.
  - A cell that a spreadsheet would run (it begins with = + - @) makes its row a problem.
  - A bad row never stops the others.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from sottovoce.common.corpus import people
from sottovoce.common.corpus.problems import FORMULA_STARTS, Problems, is_text, show
from sottovoce.common.corpus.table import MAX_COLUMNS, json_records, records
from sottovoce.common.corpus.tree import Tree, why_not
from sottovoce.common.corpus.types import Reading, Row
from sottovoce.common.errors import CorpusError
from sottovoce.common.labels import WORDS

COLUMNS = ("path", "label", "speaker")
OPTIONAL_COLUMNS = ("patient", "sex", "age", "language", "site", "start_seconds", "end_seconds", "split")
GROUP_PREFIX = "group_"
FILE_NAMES = ("manifest.csv", "manifest.jsonl")
MAX_CELL_CHARACTERS = 500  # of a label, a speaker, a group; paths have their own limit
MAX_SECONDS = 86_400.0

_SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "sex": people.sex,
    "age": people.age,
    "language": people.language,
}
_GROUP_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


def read(tree: Tree, file: str, problems: Problems) -> Reading:
    """Reads a manifest. Raises: CorpusError if it has no header, or is too large in some way."""
    rows: list[Row] = []
    unused: set[str] = set()
    for number, cells in _rows(tree, file, problems):
        row = _row(tree, file, number, cells, problems, unused)
        if row is not None:
            rows.append(row)
    losses = (f"Columns not used: {', '.join(map(show, sorted(unused)))}.",) if unused else ()
    return Reading(rows=rows, labels=WORDS, losses=losses)


def seconds(value: str) -> float:
    """Returns a time in seconds. Raises: ValueError unless it is finite and in [0, MAX_SECONDS]."""
    number = float(value)
    if not math.isfinite(number) or not 0.0 <= number <= MAX_SECONDS:
        raise ValueError(value)
    return number


def refusal(cells: Mapping[str, str]) -> str | None:
    """Returns why a row's cells are refused, naming the column and never the value; None if they are fine."""
    for column, value in cells.items():
        if value[:1] in FORMULA_STARTS:
            return f"{column}: begins as a formula does; a spreadsheet would run it. Left out."
        if not is_text(value):
            return f"{column}: has characters that cannot be printed. Left out."
        if len(value) > MAX_CELL_CHARACTERS and column != "path":
            return f"{column}: expected at most {MAX_CELL_CHARACTERS} characters. Left out."
    return None


def _rows(tree: Tree, file: str, problems: Problems) -> Iterator[tuple[int, dict[str, str]]]:
    if PurePosixPath(file).suffix.lower() == ".csv":
        yield from records(tree, file, problems, columns=COLUMNS)
        return
    for number, row in json_records(tree, file, problems):
        cells = _as_text(row)
        if cells is None:
            problems.add(file, number, "expected texts and numbers, each key once. Left out.")
        else:
            yield number, cells


def _as_text(row: Mapping[str, Any]) -> dict[str, str] | None:
    if not all(value is None or type(value) in (str, int, float) for value in row.values()):
        return None
    cells = {key.lower(): "" if value is None else str(value).strip() for key, value in row.items()}
    return cells if len(cells) == len(row) else None


def _row(
    tree: Tree, file: str, number: int, cells: dict[str, str], problems: Problems, unused: set[str]
) -> Row | None:
    """Returns the row, or None after saying what is wrong with it. `unused` gathers columns nobody reads."""
    roles = _roles(tuple(cells))
    if len(unused) < MAX_COLUMNS:
        unused |= roles.unused
    stated = {column: cells[column] for column in roles.used if cells[column]}
    recording = tree.find(stated.get("path", ""))
    times = _times(stated)
    why = _missing(stated) or roles.why_not
    if why is None and times is None:
        why = f"expected 0 <= start_seconds < end_seconds <= {MAX_SECONDS:g}. Left out."
    why = why or refusal(stated)
    if why is None and recording is None:
        why = f"path: {why_not(tree, stated['path'])}"
    if why is not None or times is None or recording is None:
        problems.add(file, number, why or "Left out.")
        return None
    return Row(
        file=recording,
        corpus_label=stated["label"],
        speaker=stated["speaker"],
        patient=stated.get("patient"),
        groups={name: spell(stated[column]) for column, name, spell in roles.groups if column in stated},
        site=stated.get("site"),
        start_seconds=times[0],
        end_seconds=times[1],
        split=stated.get("split"),
        source=file,
        row=number,
    )


@dataclass(frozen=True, kw_only=True)
class _Roles:
    """What each of a row's columns is for; `groups` are (column, group, how its values are spelt)."""

    used: tuple[str, ...]
    groups: tuple[tuple[str, str, Callable[[str], str]], ...]
    unused: frozenset[str]
    why_not: str | None


@lru_cache(maxsize=256)  # a CSV has one header, and JSON lines few different ones
def _roles(columns: tuple[str, ...]) -> _Roles:
    own = {column: column.removeprefix(GROUP_PREFIX) for column in columns if column.startswith(GROUP_PREFIX)}
    known = tuple(column for column in columns if column in (*COLUMNS, *OPTIONAL_COLUMNS))
    bad = [name for name in own.values() if not _GROUP_NAME.fullmatch(name) or name in OPTIONAL_COLUMNS]
    return _Roles(
        used=(*known, *own),
        groups=(
            *((column, column, spell) for column, spell in _SPELLINGS.items() if column in columns),
            *((column, name, str) for column, name in own.items()),
        ),
        unused=frozenset(columns) - {*known, *own},
        why_not=f"expected a group's name of letters, digits and _; came {show(bad[0])}." if bad else None,
    )


def _missing(stated: Mapping[str, str]) -> str | None:
    empty = [column for column in COLUMNS if column not in stated]
    return f"{', '.join(empty)}: expected a value; came none. Left out." if empty else None


def _times(stated: Mapping[str, str]) -> tuple[float, float | None] | None:
    try:
        start = seconds(stated.get("start_seconds", "0"))
        end = seconds(stated["end_seconds"]) if "end_seconds" in stated else None
    except ValueError:
        return None
    return (start, end) if end is None or start < end else None


def only(tree: Tree) -> str | None:
    """Returns the manifest at the tree's top. Raises: CorpusError if there are two."""
    found = [file for file in tree.files if file.lower() in FILE_NAMES]
    for name in set(FILE_NAMES) - {file.lower() for file in found}:
        # A link or a pipe of this name is not in the tree; falling back to file names would hide it.
        if os.path.lexists(tree.root / name):
            raise CorpusError(
                f"{name}: expected a regular file that is no link. Put the manifest itself there."
            )
    if len(found) > 1:
        raise CorpusError(
            f"expected one manifest; came {' and '.join(found)}. Remove one, or scan it by name."
        )
    return found[0] if found else None
