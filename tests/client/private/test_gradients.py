"""Claims about patients' gradients: equal to a loop over single recordings, and nobody else's business."""

import ctypes
import gc
import resource
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sottovoce.client.private import Chunk, Patients, all_rows, clipped_sum, matrix
from sottovoce.client.private.bookkeeping import BookKeeping
from sottovoce.client.private.kernels import trained_layers
from sottovoce.client.private.trainable import freeze_all_but
from sottovoce.common import models
from sottovoce.common.dataset import Batch
from sottovoce.common.model_specs import Cnn, Fusion, Lstm, Mlp, ModelSpec
from sottovoce.common.models.losses import per_example
from sottovoce.common.optimiser import FlatParameters
from tests.common.test_models import LOSSES, MODELS, N_CLASSES, WIDTHS, T, patient
from tests.fakes.patients import batch_of, one_by_one, worst_tensor

# One frame and all frames, one recording and several, in no order of number.
COHORT = [(T,), (5, 11), (1,), (9, 9, T), (2, 3)]
N_PATIENTS = len(COHORT)
WITH_DROPOUT: dict[str, ModelSpec] = {
    kind: replace(MODELS[kind], dropout=0.4)  # type: ignore[arg-type]
    for kind in ("mlp", "cnn", "rnn", "lstm", "attention", "cnn_lstm_attention")
}


def cohort(shuffle: int | None = 3) -> tuple[Batch, Patients]:
    return batch_of(*(patient(seed, lengths) for seed, lengths in enumerate(COHORT)), shuffle=shuffle)


def built(name: str) -> nn.Module:
    return models.build(MODELS[name], WIDTHS, N_CLASSES, seed=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_rows_equal_a_float64_loop_over_single_recordings(name: str, loss: str) -> None:
    model = built(name)
    batch, patients = cohort()
    wanted = one_by_one(model, LOSSES[loss], batch, patients, N_PATIENTS)
    found = matrix(BookKeeping(model, LOSSES[loss]), batch, patients, N_PATIENTS)
    assert worst_tensor(found, wanted, list(model.parameters())) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_in_float64_rows_equal_the_loop_to_the_last_digits(name: str) -> None:
    model = built(name)
    batch, patients = cohort()
    wanted = one_by_one(model, per_example, batch, patients, N_PATIENTS)
    exact = replace(batch, inputs={key: values.double() for key, values in batch.inputs.items()})
    for chunk in BookKeeping(model.double(), per_example, max_floats=3 * wanted.shape[1]).chunks(
        exact, patients
    ):
        found = wanted[torch.from_numpy(chunk.patients)]
        assert float(((chunk.gradients - found).norm(dim=1) / found.norm(dim=1)).max()) < 1e-13


@pytest.mark.parametrize("name", MODELS)
def test_a_patients_row_is_the_same_bits_whoever_is_drawn_and_wherever_it_stands(name: str) -> None:
    # Weights can be chosen that make whole clips of last bits: relative 1e-6 is no answer to that.
    engine = BookKeeping(built(name), per_example)
    alone: dict[int, Tensor] = {}
    for size in (1, 2, 3, 4, 6, 9, 16, 17, 30):
        order = np.random.default_rng(size).permutation(size).tolist()
        batch, patients = batch_of(*(patient(seed, COHORT[seed % N_PATIENTS]) for seed in order))
        rows = matrix(engine, batch, patients, size)
        for row, seed in zip(rows, order, strict=True):
            assert torch.equal(row, alone.setdefault(seed, row.clone())), (size, seed)


def test_in_passes_that_follow_the_draw_bits_of_others_change() -> None:
    # The twin that must fail: one more patient, another kernel.
    engine = BookKeeping(built("mlp"), per_example, utterances=1)
    people = [patient(seed, (T,)) for seed in range(8)]
    found = []
    for size in (1, 2, 3, 4, 8):
        batch, patients = batch_of(*people[:size])
        engine._utterances = size
        found.append(matrix(engine, batch, patients, size)[0].clone())
    assert any(not torch.equal(found[0], other) for other in found[1:])


def test_a_patients_rows_summed_instead_of_averaged_are_noticed() -> None:
    model = built("cnn")
    batch, patients = cohort()
    wanted = one_by_one(model, per_example, batch, patients, N_PATIENTS)
    counts = torch.from_numpy(np.bincount(patients))
    found = matrix(BookKeeping(model, per_example), batch, patients, N_PATIENTS) * counts[:, None]
    assert worst_tensor(found, wanted, list(model.parameters())) > 0.5


@pytest.mark.parametrize("taps", [1, 2, 3, 6, 7])
def test_convolutions_of_any_kernel_equal_the_loop(taps: int) -> None:
    spec = Cnn(kind="cnn", stream="mel", channels=(5, 4, 3), kernel=taps, dropout=0.0)
    model = models.build(spec, WIDTHS, N_CLASSES, seed=0)
    batch, patients = cohort()
    wanted = one_by_one(model, per_example, batch, patients, N_PATIENTS)
    found = matrix(BookKeeping(model, per_example), batch, patients, N_PATIENTS)
    assert worst_tensor(found, wanted, list(model.parameters())) < 1e-5


class Strided(nn.Module):
    """A convolution of any stride and margin, behind another so that its input gradient counts."""

    def __init__(self, stride: int, margin: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(WIDTHS["mel"], 4, 3, padding=1, bias=False)
        self.second = nn.Conv1d(4, N_CLASSES, 3, stride=stride, padding=margin)

    def forward(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Tensor:
        return self.second(torch.tanh(self.first(inputs["mel"].transpose(1, 2)))).mean(2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("margin", [0, 1, 4])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_convolutions_of_any_stride_and_margin_equal_the_loop(stride: int, margin: int) -> None:
    torch.manual_seed(0)
    model = Strided(stride, margin)
    batch, patients = cohort()
    wanted = one_by_one(model, per_example, batch, patients, N_PATIENTS)
    found = matrix(BookKeeping(model, per_example), batch, patients, N_PATIENTS)
    assert worst_tensor(found, wanted, list(model.parameters())) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_a_row_does_not_change_with_the_batch_around_it(name: str) -> None:
    model = built(name)
    engine = BookKeeping(model, per_example)
    own = patient(0, (11, 7))
    alone = matrix(engine, *batch_of(own), 1)[0]
    for seed, lengths in [(1, (T,)), (2, (1, 1, 1)), (3, (T, 2, 9, 14, 5, T, 1))]:
        mates = patient(seed, lengths)
        loud = ({key: 50 * values for key, values in mates[0].items()}, mates[1], mates[2])
        others = (mates[0], mates[1], (mates[2] + 1) % N_CLASSES)
        for company in (mates, loud, others):
            among = matrix(engine, *batch_of(company, own, mates, shuffle=seed), 3)[1]
            assert float((among - alone).norm() / alone.norm()) < 1e-6


@pytest.mark.parametrize("name", ["cnn", "lstm", "attention", "fusion deep"])
def test_a_patient_whose_gradient_is_not_finite_spoils_no_other_row(name: str) -> None:
    model = built(name)
    engine = BookKeeping(model, per_example)
    batch, patients = cohort(shuffle=None)
    before = matrix(engine, batch, patients, N_PATIENTS)
    broken = int(np.flatnonzero(patients == 1)[0])
    for values in batch.inputs.values():
        values[broken] = torch.inf
    after = matrix(engine, batch, patients, N_PATIENTS)
    others = [0, 2, 3, 4]
    assert not after[1].isfinite().all()
    torch.testing.assert_close(after[others], before[others])
    torch.testing.assert_close(matrix(engine, *cohort(shuffle=None), N_PATIENTS), before)  # nor the next step


@pytest.mark.parametrize("name", ["cnn", "lstm", "attention", "fusion decision"])
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_rows_do_not_change_with_the_chunks_they_are_cut_into(name: str, at_once: int) -> None:
    model = built(name)
    whole = BookKeeping(model, per_example)
    batch, patients = cohort()
    wanted = matrix(whole, batch, patients, N_PATIENTS)
    cut = BookKeeping(model, per_example, max_floats=at_once * whole.n_parameters)
    sizes = [len(chunk.patients) for chunk in cut.chunks(batch, patients)]
    assert max(sizes) == at_once
    assert sum(sizes) == N_PATIENTS
    found = matrix(cut, batch, patients, N_PATIENTS)
    assert float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) < 1e-6


def test_a_patient_without_recordings_has_a_row_of_zeros() -> None:
    engine = BookKeeping(built("mlp"), per_example)
    batch, patients = cohort()
    rows = matrix(engine, batch, patients * 2, 2 * N_PATIENTS)
    torch.testing.assert_close(rows[::2], matrix(engine, batch, patients, N_PATIENTS))
    assert not rows[1::2].any()


def test_an_empty_draw_has_no_rows() -> None:
    engine = BookKeeping(built("cnn"), per_example)
    batch, patients = cohort()
    nobody = Batch(
        inputs={name: values[:0] for name, values in batch.inputs.items()},
        lengths={name: values[:0] for name, values in batch.lengths.items()},
        labels=batch.labels[:0],
    )
    assert list(engine.chunks(nobody, patients[:0])) == []
    assert all_rows(engine, nobody, patients[:0]).shape == (0, engine.n_parameters)
    assert not clipped_sum(engine, nobody, patients[:0], 1.0).any()


@pytest.mark.parametrize("name", MODELS)
def test_columns_are_in_the_order_of_the_flat_parameters(name: str) -> None:
    model = built(name).double()
    batch, _ = cohort()
    batch = replace(batch, inputs={key: values.double() for key, values in batch.inputs.items()})
    with FlatParameters(model) as flat:
        per_example(model(batch.inputs, batch.lengths), batch.labels).mean().backward()  # type: ignore[no-untyped-call]
        wanted = flat.gradient.clone()
        everybody_one = np.zeros(len(batch.labels), np.int64)
        (chunk,) = BookKeeping(model, per_example).chunks(batch, everybody_one)
        torch.testing.assert_close(flat.gradient, wanted, rtol=0, atol=0)  # the rows go nowhere else
        assert float((chunk.gradients[0] - wanted).norm() / wanted.norm()) < 1e-12


@pytest.mark.parametrize("at_once", [2, N_PATIENTS])
def test_all_rows_are_the_matrix_in_another_order(at_once: int) -> None:
    model = built("lstm")
    batch, patients = cohort()
    wanted = matrix(BookKeeping(model, per_example), batch, patients, N_PATIENTS)
    engine = BookKeeping(model, per_example, max_floats=at_once * wanted.shape[1])
    found = all_rows(engine, batch, patients)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found[found[:, 0].argsort()], wanted[wanted[:, 0].argsort()])


def test_a_chunk_does_not_print_what_it_holds() -> None:
    chunk = Chunk(patients=np.array([17]), gradients=torch.tensor([[0.25]]))
    assert "17" not in repr(chunk)
    assert "0.25" not in repr(chunk)


def test_clipping_sums_rows_of_at_most_the_bound() -> None:
    engine = BookKeeping(built("lstm"), per_example)
    batch, patients = cohort()
    rows = matrix(engine, batch, patients, N_PATIENTS)
    norms = rows.norm(dim=1)
    bound = float(norms.median())
    wanted = (rows * (bound / norms).clamp(max=1)[:, None]).sum(0)
    torch.testing.assert_close(clipped_sum(engine, batch, patients, bound), wanted)
    assert float(clipped_sum(engine, batch, patients, 1e-3).norm()) <= N_PATIENTS * 1e-3 * (1 + 1e-6)


class Coins(nn.Dropout):
    """Dropout that remembers its masks in the order drawn, and can be told to use one row of them again."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.drawn: list[Tensor] = []
        self.row: int | None = None

    def forward(self, values: Tensor) -> Tensor:
        if self.row is not None:
            mask = self.drawn.pop(0)
            self.drawn.append(mask)
            return values * mask[self.row].to(values)
        if not self.training:
            return values
        self.drawn.append(torch.bernoulli(torch.full_like(values, 1 - self.p)) / (1 - self.p))
        return values * self.drawn[-1]


class Replayed(nn.Module):
    """A model that takes the recordings of a batch one by one, each with the masks it had in the batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.row = model, -1

    def forward(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Tensor:
        self.row += 1
        for module in self.model.modules():
            if isinstance(module, Coins):
                module.row = self.row
        return self.model(inputs, lengths)  # type: ignore[no-any-return]


def with_coins(spec: ModelSpec) -> nn.Module:
    model = models.build(spec, WIDTHS, N_CLASSES, seed=0)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, Coins(child.p))
    return model


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_rows_under_dropout_equal_the_loop_with_the_same_masks(name: str) -> None:
    model = with_coins(WITH_DROPOUT[name])
    in_order = batch_of(patient(0, (T, 4)), patient(1, (9, 11)), patient(2, (5, 1)))
    engine = BookKeeping(model, per_example)
    (chunk,) = engine.chunks(*in_order, secret_dropout_seed=11)
    dropped = chunk.gradients.clone()
    assert all(module.drawn for module in model.modules() if isinstance(module, Coins))
    wanted = one_by_one(Replayed(model), per_example, *in_order, 3)
    assert worst_tensor(dropped, wanted, list(model.parameters())) < 1e-5


def rows_of(chunks: Iterator[Chunk]) -> Tensor:
    return torch.cat([chunk.gradients.clone() for chunk in chunks])


def test_dropout_is_off_unless_a_secret_seed_is_given() -> None:
    model = models.build(WITH_DROPOUT["cnn"], WIDTHS, N_CLASSES, seed=0).train()
    still = models.build(replace(WITH_DROPOUT["cnn"], dropout=0.0), WIDTHS, N_CLASSES, seed=0)  # type: ignore[arg-type]
    batch, patients = cohort()
    engine = BookKeeping(model, per_example)
    off = rows_of(engine.chunks(batch, patients))
    assert torch.equal(off, rows_of(BookKeeping(still, per_example).chunks(batch, patients)))
    assert model.training
    one, again, other = (
        rows_of(engine.chunks(batch, patients, secret_dropout_seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, off)


def test_chunks_draw_different_coins() -> None:
    model = with_coins(WITH_DROPOUT["mlp"])
    engine = BookKeeping(model, per_example, max_floats=1)
    same = patient(0, (3,))
    list(engine.chunks(*batch_of(same, same), secret_dropout_seed=5))
    first = next(module.drawn for module in model.modules() if isinstance(module, Coins))
    assert not torch.equal(first[0], first[2])  # two masks a pass: of the input and of the hidden layer


def test_coins_leave_torchs_own_as_they_were() -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    engine = BookKeeping(built("lstm"), per_example)
    rows_of(engine.chunks(*cohort(), secret_dropout_seed=5))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_leaves_the_model_as_it_was() -> None:
    model = built("fusion decision").train()
    model.get_submodule("branches.0").eval()
    modes = [module.training for module in model.modules()]
    values = [p.clone() for p in model.parameters()]
    rows_of(BookKeeping(model, per_example).chunks(*cohort(), secret_dropout_seed=1))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(values, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_step_that_fails_leaves_the_model_as_it_was() -> None:
    model = built("cnn").train()

    def wrong(logits: Tensor, labels: Tensor) -> Tensor:
        return per_example(logits, labels).mean()

    with pytest.raises(ValueError, match="one loss for each of 64 utterances"):
        rows_of(BookKeeping(model, wrong).chunks(*cohort()))
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.training


class Twice(nn.Module):
    """Uses one layer twice and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.never = nn.Linear(WIDTHS["stats"], WIDTHS["stats"]), nn.LayerNorm(3)
        self.norm, self.head = nn.LayerNorm(WIDTHS["stats"]), nn.Linear(WIDTHS["stats"], N_CLASSES)

    def forward(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Tensor:
        values = self.norm(self.shared(torch.tanh(self.norm(self.shared(inputs["stats"])))))
        return self.head(values)  # type: ignore[no-any-return]


def test_a_layer_used_twice_gets_both_uses_and_an_unused_one_zeros() -> None:
    torch.manual_seed(0)
    model = Twice()
    batch, patients = cohort()
    wanted = one_by_one(model, per_example, batch, patients, N_PATIENTS)
    engine = BookKeeping(model, per_example)
    rows_of(engine.chunks(replace(batch, inputs={"stats": batch.inputs["stats"] * torch.nan}), patients))
    found = matrix(engine, batch, patients, N_PATIENTS)  # in a buffer that held NaN a step before
    assert worst_tensor(found, wanted, list(model.parameters())) < 1e-5


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(2, 4),
        nn.LSTM(4, 4),
        nn.Bilinear(2, 2, 2),
        nn.Conv1d(4, 4, 3, groups=2),
        nn.Conv1d(4, 4, 3, padding="same"),
        nn.LayerNorm((3, 4)),
    ],
    ids=lambda layer: repr(layer).partition("(")[0],
)
def test_a_trained_layer_without_a_kernel_is_refused(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer)
    with pytest.raises(ValueError, match=r"^Expected"):
        BookKeeping(model, per_example)
    layer.requires_grad_(False)
    BookKeeping(model, per_example)  # frozen it may be whatever it is


def test_a_model_that_is_all_frozen_is_refused() -> None:
    with pytest.raises(ValueError, match="all frozen"):
        BookKeeping(built("mlp").requires_grad_(False), per_example)


def test_recordings_without_a_patient_are_refused() -> None:
    batch, patients = cohort()
    with pytest.raises(ValueError, match="patient for each of 9 utterances; came 8"):
        next(BookKeeping(built("mlp"), per_example).chunks(batch, patients[:-1]))


@pytest.mark.parametrize("name", MODELS)
def test_a_head_trained_alone_has_the_rows_it_has_in_the_whole(name: str) -> None:
    model = built(name)
    batch, patients = cohort()
    whole = matrix(BookKeeping(model, per_example), batch, patients, N_PATIENTS)
    names = [key for key, p in model.named_parameters() for _ in range(p.numel())]
    freeze_all_but(model, ("head.",))
    alone = matrix(BookKeeping(model, per_example), batch, patients, N_PATIENTS)
    columns = torch.tensor(["head." in key for key in names])
    torch.testing.assert_close(alone, whole[:, columns], rtol=1e-5, atol=1e-7)
    assert {type(layer) for layer in trained_layers(model)} == {nn.Linear}  # no kernel runs in the body


@pytest.mark.parametrize("frozen", ["encoder.recurrent.onward", "encoder.convs", "encoder.pooling.score.0"])
def test_a_body_frozen_in_part_equals_the_loop(frozen: str) -> None:
    model = built("cnn_lstm_attention")
    model.get_submodule(frozen).requires_grad_(False)
    batch, patients = cohort()
    wanted = one_by_one(model, per_example, batch, patients, N_PATIENTS)
    found = matrix(BookKeeping(model, per_example), batch, patients, N_PATIENTS)
    assert worst_tensor(found, wanted, list(model.parameters())) < 1e-5


def test_only_a_bias_can_be_trained() -> None:
    model = built("cnn_lstm_attention")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(("bias", "bias_hh_l0")))
    batch, patients = cohort()
    wanted = one_by_one(model, per_example, batch, patients, N_PATIENTS)
    found = matrix(BookKeeping(model, per_example), batch, patients, N_PATIENTS)
    assert worst_tensor(found, wanted, list(model.parameters())) < 1e-5


def test_a_prefix_that_names_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'tail\.'"):
        freeze_all_but(built("mlp"), ("head.", "tail."))


MEMORY_MODEL = Fusion(
    kind="fusion",
    level="decision",
    branches=(
        Cnn(kind="cnn", stream="mel", channels=(32, 32), dropout=0.0),
        Lstm(kind="lstm", stream="mel", hidden=32, dropout=0.0),
        Mlp(kind="mlp", stream="stats", dropout=0.0),
    ),
)


class Leaking(BookKeeping):
    """Wrong on purpose: keeps each step's graph in a reference cycle, as a record of activations would."""

    def chunks(
        self, batch: Batch, patients: Patients, *, secret_dropout_seed: int | None = None
    ) -> Iterator[Chunk]:
        record: list[object] = []
        losses = per_example(self._model(batch.inputs, batch.lengths), batch.labels)
        record += [losses, record]
        yield from super().chunks(batch, patients)


def held_tensors() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def gained(kind: type[BookKeeping], steps: int) -> tuple[int, float, float]:
    """Returns tensors and MiB gained over private steps, and fresh pages a step, with no collector to help."""
    engine = kind(models.build(MEMORY_MODEL, WIDTHS, N_CLASSES, seed=0), per_example)
    batch, _ = batch_of(*(patient(seed, (T, 9, 4)) for seed in range(8)))
    draw = np.random.default_rng(0)
    gc.collect()
    gc.disable()
    try:
        for step in range(steps + 20):
            if step == 20:
                tensors, resident = held_tensors(), resident_mib()
                faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            clipped_sum(engine, batch, draw.integers(0, 20, size=24), 1.0)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        return held_tensors() - tensors, resident_mib() - resident, faults / steps
    finally:
        gc.enable()
        gc.collect()


def resident_mib() -> float:
    """What is resident once the allocator gave back what earlier tests freed: a leak cannot hide in such holes."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def test_memory_is_flat_over_steps() -> None:
    tensors, mebibytes, faults = gained(BookKeeping, steps=150)
    print(f"{tensors} tensors and {mebibytes:.1f} MiB gained over 150 steps, {faults:.1f} page faults a step")
    assert tensors <= 0
    assert mebibytes < 4


def test_a_step_that_keeps_its_graph_is_noticed() -> None:
    tensors, mebibytes, _ = gained(Leaking, steps=20)
    assert tensors >= 20
    assert mebibytes > 4
