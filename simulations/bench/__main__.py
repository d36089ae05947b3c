"""`python -m sottovoce.simulations.bench [--json FILE] [NAME ...]`: runs benchmarks, prints a table, writes JSON.

`privacy`, `ledger`, `faults` are proofs in parts. `--size ledger.schedules=1000` runs a part at another size (0: not);
rows of other parts that FILE holds already are kept, so that proofs of hours can be run one after the other.
SOTTOVOCE_BENCH_WORKERS says how many processes they may keep busy. Exit status 1 if a bar was missed.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BENCHMARKS = (
    "features",
    "rounds",
    "cohort",
    "startup",
    "memory",
    "private_step",
    "privacy",
    "ledger",
    "distributed",
    "audit",
    "secagg",
    "faults",
    "fleet",
)


def main(arguments: list[str]) -> int:
    """Runs what was asked for, or everything."""
    parser = argparse.ArgumentParser(prog="python -m sottovoce.simulations.bench")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--page", type=Path, help="write the table here as Markdown")
    parser.add_argument("--size", action="append", default=[], metavar="NAME.PART=N", type=_size)
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.names if name not in BENCHMARKS]:
        parser.error(f"expected names of {', '.join(BENCHMARKS)}; came {', '.join(unknown)}")
    console, results = Console(), _kept(chosen.json)
    for name in chosen.names or BENCHMARKS:
        module = importlib.import_module(f"sottovoce.simulations.bench.{name}")
        with console.status(f"measuring {name} ..."):
            sizes = {part: size for of, part, size in chosen.size if of == name}
            found = module.measure(**sizes)
        console.print(table_of(name, found))
        results[name] = _beside(results.get(name), found)
        if chosen.json is not None:  # after each, so that an interruption costs one benchmark
            chosen.json.parent.mkdir(parents=True, exist_ok=True)
            chosen.json.write_text(json.dumps(results, indent=1) + "\n")
    if chosen.page is not None:
        chosen.page.write_text(page_of(results), encoding="utf-8")
    missed = [row for result in results.values() for row in result["rows"] if row.get("met") is False]
    return 1 if missed else 0


def _size(text: str) -> tuple[str, str, int]:
    place, _, size = text.partition("=")
    name, _, part = place.partition(".")
    return name, part, int(size)


def _kept(path: Path | None) -> dict[str, Any]:
    return json.loads(path.read_text()) if path is not None and path.is_file() else {}


def _beside(before: Mapping[str, Any] | None, found: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps the rows of parts that were not run now."""
    again = {row.get("part") for row in found["rows"]}
    kept = [row for row in (before or {}).get("rows", ()) if row.get("part") not in again]
    return {**found, "rows": [*kept, *found["rows"]]} if None not in again else dict(found)


PROOFS = ("privacy", "ledger")
FEDERATION = ("faults", "fleet")
SUMS = ("secagg", "distributed")


def page_of(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns docs/bench.md, or docs/proofs.md: one table for each benchmark."""
    told = "Medians and ratios of one run of `python -m sottovoce.simulations.bench`; a bar that was missed says so."
    title = "# Benchmarks\n"
    if results.keys() <= set(PROOFS):
        title = "# Proofs at length\n"
        told = (
            "What `make proofs` found, a table for each of its names. A row says how many were run, and the first of "
            "a part how long it took on a machine that did other things as well. A bar that was missed says so."
        )
    elif results.keys() <= set(SUMS):
        title = "# Secure sums, measured\n"
        told = (
            "What `make sums` found. Seconds of a client or a coordinator are of its processor; attempts, transcripts "
            "and patterns of loss are the whole number that the row states. A bar that was missed says so."
        )
    elif results.keys() <= set(FEDERATION):
        title = "# A real federation: faults and speed\n"
        told = (
            "What `make faults` found. Schedules and envelopes are the production parts in one process; runs are real "
            "processes over TLS on one machine, killed by SIGKILL. A bar that was missed says so."
        )
    lines = [title, told]
    for name, result in results.items():
        machine = result.get("machine", {})
        load = f", load {machine['load_1_min']} on {machine['cores']} cores" if machine else ""
        lines += [f"\n## {name}{load}\n", "| what | value | ratio | bar | note |", "|---|---|---|---|---|"]
        for row in result["rows"]:
            missed = " **missed**" if row.get("met") is False else ""
            cells = (row["what"], _value(row), _ratio(row), _plain(_bar(row)) + missed, row.get("note", ""))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _plain(markup: str) -> str:
    from rich.text import Text

    return Text.from_markup(markup).plain


def table_of(name: str, result: Mapping[str, Any]) -> Table:
    """Returns a benchmark's rows as a table."""
    machine = result.get("machine", {})
    load = f" (load {machine['load_1_min']} on {machine['cores']} cores)" if machine else ""
    table = Table(title=f"{name}{load}", title_justify="left")
    for heading in ("what", "value", "ratio", "bar", "note"):
        table.add_column(heading, justify="right" if heading in ("value", "ratio") else "left")
    for row in result["rows"]:
        table.add_row(row["what"], _value(row), _ratio(row), _bar(row), row.get("note", ""))
    return table


def _value(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.3g} {row.get('unit', '')}".strip() if "value" in row else "-"


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.2f} of {row['against']}" if "ratio" in row else ""


def _bar(row: Mapping[str, Any]) -> str:
    if "bar" not in row:
        return ""
    verdict = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[row.get("met")]
    return f"{row['bar']} {verdict}".strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
