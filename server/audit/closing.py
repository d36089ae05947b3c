"""An audit as a terminal shows it."""

from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sottovoce.server.audit.facts import DomainFacts
from sottovoce.server.audit.page import visible
from sottovoce.server.audit.whole import Audit, groups, headline
from sottovoce.server.audit.words import up

MAX_LINES = 8  # of each kind; the page has all


def closing(audit: Audit, page: Path) -> Group:
    """Returns the verdict and the figures. Names go through `Text`, never through markup."""
    parts: list[Text | Table] = [
        Text(
            f"CAP RAISED AFTER SPENDING: {visible(one.domain)}, from {one.before:g} to {one.after:g}, "
            f"by {visible(one.person)}: {visible(one.reason)}",
            style="bold red",
        )
        for one in audit.caps_raised_after_spending[:MAX_LINES]
    ]
    verdict = ("PASSED", "bold green") if audit.ok else ("FAILED", "bold white on red")
    if not audit.ledgers:
        verdict = ("of nothing: there is no ledger", "bold red")
    stamp = (f" {audit.stamp} ", "bold white on red") if audit.stamp else ("", "")
    parts.append(Text.assemble(("Verification ", "bold"), verdict, "  ", stamp))
    if audit.ledgers:
        parts.append(_figures(audit))
    ledgers = [group[0] for group in groups(audit.ledgers)]
    wrong = [finding["what"] for one in ledgers for finding in one.verification["findings"]]
    wrong += [*(audit.run.findings if audit.run else ()), *(p for one in ledgers for p in one.problems)]
    parts += [Text(f"Wrong: {visible(what)}", style="red") for what in wrong[:MAX_LINES]]
    weak = dict.fromkeys(reason for one in ledgers for reason in one.weak)
    parts += [Text(f"Weak: {reason}", style="yellow") for reason in weak]
    n_looks = sum(len(one.verification["attention"]) for one in audit.ledgers)
    if n_looks:
        parts.append(Text(f"{n_looks:,} things for a person to look at, in the page.", style="yellow"))
    parts.append(Text.assemble("Audit: ", (str(page), "bold")))
    return Group(*parts)


def _figures(audit: Audit) -> Table:
    table = Table("Ledger", "domain", box=None, pad_edge=False)
    for heading in ("spent", "promised", "cap", "delta"):
        table.add_column(heading, justify="right")
    for group in groups(audit.ledgers)[:MAX_LINES]:
        one, more = group[0], len(group) - 1
        name = visible(one.folder or one.name) + (f" and {more:,} equal" if more else "")
        top = headline([one])
        row = ("none", *4 * ("",)) if top is None else _row(top, at_least=one.lower_bounds)
        table.add_row(Text(name), *map(Text, row))
    return table


def _row(domain: DomainFacts, *, at_least: bool) -> tuple[str, ...]:
    spent = ("≥ " if at_least and domain.spent is not None else "") + up(domain.spent)
    return visible(domain.domain), spent, up(domain.promised), f"{domain.cap:g}", f"{domain.delta:g}"
