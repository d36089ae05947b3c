"""Fairness of a run: of each arm's answers, in simulations, and of the counts that sites released.

Guarantees:
  - Every group of `evaluation.groups` is looked at, and each site where the study says `by_site`; sites only here, in
    a simulation on public corpora.
  - What is said of released counts is computed from them and from public figures alone.
  - Offsets for a fold are fitted on other folds' speakers alone, from tables of counts that a coordinator could have.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sottovoce.common import fairness, group_weights, metrics
from sottovoce.common.fairness_figures import Fairness, Gap, Offsets
from sottovoce.common.groups import SITE, Groups
from sottovoce.common.metrics import Counts, Floats, known_mean
from sottovoce.common.predictions import Prediction
from sottovoce.common.run_files import Counted, RoundFacts
from sottovoce.common.study import Study

FEDERATED = "federated"
MOST_SITES = 40  # a federation of a thousand sites has no group worth the name in any of them
MOST_OFFSET = math.log(4)  # a table tells how often, and not how surely: without a bound all would turn over


def of_answers(rows: Sequence[Prediction], study: Study, groups: Groups) -> Fairness:
    """Returns the figures of one arm's predictions: exact, intervals over speakers."""
    answers = _Answers.of(rows, study, groups)
    found = fairness.of_speakers(
        answers.counts(None),
        [(name, answers.counts(index)) for index, name in enumerate(answers.names)],
        answers.attributes,
        classes=study.labels.classes,
        minimum_size=groups.minimum_size,
        arm=rows[0].arm,
        samples=study.evaluation.bootstrap_samples,
        seed=study.evaluation.seeds[0],
    )
    return replace(found, offsets=tuple(_offsets(answers, study, groups.minimum_size)))


def of_rounds(rounds: Sequence[RoundFacts], study: Study, groups: Groups) -> Fairness | None:
    """Returns the figures of what sites released (`released`); None where nothing was."""
    pooled = released(rounds, study)
    if pooled is None:
        return None
    return fairness.of_released(
        pooled, study.tables, classes=study.labels.classes, minimum_size=groups.minimum_size, arm=FEDERATED
    )


def released(rounds: Sequence[RoundFacts], study: Study) -> Counted | None:
    """Returns what sites released after the last round of each fold, of the first seed, in one sum; None where nothing

    was. Folds have different patients, and their counts add up, noise and all. Counts of who was trained on, which
    steer a group-robust study, are not among them.
    """
    first = study.evaluation.seeds[0]
    last = {
        facts.fold: facts.counted
        for facts in sorted(rounds, key=lambda facts: facts.round)
        if facts.arm == FEDERATED
        and facts.seed == first
        and facts.counted is not None
        and not group_weights.steers(study, facts.round)
    }
    if not last:
        return None
    tables = np.sum([counted.tables for counted in last.values()], axis=0)
    return Counted(
        deviation=math.sqrt(sum(counted.deviation**2 for counted in last.values())),
        tables=tuple(tuple(map(tuple, table)) for table in tables.tolist()),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answers:
    """One arm's predictions as columns; `member` is (rows, groups)."""

    names: tuple[str, ...]
    attributes: dict[str, tuple[int, ...]]
    n_seeds: int
    n_speakers: int
    n_classes: int
    unit: Counts  # seed and speaker
    fold: Counts
    truth: Counts
    predicted: Counts
    log_probs: Floats
    member: npt.NDArray[np.bool_]

    @staticmethod
    def of(rows: Sequence[Prediction], study: Study, groups: Groups) -> "_Answers":
        rows = sorted(rows, key=lambda row: (row.seed, row.utterance))
        tables, sites = study.tables, sorted({row.site for row in rows}) if groups.by_site else []
        sites = sites if len(sites) <= MOST_SITES else []
        seeds, speakers = sorted({row.seed for row in rows}), sorted({row.speaker for row in rows})
        n_tables = len(tables.all) - 1
        member = np.zeros((len(rows), n_tables + len(sites)), np.bool_)
        each, within = tables.memberships(row.groups for row in rows)
        member[each[within > 0], within[within > 0] - 1] = True
        for column, site in enumerate(sites, start=n_tables):
            member[:, column] = [row.site == site for row in rows]
        attributes = {name: tables.of_attribute(name) for name in tables.attributes}
        if len(sites) > 1:
            attributes[SITE] = tuple(range(n_tables + 1, n_tables + 1 + len(sites)))
        place = {speaker: index for index, speaker in enumerate(speakers)}
        return _Answers(
            names=(
                *(table.name for table in tables.all[1:]),
                *(site if site.startswith(SITE) else f"{SITE} {site}" for site in sites),
            ),
            attributes=attributes,
            n_seeds=len(seeds),
            n_speakers=len(speakers),
            n_classes=len(study.labels.classes),
            unit=np.array([seeds.index(row.seed) * len(speakers) + place[row.speaker] for row in rows]),
            fold=np.array([row.fold for row in rows]),
            truth=np.array([row.truth for row in rows]),
            predicted=np.array([row.predicted for row in rows]),
            log_probs=np.array([row.log_probs for row in rows]),
            member=member,
        )

    def counts(self, group: int | None, answers: Counts | None = None) -> Counts:
        """Returns (seeds, speakers, truth, answer) of a group, or of all; with other answers, if they are given."""
        some = np.ones(len(self.unit), np.bool_) if group is None else self.member[:, group]
        predicted = self.predicted if answers is None else answers
        counts = metrics.counts_by(
            self.unit[some],
            self.truth[some],
            predicted[some],
            n_units=self.n_seeds * self.n_speakers,
            n_classes=self.n_classes,
        )
        return counts.reshape(self.n_seeds, self.n_speakers, self.n_classes, self.n_classes)


def offsets_of(table: Floats) -> Floats:
    """Returns what to add to a group's log probabilities, by class, so that none is answered too often or too rarely.

    If every emotion were as frequent as any other, a fair share of the answers would be one in so many: the offset is
    the logarithm of that over the share that the table shows. Emotions that do not occur are left alone.

    >>> offsets_of(np.array([[8.0, 0.0], [4.0, 4.0]])).round(3).tolist()
    [-0.405, 0.693]
    """
    rows = table.sum(axis=1, keepdims=True)
    occurs = rows[:, 0] > 0
    shares = known_mean(np.divide(table, rows, out=np.full(table.shape, np.nan), where=rows > 0).T)
    fair = 1.0 / max(1, int(occurs.sum()))
    with np.errstate(divide="ignore"):
        offsets = np.log(fair / np.nan_to_num(shares))
    return np.where(occurs, np.clip(offsets, -MOST_OFFSET, MOST_OFFSET), 0.0)


def _offsets(answers: _Answers, study: Study, minimum_size: int) -> list[Offsets]:
    """Returns, for each attribute, what offsets would do; none where there are fewer than two folds.

    A gap is between groups that are large enough to be shown; where there are not two, there is none to narrow.
    """
    if len(np.unique(answers.fold)) < 2:
        return []
    shown = {name: _shown(answers, name, minimum_size) for name in answers.attributes if name != SITE}
    return [_with_offsets(answers, study, name, own) for name, own in shown.items() if len(own) > 1]


def _shown(answers: _Answers, attribute: str, minimum_size: int) -> list[int]:
    """Returns the columns of an attribute's groups that have recordings enough."""
    columns = (index - 1 for index in answers.attributes[attribute])
    return [
        column
        for column in columns
        if answers.member[:, column].sum() >= max(1, minimum_size) * answers.n_seeds
    ]


def _moved(answers: _Answers, attribute: str) -> Floats:
    """Returns log probabilities with the offsets of each recording's group, fitted on the other folds."""
    moved = answers.log_probs.copy()
    for fold in np.unique(answers.fold):
        here = answers.fold == fold
        for column in (index - 1 for index in answers.attributes[attribute]):
            elsewhere = ~here & answers.member[:, column]
            table = metrics.Confusion.of(
                answers.truth[elsewhere], answers.predicted[elsewhere], n_classes=answers.n_classes
            ).counts.astype(np.float64)
            moved[here & answers.member[:, column]] += offsets_of(table)
    return moved


def _with_offsets(answers: _Answers, study: Study, attribute: str, columns: Sequence[int]) -> Offsets:
    after = _moved(answers, attribute).argmax(axis=1)
    stack = np.concatenate(
        [answers.counts(group, said) for said in (None, after) for group in (None, *columns)]
    )
    n_tables = 1 + len(columns)

    def uars(counts: Floats) -> Floats:  # (draws, before and after, tables)
        shape = (len(counts), 2, n_tables, answers.n_seeds, *counts.shape[2:])
        return known_mean(metrics.uars(counts.reshape(shape)), axis=-1)

    values = uars(stack.astype(np.float64).sum(axis=1)[None])
    evaluation = study.evaluation
    draws = metrics.resampled(stack, uars, samples=evaluation.bootstrap_samples, seed=evaluation.seeds[0])
    gaps, gap_draws = _spread(values[:, :, 1:]), _spread(draws[:, :, 1:])
    return Offsets(
        attribute=attribute,
        gap_before=float(gaps[0, 0]),
        gap_after=float(gaps[0, 1]),
        change=_gap(gaps[:, 1] - gaps[:, 0], gap_draws[:, 1] - gap_draws[:, 0], answers),
        price=_gap(values[:, 1, 0] - values[:, 0, 0], draws[:, 1, 0] - draws[:, 0, 0], answers),
    )


def _spread(uars: Floats) -> Floats:
    """Returns the largest difference between groups (...), over those that are known."""
    spread: Floats = np.nanmax(uars, axis=-1) - np.nanmin(uars, axis=-1)
    return spread


def _gap(value: Floats, draws: Floats, answers: _Answers) -> Gap:
    bounds = metrics.interval(draws, n_speakers=answers.n_speakers)
    low, high = (None, None) if bounds is None else (float(bounds[0]), float(bounds[1]))
    return Gap(value=float(value[0]), low=low, high=high)
