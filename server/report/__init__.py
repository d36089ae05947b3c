"""report.html, drawn from the files of a run and from nothing else.

    write_report(Path("runs/demo"))   # reads study.toml, metrics.json, run.json, rounds.jsonl

Guarantees:
  - The page is one file: no script, no reference to anything outside, opens offline, prints.
  - Every text of a file is escaped, and its hidden characters are written out.
  - A missing run.json or rounds.jsonl is shown as missing. A damaged file, or a missing study.toml or
    metrics.json, is an error that says what to do.
  - The same files give the same bytes.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.common.files import write_whole

if TYPE_CHECKING:
    from rich.console import Group


def write_report(folder: Path) -> Path:
    """Draws a run's report and returns its path.

    Raises:
        RunError: a file is missing or damaged.
    """
    from sottovoce.server.report.page import read, render

    html = render(read(folder))
    path = folder / "report.html"
    write_whole(path, html.encode("utf-8", errors="replace"))
    return path


def terminal(folder: Path) -> "Group":
    """Returns the end of a run as a terminal shows it: UAR, interval, chance, sites, path of the report.

    Raises:
        RunError: a file is missing or damaged.
    """
    from sottovoce.server.report.closing import closing
    from sottovoce.server.report.page import read

    return closing(read(folder), folder / "report.html")
