"""Claims about the comparison of augmentations: who is left out, what is lost, and what a figure is."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sottovoce.common.errors import SottovoceError
from sottovoce.common.study import load
from sottovoce.simulations.augmentation_methods import Part, augmented
from sottovoce.simulations.augmentations import (
    KEPT,
    Row,
    Table,
    block,
    document_of,
    measure,
    rows_of,
    settings,
    verdicts,
)
from sottovoce.simulations.pages import SCENARIOS
from sottovoce.simulations.softmax import Head, adjusted, fit_head

QUICK = (
    "none",
    "re-weighting",
    "logit adjustment",
    "waveform copies",
    "mixing",
    "own Gaussians",
    "federation's Gaussians",
)


@pytest.fixture(scope="module")
def table() -> Table:
    """Returns the 24 actors with rows that hold the class, the actor's number, and noise; and a copy of each."""
    rng = np.random.default_rng(0)
    speakers = tuple(f"{number:02d}" for number in range(1, 25))
    who, what = (
        part.reshape(-1) for part in np.meshgrid(np.arange(24), np.repeat(np.arange(8), 8), indexing="ij")
    )
    rows = np.concatenate([2.0 * np.eye(8)[what] + rng.normal(size=(len(what), 8)), who[:, None]], axis=1)
    part = Part(
        rows=np.tile(rows, (2, 1)).astype(np.float32),
        labels=np.tile(what, 2).astype(np.int64),
        patients=np.tile(who, 2).astype(np.int64),
        sites=np.tile(who // 4, 2).astype(np.int64),
    )
    return Table(
        study=load(SCENARIOS / "augmentations.toml"),
        rows=part,
        copies=np.repeat([0, 1], len(who)),
        keys=np.tile(np.arange(len(who)), 2),
        speakers=speakers,
        sites=tuple(f"site-{number}" for number in range(6)),
    )


def test_a_site_keeps_a_tenth_of_what_it_lost_and_no_withheld_speaker_is_trained_on(table: Table) -> None:
    for setting, withheld, lost in settings(table, seed=0):
        assert not set(setting.training.patients) & set(withheld.patients)
        assert not set(setting.copies.patients) & set(withheld.patients)
        for site, emotion in enumerate(lost):
            for part in (setting.training, setting.copies):
                own = part.where(part.sites == site)
                n_speakers = len(set(own.patients))
                assert (own.labels == emotion).sum() == max(1, round(KEPT * 8 * n_speakers))
                assert (own.labels == lost[site - 1]).sum() == 8 * n_speakers


def test_what_a_method_adds_follows_from_training_rows_alone(table: Table) -> None:
    setting, withheld, _ = next(iter(settings(table, seed=0)))
    for method in QUICK:
        made = augmented(method, setting, 0)
        assert made.weights.sum() == pytest.approx(1.0)
        # The last column is the speaker's number: a withheld one's own would stand out.
        assert not set(made.rows[:, -1]) & {float(one) for one in withheld.patients}
    filled = augmented("mixing", setting, 0)
    counts = np.bincount(filled.labels)
    assert (counts == counts.max()).all()


def test_a_table_holds_every_method_that_was_tried(table: Table) -> None:
    setting, withheld, lost = next(iter(settings(table, seed=0)))
    found = [measure(setting, withheld, lost, methods=QUICK[:3])]
    assert [row.method for row in rows_of(found)] == list(QUICK[:3])
    text = block({"commit": "c", "study": "s", "seeds": "0", "command": "x", "folds": found})
    assert all(f"| {method} |" in text for method in QUICK[:3])


def test_more_recall_at_a_lower_mean_is_no_help() -> None:
    seeds = (1.0, 2.0, 3.0, 2.0, 2.0)

    def row(method: str, more: float, uar: float) -> Row:
        values = tuple(value + more for value in seeds)
        return Row(method=method, local=values, federated=seeds, local_uar=uar, federated_uar=50.0)

    site, federation = verdicts([row("none", 0.0, 50.0), row("rows", 10.0, 51.0), row("noise", 11.0, 49.0)])
    assert "met by rows." in site
    assert "no help: noise" in site
    assert "**missed** by all" in federation


def test_logit_adjustment_takes_what_is_common_out_of_the_biases() -> None:
    head = Head(weights=np.zeros((3, 2)), biases=np.zeros(3))
    even = adjusted(head, np.array([0, 0, 0, 1]), np.ones(4))
    np.testing.assert_allclose(even.biases, [-np.log(0.75), -np.log(0.25), 0.0])


def test_a_head_finds_the_optimum_and_does_not_see_rows_of_weight_zero() -> None:
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(40, 60)).astype(np.float32), np.arange(40) % 3
    weights = (np.arange(40) < 30).astype(np.float64)
    whole = fit_head(rows, labels, n_classes=3, decay=0.1, weights=weights)
    fewer = fit_head(rows[:30], labels[:30], n_classes=3, decay=0.1)
    np.testing.assert_allclose(whole.weights, fewer.weights, atol=2e-3)
    scores = fewer.scores(rows[:30])
    powers = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    slope = (powers - np.eye(3)[labels[:30]]).T @ rows[:30] / 30 + 0.1 * fewer.weights
    assert np.abs(slope).max() < 2e-3


def test_what_was_measured_is_found_again_and_nothing_else(tmp_path: Path) -> None:
    study_file = SCENARIOS / "augmentations.toml"
    document = {
        "study": load(study_file).digest()[:16],
        "seeds": "0, 1",
        "methods": ["none", "mixing"],
        "quick": False,
        "folds": [{"a": "figure"}],
    }
    (tmp_path / "augmentations.json").write_text(json.dumps(document))
    nowhere = tmp_path / "no corpus"

    def asked(seeds: Sequence[int], methods: Sequence[str], quick: bool) -> object:
        return document_of(study_file, nowhere, tmp_path, seeds=seeds, quick=quick, methods=methods)

    assert asked((0, 1), ("none", "mixing"), False) == document
    for seeds, methods, quick in (
        ((0,), ("none", "mixing"), False),
        ((0, 1), ("none",), False),
        ((0, 1), ("none", "mixing"), True),
    ):
        with pytest.raises(SottovoceError, match="no corpus"):
            asked(seeds, methods, quick)
