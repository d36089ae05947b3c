"""Claims about the models: no recording is influenced by another one, and padding by nothing."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sottovoce.common import models
from sottovoce.common.model_specs import (
    Attention,
    Branch,
    Cnn,
    CnnLstmAttention,
    Fusion,
    Linear,
    Lstm,
    Mlp,
    ModelSpec,
    Rnn,
    WhisperLora,
)
from sottovoce.common.models.layers import FrameAverage, Recurrent
from sottovoce.common.models.losses import per_example
from tests.fakes.whispers import small_whisper

WIDTHS = {"mel": 6, "stats": 10}
N_CLASSES = 4
T = 23

# Without dropout, whose coins follow the position in the batch: they are public and know no recording.
BRANCHES: dict[str, Branch] = {
    "linear": Linear(kind="linear", stream="stats"),
    "mlp": Mlp(kind="mlp", stream="stats", hidden=7, dropout=0.0),
    "cnn": Cnn(kind="cnn", stream="mel", channels=(5, 6), kernel=5, dropout=0.0),
    "cnn of even kernel": Cnn(kind="cnn", stream="mel", channels=(5,), kernel=4, stride=2, dropout=0.0),
    "rnn": Rnn(kind="rnn", stream="mel", hidden=5, dropout=0.0),
    "rnn both ways": Rnn(kind="rnn", stream="mel", hidden=5, bidirectional=True, stride=1, dropout=0.0),
    "lstm": Lstm(kind="lstm", stream="mel", hidden=5, dropout=0.0),
    "lstm onwards, mean": Lstm(
        kind="lstm", stream="mel", hidden=5, bidirectional=False, pooling="mean", stride=3, dropout=0.0
    ),
    "attention": Attention(kind="attention", stream="mel", width=8, heads=2, layers=2, dropout=0.0),
    "cnn_lstm_attention": CnnLstmAttention(
        kind="cnn_lstm_attention", stream="mel", channels=(5,), hidden=4, dropout=0.0
    ),
    "whisper_lora": WhisperLora(  # of a Whisper as wide as the stream
        kind="whisper_lora", stream="mel", sha256=small_whisper()[1], layer=1, blocks=2, rank=2, dropout=0.0
    ),
}
FUSIONS: dict[str, ModelSpec] = {
    f"fusion {level}": Fusion(
        kind="fusion",
        level=level,
        branches=(BRANCHES["mlp"], BRANCHES["cnn"], BRANCHES["lstm"]),
        width=6,
        dropout=0.0,
    )
    for level in ("feature", "decision", "deep")
}
MODELS: dict[str, ModelSpec] = {**BRANCHES, **FUSIONS}

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "cross entropy": per_example,
    "label smoothing": lambda logits, labels: per_example(logits, labels, label_smoothing=0.2),
    "focal": lambda logits, labels: per_example(logits, labels, loss="focal"),
    "class weights": lambda logits, labels: per_example(logits, labels, class_weights=(1.0, 9.0, 0.1, 3.0)),
}

Inputs = dict[str, Tensor]


def patient(seed: int, lengths: tuple[int, ...], n_frames: int = T) -> tuple[Inputs, Inputs, Tensor]:
    """Returns one patient's recordings of the given lengths, as a batch."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.zeros(len(lengths), n_frames, WIDTHS["mel"], dtype=torch.float64)
    for row, length in enumerate(lengths):
        values[row, :length] = torch.randn(length, WIDTHS["mel"], generator=rng, dtype=torch.float64)
    stats = torch.randn(len(lengths), WIDTHS["stats"], generator=rng, dtype=torch.float64)
    labels = torch.randint(0, N_CLASSES, (len(lengths),), generator=rng)
    return {"mel": values, "stats": stats}, {"mel": torch.tensor(lengths)}, labels


def joined(*patients: tuple[Inputs, Inputs, Tensor]) -> tuple[Inputs, Inputs, Tensor]:
    inputs = {name: torch.cat([one[0][name] for one in patients]) for name in patients[0][0]}
    lengths = {"mel": torch.cat([one[1]["mel"] for one in patients])}
    return inputs, lengths, torch.cat([one[2] for one in patients])


def gradient(model: nn.Module, loss: Loss, batch: tuple[Inputs, Inputs, Tensor], rows: slice) -> Tensor:
    """Returns the gradient of the losses of some rows of a batch, as one vector."""
    inputs, lengths, labels = batch
    losses = loss(model(inputs, lengths), labels)
    grads = torch.autograd.grad(losses[rows].sum(), list(model.parameters()), materialize_grads=True)
    return torch.cat([grad.reshape(-1) for grad in grads])


def influence(model: nn.Module, loss: Loss) -> float:
    """Returns how much, at worst, a patient's gradient changes with its batch-mates, relative to its norm."""
    model.double().train()
    own = patient(0, (11, 7))
    alone = gradient(model, loss, own, slice(0, 2))
    worst = 0.0
    for seed, lengths in [(1, (T,)), (2, (1, 1, 1)), (3, (T, 2, 9, 14, 5, 23, 1))]:
        mates = patient(seed, lengths)
        loud = ({name: 50 * values for name, values in mates[0].items()}, mates[1], mates[2])
        others = (mates[0], mates[1], (mates[2] + 1) % N_CLASSES)
        for company in (mates, loud, others):
            before = gradient(model, loss, joined(company, own), slice(len(lengths), None))
            after = gradient(model, loss, joined(own, company), slice(0, 2))
            for among in (before, after):
                worst = max(worst, float((among - alone).norm() / alone.norm()))
    return worst


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_a_patients_gradient_does_not_change_with_the_batch_around_it(name: str, loss: str) -> None:
    model = models.build(MODELS[name], WIDTHS, N_CLASSES, seed=0)
    assert influence(model, LOSSES[loss]) < 1e-6


class BatchNormModel(nn.Module):
    """Wrong on purpose: normalises over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(WIDTHS["stats"]), nn.Linear(WIDTHS["stats"], N_CLASSES)

    def forward(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = self.head(self.norm(inputs["stats"]))
        return logits


class PaddedGroupNormModel(nn.Module):
    """Wrong on purpose: cuts to the batch's longest recording and normalises over its padding too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(WIDTHS["mel"], 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, N_CLASSES)

    def forward(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Tensor:
        values = inputs["mel"][:, : int(lengths["mel"].max())]
        logits: Tensor = self.head(self.norm(self.conv(values.transpose(1, 2))).relu().mean(2))
        return logits


@pytest.mark.parametrize("wrong", [BatchNormModel, PaddedGroupNormModel])
def test_a_model_that_mixes_recordings_is_noticed(wrong: type[nn.Module]) -> None:
    torch.manual_seed(0)
    assert influence(wrong(), per_example) > 1e-2


def test_class_weights_divided_by_the_batchs_own_are_noticed() -> None:
    def wrong(logits: Tensor, labels: Tensor) -> Tensor:
        weights = logits.new_tensor([1.0, 9.0, 0.1, 3.0])[labels]
        return per_example(logits, labels) * weights / weights.sum()

    model = models.build(MODELS["linear"], WIDTHS, N_CLASSES, seed=0)
    assert influence(model, wrong) > 1e-2


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing_by_its_content_or_amount(name: str) -> None:
    model = models.build(MODELS[name], WIDTHS, N_CLASSES, seed=0).double()
    lengths = (T, 11, 1, 8)
    inputs, valid, labels = patient(0, lengths)
    longer = patient(0, lengths, n_frames=T + 19)[0]
    dirty = {name: values.clone() for name, values in inputs.items()}
    for row, length in enumerate(lengths):
        dirty["mel"][row, length:] = torch.nan
    wanted = gradient(model, per_example, (inputs, valid, labels), slice(None))
    for other in (longer, dirty):
        torch.testing.assert_close(model(other, valid), model(inputs, valid), rtol=1e-9, atol=1e-12)
        found = gradient(model, per_example, (other, valid, labels), slice(None))
        assert float((found - wanted).norm() / wanted.norm()) < 1e-9


@pytest.mark.parametrize("name", MODELS)
def test_weights_come_from_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = models.build(MODELS[name], WIDTHS, N_CLASSES, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = models.build(MODELS[name], WIDTHS, N_CLASSES, seed=3).state_dict()
    other = models.build(MODELS[name], WIDTHS, N_CLASSES, seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", MODELS)
def test_a_models_parameters_say_body_or_head(name: str) -> None:
    model = models.build(MODELS[name], WIDTHS, N_CLASSES, seed=0)
    allowed = ("encoder.", "head.") if name != "fusion decision" else ("weights", "branches.")
    assert all(key.startswith(allowed) for key in model.state_dict())


def test_a_model_names_the_streams_it_reads() -> None:
    assert models.streams_of(models.build(MODELS["cnn"], WIDTHS, N_CLASSES, seed=0)) == {"mel"}
    assert models.streams_of(models.build(MODELS["fusion deep"], WIDTHS, N_CLASSES, seed=0)) == {
        "mel",
        "stats",
    }


def test_the_two_way_lstm_equals_torchs_packed_one() -> None:
    torch.manual_seed(0)
    ours = Recurrent(nn.LSTM, 6, 5, bidirectional=True).double()
    theirs = nn.LSTM(6, 5, batch_first=True, bidirectional=True).double()
    state = dict(ours.onward.state_dict())
    state |= {f"{key}_reverse": value for key, value in ours.backward_.state_dict().items()}  # type: ignore[union-attr]
    theirs.load_state_dict(state)
    values, lengths = torch.randn(3, 9, 6, dtype=torch.float64), torch.tensor([9, 4, 1])
    packed = nn.utils.rnn.pack_padded_sequence(values, lengths, batch_first=True, enforce_sorted=False)
    wanted, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    found = ours(values, lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(found[row, :length], wanted[row, :length])


def test_frames_are_averaged_over_valid_ones_alone() -> None:
    values = torch.tensor([[[2.0], [4.0], [9.0], [100.0]]])
    averaged, steps = FrameAverage(2)(values, torch.tensor([3]))
    assert averaged.tolist() == [[[3.0], [9.0]]]
    assert steps.tolist() == [2]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_equals_torchs_cross_entropy(smoothing: float) -> None:
    draw, labels = torch.Generator().manual_seed(0), torch.tensor([0, 1, 2, 3, 1, 1])
    logits = torch.randn(6, N_CLASSES, dtype=torch.float64, generator=draw)
    wanted = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(per_example(logits, labels, label_smoothing=smoothing), wanted)


def test_the_focal_loss_forgives_what_is_almost_right() -> None:
    logits, labels = torch.tensor([[5.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0])
    ratio = per_example(logits, labels, loss="focal") / per_example(logits, labels)
    assert ratio[0] < 1e-3 < 0.4 < ratio[1]


def test_a_stream_of_another_width_builds_another_model() -> None:
    wider = models.build(replace(BRANCHES["linear"]), {"stats": 20}, N_CLASSES, seed=0)
    assert sum(p.numel() for p in wider.parameters()) == 21 * N_CLASSES
