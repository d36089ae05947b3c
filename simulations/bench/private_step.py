"""A private step against the same model's plain step.

One thread, batch of 64 recordings (3 s, 64 mel bands), dropout off on both sides. Plain: `mean().backward()`
through torch's own layers (oneDNN's LSTM and convolution). Private: the rows, and `common.privacy.plan.release`
of them: clip, integer grid, exact sum, secret noise. Both end with the same SGD update. The bars are for the
hard case, 64 patients of one recording each, with everything. Parts, 16 patients of four recordings, Opacus'
hooks and torch's vmap stand beside it; so does the largest difference to a float64 loop over recordings.

A convolution's rows can come out below 1: torch copies (B, T, C) to (B, C, T) and back around oneDNN, our kernel
stays in the model's own layout.

Ratios are of CPU time, which on one thread is the clock's on a quiet machine, and is not the neighbours' on a busy
one; the clock's ratio stands beside them.

Then 1,000 private steps in a row: the memory that the process holds, and the fresh pages it was given.
"""

import copy
import resource
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from sottovoce.client.private import Chunk, GradientEngine, LossOf, Patients, all_rows, clipped_sum, matrix
from sottovoce.client.private.bookkeeping import BookKeeping, dropout, take
from sottovoce.client.private.opacus_engine import OpacusHooks
from sottovoce.client.private.rows import Rows
from sottovoce.client.private.sink import Sink, spans
from sottovoce.common import models
from sottovoce.common.dataset import Batch
from sottovoce.common.model_specs import Attention, Cnn, CnnLstmAttention, Lstm, ModelSpec
from sottovoce.common.models.losses import per_example
from sottovoce.common.optimiser import FlatParameters, Optimiser
from sottovoce.common.privacy import stages
from sottovoce.common.privacy.clip import clip, quantised_sum
from sottovoce.common.privacy.noise import add_noise
from sottovoce.common.privacy.plan import release
from sottovoce.common.privacy.source import SecretSource
from sottovoce.common.privacy_specs import LocalPrivacy
from sottovoce.common.study import Training
from sottovoce.simulations.bench.timing import Row, Times, report, take_turns, timed

N_MELS, N_FRAMES, N_CLASSES, BATCH = 64, 301, 8, 64
REPEATS, MEMORY_STEPS = 12, 1000
LEARNING_RATE, MAX_DIFFERENCE = 0.01, 1e-5
WHOLE = "private, 64 patients"
MODELS: dict[str, tuple[ModelSpec, float]] = {
    "convolution": (Cnn(kind="cnn", stream="mel"), 1.4),
    "convolution + LSTM": (CnnLstmAttention(kind="cnn_lstm_attention", stream="mel"), 1.6),
    "LSTM": (Lstm(kind="lstm", stream="mel"), 1.6),
    "attention": (Attention(kind="attention", stream="mel"), 1.7),
}
EACH_ALONE, FOUR_EACH = (np.arange(BATCH) // n for n in (1, 4))
SGD = Training(learning_rate=LEARNING_RATE, optimiser="sgd")


PRIVACY = LocalPrivacy(
    mode="local",
    clip_norm=1.0,
    noise_multiplier=1.0,
    sampling_prob=0.064,
    n_patients_public=1000,
    expected_patients=64.0,
    steps_per_round=1,
    delta=1e-5,
)


def measure(repeats: int = REPEATS, memory_steps: int = MEMORY_STEPS) -> dict[str, Any]:
    """Times each model's steps in turns, then holds one still over many steps."""
    torch.set_num_threads(1)
    rows = [row for name, (spec, bar) in MODELS.items() for row in _measure_model(name, spec, bar, repeats)]
    return report([*rows, *_memory(memory_steps)])


def _measure_model(name: str, spec: ModelSpec, bar: float, repeats: int) -> list[Row]:
    model, batch = _model(spec), random_batch(BATCH, N_FRAMES)
    ours, opacus, mapped = (kind(model, per_example) for kind in (BookKeeping, OpacusHooks, Vmap))
    with FlatParameters(model) as flat:
        rows = stages.PatientGradients(values=_rows(ours, batch, EACH_ALONE).copy())
        total = quantised_sum(clip(rows, PRIVACY.clip_norm), PRIVACY.grid_step)
        steps: dict[str, Callable[[], object]] = {
            "plain": lambda: _plain(model, flat, batch),
            WHOLE: lambda: _private(ours, flat, batch, EACH_ALONE),
            "private, 16 patients of 4": lambda: _private(ours, flat, batch, FOUR_EACH),
            "rows, clipped and summed in floats": lambda: clipped_sum(ours, batch, EACH_ALONE, 1.0),
            "part: rows": lambda: _rows(ours, batch, EACH_ALONE),
            "part: clip, grid, exact sum": lambda: quantised_sum(clip(rows, 1.0), PRIVACY.grid_step),
            "part: secret noise": lambda: add_noise(total, PRIVACY.noise_multiplier, SecretSource()),
            "Opacus' hooks": lambda: _private(opacus, flat, batch, EACH_ALONE),
            "vmap": lambda: _private(mapped, flat, batch, EACH_ALONE),
        }
        times = take_turns({what: timed(step) for what, step in steps.items()}, repeats)
    table = [_row(name, what, taken, times["plain"], bar) for what, taken in times.items()]
    return [*table, _difference(name, spec)]


def _row(name: str, what: str, taken: Times, plain: Times, bar: float) -> Row:
    ratio, held = taken.cpu_ratio(plain), what == WHOLE
    return Row(
        what=f"{name}: {what}",
        value=statistics.median(sample.cpu_seconds for sample in taken.samples) * 1e3,
        unit="ms of CPU",
        ratio=ratio,
        against="plain",
        bar=f"at most {bar:g}" if held else "",
        met=ratio <= bar if held else None,
        note=f"{taken.ratio(plain):.2f} by the clock, {len(taken.samples)} repeats, "
        f"{taken.page_faults:.0f} page faults",
    )


def _plain(model: nn.Module, flat: FlatParameters, batch: Batch) -> None:
    flat.gradient.zero_()
    per_example(model(batch.inputs, batch.lengths), batch.labels).mean().backward()  # type: ignore[no-untyped-call]
    Optimiser(SGD, flat.values).step(flat.values, flat.gradient, LEARNING_RATE)


def _private(engine: GradientEngine, flat: FlatParameters, batch: Batch, patients: Patients) -> None:
    rows = stages.PatientGradients(values=_rows(engine, batch, patients))
    update = release(rows, PRIVACY, SecretSource())
    Optimiser(SGD, flat.values).step(flat.values, torch.from_numpy(update.values), LEARNING_RATE)


def _rows(engine: GradientEngine, batch: Batch, patients: Patients) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = all_rows(engine, batch, patients).numpy()
    return rows


def _difference(name: str, spec: ModelSpec) -> Row:
    """Compares the rows of eight recordings of five patients with a float64 loop through torch's own layers."""
    model, batch = _model(spec), random_batch(8, N_FRAMES)
    patients = np.array([0, 1, 1, 2, 3, 3, 3, 4])
    exact = copy.deepcopy(model).double()
    wanted = torch.zeros(5, sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for row, patient in enumerate(patients):
        one = {key: values[row : row + 1].double() for key, values in batch.inputs.items()}
        logits = exact(one, {key: values[row : row + 1] for key, values in batch.lengths.items()})
        found = torch.autograd.grad(
            per_example(logits, batch.labels[row : row + 1]).sum(), list(exact.parameters())
        )
        wanted[patient] += torch.cat([g.reshape(-1) for g in found]) / int((patients == patient).sum())
    rows = matrix(BookKeeping(model, per_example), batch, patients, 5)
    sizes = [p.numel() for p in model.parameters()]
    # relative to a tensor's norm, or a hundredth of its row's: 1e-5 of that is one float32 rounding of the row
    floor = 1e-2 * wanted.norm(dim=1)
    worst = max(
        float(((a - b).norm(dim=1) / torch.maximum(b.norm(dim=1), floor)).max())
        for a, b in zip(
            torch.split(rows.double(), sizes, dim=1), torch.split(wanted, sizes, dim=1), strict=True
        )
    )
    return Row(
        what=f"{name}: largest relative difference of a tensor to the float64 loop",
        value=worst,
        unit="",
        bar=f"at most {MAX_DIFFERENCE:g}",
        met=worst <= MAX_DIFFERENCE,
    )


def _memory(steps: int) -> list[Row]:
    """Private steps in a row, of a batch that changes its patients from step to step."""
    model, batch = _model(MODELS["convolution + LSTM"][0]), random_batch(16, 101)
    engine, draw = BookKeeping(model, per_example), np.random.default_rng(0)
    with FlatParameters(model) as flat:

        def step() -> None:
            _private(engine, flat, batch, draw.integers(0, 12, size=16))

        for _ in range(max(10, steps // 10)):
            step()
        before, faults = _resident_mib(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(steps):
            step()
        grown = _resident_mib() - before
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return [
        Row(
            what=f"memory gained over {steps:,} private steps",
            value=grown,
            unit="MiB",
            bar="at most 8",
            met=grown <= 8,
            note=f"{before:.0f} MiB held, {faults / steps:.3g} page faults a step",
        )
    ]


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _model(spec: ModelSpec) -> nn.Module:
    model = models.build(spec, {"mel": N_MELS}, N_CLASSES, seed=0)
    return model.eval()  # no dropout: neither side draws coins


def random_batch(n: int, n_frames: int) -> Batch:
    """Returns recordings of random length, at least a third of the longest."""
    coins = torch.Generator().manual_seed(0)
    return Batch(
        inputs={"mel": torch.randn(n, n_frames, N_MELS, generator=coins)},
        lengths={"mel": torch.randint(n_frames // 3, n_frames + 1, (n,), generator=coins)},
        labels=torch.randint(0, N_CLASSES, (n,), generator=coins),
    )


class Vmap:
    """The rows by torch.func: the gradient of one recording's loss, mapped over the batch. A contestant only."""

    def __init__(self, model: nn.Module, loss: LossOf) -> None:
        self._model, self._loss = model, loss
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    @property
    def n_parameters(self) -> int:
        """Returns the number of columns."""
        return sum(self._model.get_parameter(name).numel() for name in self._names)

    def chunks(
        self, batch: Batch, patients: Patients, *, secret_dropout_seed: int | None = None
    ) -> Iterator[Chunk]:
        """Yields all patients at once."""
        rows = Rows.of(patients)
        own = take(batch, rows.order)
        parameters = [self._model.get_parameter(name) for name in self._names]
        matrix = torch.empty(len(rows.patients), self.n_parameters)
        sink = Sink(matrix, spans(parameters), rows)
        with warnings.catch_warnings(), dropout(self._model, secret_dropout_seed, matrix.device):
            warnings.filterwarnings("ignore", message="There is a performance drop")  # it is what we measure
            found = vmap(grad(self._loss_of_one), in_dims=(None, 0, 0, 0), randomness="different")(
                {name: p.detach() for name, p in zip(self._names, parameters, strict=True)},
                own.inputs,
                own.lengths,
                own.labels,
            )
        shares = torch.from_numpy(rows.shares).to(matrix)
        for name, parameter in zip(self._names, parameters, strict=True):
            each = found[name]
            sink.total(parameter, each * shares.view(-1, *[1] * (each.dim() - 1)))
        yield Chunk(patients=rows.patients, gradients=matrix)

    def _loss_of_one(
        self,
        parameters: dict[str, Tensor],
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor],
        label: Tensor,
    ) -> Tensor:
        one, length = ({name: v[None] for name, v in part.items()} for part in (inputs, lengths))
        logits = functional_call(self._model, parameters, (one, length))
        return self._loss(logits, label[None]).sum()
