"""The page of what privacy costs is made from runs, and each row's noise from its epsilon."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sottovoce.common import predictions, run_files, summarise, summary
from sottovoce.common.errors import CorpusError, SottovoceError
from sottovoce.common.predictions import Prediction
from sottovoce.common.privacy import accountant, of_study, plan
from sottovoce.common.privacy_specs import largest_delta
from sottovoce.common.study import loads
from sottovoce.simulations.run_folder import Local, write_local
from sottovoce.simulations.utility import (
    Case,
    cases_of,
    loudness,
    page,
    private,
    ratio_of,
    read_row,
    run_case,
    setting,
    study_text,
    with_values,
)

ONE = Case(corpus="voices", n_patients=1000, n_sites=1, epsilon=3.0, n_seeds=2)
NONE = replace(ONE, epsilon=None)
ACTORS = Case(corpus="ravdess", n_patients=24, n_sites=1, epsilon=None, n_seeds=1)


def test_a_study_costs_at_most_what_its_row_is_named_after() -> None:
    study = loads(study_text(ONE))
    spec = private(study)
    spent = accountant.epsilon(plan.events(spec, study.federation.rounds), spec.delta)
    assert 0.98 * 3.0 < spent <= 3.0
    assert spec.delta < largest_delta(spec.n_patients_public)


def test_a_study_with_less_noise_than_its_row_demands_is_noticed() -> None:
    study = loads(study_text(ONE))
    spec = private(study)
    louder = replace(spec, noise_multiplier=0.98 * spec.noise_multiplier)
    assert accountant.epsilon(plan.events(louder, study.federation.rounds), spec.delta) > 3.0


def test_ten_sites_of_the_same_patients_are_louder_by_the_square_root_of_ten() -> None:
    ten = loads(study_text(replace(ONE, n_sites=10)))
    assert private(ten).n_patients_public == 100
    assert loudness(ten) / loudness(loads(study_text(ONE))) == pytest.approx(math.sqrt(10))


def test_the_louder_the_noise_the_smaller_the_steps() -> None:
    rates = [setting(noise)[1] for noise in (0.011, 0.02, 0.1, 0.5)]
    assert rates == sorted(rates, reverse=True)
    assert [setting(noise)[0] for noise in (0.01, 0.011)] == ["many", "few"]


def test_a_row_and_what_it_is_compared_with_share_patients_folds_and_seeds() -> None:
    ours, other = loads(study_text(ONE)), loads(study_text(NONE))
    assert (ours.corpora, ours.labels, ours.audio) == (other.corpora, other.labels, other.audio)
    assert replace(ours.evaluation, every_rounds=30) == other.evaluation
    assert ours.normalisation == other.normalisation
    assert ours.streams[0] == other.streams[0]


def test_rows_without_privacy_are_made_before_those_compared_with_them() -> None:
    cases = cases_of([100, 1000], n_seeds=None, ravdess=True)
    assert len({case.name for case in cases}) == len(cases) == 5 * 4
    for number, case in enumerate(cases):
        assert replace(case, epsilon=None) in cases[: number + 1]


def test_a_value_is_replaced_once_or_not_at_all() -> None:
    assert with_values("a = 1 # why\nb = 2\n", {"b": 3}) == "a = 1 # why\nb = 3\n"
    for text in ("a = 1\n", "b = 1\nb = 2\n"):
        with pytest.raises(SottovoceError, match="one line `b"):
            with_values(text, {"b": 3})


def test_every_figure_of_the_page_is_one_of_the_runs(tmp_path: Path) -> None:
    _write(tmp_path, ONE, skill=0.7)
    _write(tmp_path, NONE, skill=0.8)
    text = page([NONE, ONE], tmp_path, "a command")
    row = read_row(ONE, tmp_path)
    assert row is not None
    assert row.ratio is not None
    line = next(line for line in text.splitlines() if line.startswith("| voices | 1,000 | 1 | 3 |"))
    assert f"| {100 * row.arm.uar.value:.1f} [" in line
    assert f"| {row.ratio.value:.3f} [{row.ratio.low:.3f}, {row.ratio.high:.3f}] |" in line
    assert f"| {private(row.study).noise_multiplier:.2f} |" in line
    assert "MISSED" in text
    assert "a command" in text


def test_a_row_without_its_run_says_so(tmp_path: Path) -> None:
    _write(tmp_path, ONE, skill=0.7)
    text = page([NONE, ONE], tmp_path, "a command")
    assert "| voices | 1,000 | 1 | none | not finished |" in text
    assert "not compared" in text
    assert "bar" not in text.split("## What it says")[1].split("## How to read")[0]


def test_a_run_of_another_study_is_no_row(tmp_path: Path) -> None:
    _write(tmp_path, ONE, skill=0.7, digest="0" * 64)
    assert read_row(ONE, tmp_path) is None


def test_the_ratio_is_that_of_the_uars_and_its_interval_is_paired(tmp_path: Path) -> None:
    ours, other = _write(tmp_path, ONE, skill=0.7), _write(tmp_path, NONE, skill=0.8)
    found = ratio_of(ours, other)
    uars = [summary.read(run / "metrics.json").arms[0].uar.value for run in (ours, other)]
    assert found.value == pytest.approx(uars[0] / uars[1])
    assert found.low < found.value < found.high
    same = ratio_of(ours, ours)
    assert (same.low, same.value, same.high) == (1.0, 1.0, 1.0)


def test_runs_that_scored_other_recordings_are_not_compared(tmp_path: Path) -> None:
    ours, other = _write(tmp_path, ONE, skill=0.7), _write(tmp_path, NONE, skill=0.8, n_speakers=5)
    with pytest.raises(SottovoceError, match="same recordings"):
        ratio_of(ours, other)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    run = _write(tmp_path, ACTORS, skill=0.7)
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    assert run_case(ACTORS, tmp_path, ravdess=tmp_path / "missing", workers=1) == run
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_an_interrupted_run_goes_on_and_one_of_another_study_begins_anew(tmp_path: Path) -> None:
    run = _write(tmp_path, ACTORS, skill=0.7, ended=None)
    with pytest.raises(CorpusError):  # there is no corpus: neither gets far
        run_case(ACTORS, tmp_path, ravdess=tmp_path / "missing", workers=1)
    assert (run / "predictions.jsonl").exists()
    _write(tmp_path, ACTORS, skill=0.7, digest="0" * 64)
    with pytest.raises(CorpusError):
        run_case(ACTORS, tmp_path, ravdess=tmp_path / "missing", workers=1)
    assert not (run / "predictions.jsonl").exists()


def _write(
    runs: Path,
    case: Case,
    *,
    skill: float,
    n_speakers: int = 12,
    digest: str | None = None,
    ended: str | None = "2026-01-01T00:00:00+00:00",
) -> Path:
    """Leaves the files of a run of this case, with answers that are right with probability `skill`."""
    text, run = study_text(case), runs / case.name
    study = loads(text)
    run.mkdir(exist_ok=True)
    (run / "study.toml").write_text(text)
    stamp = of_study.stamp(study)
    random = np.random.default_rng(round(100 * skill))
    rows = [
        _prediction(seed, speaker, truth, len(study.labels.classes), right=bool(random.random() < skill))
        for seed in study.evaluation.seeds
        for speaker in range(n_speakers)
        for truth in range(len(study.labels.classes))
    ]
    predictions.write(run / "predictions.jsonl", rows)
    summary.write(run / "metrics.json", summarise.summarise(rows, study, stamp=stamp))
    facts = run_files.RunFacts(
        format=1, name=run.name, study_digest=digest or study.digest(), stamp=stamp, ended=ended
    )
    run_files.write_run(run / "run.json", facts)
    write_local(run, Local(twins=False, data={"ravdess": str(runs / "missing")}))
    return run


def _prediction(seed: int, speaker: int, truth: int, n_classes: int, *, right: bool) -> Prediction:
    answer = truth if right else (truth + 1) % n_classes
    groups: Mapping[str, str] = {}
    return Prediction(
        seed=seed,
        fold=0,
        arm="federated",
        utterance=f"{speaker}-{truth}",
        speaker=str(speaker),
        site="site-1",
        groups=groups,
        truth=truth,
        log_probs=predictions.log_probs_of([0.9 if label == answer else 0.01 for label in range(n_classes)]),
    )
