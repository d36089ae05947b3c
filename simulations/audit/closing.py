"""An empirical audit as a terminal shows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sottovoce.server.report.text import show_name

VERDICTS = {
    "disproved": ("DISPROVED: more leaves a site than is claimed", "bold white on red"),
    "too weak": (
        "not disproved, and no outcome could have: take more canaries, or a smaller claim",
        "bold yellow",
    ),
    "not disproved": ("not disproved", "bold green"),
}


def closing(document: Mapping[str, Any], page: Path) -> Group:
    """Returns the verdict and both tables. Names go through `Text`, never through markup."""
    canaries = document["canaries"]
    head = Text.assemble(
        (f"The claim of {show_name(document['study']['name'])} is ", "bold"), VERDICTS[canaries["verdict"]]
    )
    parts: list[Text | Table] = [head, _figures(canaries)]
    if document["attacks"]:
        parts.append(_attacks(document["attacks"]))
    parts.append(Text.assemble("Audit: ", (str(page), "bold")))
    return Group(*parts)


def _figures(canaries: Mapping[str, Any]) -> Table:
    table = Table(
        title=f"{canaries['n_canaries']:,} canary patients, {canaries['rounds']} rounds, {canaries['noise']} noise",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for heading in ("delta", "claimed", "proved at least", "could have proved"):
        table.add_column(heading, justify="right")
    for figure in canaries["figures"]:
        style = "red" if figure["alarm"] else "yellow" if figure["powerless"] else None
        cells = (f"{figure[key]:.2f}" for key in ("claimed", "lower_bound", "largest_detectable"))
        table.add_row(f"{figure['delta']:g}", *cells, style=style)
    return table


def _attacks(attacks: list[Mapping[str, Any]]) -> Table:
    table = Table("attack", "privacy", "attacker", "measure", box=None, pad_edge=False)
    for heading in ("value", "95 % interval", "guessing"):
        table.add_column(heading, justify="right")
    for attack in attacks:
        for row in attack["rows"]:
            style = "red" if row["beats_chance"] else None
            span = f"{row['low']:.3f} to {row['high']:.3f}"
            table.add_row(
                attack["attack"], row["defence"], row["attacker"], row["measure"], f"{row['value']:.3f}", span,
                f"{row['chance']:.2f}", style=style,
            )  # fmt: skip
    return table
