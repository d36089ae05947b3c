"""What a person at a terminal sees while a study runs: one bar a stage, with time left; notes above the bars.

Guarantees:
  - Everything here goes to standard error, so that standard output holds results only.
  - Without a terminal there are no bars: a line at the start of a stage, each tenth of it, and its end.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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


def tables(title: str, described: dict[str, object]) -> Iterator[Table]:
    """Yields a table of the plain values, then one for each nested table or list of rows."""
    nested = {key: value for key, value in described.items() if isinstance(value, dict | list) and value}
    plain = Table(title=title, show_header=False, title_justify="left")
    for key, value in described.items():
        if key not in nested:
            plain.add_row(key.replace("_", " "), _cell(value))
    yield plain
    for key, value in nested.items():
        yield _nested(key.replace("_", " "), value)


def _nested(title: str, value: object) -> Table:
    table = Table(title=title, title_justify="left")
    if isinstance(value, dict):
        table.show_header = False
        for name, item in value.items():
            table.add_row(str(name), _cell(item))
    elif isinstance(value, list) and isinstance(value[0], dict):
        for name in value[0]:
            table.add_column(str(name).replace("_", " "))
        for row in value:
            table.add_row(*(_cell(item) for item in row.values()))
    elif isinstance(value, list):
        table.show_header = False
        for item in value:
            table.add_row(_cell(item))
    return table


def _cell(value: object) -> str:
    from rich.markup import escape

    if isinstance(value, float):
        return f"{value:,.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return escape(", ".join(f"{key} {item}" for key, item in value.items()))
    if isinstance(value, list | tuple):
        return escape(", ".join(map(str, value)))
    return escape("" if value is None else str(value))
