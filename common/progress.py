"""What a person at a terminal sees while a study runs: one bar a stage, with time left; notes above the bars.

Guarantees:
  - Everything here goes to standard error, so that standard output holds results only.
  - Without a terminal there are no bars: a line at the start of a stage, each tenth of it, and its end.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Step:
    """`done` of `total` units of a stage are through."""

    stage: str
    done: int
    total: int
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something a person should read once: a skipped recording, a label left out."""

    text: str


Event = Step | Note
OnEvent = Callable[[Event], None]


def silent(event: Event) -> None:
    """Takes events and shows nothing."""


@contextmanager
def show_progress(*, quiet: bool) -> Iterator[OnEvent]:
    """Yields a function that shows events on standard error; shows nothing if `quiet`."""
    console = Console(stderr=True)
    if quiet:
        yield silent
    elif console.is_terminal:
        with _bars(console) as bars:
            yield _Live(bars)
    else:
        yield _Lines(console)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", style="dim"),
        console=console,
    )


class _Live:
    """Events as moving bars."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self._bars.console.print(event.text, markup=False, highlight=False, style="dim")
            return
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bars.add_task(event.stage, total=event.total, detail="")
        self._bars.update(
            self._tasks[event.stage], completed=event.done, total=event.total, detail=event.detail
        )


class _Lines:
    """Events as few plain lines, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, int] = {}
        self._began: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self._print(event.text)
            return
        self._began.setdefault(event.stage, time.monotonic())
        tenth = 10 * event.done // max(event.total, 1)
        if self._shown.get(event.stage) != tenth:
            self._shown[event.stage] = tenth
            spent = time.monotonic() - self._began[event.stage]
            self._print(
                f"{event.stage:<10} {event.done}/{event.total}  {spent:.0f} s  {event.detail}".rstrip()
            )

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def tables(title: str, described: dict[str, Any]) -> Iterator[Table]:
    """Yields a table of the plain values, then one for each nested table or list of rows."""
    nested = {key: value for key, value in described.items() if isinstance(value, dict | list) and value}
    plain = Table(title=title, show_header=False, title_justify="left")
    for key, value in described.items():
        if key not in nested and value is not None:
            plain.add_row(key.replace("_", " "), _cell(value))
    yield plain
    for key, value in nested.items():
        yield _nested(key.replace("_", "\u00a0"), value)


def _nested(title: str, value: dict[str, Any] | list[Any]) -> Table:
    rows = _rows(value)
    table = Table(title=title, title_justify="left", show_header=isinstance(rows[0], dict))
    for name in rows[0] if isinstance(rows[0], dict) else ():
        table.add_column(str(name).replace("_", " "))
    for row in rows:
        table.add_row(*(_cell(item) for item in (row.values() if isinstance(row, dict) else row)))
    return table


def _rows(value: dict[str, Any] | list[Any]) -> list[Any]:
    """Returns rows: dicts where columns have names, tuples where they have none."""
    if isinstance(value, list):
        return [item if isinstance(item, dict) else (item,) for item in value]
    if all(isinstance(inner, dict) for inner in value.values()):  # {sex: {female: {speakers: 12, ...}}}
        return [
            {"": name, " ": key, **(item if isinstance(item, dict) else {"count": item})}
            for name, inner in value.items()
            for key, item in inner.items()
        ]
    return list(value.items())


def _cell(value: object) -> str:
    from rich.markup import escape

    if isinstance(value, float):
        return f"{value:,.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple | dict):
        return escape(", ".join(map(str, value))) or "none"
    return escape("" if value is None else str(value))
