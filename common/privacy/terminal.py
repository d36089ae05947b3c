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


def _study(found: Row) -> Iterator[RenderableType]:
    yield Text(found["sentence"], style="bold")
    steps = f"{found['steps']:,} ({found['rounds']} rounds and {found['spare_rounds']} spare)"
    said = {
        "private steps": steps,
        "noise": f"{found['noise_multiplier']:g} times the clipping norm",
        "draw": f"each patient with probability {found['sampling_prob']:g}, at most {found['draw_cap']:,} at once",
        "evaluation": _counts(found["evaluation_counts"]),
    }
    if found["unit"] == "utterance":
        said["draw"] = said["draw"].replace("patient", "recording")
    yield facts(said)
    yield table("epsilon, from every side", _sides(found))


def _counts(events: list[Row]) -> str:
    if not events:
        return "no counts leave a site: the study pays for none"
    (event,) = events
    return f"{event['steps']} releases of counts, noise {event['noise_multiplier']:g}"


def _sides(found: Row) -> Iterator[Row]:
    def side(what: str, epsilon: float | None) -> Row:
        return {"what": what, "epsilon": "none" if epsilon is None else f"{epsilon:.4f}"}

    yield side("a patient added or removed (PLD; this decides)", found["epsilon"])
    yield side("a patient replaced by another", found["replace_one"])
    for sites, epsilon in enumerate(found["by_sites"], start=1):
        if sites > 1:
            yield side(f"a patient in {sites} sites", epsilon)
    if found["record_epsilon"] is not None:
        yield side("one recording: a smaller figure about a smaller thing", found["record_epsilon"])
    if found["epsilon_at_usual_delta"] != found["epsilon"]:
        yield side("at delta 1e-05", found["epsilon_at_usual_delta"])
    dropped = len(found["rdp_dropped_orders"])
    yield side(f"by RDP{f' ({dropped} orders dropped)' if dropped else ''}", found["rdp"])
    if found["prv"] is None:
        yield side("by PRV, a second program: it has no answer here", None)
    else:
        yield side("by PRV, a second program: at least", found["prv"][0])
        yield side("by PRV, a second program: at most", found["prv"][1])


def _rounds_left(found: Row) -> Iterator[RenderableType]:
    under = f"under the cap {found['cap']:g} at delta {found['delta']:g}"
    rule = {"pld": "PLD", "rdp_filter": "the Rényi filter"}[found["decided_by"]]
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
    return {
        "patients, at most": row["n_patients"],
        "sampling_prob": f"{row['sampling_prob']:g}",
        "delta": f"{row['delta']:.3g}",
        "epsilon": f"{row['epsilon']:.4f}",
    }
