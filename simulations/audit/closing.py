"""An empirical audit as a terminal shows it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sottovoce.server.audit.words import up
from sottovoce.server.report.text import show_name
from sottovoce.simulations.audit.figures import down

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
    title = (
        f"{canaries['n_canaries']:,} canary patients, {canaries['rounds']} rounds, {canaries['noise']} noise"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("delta", "claimed", "proved at least", "could have proved"):
        table.add_column(heading, justify="right")
    for figure in canaries["figures"]:
        style = "red" if figure["alarm"] else "yellow" if figure["powerless"] else None
        proved, reach = down(figure["lower_bound"]), down(figure["largest_detectable"])
        table.add_row(f"{figure['delta']:g}", up(figure["claimed"]), proved, reach, style=style)
    return table


def _attacks(attacks: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        "attack", "measure", title="The best attackers", title_justify="left", box=None, pad_edge=False
    )
    for heading in ("without privacy", "with the study's", "guessing"):
        table.add_column(heading, justify="right")
    for attack in attacks:
        for measure in dict.fromkeys(row["measure"] for row in attack["rows"]):
            rows = [row for row in attack["rows"] if row["measure"] == measure]
            none = [row for row in rows if row["defence"] == "none"]
            private = [row for row in rows if row["defence"] != "none"]
            chance = f"{rows[0]['chance']:.2f}"
            table.add_row(attack["attack"], measure, _best(none), _best(private), chance)
    return table


def _best(rows: Sequence[Mapping[str, Any]]) -> Text:
    best = max(rows, key=lambda row: float(row["value"]))
    style = "red" if best["beats_chance"] else ""
    return Text(f"{best['value']:.2f} [{best['low']:.2f}, {best['high']:.2f}]", style=style)
