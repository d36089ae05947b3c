"""The blocks of docs/results.md, each from summaries alone.

Guarantees:
  - Every figure is one of a summary (metrics.json's type) or of the search; none is typed in.
  - A bar that is missed says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sottovoce.common.fairness_figures import Fairness, Gap
from sottovoce.common.run_files import RunFacts
from sottovoce.common.summary import Arm, Calibration, Summary
from sottovoce.simulations.pages import estimate, percent, points, table
from sottovoce.simulations.results_studies import Column
from sottovoce.simulations.search import Found

FEDERATED, POOLED = "federated", "central"
LOWEST_GAP = -0.01  # what the interval of federated less pooled has to stay above
SEX_GAP, LARGEST_ERROR, SURE, SURE_SHARE, SET_LEVEL = 0.075, 0.05, 0.85, 0.7, 0.9


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A column with what was chosen for it, and what came of it: all its runs as one summary."""

    column: Column
    found: Found
    summary: Summary


def three_columns(scored: Sequence[Scored]) -> str:
    """Returns what the page is about: UAR by what was heard of a new speaker, federated and pooled."""
    rows = []
    for one in scored:
        federated, pooled = one.summary.arm(FEDERATED), one.summary.arm(POOLED)
        gap = next(found for found in one.summary.differences if found.minus == POOLED)
        reached = "missed" if pooled.uar.value < one.column.bar else "met"
        reached = "stretch met" if pooled.uar.value >= one.column.stretch else reached
        close = gap.low is not None and gap.low > LOWEST_GAP
        rows.append(
            (
                one.column.title,
                estimate(pooled.uar),
                _over_seeds(pooled),
                f"{percent(one.column.bar)} / {percent(one.column.stretch)}: {reached}",
                estimate(federated.uar),
                points(gap.value, gap.low, gap.high),
                "met" if close else "missed",
                percent(pooled.speakers[0].uar),
            )
        )
    head = (
        "heard of the speaker before", "pooled UAR %", "seeds: sd, min, max", "bar / stretch", "federated UAR %",
        "federated - pooled, points", "above -1", "worst speaker, pooled %",
    )  # fmt: skip
    return table(head, rows)


def pooled_uars(scored: Sequence[Scored]) -> dict[str, float]:
    """Returns each column's pooled UAR."""
    return {one.column.title: one.summary.arm(POOLED).uar.value for one in scored}


def _over_seeds(arm: Arm) -> str:
    spread = arm.uar_over_seeds
    if spread is None:
        return "one seed"
    return f"{percent(spread.deviation)}, {percent(spread.smallest)}, {percent(spread.largest)}"


def chosen(found: Sequence[Found]) -> str:
    """Returns what the search chose for each fold, with its inner UAR and how many settings it compared."""
    rows = [
        (
            one.column,
            str(choice.fold),
            choice.setting.label,
            percent(max(choice.inner_uar)),
            str(len(one.compared)),
        )
        for one in found
        for choice in one.choices
    ]
    return table(("column", "fold", "chosen", "inner UAR %", "of settings"), rows)


def by_class(scored: Sequence[Scored]) -> str:
    """Returns the recall of each emotion, pooled."""
    arms = [one.summary.arm(POOLED) for one in scored]
    names = scored[0].summary.classes
    rows = [
        (name, *(estimate(recall) if (recall := arm.classes[index].recall) else "" for arm in arms))
        for index, name in enumerate(names)
    ]
    return table(("recall %", *(one.column.title for one in scored)), rows)


def for_whom(scored: Sequence[Scored]) -> str:
    """Returns who is served worse: women and men against each other, and against all."""
    rows = [row for one in scored for row in _fairness_rows(one)]
    head = ("column", "arm", "women %", "men %", "more for", "difference", "women - all", "men - all", "bar")
    return table(head, rows)


def _fairness_rows(one: Scored) -> Iterator[tuple[str, ...]]:
    for found in one.summary.fairness:
        if found.arm not in (FEDERATED, POOLED) or found.source != "answers":
            continue
        between = next(item.uar for item in found.attributes if item.attribute == "sex")
        groups = {group.group: group for group in found.groups}
        women, men = groups["sex female"], groups["sex male"]
        if between is None or women.uar is None or men.uar is None:
            continue
        gap = between.gap
        yield (
            one.column.title,
            found.arm,
            percent(women.uar),
            percent(men.uar),
            between.more,
            points(gap.value, gap.low, gap.high),
            _gap(women.minus_all),
            _gap(men.minus_all),
            sex_verdict(found),
        )


def sex_verdict(found: Fairness) -> str:
    """Returns whether the interval of the difference between women and men contains 0, or is inside the bar."""
    between = next(item.uar for item in found.attributes if item.attribute == "sex")
    if between is None or between.gap.low is None or between.gap.high is None:
        return "not known"
    low, high = between.gap.low, between.gap.high
    if low <= 0 <= high:
        return "met: contains 0"
    return "met: inside" if max(abs(low), abs(high)) <= SEX_GAP else "missed"


def _gap(gap: Gap | None) -> str:
    return "" if gap is None else points(gap.value, gap.low, gap.high)


def how_sure(scored: Sequence[Scored]) -> str:
    """Returns calibration and abstention."""
    rows = []
    for one in scored:
        for name in (POOLED, FEDERATED):
            figures = one.summary.arm(name).calibration
            if figures is not None:
                rows.append((one.column.title, name, *_sure_cells(figures)))
    head = (
        "column", "arm", "ECE before, %", "ECE, %", "at most 5", "right among the surest 70 %, %", "at least 85",
        "sets of 90 %: hold the truth, %", "contains 90", "emotions a set", "sets by speaker: hold the truth, %",
    )  # fmt: skip
    return table(head, rows)


def _sure_cells(figures: Calibration) -> tuple[str, ...]:
    at = next(one.accuracy for one in figures.coverages if abs(one.coverage - SURE_SHARE) < 1e-9)
    sets, by_speaker = (
        next(one for one in figures.sets if one.score == "least_ambiguous" and one.units == units)
        for units in ("recordings", "speakers")
    )
    held = sets.coverage
    contains = held.low is not None and held.high is not None and held.low <= SET_LEVEL <= held.high
    return (
        percent(figures.error_before.value),
        percent(figures.error.value),
        _met(figures.error.value <= LARGEST_ERROR),
        estimate(at),
        _met(at.value >= SURE),
        estimate(held),
        _met(contains),
        f"{sets.mean_size:.2f}",
        estimate(by_speaker.coverage),
    )


def _met(met: bool) -> str:
    return "met" if met else "missed"


def classical(summaries: Mapping[str, Summary]) -> str:
    """Returns classical classifiers on the same folds; a random split only in a column that says it leaks."""
    rows = []
    for features, summary in summaries.items():
        leaking = {arm.name.split(" (")[0]: arm for arm in (summary.leaks.arms if summary.leaks else ())}
        for arm in summary.arms:
            if arm.name in (FEDERATED, "local"):
                continue
            leak = leaking.get(arm.name)
            rows.append(
                (
                    features,
                    "softmax regression" if arm.name == POOLED else arm.name,
                    estimate(arm.uar),
                    percent(arm.war.value),
                    "" if leak is None else percent(leak.uar.value),
                )
            )
    return table(
        ("features", "classifier", "UAR %", "WAR %", "DO NOT QUOTE: random split, voices leak, UAR %"), rows
    )


def machine(facts: Sequence[RunFacts]) -> str:
    """Returns where all this was computed, and how long it took."""
    minutes = sum(cell.seconds or 0.0 for one in facts for cell in one.cells) / 60
    where = facts[0].machine
    place = (
        ""
        if where is None
        else f"{where.cores} cores, {where.processor or where.system}, {where.cpu_capability}; "
    )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(facts[0].versions.items()))
    n_cells = sum(len(one.cells) for one in facts)
    begun = sorted(one.started for one in facts if one.started)
    when = f" Runs of the columns begun {begun[0]} to {begun[-1]}." if begun else ""
    return f"Machine: {place}{minutes:.0f} core minutes in {n_cells} cells.{when} Versions: {versions}."
