"""Rows of CSV and JSON lines from strangers: bounded, strict, and each bad row told by its number.

Guarantees:
  - A row that is not UTF-8, holds NUL, is torn, or has too many cells is a problem with its number; the
    other rows are still read.
  - A header without the columns that are needed, or with a column twice, is an error.
  - No line is held that is longer than `tree.MAX_LINE_BYTES`; no table has more than `MAX_COLUMNS`.
  - In JSON, a key that is there twice and numbers that are not finite are refused.
"""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from sottovoce.common.corpus.problems import Problems, show
from sottovoce.common.corpus.tree import Tree
from sottovoce.common.errors import CorpusError

MAX_COLUMNS = 256
MAX_ROWS = 5_000_000
MAX_RECORD_LINES = 20  # that one quoted cell may span

_DELIMITERS = ",;\t"
_UTF8_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")


def records(
    tree: Tree, file: str, problems: Problems, *, columns: Sequence[str], encoding: str = "utf-8"
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields a CSV file's rows: the line's number, and the cells by lower-case column name, stripped.

    `encoding` is tried where a row is not UTF-8; "utf-8" means that such a row is a problem.
    Separators: commas, semicolons or tabs, whichever the header uses.

    Raises:
        CorpusError: no header, or not the `columns`; or the file is too large in some way.
    """
    header: list[str] | None = None
    delimiter = ","
    for number, text in _csv_records(tree, file, problems, encoding):
        if header is None:
            delimiter = max(_DELIMITERS, key=text.count)
            header = _header(file, cells_of(text, delimiter) or [], columns)
            continue
        cells = cells_of(text, delimiter)
        if cells is None or len(cells) > len(header):
            problems.add(file, number, f"expected {len(header)} cells; came more, or a torn row. Left out.")
        elif any(cells):
            cells += [""] * (len(header) - len(cells))
            yield number, dict(zip(header, (cell.strip() for cell in cells), strict=True))
    if header is None:
        raise CorpusError(
            f"{show(file)}: expected a header with the columns {', '.join(columns)}; it is empty."
        )


def json_records(tree: Tree, file: str, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields a JSON-lines file's objects with their line numbers."""
    for number, line in _checked_lines(tree, file, problems):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique, parse_constant=_not_finite)
        except (ValueError, RecursionError) as error:
            why = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON, or with a key twice"
            problems.add(file, number, f"expected one JSON object in UTF-8; this is {why}. Left out.")
            continue
        if isinstance(row, dict) and len(row) <= MAX_COLUMNS:
            yield number, row
        else:
            problems.add(file, number, f"expected a JSON object of at most {MAX_COLUMNS} keys. Left out.")


def first_object(tree: Tree, file: str) -> dict[str, Any]:
    """Returns the first line's JSON object, or an empty one where the line is none. Reads no further."""
    try:
        line = next((line for _, line in tree.lines(file)), b"")
        row = json.loads(line.removeprefix(_UTF8_BOM))
    except (ValueError, RecursionError, CorpusError):
        return {}  # whoever reads the file as a table will say what is wrong with it
    return row if isinstance(row, dict) else {}


def _checked_lines(tree: Tree, file: str, problems: Problems) -> Iterator[tuple[int, bytes]]:
    for number, line in tree.lines(file):
        if number == 1:
            if line.startswith(_OTHER_BOMS):
                raise CorpusError(f"{show(file)}: expected UTF-8; this is UTF-16. Save it as UTF-8.")
            line = line.removeprefix(_UTF8_BOM)
        if number > MAX_ROWS:
            raise CorpusError(f"{show(file)}: expected at most {MAX_ROWS:,} rows. Split it.")
        if b"\0" in line:
            problems.add(file, number, "holds a NUL byte. Left out.")
        else:
            yield number, line


def _csv_records(tree: Tree, file: str, problems: Problems, encoding: str) -> Iterator[tuple[int, str]]:
    """Yields whole records: a line, or the lines that one quoted cell spans."""
    held: list[str] = []
    start = 0
    for number, line in _checked_lines(tree, file, problems):
        text = _decode(line, encoding)
        if text is None:
            problems.add(file, number, "is not UTF-8. Save the file as UTF-8. Left out.")
            continue
        if not held:
            start = number
        held.append(text)
        if _balanced(held):
            yield start, "\n".join(held)
            held = []
        elif len(held) == MAX_RECORD_LINES:
            problems.add(file, start, f"a quote is not closed within {MAX_RECORD_LINES} lines. Left out.")
            held = []
    if held:
        problems.add(file, start, "a quote is not closed by the end of the file. Left out.")


def _decode(line: bytes, encoding: str) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None if encoding == "utf-8" else line.decode(encoding, "replace")


def _balanced(lines: list[str]) -> bool:
    return sum(line.count('"') for line in lines) % 2 == 0


def cells_of(text: str, delimiter: str = ",") -> list[str] | None:
    """Returns the cells of one record; None for a torn one."""
    if '"' not in text:
        return text.split(delimiter)
    # Not str.splitlines: it would also split at characters that are no line breaks in a CSV file.
    lines = (line + "\n" for line in text.split("\n"))
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _header(file: str, cells: list[str], columns: Sequence[str]) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    if len(header) > MAX_COLUMNS:
        raise CorpusError(
            f"{show(file)}, row 1: expected at most {MAX_COLUMNS} columns; came {len(header):,}."
        )
    missing = [column for column in columns if column not in header]
    if missing:
        came = ", ".join(show(cell) for cell in header[:20])
        raise CorpusError(f"{show(file)}, row 1: expected the columns {', '.join(columns)}; came {came}.")
    twice = sorted({cell for cell in header if cell and header.count(cell) > 1})
    if twice:
        raise CorpusError(f"{show(file)}, row 1: the column {show(twice[0])} is there twice.")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs) or any(isinstance(v, float) and not math.isfinite(v) for v in table.values()):
        raise ValueError("twice")
    return table


def _not_finite(text: str) -> float:
    raise ValueError(text)
