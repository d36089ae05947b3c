"""Tables for a person at a terminal, from 80 columns up.

Guarantees:
  - Text is printed as text: nothing in it is taken for markup.
  - What moves a cursor or a direction of writing in it is shown as "?": names come from others, too.
  - Long text is folded onto further lines, never cut.
  - JSON is JSON: infinity, which it does not know, is a text.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]


def print_lines(lines: Iterable[RenderableType]) -> None:
    """Prints on standard output, each line as soon as it is there."""
    console = Console(highlight=False)
    for line in lines:
        console.print(line)


def print_json(plain: object) -> None:
    """Prints plain data as JSON on standard output; a figure without a bound is the text "infinite"."""
    print(json.dumps(_finite(plain), indent=2, allow_nan=False))


def table(title: str, rows: Iterable[Row]) -> Group:
    """Returns rows of equal keys as a table under its title; integers stand to the right."""
    listed: Sequence[Row] = list(rows)
    found = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, value in listed[0].items():
        found.add_column(name, justify="right" if isinstance(value, int) else "left", overflow="fold")
    for row in listed:
        found.add_row(*map(_cell, row.values()))
    # The library's own titles are no wider than the table.
    return Group("", Text(title, style="bold"), found) if title else Group("", found)


def facts(rows: Row) -> Table:
    """Returns names and what they stand for, one a line."""
    found = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        found.add_row(name, Text(_shown(str(value)), overflow="fold"))
    return found


def _shown(text: str) -> str:
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text)


def _finite(plain: object) -> object:
    if isinstance(plain, dict):
        return {key: _finite(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [_finite(value) for value in plain]
    return "infinite" if plain == math.inf else plain


def _cell(value: object) -> Text:
    text = f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)
    return Text(_shown(text), overflow="fold")
