"""Fairness figures: by hand, by fairlearn, under noise; a fair model is left alone and its unfair twin is not."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_difference,
    equal_opportunity_difference,
    selection_rate,
)
from sklearn.metrics import recall_score

from sottovoce.common import fairness, fairness_of_runs, summarise
from sottovoce.common.fairness_figures import Fairness, GroupFairness
from sottovoce.common.groups import Groups, Tables
from sottovoce.common.predictions import Prediction, log_probs_of
from sottovoce.common.run_files import Counted, RoundFacts
from sottovoce.common.study import Study, loads
from tests.fakes.federations import STUDY

CLASSES = ("happy", "sad")
GROUPS = Groups(attributes={"sex": ("female", "male")}, minimum_size=4)
TABLES = Tables(n_classes=2, groups=GROUPS)
Array = npt.NDArray[np.int64]


def released(
    counts: Array, deviation: float = 0.0, *, minimum_size: int = 4, classes: tuple[str, ...] = CLASSES
) -> Fairness:
    """Figures of tables (all, female, male) as a coordinator has them."""
    counted = Counted(
        deviation=deviation, tables=tuple(tuple(map(tuple, table)) for table in counts.tolist())
    )
    tables = Tables(n_classes=len(classes), groups=GROUPS)
    return fairness.of_released(counted, tables, classes=classes, minimum_size=minimum_size, arm="federated")


def with_all(female: list[list[int]], male: list[list[int]]) -> Array:
    return np.array([np.add(female, male), female, male])


BY_HAND = with_all([[8, 2], [4, 6]], [[5, 5], [1, 19]])


def test_figures_are_those_of_a_hand() -> None:
    found = released(BY_HAND)
    female, male = found.groups
    assert female.uar == pytest.approx(0.7)
    assert male.uar == pytest.approx((0.5 + 0.95) / 2)
    all_uar = (13 / 20 + 25 / 30) / 2
    assert female.minus_all is not None
    assert female.minus_all.value == pytest.approx(0.7 - all_uar)
    assert female.classes[0].recall is not None
    assert female.classes[1].precision is not None
    assert female.classes[0].recall.value == pytest.approx(8 / 10 - 13 / 20)
    assert female.classes[1].precision.value == pytest.approx(6 / 8 - 25 / 32)
    (sex,) = found.attributes
    assert sex.uar is not None
    assert sex.uar.more == "sex male"
    assert sex.uar.gap.value == pytest.approx(0.025)
    happy = sex.classes[0]
    assert happy.demographic_parity is not None
    assert happy.equal_opportunity is not None
    assert happy.demographic_parity.gap.value == pytest.approx(12 / 20 - 6 / 30)
    assert happy.equal_opportunity.gap.value == pytest.approx(8 / 10 - 5 / 10)
    assert found.worst_group == "sex female"


def _as_rows(counts: Array) -> tuple[Array, Array, list[str]]:
    """Undoes the counting: truth, answers and sex of each recording."""
    rows = [
        (truth, answer, sex)
        for sex, table in (("sex female", counts[1]), ("sex male", counts[2]))
        for (truth, answer), n in np.ndenumerate(table)
        for _ in range(n)
    ]
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows]), [row[2] for row in rows]


def test_figures_agree_with_fairlearn_one_emotion_against_the_rest() -> None:
    random = np.random.default_rng(1)
    names = ("a", "b", "c", "d")
    counts = random.integers(1, 30, size=(3, 4, 4))
    counts[0] = counts[1] + counts[2]
    found = released(counts, classes=names)
    truth, answers, sex = _as_rows(counts)
    for index, parity in enumerate(found.attributes[0].classes):
        one = {"y_true": truth == index, "y_pred": answers == index, "sensitive_features": sex}
        assert parity.demographic_parity is not None
        assert parity.equal_opportunity is not None
        assert parity.demographic_parity.gap.value == pytest.approx(demographic_parity_difference(**one))
        assert parity.equal_opportunity.gap.value == pytest.approx(equal_opportunity_difference(**one))
        frame = MetricFrame(metrics={"recall": recall_score, "rate": selection_rate}, **one)
        for group in found.groups:
            recall = group.classes[index].recall
            assert recall is not None
            assert recall.value == pytest.approx(
                frame.by_group["recall"][group.group] - frame.overall["recall"]
            )


def _table(random: np.random.Generator, recalls: tuple[float, ...], n: int) -> Array:
    """One table: n recordings of each class, wrong answers anywhere."""
    k = len(recalls)
    chances = np.full((k, k), [[(1 - recall) / (k - 1)] for recall in recalls])
    np.fill_diagonal(chances, recalls)
    return np.array([random.multinomial(n, row) for row in chances])


def _noised(random: np.random.Generator, tables: Sequence[Array], deviation: float) -> Array:
    female, male = tables
    exact = np.stack([female + male, female, male])
    return np.asarray(exact + np.rint(deviation * random.standard_normal(exact.shape)), np.int64)


@pytest.mark.parametrize("deviation", [0.0, 4.0])
def test_a_fair_model_is_not_flagged_and_its_unfair_twin_is(deviation: float) -> None:
    random, names = np.random.default_rng(2), ("a", "b", "c", "d")
    fair, unfair = (0.7, 0.6, 0.8, 0.7), (0.35, 0.25, 0.45, 0.35)
    flagged = []
    for of_men in (fair, unfair):
        tables = [_table(random, of, 300) for of in (fair, of_men)]
        flagged.append(released(_noised(random, tables, deviation), deviation, classes=names))
    assert flagged[0].n_flagged == 0
    assert flagged[1].n_flagged > 0
    gaps = [group.minus_all for group in flagged[1].groups]
    assert [gap.verdict for gap in gaps if gap] == ["beyond", "beyond"]


def test_a_gap_in_few_recordings_is_open_and_flags_nobody() -> None:
    found = released(with_all([[3, 2], [2, 3]], [[5, 0], [0, 5]]))
    gap = found.groups[0].minus_all
    assert gap is not None
    assert gap.low is not None
    assert gap.high is not None
    assert abs(gap.value) > fairness.UAR_THRESHOLD
    assert gap.low < -fairness.UAR_THRESHOLD < gap.high
    assert (gap.verdict, found.n_flagged) == ("open", 0)


def _covered(deviation: float, told: float, seed: int) -> float:
    """How often the interval of women minus all holds the true difference; noise `told` may be another than added."""
    random, recalls = np.random.default_rng(seed), ((0.5, 0.8), (0.9, 0.7))
    true = 0.65 - (0.7 + 0.75) / 2
    hits = 0
    for _ in range(30):
        tables = [_table(random, of, 120) for of in recalls]
        gap = released(_noised(random, tables, deviation), told).groups[0].minus_all
        assert gap is not None
        assert gap.low is not None
        assert gap.high is not None
        hits += gap.low <= true <= gap.high
    return hits / 30


def test_intervals_cover_the_truth_with_its_noise_and_would_not_if_they_left_it_out() -> None:
    assert _covered(12.0, 12.0, seed=3) >= 0.9
    assert _covered(0.0, 0.0, seed=4) >= 0.9
    assert _covered(12.0, 0.0, seed=3) < 0.85  # the twin that takes noised counts for exact ones


def test_groups_are_suppressed_by_their_noised_size() -> None:
    counts = with_all([[20, 20], [20, 20]], [[500, 50], [50, 500]])
    assert not released(counts, 0.0, minimum_size=80).groups[0].suppressed
    small, large = released(counts, 10.0, minimum_size=80).groups  # 80 counted, of which noise may be 33
    assert (small.suppressed, large.suppressed) == (True, False)
    stated = {name for name, value in dataclasses.asdict(small).items() if value not in (None, (), True)}
    assert stated == {"group", "n_utterances"}
    found = released(counts, 10.0, minimum_size=80)
    assert found.attributes[0].uar is None
    assert found.worst_group == "sex male"
    nobody = released(np.zeros((3, 2, 2), np.int64), 10.0, minimum_size=1)
    assert all(group.suppressed for group in nobody.groups)
    assert nobody.collapse.verdict == "open"


def test_a_model_that_says_one_thing_has_collapsed_and_one_that_errs_evenly_has_not() -> None:
    names = ("a", "b", "c", "d")
    random = np.random.default_rng(5)
    one_thing = np.array([[[0, 100, 0, 0]] * 4] * 3)
    one_thing[0] *= 2
    evenly = np.stack([_table(random, (0.25,) * 4, 100)] * 3)
    for noise, never in ((0.0, ("a", "c", "d")), (3.0, ("a", "c", "d"))):
        noised = one_thing + np.rint(noise * random.standard_normal(one_thing.shape)).astype(np.int64)
        collapse = released(noised, noise, classes=names).collapse
        assert (collapse.verdict, collapse.most_answered) == ("collapsed", "b")
        assert set(collapse.never_answered) == set(never)
        assert collapse.in_truth == pytest.approx(4, abs=0.1)
        assert released(evenly, noise, classes=names).collapse.verdict == "spread"


# ---- of a run's answers


def the_study(**groups: object) -> Study:
    study = loads(STUDY)
    evaluation = replace(study.evaluation, groups=replace(GROUPS, **groups), bootstrap_samples=400)  # type: ignore[arg-type]
    return replace(study, evaluation=evaluation)


def answers(hard_for: str, *, n_speakers: int = 16, wrong: float = 0.3) -> list[Prediction]:
    """Speakers of both sexes at two sites, in two folds; those of `hard_for` are misheard twice as often."""
    random = np.random.default_rng(6)
    rows = []
    for speaker in range(n_speakers):
        sex = ("female", "male")[speaker % 2]
        errs = 1.5 * wrong if sex == hard_for else wrong * 0.3
        for number in range(20):
            right = random.random() > errs
            truth = number % 2
            said = truth if right else 1 - truth
            rows.append(
                Prediction(
                    seed=0,
                    fold=speaker // 2 % 2,
                    arm="federated",
                    utterance=f"{speaker}/{number}",
                    speaker=str(speaker),
                    site=f"site-{1 + speaker // 8}",
                    groups={"sex": sex},
                    truth=truth,
                    log_probs=log_probs_of([0.8, 0.2] if said == 0 else [0.2, 0.8]),
                )
            )
    return rows


def _of(found: Fairness, name: str) -> GroupFairness:
    return next(group for group in found.groups if group.group == name)


def test_answers_give_exact_figures_intervals_over_speakers_and_sites_as_groups() -> None:
    study = the_study(by_site=True)
    rows = answers("male")
    (found,) = summarise.summarise(rows, study).fairness
    assert [group.group for group in found.groups] == ["sex female", "sex male", "site-1", "site-2"]
    men = [row for row in rows if row.groups["sex"] == "male"]
    exact = np.mean([np.mean([row.predicted == k for row in men if row.truth == k]) for k in (0, 1)])
    male = _of(found, "sex male")
    assert male.uar == pytest.approx(exact)
    assert (male.n_speakers, male.n_utterances) == (8, 160)
    assert found.worst_group == "sex male"
    between = found.attributes[0].uar
    assert between is not None
    assert between.gap.low is not None
    assert (between.more, between.less) == ("sex female", "sex male")
    assert between.gap.low > 0
    assert [one.attribute for one in found.attributes] == ["sex", "site"]


def test_sites_are_no_groups_unless_the_study_says_so_and_nothing_is_said_without_groups() -> None:
    rows = answers("male")
    (found,) = summarise.summarise(rows, the_study()).fairness
    assert [one.attribute for one in found.attributes] == ["sex"]
    assert summarise.summarise(rows, loads(STUDY)).fairness == ()


def test_released_counts_are_pooled_over_folds_with_the_noise_of_all_of_them() -> None:
    def facts(fold: int, round: int, seed: int = 0) -> RoundFacts:
        counted = Counted(
            deviation=3.0, tables=tuple(tuple(map(tuple, t)) for t in (round * BY_HAND).tolist())
        )
        return RoundFacts(seed=seed, fold=fold, arm="federated", round=round, counted=counted)

    rounds = [facts(0, 10), facts(0, 20), facts(1, 20), facts(0, 20, seed=1)]
    found = fairness_of_runs.of_rounds(rounds, the_study(), GROUPS)
    assert found is not None
    assert found.groups[0].n_utterances == 2 * 20 * 20
    assert found.noise_deviation == pytest.approx(3 * math.sqrt(2))
    assert fairness_of_runs.of_rounds([], the_study(), GROUPS) is None


def test_offsets_are_of_groups_that_are_shown_and_of_two_at_least() -> None:
    rows = answers("male")
    few = [row for row in rows if row.groups["sex"] == "male"][::20]
    uneven = [row for row in rows if row.groups["sex"] == "female"] + few
    least = replace(GROUPS, minimum_size=len(few) + 1)
    assert fairness_of_runs.of_answers(uneven, the_study(), least).offsets == ()
    assert fairness_of_runs.of_answers(uneven, the_study(), replace(least, minimum_size=1)).offsets != ()


def test_offsets_mend_answers_that_lean_for_one_group_and_are_fitted_on_other_folds_alone() -> None:
    rows = []
    for row in answers("nobody", wrong=0.2):
        lean = (0.9, 0.1) if row.truth == 0 else (0.55, 0.45)  # for men, every sad answer comes out happy
        rows.append(replace(row, log_probs=log_probs_of(lean)) if row.groups["sex"] == "male" else row)
    (found,) = fairness_of_runs.of_answers(rows, the_study(), GROUPS).offsets
    assert found.gap_before > 0.4
    assert found.gap_after < 0.1
    assert found.change.high is not None
    assert found.change.high < 0
    assert found.price.value > 0
    alone = [replace(row, fold=0) for row in rows]
    assert fairness_of_runs.of_answers(alone, the_study(), GROUPS).offsets == ()
    # Other answers in a fold change what others are given, and nothing of its own.
    spoiled = [replace(row, log_probs=rows[0].log_probs) if row.fold == 1 else row for row in rows]
    own = [fairness_of_runs._Answers.of(some, the_study(), GROUPS) for some in (rows, spoiled)]
    given = [fairness_of_runs._moved(one, "sex") - one.log_probs for one in own]
    fold = own[0].fold
    np.testing.assert_allclose(given[0][fold == 1], given[1][fold == 1])
    assert not np.allclose(given[0][fold == 0], given[1][fold == 0])
