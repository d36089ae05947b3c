"""Claims about scoring: originals only, every row alone, counts that add up."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce.client.evaluate import confusion, log_probabilities
from sottovoce.common import models
from sottovoce.common.dataset import Example, SiteData, StreamShape
from sottovoce.common.groups import Tables
from sottovoce.common.model_specs import Cnn

N_CLASSES = 4
TABLES = Tables(n_classes=N_CLASSES)
MODEL = Cnn(kind="cnn", stream="mel", channels=(6,), dropout=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SiteData:
    rng = np.random.default_rng(0)
    examples = (
        Example(
            key=f"{i}",
            label=i % N_CLASSES,
            speaker="s",
            patient="p",
            groups={},
            features={"mel": rng.standard_normal((5 + i % 9, 3)).astype(np.float32)},
            copy=int(i >= 150),
        )
        for i in range(160)
    )
    folder: Path = tmp_path_factory.mktemp("site") / "data"
    shapes = {"mel": StreamShape(width=3, n_frames=14)}
    return SiteData.write(folder, site="north", shapes=shapes, examples=examples)


def test_log_probabilities_are_one_row_an_example(data: SiteData) -> None:
    model = models.build(MODEL, data.widths, N_CLASSES, seed=0)
    found = log_probabilities(model, data.originals())
    assert found.shape == (150, N_CLASSES)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-5)


def test_a_row_does_not_depend_on_what_is_scored_with_it(data: SiteData) -> None:
    model = models.build(MODEL, data.widths, N_CLASSES, seed=0)
    whole = log_probabilities(model, data.originals())
    few = log_probabilities(model, data.select(np.array([140, 3])))
    np.testing.assert_allclose(few, whole[[140, 3]], atol=1e-5)


def test_an_augmented_copy_is_never_scored(data: SiteData) -> None:
    with pytest.raises(ValueError, match="augmented copies"):
        log_probabilities(models.build(MODEL, data.widths, N_CLASSES, seed=0), data)


def test_confusion_counts_truth_against_prediction(data: SiteData) -> None:
    model, scored = models.build(MODEL, data.widths, N_CLASSES, seed=0), data.originals()
    (counts,) = confusion(model, scored, TABLES)
    predicted = log_probabilities(model, scored).argmax(axis=1)
    assert counts.sum() == 150
    assert counts[2, 1] == ((scored.labels == 2) & (predicted == 1)).sum()
    assert confusion(model, scored.select(np.zeros(150, bool)), TABLES).sum() == 0


def test_the_models_mode_is_put_back(data: SiteData) -> None:
    model = models.build(MODEL, data.widths, N_CLASSES, seed=0)
    for training in (True, False):
        model.train(training)
        confusion(model, data.originals(), TABLES)
        assert model.training is training
    assert not torch.is_inference(next(model.parameters()))
