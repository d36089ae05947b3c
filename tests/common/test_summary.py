"""metrics.json: each figure from the pooled predictions, and the document held to the code."""

import dataclasses
import json
import random
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from sottovoce.common import explanation, fairness_figures, predictions, run_files, summarise, summary
from sottovoce.common.errors import RunError
from sottovoce.common.fairness_figures import Fairness
from sottovoce.common.generative.figures import MadeFigures
from sottovoce.common.predictions import LEAKS, Prediction
from sottovoce.common.summary import Summary
from tests.fakes.runs import CLASSES, FakeRun, predictions_of, rounds_of, run_facts, study_of

RUN = FakeRun(repetitions=2)
STUDY = study_of(RUN)
ROWS = predictions_of(RUN)
SUMMARY = summarise.summarise(ROWS, STUDY)


def of(arm: str, rows: list[Prediction] = ROWS) -> list[Prediction]:
    return [row for row in rows if row.arm == arm]


@pytest.mark.parametrize("arm", ["federated", "central", "local", "svm"])
def test_uar_is_over_all_folds_pooled_and_the_mean_over_seeds(arm: str) -> None:
    by_seed = [
        balanced_accuracy_score([r.truth for r in rows], [r.predicted for r in rows])
        for rows in ([row for row in of(arm) if row.seed == seed] for seed in RUN.seeds)
    ]
    found = SUMMARY.arm(arm)
    assert [figures.uar for figures in found.seeds] == pytest.approx(by_seed)
    assert found.uar.value == pytest.approx(np.mean(by_seed))
    assert found.uar_over_seeds is not None
    assert found.uar_over_seeds.deviation == pytest.approx(np.std(by_seed, ddof=1))


def test_macro_f1_and_counts_agree_with_the_rows() -> None:
    rows, arm = of("federated"), SUMMARY.arm("federated")
    f1 = [
        f1_score(
            [r.truth for r in rows if r.seed == s],
            [r.predicted for r in rows if r.seed == s],
            average="macro",
        )
        for s in RUN.seeds
    ]
    assert arm.macro_f1.value == pytest.approx(np.mean(f1))
    assert np.sum(arm.confusion) == len(rows)
    assert arm.n_utterances == len(rows) / 2
    assert sum(figures.n_answers for figures in arm.classes) == len(rows)


def test_every_interval_contains_its_value() -> None:
    estimates = [
        estimate
        for arm in SUMMARY.arms
        for estimate in (arm.uar, arm.war, *(group.uar for group in (*arm.groups, *arm.sites)))
    ]
    assert len(estimates) > 40
    for estimate in estimates:
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= estimate.value <= estimate.high


def test_differences_are_paired_and_so_narrower_than_their_arms() -> None:
    central = next(difference for difference in SUMMARY.differences if difference.minus == "central")
    ours, theirs = SUMMARY.arm("federated").uar, SUMMARY.arm("central").uar
    assert central.value == pytest.approx(ours.value - theirs.value)
    assert None not in (central.low, central.high, ours.low, ours.high)
    assert central.high - central.low < 0.9 * (ours.high - ours.low)  # type: ignore[operator]


def test_a_difference_uses_only_what_both_arms_have() -> None:
    rows = [row for row in ROWS if not (row.arm == "central" and (row.seed == 1 or row.speaker == "01"))]
    difference = summarise.summarise(rows, STUDY).differences[0]
    shared = [r for r in of("federated", rows) if r.seed == 0 and r.speaker != "01"]
    central = of("central", rows)
    expected = balanced_accuracy_score([r.truth for r in shared], [r.predicted for r in shared])
    expected -= balanced_accuracy_score([r.truth for r in central], [r.predicted for r in central])
    assert (difference.n_seeds, difference.n_utterances) == (1, len(shared))
    assert difference.value == pytest.approx(expected)


def test_the_summary_does_not_depend_on_the_order_of_predictions() -> None:
    shuffled = list(ROWS)
    random.Random(0).shuffle(shuffled)
    assert summarise.summarise(shuffled, STUDY) == SUMMARY


def test_a_leaking_arm_stands_apart_and_is_compared_with_nothing() -> None:
    assert SUMMARY.leaks is not None
    assert [arm.name for arm in SUMMARY.leaks.arms] == ["federated" + LEAKS]
    assert not any(predictions.leaks(arm.name) for arm in SUMMARY.arms)
    assert not any(predictions.leaks(d.minus) or predictions.leaks(d.arm) for d in SUMMARY.differences)
    assert SUMMARY.leaks.arms[0].uar.value > SUMMARY.arm("federated").uar.value + 0.1


def test_a_leaking_arm_under_an_honest_name_is_refused() -> None:
    rows = [dataclasses.replace(row, arm="federated") for row in of("federated" + LEAKS)]
    with pytest.raises(RunError, match="the split leaks"):
        summarise.summarise(rows, STUDY)


@pytest.mark.parametrize("rows", [[], of("federated" + LEAKS)], ids=["none", "only leaking"])
def test_a_run_without_withheld_speakers_has_no_figures(rows: list[Prediction]) -> None:
    with pytest.raises(RunError, match="expected some from speakers that nobody trained on"):
        summarise.summarise(rows, STUDY)


def test_predictions_of_other_classes_are_refused() -> None:
    with pytest.raises(RunError, match="each of the 8 classes"):
        summarise.summarise([dataclasses.replace(ROWS[0], log_probs=(0.0, -50.0))], STUDY)


def test_the_worst_speaker_comes_first() -> None:
    speakers = SUMMARY.arm("federated").speakers
    own = [row for row in of("federated") if row.speaker == speakers[0].speaker]
    by_seed = [
        balanced_accuracy_score(
            [r.truth for r in own if r.seed == s], [r.predicted for r in own if r.seed == s]
        )
        for s in RUN.seeds
    ]
    assert speakers[0].uar == pytest.approx(np.mean(by_seed)) == min(speaker.uar for speaker in speakers)
    assert len(speakers) == RUN.n_speakers


def test_groups_count_their_speakers_and_say_when_they_are_few() -> None:
    groups = {(group.group, group.value): group for group in SUMMARY.arm("federated").groups}
    assert set(groups) == {("age", "20-29"), ("age", "30-39"), ("sex", "female"), ("sex", "male")}
    assert groups["sex", "female"].n_speakers == 12
    assert not groups["sex", "female"].few_speakers
    assert groups["age", "30-39"].few_speakers
    assert all(site.few_speakers and site.n_speakers == 4 for site in SUMMARY.arm("federated").sites)


def test_a_missing_group_is_shown_as_not_stated() -> None:
    rows = [dataclasses.replace(row, groups={}) if row.speaker == "01" else row for row in of("federated")]
    arm = summarise.summarise(rows, STUDY).arm("federated")
    assert {group.value for group in arm.groups if group.group == "sex"} == {"female", "male", "not stated"}


def test_a_collapsed_model_is_named() -> None:
    never_calm = (-0.1, -40.0, *[np.log((1 - np.exp(-0.1)) / 6)] * 6)
    rows = [
        dataclasses.replace(row, log_probs=never_calm) if (row.seed, row.fold) == (1, 3) else row
        for row in of("federated")
    ]
    found = summarise.summarise(rows, STUDY)
    cell = next(cell for cell in found.arm("federated").cells if (cell.seed, cell.fold) == (1, 3))
    assert cell.never_predicted == CLASSES[1:]
    assert any("1 of 10 models never answer some class: angry (1), calm (1)" in note for note in found.notes)


def test_folds_and_classes_that_are_missing_are_noted() -> None:
    rows = [row for row in of("federated") if row.seed == 0 and row.fold < 4 and row.truth]
    notes = "\n".join(summarise.summarise(rows, STUDY).notes)
    assert "nobody was scored in fold 4 of seed 0" in notes
    assert "nobody was scored in fold 0, 1, 2, 3, 4 of seed 1" in notes
    assert "UAR is over the 7 classes that occur, of 8" in notes


def test_one_speaker_alone_has_figures_and_no_interval() -> None:
    arm = summarise.summarise([row for row in of("svm") if row.speaker == "03"], STUDY).arms[0]
    assert (arm.uar.low, arm.uar.high) == (None, None)


@pytest.mark.parametrize(
    ("age", "band"), [("34", "30-39"), ("inf", "inf"), ("-3", "not stated"), ("old", "old")]
)
def test_ages_become_decades(age: str, band: str) -> None:
    assert summarise.age_band(age) == band


# ---- the file


def test_metrics_json_is_read_back_equal(tmp_path: Path) -> None:
    summary.write(tmp_path / "metrics.json", SUMMARY)
    assert summary.read(tmp_path / "metrics.json") == SUMMARY


@pytest.mark.parametrize(
    ("damage", "claim"),
    [
        (lambda text: text[: len(text) // 2], "expected JSON"),
        (
            lambda text: text.replace('"chance_uar": 0.125', '"chance_uar": 12.5'),
            r"chance_uar: expected a number in \[0, 1\]",
        ),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema: expected one of 1"),
        (lambda text: text.replace('"headline": "federated"', '"headline": "x"'), "one of the arms"),
        (lambda text: text.replace('"calm"', '"kalm"', 1), "others"),
        (lambda text: text.replace('"chance_uar": 0.125', '"chance_uar": NaN'), "chance_uar"),
        (lambda text: "[" * 100_000, "expected JSON"),
        (lambda text: "3", "expected a table"),
    ],
)
def test_a_damaged_metrics_file_is_an_error(tmp_path: Path, damage, claim: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "metrics.json"
    summary.write(path, SUMMARY)
    path.write_text(damage(path.read_text()))
    with pytest.raises(RunError, match=claim):
        summary.read(path)


def test_a_missing_metrics_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--resume"):
        summary.read(tmp_path / "metrics.json")


def _dataclasses(module: ModuleType) -> list[type]:
    """Returns the dataclasses that a module holds, its own and those that it imports."""
    return [
        item for item in vars(module).values() if isinstance(item, type) and dataclasses.is_dataclass(item)
    ]


DOCUMENTED = [
    *_dataclasses(summary),
    *(cls for cls in _dataclasses(fairness_figures) if cls is not Fairness),
    *_dataclasses(run_files),
    *_dataclasses(explanation),
    MadeFigures,
    Prediction,
]


@pytest.mark.parametrize("cls", DOCUMENTED, ids=lambda cls: cls.__name__)
def test_the_document_lists_exactly_the_fields(cls: type) -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = re.search(rf"^### `{cls.__name__}`\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None, f"docs/metrics.md has no table of {cls.__name__}"
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table[1].splitlines()[2:]]
    fields = dataclasses.fields(cls)
    assert sorted(row[0] for row in rows) == sorted(f"`{field.name}`" for field in fields)
    optional = {f"`{field.name}`" for field in fields if field.default is None}
    assert {row[0] for row in rows if "optional" in row[1]} == optional


def test_the_document_has_no_table_of_what_does_not_exist() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### `(\w+)`", text, re.MULTILINE)) == {cls.__name__ for cls in DOCUMENTED}


# ---- run.json and rounds.jsonl


def test_run_json_is_read_back_equal_and_later_keys_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run_files.write_run(path, run_facts(RUN))
    assert run_files.read_run(path) == run_facts(RUN)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ledgers": []}))
    assert run_files.read_run(path) == run_facts(RUN)


def test_rounds_are_read_back_equal_and_a_repeated_round_counts_once(tmp_path: Path) -> None:
    rounds, path = rounds_of(RUN, rounds=6), tmp_path / "rounds.jsonl"
    again = dataclasses.replace(rounds[2], loss=0.5)
    path.write_text("".join(run_files.round_line(line) for line in [*rounds, again]))
    read = run_files.last_of_each(run_files.read_rounds(path))
    assert len(read) == len(rounds)
    assert again in read
    assert rounds[2] not in read


@pytest.mark.parametrize("damage", ['{"seed": 0', "[]", '{"seed": "0"}', "\xff", "[" * 100_000])
def test_a_damaged_line_of_rounds_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_text(run_files.round_line(rounds_of(RUN, rounds=1)[0]) + damage, encoding="latin-1")
    with pytest.raises(RunError, match=r"^rounds.jsonl line 2: "):
        list(run_files.read_rounds(path))


def test_missing_run_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--resume"):
        run_files.read_run(tmp_path / "run.json")
    with pytest.raises(RunError, match="--resume"):
        list(run_files.read_rounds(tmp_path / "rounds.jsonl"))


def test_a_folder_that_is_no_run_says_so_and_names_runs_inside(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no such folder"):
        run_files.check_is_run(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"there is no run\.json in it"):
        run_files.check_is_run(tmp_path)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").touch()
        run_files.check_is_run(tmp_path / name)
    with pytest.raises(RunError, match="name one of one, other"):
        run_files.check_is_run(tmp_path)


def test_summary_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SUMMARY.study = "another"  # type: ignore[misc]
    assert isinstance(SUMMARY, Summary)
