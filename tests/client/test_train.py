"""Claims about local training: the same bits, nothing left behind, the rules of the papers."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sottovoce.client.train import TrainResult, train
from sottovoce.common import models
from sottovoce.common.dataset import Example, SiteData, StreamShape
from sottovoce.common.feature_specs import Frames
from sottovoce.common.model_specs import (
    Attention,
    Cnn,
    CnnLstmAttention,
    Fusion,
    Linear,
    Lstm,
    Mlp,
    ModelSpec,
    Rnn,
)
from sottovoce.common.optimiser import FlatParameters, Optimiser
from sottovoce.common.schedule import learning_rate_at
from sottovoce.common.streams import stream
from sottovoce.common.study import Augmentation, Training
from sottovoce.common.training import epochs

N_CLASSES = 3
SHAPES = {"mel": StreamShape(width=4, n_frames=20), "stats": StreamShape(width=6, n_frames=None)}
SPEC = Training(learning_rate=0.01, optimiser="adamw", batch_size=16, label_smoothing=0.1)
KINDS: tuple[ModelSpec, ...] = (
    Linear(kind="linear", stream="stats"),
    Mlp(kind="mlp", stream="stats", hidden=16),
    Cnn(kind="cnn", stream="mel", channels=(16, 16)),
    Rnn(kind="rnn", stream="mel", hidden=16),
    Lstm(kind="lstm", stream="mel", hidden=16),
    Attention(kind="attention", stream="mel", width=16, heads=2),
    CnnLstmAttention(kind="cnn_lstm_attention", stream="mel", channels=(16,), hidden=8),
    *(
        Fusion(
            kind="fusion",
            level=level,
            branches=(
                Mlp(kind="mlp", stream="stats", hidden=8),
                Cnn(kind="cnn", stream="mel", channels=(8,)),
            ),
            width=16,
        )
        for level in ("feature", "decision", "deep")
    ),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SiteData:
    """90 recordings whose class shows in the slope of a column, and in the pooled row."""
    rng = np.random.default_rng(0)

    def example(number: int) -> Example:
        label, n_frames = number % N_CLASSES, 10 + number % 11
        mel = 0.5 * rng.standard_normal((n_frames, 4))
        mel[:, label] += np.linspace(-2, 2, n_frames)
        stats = rng.standard_normal(6)
        stats[label] += 2.5
        features = {"mel": mel.astype(np.float32), "stats": stats.astype(np.float32)}
        return Example(
            key=f"{number}", label=label, speaker=f"s{number % 5}", patient="p", groups={}, features=features
        )

    folder = tmp_path_factory.mktemp("site") / "data"
    return SiteData.write(folder, site="north", shapes=SHAPES, examples=map(example, range(90)))


def trained(
    data: SiteData,
    kind: ModelSpec = KINDS[4],
    spec: Training = SPEC,
    site: str = "north",
    round: int = 1,
    mu: float = 0.0,
) -> tuple[nn.Module, TrainResult]:
    model = models.build(kind, data.widths, N_CLASSES, seed=0)
    return model, train(model, data, spec, seed=0, site=site, round=round, rounds=4, proximal_mu=mu)


def bits(model: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.kind} {getattr(kind, 'level', '')}")
def test_every_model_learns(data: SiteData, kind: ModelSpec) -> None:
    model = models.build(kind, data.widths, N_CLASSES, seed=0)
    losses = [
        train(model, data, replace(SPEC, local_epochs=6), seed=0, site="north", round=round, rounds=4).loss
        for round in (1, 2, 3, 4)
    ]
    batch = data.batch(np.arange(90))
    with torch.no_grad():
        right = (model.eval()(batch.inputs, batch.lengths).argmax(1) == batch.labels).double().mean()
    assert losses[-1] < losses[0]
    assert right > 0.8


@pytest.mark.parametrize("kind", [KINDS[4], KINDS[7]], ids=["lstm", "fusion"])
def test_the_same_round_gives_the_same_bits_whatever_was_drawn_before(
    data: SiteData, kind: ModelSpec
) -> None:
    torch.manual_seed(1)
    first = bits(trained(data, kind)[0])
    torch.manual_seed(2)
    assert bits(trained(data, kind)[0]) == first
    assert bits(trained(data, kind, round=2)[0]) != first
    assert bits(trained(data, kind, site="south")[0]) != first


def test_another_process_trains_the_same_bits_and_never_imports_torchs_compiler(
    data: SiteData, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    code = f"""
import sys, torch
torch.set_num_threads({threads})
from pathlib import Path
from sottovoce.client.train import train
from sottovoce.common import models
from sottovoce.common.dataset import SiteData
from sottovoce.common.model_specs import *
from sottovoce.common.study import *
data = SiteData.open(Path({str(tmp_path / "copy")!r}))
model = models.build({KINDS[4]!r}, data.widths, {N_CLASSES}, seed=0)
train(model, data, {SPEC!r}, seed=0, site="north", round=1, rounds=4)
sys.stdout.write(b"".join(v.numpy().tobytes() for v in model.state_dict().values()).hex())
sys.exit("torch._dynamo" in sys.modules)
"""
    SiteData.write(
        tmp_path / "copy",
        site="north",
        shapes=SHAPES,
        examples=(
            Example(
                key=key,
                label=int(data.labels[i]),
                speaker="s",
                patient="p",
                groups={},
                features={"mel": data.valid("mel", i), "stats": data.pooled("stats")[i]},
            )
            for i, key in enumerate(data.keys)
        ),
    )
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert bytes.fromhex(fresh.stdout) == bits(trained(data)[0])


def test_torchs_random_state_is_left_as_it_was(data: SiteData) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trained(data)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_models_tensors_stay_the_same_objects_and_keep_no_gradient(data: SiteData) -> None:
    model = models.build(KINDS[1], data.widths, N_CLASSES, seed=0)
    before = [p.data_ptr() for p in model.parameters()]
    train(model, data, SPEC, seed=0, site="north", round=1, rounds=4)
    assert [p.data_ptr() for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())


def test_no_optimiser_state_passes_from_round_to_round(data: SiteData) -> None:
    once, _ = trained(data, KINDS[1])
    weights = {name: value.clone() for name, value in once.state_dict().items()}
    train(once, data, SPEC, seed=0, site="north", round=2, rounds=4)
    fresh = models.build(KINDS[1], data.widths, N_CLASSES, seed=9)
    fresh.load_state_dict(weights)
    train(fresh, data, SPEC, seed=0, site="north", round=2, rounds=4)
    assert bits(fresh) == bits(once)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("sgd", torch.optim.SGD, {}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        ("adam", torch.optim.Adam, {"weight_decay": 0.1}),
        ("adamw", torch.optim.AdamW, {"weight_decay": 0.1}),
    ],
)
def test_each_rule_equals_torchs(
    ours: str, theirs: type[torch.optim.Optimizer], options: dict[str, float]
) -> None:
    rng = torch.Generator().manual_seed(0)
    one = nn.Linear(5, 3).double()
    two = nn.Linear(5, 3).double()
    two.load_state_dict(one.state_dict())
    reference = theirs(two.parameters(), lr=0.05, **options)  # type: ignore[call-arg, arg-type]
    spec = Training(learning_rate=0.05, optimiser=ours, **options)  # type: ignore[arg-type]
    with FlatParameters(one) as flat:
        optimiser = Optimiser(spec, flat.values)
        for _ in range(20):
            inputs = torch.randn(4, 5, generator=rng, dtype=torch.float64)
            flat.gradient.zero_()
            reference.zero_grad()
            one(inputs).square().sum().backward()
            two(inputs).square().sum().backward()
            optimiser.step(flat.values, flat.gradient, 0.05)
            reference.step()
    torch.testing.assert_close(one.state_dict(), two.state_dict())


def test_fedprox_adds_the_gradient_of_its_term(data: SiteData) -> None:
    # Full batch, plain SGD, two steps: the second one sees w - w0 and nothing else new.
    spec = Training(learning_rate=0.1, optimiser="sgd", batch_size=90, local_epochs=2)
    mu, kind = 0.7, KINDS[0]
    found, _ = trained(data, kind, spec, mu=mu)
    model = models.build(kind, data.widths, N_CLASSES, seed=0).double()
    start = [p.detach().clone() for p in model.parameters()]
    batch = data.batch(np.arange(90))
    inputs = {name: values.double() for name, values in batch.inputs.items()}
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(inputs, batch.lengths), batch.labels)
        pull = sum((p - s).square().sum() for p, s in zip(model.parameters(), start, strict=True))
        grads = torch.autograd.grad(loss + 0.5 * mu * pull, list(model.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter.sub_(grad, alpha=0.1)
    torch.testing.assert_close(found.double().state_dict(), model.state_dict(), rtol=1e-4, atol=1e-6)


def test_the_cosine_falls_from_full_to_almost_nothing() -> None:
    spec = replace(SPEC, schedule="cosine")
    rates = [learning_rate_at(spec, round, 10) / spec.learning_rate for round in range(1, 11)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.03
    assert learning_rate_at(SPEC, 10, 10) == SPEC.learning_rate


def test_every_epoch_visits_each_example_once_in_equal_parts() -> None:
    parts = list(epochs(35, replace(SPEC, local_epochs=2), stream(0, "test")))
    assert sorted(map(len, parts)) == [11, 11, 12, 12, 12, 12]
    first, second = np.concatenate(parts[:3]), np.concatenate(parts[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(35))
    assert first.tolist() != second.tolist()


def test_the_result_counts_examples_and_steps(data: SiteData) -> None:
    _, result = trained(data, KINDS[0], replace(SPEC, local_epochs=2))
    assert (result.n_examples, result.n_steps) == (90, 12)
    assert 0 < result.loss < 3


def test_masks_change_training_by_draws_of_their_own(data: SiteData) -> None:
    spec = replace(SPEC, augmentation=Augmentation(time_masks=1, time_mask_seconds=0.08, band_masks=1))
    model = models.build(KINDS[4], data.widths, N_CLASSES, seed=0)
    train(model, data, spec, seed=0, site="north", round=1, rounds=4, frames=Frames())
    assert bits(model) != bits(trained(data)[0])
    again = models.build(KINDS[4], data.widths, N_CLASSES, seed=0)
    train(again, data, spec, seed=0, site="north", round=1, rounds=4, frames=Frames())
    assert bits(again) == bits(model)
    # A pooled stream has no frames: there is nothing to mask, and nothing changes.
    pooled = models.build(KINDS[1], data.widths, N_CLASSES, seed=0)
    train(pooled, data, spec, seed=0, site="north", round=1, rounds=4, frames=Frames())
    assert bits(pooled) == bits(trained(data, KINDS[1])[0])


def test_masks_without_the_grid_of_frames_are_an_error(data: SiteData) -> None:
    with pytest.raises(ValueError, match="the study's frames"):
        trained(data, spec=replace(SPEC, augmentation=Augmentation(band_masks=1)))


def test_a_site_without_examples_is_an_error(data: SiteData) -> None:
    with pytest.raises(ValueError, match="came none"):
        trained(data.select(np.zeros(90, bool)), KINDS[0])
