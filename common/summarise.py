"""From predictions to metrics.json: every figure of a run, with its interval and what it rests on.

Guarantees:
  - UAR is over all pooled out-of-fold predictions of one seed; over several seeds it is their mean.
  - A speaker who was in two folds of an arm is an error, unless the arm's name says that it leaks.
  - Arms that leak are in a list of their own and are compared with nothing.
  - Differences between arms are paired: the same recordings, seeds and draws of speakers on both sides.
  - A model that never gives some class is named, however good its accuracy.
  - The same predictions, in any order, give the same summary.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.common import calibration_counts, fairness_of_runs, folds, metrics, predictions
from sottovoce.common.calibrated import calibrated
from sottovoce.common.errors import RunError
from sottovoce.common.fairness_figures import Fairness
from sottovoce.common.metrics import Counts, Floats
from sottovoce.common.predictions import Prediction
from sottovoce.common.privacy_specs import NOT_PRIVATE
from sottovoce.common.run_files import RoundFacts
from sottovoce.common.study import NamedFolds, Normalisation, Study
from sottovoce.common.summary import (
    Arm,
    CellFigures,
    ClassFigures,
    Difference,
    Estimate,
    GroupFigures,
    Leaks,
    Protocol,
    SeedFigures,
    SpeakerFigures,
    Spread,
    Summary,
)

FEW_SPEAKERS = 8  # below it an interval is about the worst to the best speaker: no ground for a claim
MAX_VALUES_PER_GROUP = 40  # a column with more values is an identity or a number, not a group

_HEADLINES = (
    "federated",
    "federated without privacy",
    "central",
    "local",
)  # which arm a run is about, if it has it

WARNING = (
    "These arms were scored on a random split: recordings of one voice are on both sides of it. The figure "
    "says how well known voices are recognised again, not how well the model hears emotion in a new person."
)


def summarise(
    rows: Sequence[Prediction],
    study: Study,
    *,
    stamp: str = NOT_PRIVATE,
    rounds: Sequence[RoundFacts] = (),
) -> Summary:
    """Computes every figure of a run. `stamp` is what `privacy.plan.stamp` says of the study.

    `rounds` hold the counts of groups that sites released, where the study has groups.

    Raises:
        ValueError: the study is private and the stamp does not say of what kind.
        RunError: there are no predictions from withheld speakers, or they contradict each other.
    """
    if (study.privacy.mode == "none") != (stamp == NOT_PRIVATE):
        raise ValueError(f"Expected the stamp of a study of mode {study.privacy.mode!r}; came {stamp!r}.")
    predictions.check(rows)
    names = study.labels.classes
    if any(len(row.log_probs) != len(names) for row in rows):
        raise RunError(f"predictions: expected one log probability for each of the {len(names)} classes.")
    table = _Table.of(rows, n_classes=len(names))
    samples = _Samples(study.evaluation.bootstrap_samples, study.evaluation.seeds[0])
    arms = {name: _arm(table.where_arm(name), name, names, samples) for name in table.arms}
    arms = {name: _with_calibration(arm, rows, samples) for name, arm in arms.items()}
    honest = {name: arm for name, arm in arms.items() if not predictions.leaks(name)}
    leaking = tuple(arm for name, arm in arms.items() if predictions.leaks(name))
    if not honest:
        raise RunError("predictions: expected some from speakers that nobody trained on; came none.")
    headline = next((name for name in _HEADLINES if name in honest), next(iter(honest)))
    return Summary(
        schema=1,
        study=study.name,
        study_digest=study.digest(),
        privacy=stamp,
        classes=names,
        chance_uar=1.0 / honest[headline].n_classes_in_truth,
        protocol=_protocol(study),
        headline=headline,
        arms=tuple(honest.values()),
        differences=tuple(
            _difference(table, headline, other, samples) for other in honest if other != headline
        ),
        notes=tuple(_notes(study, honest)),
        leaks=Leaks(warning=WARNING, arms=leaking) if leaking else None,
        fairness=tuple(_fairness(rows, rounds, study, honest)),
        counted_calibration=calibration_counts.of_rounds(rounds, study),
    )


def age_band(age: str) -> str:
    """Returns the decade of an age in years; an age that is no number is a band already.

    >>> age_band("34"), age_band("9.5"), age_band("20-29")
    ('30-39', '0-9', '20-29')
    """
    try:
        decade = int(float(age)) // 10 * 10
    except (ValueError, OverflowError):
        return age
    return f"{decade}-{decade + 9}" if 0 <= decade < 130 else "not stated"


@dataclass(frozen=True)
class _Samples:
    """How many draws, and the seed of their public stream."""

    n: int
    seed: int


@dataclass(frozen=True, eq=False)
class _Table:
    """Predictions as columns of indices. Rows are in order of (arm, seed, utterance)."""

    n_classes: int
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    utterances: tuple[str, ...]
    speakers: tuple[str, ...]
    facts: tuple[Prediction, ...]  # one row of each utterance: what does not depend on arm and seed
    arm: Counts
    seed: Counts
    fold: Counts
    utterance: Counts
    speaker: Counts
    truth: Counts
    predicted: Counts

    @staticmethod
    def of(rows: Sequence[Prediction], *, n_classes: int) -> "_Table":
        rows = sorted(rows, key=lambda row: (row.arm, row.seed, row.utterance))
        facts = {row.utterance: row for row in rows}
        utterances, arms = tuple(sorted(facts)), _in_order({row.arm for row in rows})
        seeds, speakers = (
            tuple(sorted({row.seed for row in rows})),
            tuple(sorted({row.speaker for row in rows})),
        )

        def column(names: Sequence[object], values: Iterable[object]) -> Counts:
            index = {name: position for position, name in enumerate(names)}
            return np.array([index[value] for value in values], dtype=np.int64)

        return _Table(
            n_classes,
            arms,
            seeds,
            utterances,
            speakers,
            tuple(facts[name] for name in utterances),
            arm=column(arms, (row.arm for row in rows)),
            seed=column(seeds, (row.seed for row in rows)),
            fold=np.array([row.fold for row in rows], dtype=np.int64),
            utterance=column(utterances, (row.utterance for row in rows)),
            speaker=column(speakers, (row.speaker for row in rows)),
            truth=np.array([row.truth for row in rows], dtype=np.int64),
            predicted=np.array([row.predicted for row in rows], dtype=np.int64),
        )

    def where(self, chosen: Counts | npt.NDArray[np.bool_]) -> "_Table":
        """Returns some of the rows; the names stay, and so do the indices."""
        columns = ("arm", "seed", "fold", "utterance", "speaker", "truth", "predicted")
        return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in columns})

    def where_arm(self, name: str) -> "_Table":
        return self.where(self.arm == self.arms.index(name))

    def confusion(self) -> metrics.Confusion:
        return metrics.Confusion.of(self.truth, self.predicted, n_classes=self.n_classes)

    def by_seed_and_speaker(self, speakers: Counts) -> Counts:
        """Returns (seeds that occur, the given speakers, classes, classes)."""
        seeds = np.unique(self.seed)
        unit = np.searchsorted(seeds, self.seed) * len(speakers) + np.searchsorted(speakers, self.speaker)
        counts = metrics.counts_by(
            unit, self.truth, self.predicted, n_units=len(seeds) * len(speakers), n_classes=self.n_classes
        )
        return counts.reshape(len(seeds), len(speakers), self.n_classes, self.n_classes)


def _in_order(arms: set[str]) -> tuple[str, ...]:
    """Returns the federated arm and its twins first, then baselines by name."""
    known = [name for name in _HEADLINES if name in arms]
    return (*known, *sorted(arms.difference(known)))


def _over_seeds(statistic: metrics.Statistic) -> metrics.Statistic:
    """Returns the mean of a statistic over the seeds, for counts (draws, seeds, classes, classes)."""

    def mean(counts: Floats) -> Floats:
        return metrics.known_mean(statistic(counts), axis=1)

    return mean


def _estimates(counts: Counts, statistic: metrics.Statistic, samples: _Samples) -> list[Estimate | None]:
    """Returns one estimate for each column of a statistic; None where it is not defined."""
    values = np.atleast_1d(_over_seeds(statistic)(counts.astype(np.float64).sum(axis=1)[None])[0])
    draws = metrics.resampled(counts, _over_seeds(statistic), samples=samples.n, seed=samples.seed)
    draws = draws.reshape(samples.n, len(values))
    known = ~np.isnan(values)
    bounds = metrics.interval(draws[:, known], n_speakers=counts.shape[1])
    estimates: list[Estimate | None] = [None] * len(values)
    for position, column in enumerate(np.flatnonzero(known)):
        low, high = (None, None) if bounds is None else (float(side[position]) for side in bounds)
        estimates[column] = Estimate(value=float(values[column]), low=low, high=high)
    return estimates


def _estimate(counts: Counts, statistic: metrics.Statistic, samples: _Samples) -> Estimate:
    estimate = _estimates(counts, statistic, samples)[0]
    if estimate is None:
        raise RunError("predictions: expected at least one in every arm and group; came none.")
    return estimate


def _arm(table: _Table, name: str, classes: tuple[str, ...], samples: _Samples) -> Arm:
    counts = table.by_seed_and_speaker(np.unique(table.speaker))
    total, seeds = table.confusion(), _seeds(table)
    uar = [figures.uar for figures in seeds]
    spread = (
        Spread(deviation=float(np.std(uar, ddof=1)), smallest=min(uar), largest=max(uar))
        if len(uar) > 1
        else None
    )
    return Arm(
        name=name,
        n_utterances=len(np.unique(table.utterance)),
        n_speakers=counts.shape[1],
        n_classes_in_truth=total.n_classes_in_truth,
        uar=_estimate(counts, metrics.uars, samples),
        war=_estimate(counts, metrics.wars, samples),
        macro_f1=_estimate(counts, metrics.macro_f1s, samples),
        majority_war=total.majority_war,
        confusion=tuple(tuple(row) for row in total.counts.tolist()),
        classes=_classes(counts, total, classes, samples),
        seeds=seeds,
        cells=tuple(_cells(table, classes)),
        speakers=tuple(_speakers(table, counts)),
        groups=tuple(_groups(table, samples)),
        sites=tuple(_by_value(table, "site", [fact.site for fact in table.facts], samples)),
        uar_over_seeds=spread,
    )


def _with_calibration(arm: Arm, rows: Sequence[Prediction], samples: _Samples) -> Arm:
    if predictions.leaks(arm.name):  # known voices on both sides: their confidence says nothing of new ones
        return arm
    own = [row for row in rows if row.arm == arm.name]
    return dataclasses.replace(arm, calibration=calibrated(own, samples=samples.n, seed=samples.seed))


def _classes(
    counts: Counts, total: metrics.Confusion, names: tuple[str, ...], samples: _Samples
) -> tuple[ClassFigures, ...]:
    recalls = _estimates(counts, metrics.recalls, samples)
    precisions = metrics.precisions(total.counts.astype(np.float64))
    return tuple(
        ClassFigures(
            name=name,
            n_truth=int(total.counts[index].sum()),
            n_answers=int(total.counts[:, index].sum()),
            recall=recalls[index],
            precision=None if np.isnan(precisions[index]) else float(precisions[index]),
        )
        for index, name in enumerate(names)
    )


def _seeds(table: _Table) -> tuple[SeedFigures, ...]:
    figures = []
    for index in np.unique(table.seed):
        pooled = table.where(table.seed == index).confusion()
        figures.append(
            SeedFigures(seed=table.seeds[index], uar=pooled.uar, war=pooled.war, macro_f1=pooled.macro_f1)
        )
    return tuple(figures)


def _cells(table: _Table, classes: tuple[str, ...]) -> Iterable[CellFigures]:
    for index in np.unique(table.seed):
        for fold in np.unique(table.fold[table.seed == index]):
            cell = table.where((table.seed == index) & (table.fold == fold))
            counts = cell.confusion()
            yield CellFigures(
                seed=table.seeds[index],
                fold=int(fold),
                n_speakers=len(np.unique(cell.speaker)),
                n_utterances=len(cell.utterance),
                uar=counts.uar,
                never_predicted=tuple(classes[missed] for missed in counts.never_predicted),
            )


def _speakers(table: _Table, counts: Counts) -> Iterable[SpeakerFigures]:
    """Yields every speaker, the worst first."""
    uar = metrics.known_mean(metrics.uars(counts.astype(np.float64)), axis=0)
    present = np.unique(table.speaker)
    for position in np.lexsort((present, uar)):
        own = table.utterance[table.speaker == present[position]]
        yield SpeakerFigures(
            speaker=table.speakers[present[position]],
            site=table.facts[own[0]].site,
            n_utterances=len(np.unique(own)),
            uar=float(uar[position]),
        )


def _groups(table: _Table, samples: _Samples) -> Iterable[GroupFigures]:
    for key in sorted({key for fact in table.facts for key in fact.groups}):
        band: Callable[[str], str] = age_band if key == "age" else str
        values = [band(fact.groups[key]) if fact.groups.get(key) else "not stated" for fact in table.facts]
        if len(set(values)) <= MAX_VALUES_PER_GROUP:
            yield from _by_value(table, key, values, samples)


def _by_value(table: _Table, group: str, values: Sequence[str], samples: _Samples) -> Iterable[GroupFigures]:
    """Yields the figures of each value of a group; `values` has one entry per utterance of the table."""
    names = sorted(set(values))
    position = {name: index for index, name in enumerate(names)}
    of_row = np.array([position[value] for value in values], dtype=np.int64)[table.utterance]
    for index in np.unique(of_row):
        members = table.where(of_row == index)
        speakers = np.unique(members.speaker)
        yield GroupFigures(
            group=group,
            value=names[index],
            n_speakers=len(speakers),
            n_utterances=len(np.unique(members.utterance)),
            few_speakers=len(speakers) < FEW_SPEAKERS,
            uar=_estimate(members.by_seed_and_speaker(speakers), metrics.uars, samples),
        )


def _difference(table: _Table, arm: str, minus: str, samples: _Samples) -> Difference:
    ours, theirs = table.where_arm(arm), table.where_arm(minus)
    keys = [side.seed * len(table.utterances) + side.utterance for side in (ours, theirs)]
    both = np.intersect1d(keys[0], keys[1])
    if not len(both):
        raise RunError(
            f"predictions: expected {arm!r} and {minus!r} to share recordings and seeds; they share none."
        )
    ours, theirs = ours.where(np.isin(keys[0], both)), theirs.where(np.isin(keys[1], both))
    speakers = np.unique(ours.speaker)
    counts = np.concatenate([ours.by_seed_and_speaker(speakers), theirs.by_seed_and_speaker(speakers)])
    n_seeds = len(counts) // 2

    def gap(stack: Floats) -> Floats:
        uars = metrics.uars(stack)
        return metrics.known_mean(uars[:, :n_seeds] - uars[:, n_seeds:], axis=1)

    draws = metrics.resampled(counts, gap, samples=samples.n, seed=samples.seed)
    bounds = metrics.interval(draws, n_speakers=len(speakers))
    low, high = (None, None) if bounds is None else (float(side) for side in bounds)
    return Difference(
        arm=arm,
        minus=minus,
        value=float(gap(counts.astype(np.float64).sum(axis=1)[None])[0]),
        n_utterances=len(np.unique(ours.utterance)),
        n_seeds=n_seeds,
        low=low,
        high=high,
    )


def _protocol(study: Study) -> Protocol:
    spec = study.evaluation.folds
    return Protocol(
        folds=spec.name if isinstance(spec, NamedFolds) else spec.kind,
        k=folds.n_folds(spec),
        seeds=study.evaluation.seeds,
        normalisation=study.normalisation.scheme,
        transductive=study.normalisation.scheme == "speaker",
        enrolment=_enrolment(study.normalisation),
        interval_level=metrics.LEVEL,
        interval_samples=study.evaluation.bootstrap_samples,
    )


def _enrolment(spec: Normalisation) -> str | None:
    """Returns what is heard of a new speaker first, in words; None where nothing is declared."""
    rule = spec.enrols
    if rule is None:
        return None
    return f"up to {rule.clips} recordings in a {' or '.join(rule.emotions)} voice"


def _fairness(
    rows: Sequence[Prediction], rounds: Sequence[RoundFacts], study: Study, names: Iterable[str]
) -> Iterable[Fairness]:
    """Yields what is known of the study's groups: from each arm's answers, and from what sites released."""
    groups = study.evaluation.groups
    if groups is None:
        return
    for name in names:
        yield fairness_of_runs.of_answers([row for row in rows if row.arm == name], study, groups)
    if (released := fairness_of_runs.of_rounds(rounds, study, groups)) is not None:
        yield released


def _notes(study: Study, arms: dict[str, Arm]) -> Iterable[str]:
    """Yields what a reader of a figure must not miss."""
    k = folds.n_folds(study.evaluation.folds)
    asked = study.evaluation.only_folds or tuple(range(k))
    if len(asked) < k:
        yield f"Only {len(asked)} of {k} folds were asked for: the other speakers were never scored."
    for name, arm in arms.items():
        yield from _collapses(name, arm)
        for seed in study.evaluation.seeds:
            scored = {cell.fold for cell in arm.cells if cell.seed == seed}
            if missing := ", ".join(str(fold) for fold in asked if fold not in scored):
                yield f"{name}: nobody was scored in fold {missing} of seed {seed}."
        if arm.n_speakers < FEW_SPEAKERS:
            who = "one speaker is" if arm.n_speakers == 1 else f"{arm.n_speakers} speakers are"
            yield f"{name}: {who} too few for a claim about others."
        if arm.n_classes_in_truth < len(study.labels.classes):
            of = len(study.labels.classes)
            yield f"{name}: UAR is over the {arm.n_classes_in_truth} classes that occur, of {of}."


def _collapses(name: str, arm: Arm) -> Iterable[str]:
    collapsed = [cell for cell in arm.cells if cell.never_predicted]
    if collapsed:
        missed = Counter(label for cell in collapsed for label in cell.never_predicted)
        times = ", ".join(f"{label} ({count})" for label, count in sorted(missed.items()))
        yield f"{name}: {len(collapsed)} of {len(arm.cells)} models never answer some class: {times}."
