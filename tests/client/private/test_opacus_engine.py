"""Claims about the second engine: Opacus finds the same rows, and leaves the model as it was."""

import pytest
import torch

from sottovoce.client.private import matrix
from sottovoce.client.private.bookkeeping import BookKeeping
from sottovoce.client.private.lowrank import add_low_rank
from sottovoce.client.private.opacus_engine import OpacusHooks
from sottovoce.common import models
from sottovoce.common.models.losses import per_example
from tests.common.test_models import MODELS, N_CLASSES, WIDTHS, T, patient
from tests.fakes.patients import batch_of

BATCH, PATIENTS = batch_of(patient(0, (T,)), patient(1, (5, 11)), patient(2, (1, 9, 2)), shuffle=1)


@pytest.mark.parametrize("name", MODELS)
def test_opacus_finds_the_same_rows(name: str) -> None:
    model = models.build(MODELS[name], WIDTHS, N_CLASSES, seed=0)
    wanted = matrix(BookKeeping(model, per_example), BATCH, PATIENTS, 3)
    engine = OpacusHooks(model, per_example, max_floats=2 * wanted.shape[1])
    for _ in range(2):  # nothing of the first step is in the second
        found = matrix(engine, BATCH, PATIENTS, 3)
        assert float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) < 1e-5


def test_opacus_leaves_the_model_as_it_was() -> None:
    model = models.build(MODELS["fusion decision"], WIDTHS, N_CLASSES, seed=0).train()
    keys = list(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    matrix(OpacusHooks(model, per_example), BATCH, PATIENTS, 3)
    assert all(bool((p.grad == 7.0).all()) for p in model.parameters() if p.grad is not None)
    assert list(model.state_dict()) == keys
    assert model.training
    assert all(module.training for module in model.modules())


def test_opacus_refuses_low_rank_adapters() -> None:
    model = models.build(MODELS["mlp"], WIDTHS, N_CLASSES, seed=0)
    add_low_rank(model, rank=1, seed=0)
    with pytest.raises(ValueError, match="low-rank"):
        OpacusHooks(model, per_example)
