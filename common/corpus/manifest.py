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
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from sottovoce.common.corpus import people
from sottovoce.common.corpus.problems import Problems, is_text, show
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

# What Excel, LibreOffice or Google Sheets take for the start of a formula, and its full-width forms.
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")
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
        if value.startswith(_FORMULA_STARTS):
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
    used = {column: cells.get(column, "") for column in (*COLUMNS, *OPTIONAL_COLUMNS)}
    groups = {c.removeprefix(GROUP_PREFIX): v for c, v in cells.items() if c.startswith(GROUP_PREFIX)}
    if len(unused) < MAX_COLUMNS:
        unused.update(c for c in cells if c not in used and not c.startswith(GROUP_PREFIX))
    why = _missing(used) or refusal(_texts(used) | groups) or _bad_group(groups)
    times = _times(used)
    recording = tree.find(used["path"])
    if why is None and times is None:
        why = f"expected 0 <= start_seconds < end_seconds <= {MAX_SECONDS:g}. Left out."
    if why is None and recording is None:
        why = f"path: {why_not(tree, used['path'])}"
    if why is not None or times is None or recording is None:
        problems.add(file, number, why or "Left out.")
        return None
    return Row(
        file=recording,
        corpus_label=used["label"],
        speaker=used["speaker"],
        patient=used["patient"] or None,
        groups=_stated(used) | {name: value for name, value in groups.items() if value},
        site=used["site"] or None,
        start_seconds=times[0],
        end_seconds=times[1],
        split=used["split"] or None,
        source=file,
        row=number,
    )


def _missing(used: Mapping[str, str]) -> str | None:
    empty = [column for column in COLUMNS if not used[column]]
    return f"{', '.join(empty)}: expected a value; came none. Left out." if empty else None


def _texts(used: Mapping[str, str]) -> dict[str, str]:
    # Times are parsed as numbers, so their minus is an error of range, not a formula.
    return {column: value for column, value in used.items() if value and not column.endswith("_seconds")}


def _bad_group(groups: Mapping[str, str]) -> str | None:
    bad = [name for name in groups if not _GROUP_NAME.fullmatch(name) or name in OPTIONAL_COLUMNS]
    return f"expected a group's name of letters, digits and _; came {show(bad[0])}." if bad else None


def _times(used: Mapping[str, str]) -> tuple[float, float | None] | None:
    try:
        start = seconds(used["start_seconds"] or "0")
        end = seconds(used["end_seconds"]) if used["end_seconds"] else None
    except ValueError:
        return None
    return (start, end) if end is None or start < end else None


def _stated(used: Mapping[str, str]) -> dict[str, str]:
    spellings = {"sex": people.sex, "age": people.age, "language": people.language}
    return {name: spell(used[name]) for name, spell in spellings.items() if used[name]}


def only(tree: Tree) -> str | None:
    """Returns the manifest at the tree's top. Raises: CorpusError if there are two."""
    found = [file for file in tree.files if file.lower() in FILE_NAMES]
    for name in FILE_NAMES:
        # A link or a pipe of this name is not in the tree; falling back to file names would hide it.
        if os.path.lexists(tree.root / name) and name not in tree.files:
            raise CorpusError(
                f"{name}: expected a regular file that is no link. Put the manifest itself there."
            )
    if len(found) > 1:
        raise CorpusError(
            f"expected one manifest; came {' and '.join(found)}. Remove one, or scan it by name."
        )
    return found[0] if found else None
