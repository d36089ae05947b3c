"""The results page is made from runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce.common import predictions
from sottovoce.common.privacy import accountant, plan
from sottovoce.common.run_files import read_run
from sottovoce.common.study import loads
from sottovoce.common.summarise import summarise
from sottovoce.common.summary import read as read_summary
from sottovoce.simulations import results_private
from sottovoce.simulations.pages import SCENARIOS
from sottovoce.simulations.results import LEFT_OUT, page
from sottovoce.simulations.results_columns import groups_of, merged
from sottovoce.simulations.results_page import Scored
from sottovoce.simulations.results_private import CASES, WAYS, Case, noise_of, private_block
from sottovoce.simulations.results_studies import COLUMNS
from sottovoce.simulations.search import Choice, Found
from sottovoce.simulations.skew import Difference
from sottovoce.simulations.utility import private
from tests.fakes.runs import FakeRun, predictions_of, study_text, write_run

RUN = FakeRun(
    seeds=(0,),
    repetitions=1,
    skill=(("federated", 2.0), ("central", 2.1), ("svm", 1.8), ("svm (random split, leaks)", 3.0)),
)
GROUPS = 'groups = { attributes = { sex = ["female", "male"] } }\n'


def _text(run: FakeRun) -> str:
    return study_text(run).replace("bootstrap_samples = 500", "bootstrap_samples = 100")


def _part(folder: Path, folds: tuple[int, ...]) -> Path:
    """Writes what a run leaves that was asked for some folds."""
    write_run(folder, RUN)
    text = _text(RUN) + f"only_folds = {list(folds)}\n" + GROUPS
    (folder / "study.toml").write_text(text)
    mine = [row for row in predictions_of(RUN) if row.fold in folds]
    predictions.write(folder / "predictions.jsonl", mine)
    return folder


def _found() -> Found:
    column = COLUMNS[0]
    settings = [column.grid[turn] for turn in (0, 1, 0, 1, 1)]
    choices = tuple(
        Choice(fold=fold, setting=setting, inner_uar=(0.5, 0.123)) for fold, setting in enumerate(settings)
    )
    return Found(column=column.title, digest="0", compared=column.grid, choices=choices)


def test_each_fold_is_in_the_study_of_the_setting_that_was_chosen_for_it() -> None:
    groups = groups_of(_found())
    assert groups == {COLUMNS[0].grid[0]: (0, 2), COLUMNS[0].grid[1]: (1, 3, 4)}


def test_parts_of_a_run_make_the_summary_of_the_whole(tmp_path: Path) -> None:
    parts = [_part(tmp_path / "a", (0, 2)), _part(tmp_path / "b", (1, 3, 4))]
    whole = loads(_text(RUN) + "only_folds = [0, 1, 2, 3, 4]\n" + GROUPS)
    assert merged(parts) == summarise(predictions_of(RUN), whole)


def test_every_figure_of_the_page_is_one_of_the_runs(tmp_path: Path) -> None:
    parts = [_part(tmp_path / "a", (0, 2)), _part(tmp_path / "b", (1, 3, 4))]
    summary = merged(parts)
    scored = [Scored(column=COLUMNS[0], found=_found(), summary=summary)]
    text = page(
        scored, parts, {"some": summary}, mitigation="", private=[], more=["## More"], command="a command"
    )
    for name in ("central", "federated"):
        arm = summary.arm(name)
        assert f"{100 * arm.uar.value:.1f} [{100 * arm.uar.low:.1f}" in text  # type: ignore[operator]
        assert arm.calibration is not None
        assert f"{100 * arm.calibration.error.value:.1f}" in text
    between = summary.fairness[0].attributes[0].uar
    assert between is not None
    assert f"{100 * between.gap.value:+.1f} [" in text
    assert "DO NOT QUOTE" in text
    assert "## More" in text
    assert "50.0" in text
    assert f"{len(read_run(parts[0] / 'run.json').cells) * 2} cells" in text
    assert "missed" in text  # a made-up arm is far below the bar
    assert text.count(LEFT_OUT) == 1  # the private rows; what is missing is said where it would stand
    assert (
        page(scored, parts, {}, mitigation="", private=[], more=[], command="a command").count(LEFT_OUT) == 2
    )


@pytest.mark.parametrize("case", [CASES[1], CASES[4]], ids=lambda case: case.name)
def test_a_private_row_costs_at_most_the_epsilon_it_is_named_after(case: Case) -> None:
    study = loads((SCENARIOS / f"{WAYS[case.unit].scenario}.toml").read_text(encoding="utf-8"))
    noise = noise_of(case, study)
    spec = replace(private(study), noise_multiplier=noise)
    steps = spec.steps_in(study.federation.rounds)
    if case.unit == "patient":
        event, delta = plan.training_event(spec, steps), spec.delta
    else:
        event = results_private.record_event(replace(study, privacy=spec))
        delta = results_private.RECORD_DELTA
    assert 0.97 * case.epsilon < accountant.epsilon([event], delta) <= case.epsilon


def test_a_private_row_says_whether_it_reaches_its_bar(tmp_path: Path) -> None:
    arm = read_summary(write_run(tmp_path, RUN) / "metrics.json").arm("federated")
    case = CASES[0]
    study = loads((SCENARIOS / f"{WAYS[case.unit].scenario}.toml").read_text(encoding="utf-8"))
    loss = Difference(value=-0.1, low=-0.2, high=-0.05)
    row = results_private.PrivateRow(
        case=case, study=study, uar=arm.uar, without=arm.uar, loss=loss, stamp="a stamp"
    )
    poor = replace(row, uar=replace(arm.uar, value=0.1))
    assert "44: met" in private_block([row], {})
    assert "44: met" in private_block([row], {"transductive": 0.99})  # a patient's bar is a UAR
    assert "44: missed" in private_block([poor], {})
    recordings = replace(row, case=CASES[3])
    assert "-1.5: missed" in private_block([recordings], {})
    close = replace(recordings, loss=replace(loss, value=-0.01))
    assert "-1.5: met" in private_block([close], {"enrolment": arm.uar.value + 0.01})
    assert "-1.5: missed" in private_block([close], {"enrolment": arm.uar.value + 0.02})


def test_a_federation_of_one_site_is_the_pooled_arm_at_the_sites_of_the_federated_one(tmp_path: Path) -> None:
    federated = replace(RUN, skill=(("federated", 2.0),))
    for name, run in (("a", federated), ("b", replace(federated, n_sites=1))):
        write_run(tmp_path / name, run)
        text = _text(run) + "only_folds = [0, 1, 2, 3, 4]\n" + GROUPS
        (tmp_path / name / "study.toml").write_text(text)
    summary = merged([tmp_path / "a", tmp_path / "b"])
    assert [arm.name for arm in summary.arms] == ["federated", "central"]
    assert len(summary.arm("central").sites) == RUN.n_sites
