"""Claims about the comparison of augmentations: who is left out, what is lost, and what a figure is."""

import numpy as np
import pytest

from sottovoce.common.study import load
from sottovoce.simulations.augmentation_methods import Part, augmented
from sottovoce.simulations.augmentations import KEPT, Table, block, measure, rows_of, settings, verdicts
from sottovoce.simulations.pages import SCENARIOS
from sottovoce.simulations.softmax import fit_head

QUICK = ("none", "re-weighting", "waveform copies", "mixing", "own Gaussians", "federation's Gaussians")


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


def test_a_table_says_who_gained_and_who_did_not(table: Table) -> None:
    found = [measure(*one, methods=QUICK[:3]) for one in list(settings(table, seed=0))[:1]]
    rows = rows_of(found)
    assert [row.method for row in rows] == list(QUICK[:3])
    text = block({"commit": "c", "study": "s", "seeds": "0", "command": "x", "folds": found})
    assert all(f"| {row.method} |" in text for row in rows)
    best = max(row.local[0] - rows[0].local[0] for row in rows)
    assert ("**missed**" in verdicts(rows)[0]) == (best < 5.0)


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
