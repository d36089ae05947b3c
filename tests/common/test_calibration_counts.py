"""Calibration from released counts: two cells a recording, one sensitivity, noise counted against the sets."""

import math
from dataclasses import replace

import numpy as np
import pytest
from torch import Tensor, nn

from sottovoce.client.evaluate import confusion
from sottovoce.client.releases import contributions
from sottovoce.common import calibration, calibration_counts, conformal
from sottovoce.common.calibration import Counts, Floats
from sottovoce.common.calibration_counts import odds_edges, of_counts, strangeness_edges
from sottovoce.common.dataset import SiteData, StreamShape
from sottovoce.common.groups import Tables
from sottovoce.common.privacy_specs import counts_norm
from sottovoce.common.run_files import Counted, RoundFacts
from sottovoce.common.streams import stream
from sottovoce.common.study import ConfidenceCounts, combinations, loads
from sottovoce.common.summarise import summarise
from sottovoce.common.sums import counts_deviation
from sottovoce.server.report.page import Run, render
from tests.fakes.federations import STUDY
from tests.fakes.privacy import a_spec
from tests.fakes.runs import FakeRun, predictions_of, study_of, study_text

N, BINS = 4, 6
TABLES = Tables(n_classes=N, confidence_bins=BINS)


class Says(nn.Module):
    """Answers with what the features say: one number for each class."""

    streams = ("pooled",)

    def forward(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor]) -> Tensor:
        return inputs["pooled"]


def answers(seed: int, n: int, temperature: float = 1.0, n_classes: int = N) -> tuple[Floats, Counts]:
    """Labels drawn from probabilities that are then stated as if they were colder by `temperature`.

    All wrong emotions are equally likely: there the temperature of the odds is the softmax's own.
    """
    random = stream(seed, "calibration counts")
    logits = np.zeros((n, n_classes))
    logits[np.arange(n), random.integers(0, n_classes, n)] = random.uniform(0.5, 4.0, n)
    probs = np.exp(calibration.tempered(logits, 1.0))
    truth = (probs.cumsum(axis=1) < random.random((n, 1))).sum(axis=1)
    return calibration.tempered(logits * temperature, 1.0), truth.astype(np.int64)


def a_site(log_probs: Floats, truth: Counts, patients: list[str]) -> SiteData:
    n = len(truth)
    return SiteData(
        site="north",
        shapes={"pooled": StreamShape(width=N, n_frames=None)},
        keys=tuple(map(str, range(n))),
        labels=truth,
        speakers=tuple(patients),
        patients=tuple(patients),
        groups=({},) * n,
        copies=np.zeros(n, np.int64),
        trains=np.ones(n, np.bool_),
        enrols=np.zeros(n, np.bool_),
        homes=("north",) * n,
        rows=np.arange(n),
        arrays={"pooled": log_probs.astype(np.float32)},
        stored_lengths={},
    )


@pytest.fixture(autouse=True)
def _reads_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sottovoce.client.evaluate.streams_of", lambda model: model.streams)


def counted(log_probs: Floats, truth: Counts, n_bins: int = 15) -> Counts:
    tables = (
        calibration_counts.confidence_table(log_probs, truth, odds_edges(n_bins)).reshape(-1),
        calibration_counts.strangeness_table(log_probs, truth, strangeness_edges(n_bins)),
    )
    return np.concatenate(tables)


# ---- what a site counts


def test_every_recording_is_in_one_cell_of_each_table() -> None:
    log_probs, truth = answers(0, 200)
    cells = calibration_counts.cells(log_probs, truth, BINS)
    assert (cells[:, 0] < 2 * BINS).all()
    assert (cells[:, 1] >= 2 * BINS).all()
    assert (cells[:, 1] < 3 * BINS).all()
    assert (np.bincount(cells.reshape(-1), minlength=3 * BINS) == counted(log_probs, truth, BINS)).all()


def test_right_answers_are_never_strange_and_the_surest_are_in_the_last_bin() -> None:
    log_probs = np.log(
        np.array([[0.9997, 0.0001, 0.0001, 0.0001], [0.25, 0.25, 0.25, 0.25], [0.6, 0.398, 0.001, 0.001]])
    )
    truth = np.array([0, 0, 1])
    assert calibration_counts.confidence_table(log_probs, truth, odds_edges(BINS))[[0, -1], 1].tolist() == [
        1,
        1,
    ]
    assert calibration_counts.strangeness_table(log_probs, truth, strangeness_edges(BINS)).tolist()[0] == 2


def test_a_site_counts_the_same_openly_and_for_a_private_release() -> None:
    log_probs, truth = answers(1, 60)
    data = a_site(log_probs, truth, [f"p{index % 20:02d}" for index in range(60)])
    openly = confusion(Says(), data, TABLES)
    assert openly.shape == TABLES.shape == (1 + 2, N, N)  # 18 cells need two pages of 16
    private = contributions(Says(), data, TABLES, n_most=3).sum(axis=0)
    assert (private == openly.reshape(-1)).all()
    assert openly[0].sum() == 60
    assert (openly.reshape(-1)[TABLES.n_confusions :][: 3 * BINS] == counted(log_probs, truth, BINS)).all()
    assert openly.reshape(-1)[TABLES.n_confusions + 3 * BINS :].sum() == 0


def test_no_patient_moves_the_release_by_more_than_its_sensitivity_and_some_reach_it() -> None:
    log_probs, truth = answers(2, 300)
    data = a_site(log_probs, truth, [f"p{index % 40:02d}" for index in range(300)])
    assert TABLES.per_recording == 3
    rows = contributions(Says(), data, TABLES, n_most=5).astype(np.float64)
    assert np.linalg.norm(rows, axis=1).max() <= counts_norm(5, 3)
    same = a_site(np.repeat(log_probs[:1], 5, axis=0), np.repeat(truth[:1], 5), ["a"] * 5)
    (row,) = contributions(Says(), same, TABLES, n_most=5).astype(np.float64)
    assert np.linalg.norm(row) == pytest.approx(5 * math.sqrt(3))
    assert np.linalg.norm(row) > counts_norm(5, 2)  # the twin: as if calibration were for nothing


def test_a_study_names_what_it_counts_and_pays_for_it_in_noise() -> None:
    plain = loads(STUDY)
    with_it = replace(plain, evaluation=replace(plain.evaluation, calibration=ConfidenceCounts(bins=15)))
    assert with_it.tables.names[-1].startswith("how sure answers are")
    assert plain.tables.names == ("all",)
    assert with_it.digest() != plain.digest()
    private = replace(plain, privacy=a_spec(counts_noise_multiplier=2.0, counts_utterances=4))
    paid = replace(private, evaluation=with_it.evaluation)
    assert counts_deviation(paid, 1) == pytest.approx(counts_deviation(private, 1) * math.sqrt(3), rel=1e-3)


def test_a_private_study_without_counts_has_no_calibration_either() -> None:
    plain = loads(STUDY)
    asked = replace(plain, evaluation=replace(plain.evaluation, calibration=ConfidenceCounts()))
    assert combinations(asked) == combinations(plain)
    without = replace(asked, privacy=a_spec(counts_noise_multiplier=None))
    assert any(
        "evaluation.calibration: expected privacy.counts_noise" in one for one in combinations(without)
    )


def test_released_counts_of_the_last_rounds_become_figures_and_a_sentence_in_the_report() -> None:
    run = FakeRun(repetitions=1, seeds=(0,), skill=(("federated", 2.0),))
    plain = study_of(run)
    study = replace(plain, evaluation=replace(plain.evaluation, calibration=ConfidenceCounts(bins=15)))
    log_probs, truth = answers(8, 4_000, 2.0, n_classes=8)
    flat = np.zeros(study.tables.n_cells, np.int64)
    np.add.at(flat, study.tables.n_confusions + calibration_counts.cells(log_probs, truth, 15), 1)
    counts = Counted(
        deviation=0.0, tables=tuple(tuple(map(tuple, one)) for one in flat.reshape(-1, 8, 8).tolist())
    )
    rounds = [RoundFacts(seed=0, fold=fold, arm="federated", round=1, counted=counts) for fold in range(2)]
    figures = summarise(predictions_of(run), study, rounds=rounds)
    found = figures.counted_calibration
    assert found is not None
    assert found.n == 8_000
    assert found.temperature == pytest.approx(2.0, rel=0.15)
    text = study_text(run)
    page = render(Run(study=plain, study_text=text, summary=figures, facts=None, rounds=None))
    assert f"Temperature of the answers' odds <strong>{found.temperature:.2f}</strong>" in page
    assert "8000 recordings as counted" in page
    assert summarise(predictions_of(run), plain).counted_calibration is None


# ---- what follows from the counts


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_known_temperature_is_recovered_from_counts_and_through_noise(temperature: float) -> None:
    log_probs, truth = answers(3, 6_000, temperature)
    flat = counted(log_probs, truth)
    exact = of_counts(flat, n_bins=15, n_classes=N, deviation=0.0, per_patient=8)
    assert exact.temperature == pytest.approx(temperature, rel=0.12)  # odds are rounded to their bin's middle
    noise = np.rint(stream(0, "noise").normal(0.0, 15.0, len(flat))).astype(np.int64)
    noisy = of_counts(flat + noise, n_bins=15, n_classes=N, deviation=15.0, per_patient=8)
    assert noisy.temperature == pytest.approx(exact.temperature, rel=0.15)
    assert exact.error is not None
    assert exact.error_before is not None
    assert exact.error.value < 0.03 < exact.error_before.value


def test_sets_from_counts_hold_the_truth_and_noise_makes_them_larger_not_smaller() -> None:
    log_probs, truth = answers(4, 4_000)
    fresh, meant = answers(5, 4_000)
    flat = counted(log_probs, truth)
    held = []
    for deviation in (0.0, 10.0, 40.0):
        least = []
        for draw in range(20):
            noise = np.rint(stream(draw, "noise", str(deviation)).normal(0.0, deviation, len(flat)))
            found = of_counts(
                flat + noise.astype(np.int64), n_bins=15, n_classes=N, deviation=deviation, per_patient=8
            )
            least.append(found.least_probability or 0.0)
        inside = [conformal.sets_of(fresh, 1.0 - one, "least_ambiguous") for one in least]
        held.append([sets[np.arange(len(meant)), meant].mean() for sets in inside])
    assert min(held[0]) >= 0.9
    assert sum(share < 0.9 for share in held[1] + held[2]) <= 2  # of 40, at 5 % each
    assert np.mean(held[2]) >= np.mean(held[0])


def test_noise_that_is_not_counted_makes_sets_too_small() -> None:
    """The twin: the same noisy counts, taken as if they were exact."""
    log_probs, truth = answers(4, 1_000)
    scores = conformal.class_scores(log_probs, "least_ambiguous")[np.arange(1_000), truth]
    flat, broken = counted(log_probs, truth), 0
    for draw in range(40):
        noise = np.rint(stream(draw, "twin").normal(0.0, 30.0, len(flat))).astype(np.int64)
        found = of_counts(flat + noise, n_bins=15, n_classes=N, deviation=0.0, per_patient=8)
        broken += (scores <= 1.0 - (found.least_probability or 0.0)).mean() < 0.9
    assert broken > 4


def test_counts_that_drown_give_no_figure() -> None:
    log_probs, truth = answers(6, 40)
    found = of_counts(counted(log_probs, truth), n_bins=15, n_classes=N, deviation=50.0, per_patient=8)
    assert (found.temperature, found.error, found.least_probability) == (None, None, None)
    nothing = of_counts(np.full(45, -3), n_bins=15, n_classes=N, deviation=5.0, per_patient=8)
    assert nothing.n == 0.0


def test_few_patients_get_sets_of_everything() -> None:
    log_probs, truth = answers(7, 60)
    found = of_counts(counted(log_probs, truth), n_bins=15, n_classes=N, deviation=0.0, per_patient=8)
    assert found.temperature is not None
    assert found.least_probability is None  # 60 recordings may be of 8 patients, and 0.9 * 9 / 8 is above 1
