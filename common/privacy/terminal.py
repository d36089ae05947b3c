"""What `privacy plan` found, for a person at a terminal."""

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from sottovoce.common.terminal import Row, facts, table


def plan_lines(name: str, found: Any) -> Iterator[RenderableType]:
    """Yields one table of `planning.tables`, or what is left of a budget."""
    match name:
        case "study":
            yield from _study(found)
        case "promise":
            yield Text("\nwhat is promised", style="bold")
            yield facts({word.replace("_", " "): text for word, text in found.items()})
        case "rounds_left":
            yield from _rounds_left(found)
        case "noise":
            yield table("noise for a target epsilon", map(_noise, found))
        case "deltas":
            yield table("epsilon at other deltas", map(_delta, found))
        case "patients":
            yield table("if more or fewer patients took part", map(_patients, found))
        case "sums":
            yield table("other hospitals that a sum needs, and that may collude", map(_sum, found))
            yield Text("* this study", style="dim")


def _study(found: Row) -> Iterator[RenderableType]:
    yield Text(found["sentence"], style="bold")
    yield facts(_in_all(found) if found["mode"] == "distributed" else _in_one_hospital(found))
    sides = _sides_of_sums(found) if found["mode"] == "distributed" else _sides(found)
    yield table("epsilon, from every side", sides)
    if found["mode"] == "distributed" and found["n_colluding"] > found["colluders_withstood"]:
        yield Text(
            f"\nA coordinator that breaks the protocol, with {found['colluders_withstood'] + 1} hospitals or more, can "
            "unmask one hospital. The figure is against no such coordinator; the one if all others collude is.",
            style="bold red",
        )


def _in_one_hospital(found: Row) -> Row:
    unit = "recording" if found["unit"] == "utterance" else "patient"
    return {
        "private steps": f"{found['steps']:,} ({found['rounds']} rounds and {found['spare_rounds']} spare)",
        "noise": f"{found['noise_multiplier']:g} times the clipping norm",
        "draw": _draw(found, unit, "at most"),
        "evaluation": _counts(found["evaluation_counts"], found["counted"]),
    }


def _in_all(found: Row) -> Row:
    n_sites, needed = found["n_sites"], found["quorum"]
    return {
        "private sums": f"{found['steps']:,} ({found['rounds']} rounds and {found['spare_rounds']} spare)",
        "hospitals": f"{n_sites}; a sum needs {needed} of them, and {found['n_colluding']} may collude",
        "noise": f"{found['noise_multiplier']:g} times the clipping norm is left at least; with all hospitals there "
        f"is {found['noise_added']:.2f}",
        "draw": _draw(found, "patient", "of each hospital at most"),
        "parameters": f"{found['n_parameters']:,}",
        "evaluation": _counts(found["evaluation_counts"], found["counted"]),
    }


def _draw(found: Row, unit: str, at_most: str) -> str:
    return f"each {unit} with probability {found['sampling_prob']:g}, {at_most} {found['draw_cap']:,} at once"


def _counts(events: list[Row], names: list[str]) -> str:
    if not events:
        return "no counts leave a site: the study pays for none"
    (event,) = events
    of = f" of {len(names)} tables together ({', '.join(names)})" if len(names) > 1 else ""
    return f"{event['steps']} releases of counts{of}, noise {event['noise_multiplier']:g}"


def _side(what: str, epsilon: float | None) -> Row:
    return {"what": what, "epsilon": "none" if epsilon is None else f"{epsilon:.4f}"}


def _sides(found: Row) -> Iterator[Row]:
    yield _side("a patient added or removed (PLD; this decides)", found["epsilon"])
    yield from _replaced_and_in_sites(found)
    if found["record_epsilon"] is not None:
        yield _side("one recording: a smaller figure about a smaller thing", found["record_epsilon"])
    yield from _at_usual_delta(found)
    dropped = len(found["rdp_dropped_orders"])
    yield _side(f"by RDP{f' ({dropped} orders dropped)' if dropped else ''}", found["rdp"])
    if found["prv"] is None:
        yield _side("by PRV, a second program: it has no answer here", None)
    else:
        yield _side("by PRV, a second program: at least", found["prv"][0])
        yield _side("by PRV, a second program: at most", found["prv"][1])


def _sides_of_sums(found: Row) -> Iterator[Row]:
    colluding = found["n_colluding"]
    decides = f"a patient added or removed, if {_collude(colluding)} (RDP; this decides)"
    yield _side(decides, found["epsilon"])
    yield _side("if all others collude: the hospital's own noise alone", found["if_all_others_collude"])
    for others in _some_of(range(found["n_min"] - 1), but=colluding):
        yield _side(f"if {_collude(others)}", found["by_colluding"][others])
    yield from _replaced_and_in_sites(found)
    yield from _at_usual_delta(found)


def _collude(n_sites: int) -> str:
    return "1 hospital colludes" if n_sites == 1 else f"{n_sites or 'none'} collude"


def _some_of(numbers: range, *, but: int) -> list[int]:
    """At most eight: of many hospitals every second, third, ... number."""
    step = -(-len(numbers) // 8)
    return [number for number in numbers[::step] if number != but]


def _replaced_and_in_sites(found: Row) -> Iterator[Row]:
    yield _side("a patient replaced by another", found["replace_one"])
    for sites, epsilon in enumerate(found["by_sites"], start=1):
        if sites > 1:
            yield _side(f"a patient in {sites} sites", epsilon)


def _at_usual_delta(found: Row) -> Iterator[Row]:
    if found["epsilon_at_usual_delta"] != found["epsilon"]:
        yield _side("at delta 1e-05", found["epsilon_at_usual_delta"])


def _rounds_left(found: Row) -> Iterator[RenderableType]:
    under = f"under the cap {found['cap']:g} at delta {found['delta']:g}"
    rule = {"pld": "PLD", "rdp": "RDP", "rdp_filter": "the Rényi filter"}[found["decided_by"]]
    said = f"\nrounds left: {found['rounds']:,} {under}, decided by {rule}"
    if found["domain"] is not None:
        said += f", in domain {found['domain']} (promised so far: epsilon {found['promised']:.4f})"
    yield Text(said, style="bold")
    for misfit in found["misfits"]:
        yield Text(f"but this study would be denied there: {misfit}", style="bold red")


def _noise(row: Row) -> Row:
    noise = row["noise_multiplier"]
    return {
        "epsilon": f"{row['epsilon']:g}",
        "noise_multiplier": "no noise reaches it" if noise is None else f"{noise:g}",
    }


def _delta(row: Row) -> Row:
    return {"delta": f"{row['delta']:g}", "epsilon": f"{row['epsilon']:.4f}"}


def _patients(row: Row) -> Row:
    everywhere = row.get("n_patients_everywhere")
    return {
        "patients, at most" if everywhere is None else "in a hospital, at most": row["n_patients"],
        **({} if everywhere is None else {"in all": everywhere}),
        "sampling_prob": f"{row['sampling_prob']:g}",
        "delta": f"{row['delta']:.3g}",
        "epsilon": "does not fit into 32 bits" if row["epsilon"] is None else f"{row['epsilon']:.4f}",
    }


def _sum(row: Row) -> Row:
    return {
        "n_min": f"{row['n_min']}{' *' * row['this_study']}",
        "n_colluding": f"{row['n_colluding']}",
        "noise that all add": f"{row['noise_added']:.2f}",
        "epsilon with today's noise": f"{row['epsilon_as_it_is']:.4f}",
    }
