"""Mitigation in docs/results.md: what makes women and men more alike, and its price in UAR.

Tried on the columns whose federated arm misses the bar between women and men, with the settings that the search chose
and one seed: seeds differ by a tenth of a point there. Nothing is chosen here: the table has all that was tried.

Guarantees:
  - A mitigation is compared with the same column without it: same recordings, same seeds, paired by speaker.
  - Offsets are fitted on the speakers of the other folds (`common/fairness_of_runs.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sottovoce.common import metrics
from sottovoce.common.predictions import Prediction
from sottovoce.simulations.pages import made, percent, points, table
from sottovoce.simulations.results_columns import groups_of, rows_of
from sottovoce.simulations.results_page import FEDERATED, Scored, sex_verdict
from sottovoce.simulations.results_studies import study_text
from sottovoce.simulations.skew import (
    Difference,
    check_same_recordings,
    counts_of,
    differences,
    told,
    uar,
)
from sottovoce.simulations.utility import with_values

SEEDS = 1
SAMPLES = 2000
WOMEN, MEN = "female", "male"


@dataclass(frozen=True, kw_only=True)
class Mitigation:
    """What a study says otherwise: values of keys that it has, and a table that it has not."""

    title: str
    values: Mapping[str, object] = field(default_factory=dict)
    table: str = ""


MITIGATIONS = (
    Mitigation(
        title="men weigh twice",
        table='[training.group_robust]\nattribute = "sex"\n'
        "constants = { male = [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0] }\n",
    ),
    Mitigation(
        title="group-robust, step 1 after every 10th round",
        values={"every_rounds": 10},
        table='[training.group_robust]\nattribute = "sex"\nstep = 1.0\n',
    ),
    Mitigation(title="q-fair sites, q = 1", values={"strategy": '{ kind = "qfedavg", q = 1.0 }'}),
)


@dataclass(frozen=True, kw_only=True)
class Mitigated:
    """A column with a mitigation: its UAR, women less men, and both less those of the column without."""

    column: str
    title: str
    uar: float
    price: Difference
    gap: Difference
    change: Difference


def mitigations(
    scored: Sequence[Scored],
    paths: Mapping[str, Sequence[Path]],
    ravdess: Path,
    runs: Path,
    workers: int,
) -> list[Mitigated]:
    """Makes the runs of each mitigation for the columns that miss the bar; `paths` are the columns' own runs."""
    found = []
    for one in scored:
        if not misses(one):
            continue
        title = one.column.title
        plain = _federated(paths[title])
        for mitigation in MITIGATIONS:
            rows = _federated(_run(one, mitigation, ravdess, runs, workers))
            found.append(compared(rows, plain, column=title, title=mitigation.title))
    return found


def misses(one: Scored) -> bool:
    """Says whether a column's federated arm misses the bar between women and men."""
    arms = [found for found in one.summary.fairness if found.arm == FEDERATED and found.source == "answers"]
    return any(sex_verdict(found) == "missed" for found in arms)


def mitigated_text(text: str, mitigation: Mitigation) -> str:
    """Returns a study's text with a mitigation."""
    return with_values(text, mitigation.values) + ("\n" + mitigation.table if mitigation.table else "")


def _run(one: Scored, mitigation: Mitigation, ravdess: Path, runs: Path, workers: int) -> list[Path]:
    paths = []
    for setting, folds in groups_of(one.found).items():
        text = study_text(one.column, setting, folds=folds, n_seeds=SEEDS)
        name = f"{one.column.scenario}-folds-{''.join(map(str, folds))}"
        place = runs / "mitigation" / f"{name}-{MITIGATIONS.index(mitigation)}"
        paths.append(
            made(mitigated_text(text, mitigation), place, data={"ravdess": ravdess}, workers=workers)
        )
    return paths


def _federated(paths: Sequence[Path]) -> list[Prediction]:
    rows = [row for path in paths for row in rows_of(path) if row.arm == FEDERATED]
    return [row for row in rows if row.seed < SEEDS]


def compared(
    ours: Sequence[Prediction], plain: Sequence[Prediction], *, column: str, title: str
) -> Mitigated:
    """Returns what a mitigation did, each interval by the same draws of speakers.

    Raises:
        SottovoceError: the two did not score the same recordings.
    """
    check_same_recordings(ours, plain)
    speakers, seeds = sorted({row.speaker for row in ours}), sorted({row.seed for row in ours})
    n_classes = len(ours[0].log_probs)
    counts = [
        counts_of([row for row in side if _is_of(row, sex)], seed, speakers, n_classes)
        for side in (ours, plain)
        for sex in (None, WOMEN, MEN)
        for seed in seeds
    ]

    def figures(stack: metrics.Floats) -> metrics.Floats:
        """Returns price, gap, and change of the gap (draws, 3)."""
        uars = metrics.known_mean(metrics.uars(stack).reshape(len(stack), 2, 3, len(seeds)), axis=-1)
        gaps = uars[:, :, 1] - uars[:, :, 2]
        return np.stack([uars[:, 0, 0] - uars[:, 1, 0], gaps[:, 0], gaps[:, 0] - gaps[:, 1]], axis=1)

    price, gap, change = differences(np.stack(counts), figures, samples=SAMPLES, seed=seeds[0])
    return Mitigated(
        column=column, title=title, uar=uar(ours, n_classes), price=price, gap=gap, change=change
    )


def _is_of(row: Prediction, sex: str | None) -> bool:
    return sex is None or row.groups.get("sex") == sex


def mitigation_block(found: Sequence[Mitigated], scored: Sequence[Scored]) -> str:
    """Returns the table: every mitigation that was tried, what it won and what it cost."""
    rows = [
        (
            one.column,
            one.title,
            percent(one.uar),
            told(one.price),
            told(one.gap),
            told(one.change),
        )
        for one in found
    ]
    rows += [row for one in scored if misses(one) for row in _offsets(one)]
    if not rows:
        return "No column misses the bar: nothing was tried."
    head = ("column", "mitigation", "UAR %", "price, points", "women - men", "change of that")
    return table(head, rows)


def _offsets(one: Scored) -> list[tuple[str, str, str, str, str, str]]:
    arm = one.summary.arm(FEDERATED)
    (fairness,) = (
        found for found in one.summary.fairness if found.arm == FEDERATED and found.source == "answers"
    )
    return [
        (
            one.column.title,
            "offsets of log probabilities by sex, all seeds",
            percent(arm.uar.value + offsets.price.value),
            points(offsets.price.value, offsets.price.low, offsets.price.high),
            f"{100 * offsets.gap_after:.1f}, larger less smaller",
            points(offsets.change.value, offsets.change.low, offsets.change.high),
        )
        for offsets in fairness.offsets
        if offsets.attribute == "sex"
    ]
