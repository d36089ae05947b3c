"""A federation's ledger for a person at a terminal: the figures first, what they prove, the verdict last.

Guarantees:
  - What a person must see is never below the verdict: simulated noise, disagreements, what this cannot tell.
"""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.text import Text

from sottovoce.common.federation_ledger.rules import STEPS
from sottovoce.common.privacy.stages import SIMULATED
from sottovoce.common.terminal import Row, facts, table

FLAWED = "bold red"
_PROVES = (
    "What this proves: the coordinator signed this record, nothing in it was changed, and a threshold of sites signed "
    "for who is in every sum.",
    "What it does not: that no attempt is missing. The coordinator writes it alone; lines at the end may have been "
    "taken away, and there may be another record. Each site's own ledger has a reservation for every vector that it "
    "made: hold the two together with --site FOLDER. It names a reservation that no spent attempt here explains, and "
    "a sum that the site is in and did not reserve for.",
)


def report_lines(found: Row) -> Iterator[RenderableType]:
    """Yields a report's account, the comparison with sites, what it proves, and the verdict."""
    yield Text(
        f"Ledger of federation {found['name']}: {found['entries']:,} entries, {len(found['sites'])} sites"
    )
    yield facts(
        {
            "study": found["study"],
            "coordinator": found["coordinator"],
            "head": found["head"],
            "written": f"up to {found['last_time']}",
        }
    )
    yield table("", ({"": step, "step": what, "result": "passed"} for step, what in STEPS.items()))
    if found["figures"]:
        yield table("attempts at sums", (_figures(*item) for item in found["figures"].items()))
        yield table(
            "bytes of all phases, where there is a sum", (_bytes(*item) for item in found["figures"].items())
        )
    yield from _cost(found)
    if found["complaints"]:
        yield table("complaints", map(_complaint, found["complaints"]))
    yield from _to_look_at(found)
    for agreement in found["compared"].values():
        yield table(f"held against the ledger of {agreement['site']}", [_agreement(agreement)])
        yield from (Text(f"  {problem}", style=FLAWED) for problem in agreement["problems"])
    yield from (Text(f"\n{line}") for line in _PROVES)
    yield Text()
    yield _verdict(found)


def refusal_line(problem: str) -> Text:
    """Returns the verdict on a record that does not verify."""
    return Text(f"NOT VALID: {problem}", style=FLAWED)


def _figures(what: str, figures: Mapping[str, int]) -> Row:
    counts = {name: figures[name] for name in ("attempts", "spent", "summed", "abandoned")}
    return {"sum of": what, **counts, "without an end": figures["lost"] + figures["under_way"]}


def _bytes(what: str, figures: Mapping[str, int]) -> Row:
    return {"sum of": what, "from the sites": figures["n_bytes_up"], "to them": figures["n_bytes_down"]}


def _cost(found: Row) -> Iterator[RenderableType]:
    if found["epsilon"] is None:
        yield Text(
            "\nNo attempt here has a cost of its own: what these sums cost stands in the sites' ledgers alone."
        )
        return
    stamp = f"{SIMULATED}; it would cost " if found["simulated"] else ""
    rows = (
        {"colluding sites": str(count), "epsilon": f"{epsilon:.4f}"}
        for count, epsilon in enumerate(found["epsilon_by_colluding"])
    )
    yield table(f"{stamp}every patient of one site, all spent attempts, delta {found['delta']:g}", rows)
    yield Text(f"The study's own figure: {stamp}epsilon {found['epsilon']:.4f} at delta {found['delta']:g}")


def _complaint(row: Row) -> Row:
    return {
        "round": row["round"],
        "attempt": row["attempt"],
        "by": row["accuser"],
        "of": row["accused"] or "nobody",
        "reason": row["reason"],
        "": "the accused signed it" if row["signed_by_accused"] else "the accuser's word",
    }


def _to_look_at(found: Row) -> Iterator[Text]:
    lost = sum(figures["lost"] + figures["under_way"] for figures in found["figures"].values())
    if lost:
        yield Text(
            f"To look at: attempts without an end, {lost}: the coordinator stopped in the middle of them."
        )
    if found["recoveries"]:
        yield Text(f"To look at: torn lines that were cut away, {found['recoveries']}.")
    if found["complaints_left_out"]:
        yield Text(f"To look at: complaints that nobody signed, or too many: {found['complaints_left_out']}.")
    for run, round, attempt in found["numbers_passed_over"]:
        yield Text(f"To look at: attempt {attempt} at round {round} of {run} is not here; a later one is.")


def _agreement(agreement: Mapping[str, object]) -> Row:
    problems = agreement["problems"]
    count = len(problems) if isinstance(problems, Sequence) else 0
    return {
        "spent attempts here": agreement["spent_here"],
        "its reservations": agreement["reserved_there"],
        "": "agree" if not count else f"{count} DO NOT AGREE",
    }


def _verdict(found: Row) -> Text:
    if any(agreement["problems"] for agreement in found["compared"].values()):
        return Text("NOT VALID: the record and a site's ledger do not agree.", style=FLAWED)
    whose = "" if found["pinned"] else " in itself. Whose record it is, only --coordinator can tell"
    if not found["compared"]:
        return Text(f"VALID{whose}. Whether an attempt is missing, only --site can tell.", style="bold")
    sites = ", ".join(agreement["site"] for agreement in found["compared"].values())
    return Text(f"VALID{whose}, and it agrees with the ledgers of {sites}.", style="bold")
