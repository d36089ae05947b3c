"""Claims about low-rank adapters: the same model before and after, and rows equal to the loop in between."""

import pytest
import torch
from torch import nn

from sottovoce.client.private import matrix
from sottovoce.client.private.bookkeeping import BookKeeping
from sottovoce.client.private.lowrank import LowRank, add_low_rank, merge_low_rank
from sottovoce.common import models
from sottovoce.common.models.losses import per_example
from tests.common.test_models import MODELS, N_CLASSES, WIDTHS, T, patient
from tests.fakes.patients import batch_of, one_by_one, worst_tensor

ADAPTABLE = [name for name in MODELS if name not in ("linear", "whisper_lora")]  # no body; adapters already
BATCH, PATIENTS = batch_of(patient(0, (T,)), patient(1, (5, 11)), patient(2, (1, 9, 2)), shuffle=1)


def adapted(name: str, *, moved: bool, seed: int = 0) -> nn.Module:
    model = models.build(MODELS[name], WIDTHS, N_CLASSES, seed=0)
    add_low_rank(model, rank=2, seed=seed)
    if moved:
        coins = torch.Generator().manual_seed(1)
        for module in model.modules():
            if isinstance(module, LowRank):
                module.up.data.normal_(std=0.3, generator=coins)
    return model


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("name", ADAPTABLE)
def test_rows_of_adapters_equal_a_float64_loop(name: str, moved: bool) -> None:
    model = adapted(name, moved=moved)
    wanted = one_by_one(model, per_example, BATCH, PATIENTS, 3)
    found = matrix(BookKeeping(model, per_example), BATCH, PATIENTS, 3)
    assert worst_tensor(found, wanted, list(model.parameters())) < 1e-5


@pytest.mark.parametrize("name", ADAPTABLE)
def test_adapters_change_no_bit_of_a_weight_at_first(name: str) -> None:
    plain = models.build(MODELS[name], WIDTHS, N_CLASSES, seed=0)
    model = adapted(name, moved=False)
    with torch.no_grad():
        for path, module in plain.named_modules():
            for own in vars(module).get("_parameters", {}):
                assert torch.equal(getattr(model.get_submodule(path), own), getattr(module, own))
        # torch takes another way through nn.RNN when its weights are no parameters: one rounding apart
        torch.testing.assert_close(model(BATCH.inputs, BATCH.lengths), plain(BATCH.inputs, BATCH.lengths))


@pytest.mark.parametrize("name", ADAPTABLE)
def test_merging_leaves_a_plain_model_with_the_trained_weights(name: str) -> None:
    plain = models.build(MODELS[name], WIDTHS, N_CLASSES, seed=0)
    model = adapted(name, moved=True)
    with torch.no_grad():
        wanted = model(BATCH.inputs, BATCH.lengths)
        merge_low_rank(model)
        torch.testing.assert_close(model(BATCH.inputs, BATCH.lengths), wanted)
        assert not torch.allclose(plain(BATCH.inputs, BATCH.lengths), wanted)
    before = {key: (value.shape, value.dtype) for key, value in plain.state_dict().items()}
    assert {key: (value.shape, value.dtype) for key, value in model.state_dict().items()} == before
    assert list(before) == list(model.state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_only_the_adapters_and_the_head_are_trained() -> None:
    trained = {
        key for key, p in adapted("cnn_lstm_attention", moved=False).named_parameters() if p.requires_grad
    }
    assert {key for key in trained if not key.endswith((".up", ".down"))} == {"head.weight", "head.bias"}
    assert "encoder.recurrent.onward.parametrizations.weight_hh_l0.0.up" in trained


def test_adapters_come_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = adapted("lstm", moved=False).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = (adapted("lstm", moved=False, seed=seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_a_model_without_a_body_is_refused() -> None:
    model = models.build(MODELS["linear"], WIDTHS, N_CLASSES, seed=0)
    with pytest.raises(ValueError, match="Train the head alone"):
        add_low_rank(model, rank=2, seed=0)


def test_a_rank_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="rank=0"):
        add_low_rank(models.build(MODELS["mlp"], WIDTHS, N_CLASSES, seed=0), rank=0, seed=0)


def test_another_parametrization_is_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="another parametrization"):
        BookKeeping(model, per_example)
