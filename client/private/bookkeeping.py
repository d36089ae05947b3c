"""The default engine: one backward pass whose layers write each patient's gradient as it goes by.

    engine = BookKeeping(model, per_example)
    for chunk in engine.chunks(batch, patients): ...

Each trained layer's `forward` is stood in for by its kernel during a step (client/private/kernels). Losses
are divided by the number of their patient's utterances, so that a patient's rows add up to the mean.

Every pass has the same number of utterances: batches are cut and filled up with zeros. Which kernel a matrix
product runs in follows from its shape, and kernels differ in the last bit; with shapes that follow from the draw, one
patient more changes the last bits of others, and weights can be chosen that make whole clips of last bits.

Guarantees: those of `client.private`, and
  - On one thread of a processor a row is the same bits whoever else is in the batch, and wherever in it the patient
    stands. (On a GPU nobody promises that; there it holds to 1e-6 for weights that nobody chose for it.)
  - A model with a trained layer that no kernel knows is refused before any step.
  - Memory is bounded by `max_floats` for the matrix, and by the activations of one chunk.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.client.private import Chunk, LossOf, Patients
from sottovoce.client.private.kernels import standing_in, trained_layers
from sottovoce.client.private.rows import Indices, Rows
from sottovoce.client.private.sink import Sink, spans
from sottovoce.common.dataset import Batch

MAX_FLOATS = 2**26  # 256 MiB: 64 patients of a million parameters
UTTERANCES = 64  # in every pass


class BookKeeping:
    """`GradientEngine` by hand-written kernels.

    Which parameters are trained is read at construction (`requires_grad`): make a new engine after freezing.

    Raises:
        ValueError: nothing is trained, or a trained layer has no kernel.
    """

    def __init__(
        self, model: nn.Module, loss: LossOf, *, max_floats: int = MAX_FLOATS, utterances: int = UTTERANCES
    ) -> None:
        self._model, self._loss, self._utterances = model, loss, utterances
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self._trained:
            raise ValueError("Expected a model with trainable parameters; came one that is all frozen.")
        self._columns = spans(self._trained)
        self._layers = trained_layers(model)
        self._max_patients = max(1, max_floats // self.n_parameters)
        # One buffer for all steps: a fresh one would cost a page fault for every 4 KiB of every step.
        self._buffer = self._trained[0].new_empty(0, self.n_parameters, requires_grad=False)
        nobody = Sink(self._buffer, self._columns, Rows.of(np.empty(0, np.int64)))
        with standing_in(self._layers, nobody):
            pass  # kernels refuse now what they would refuse at the first step

    @property
    def n_parameters(self) -> int:
        """Returns the number of columns."""
        return sum(parameter.numel() for parameter in self._trained)

    def chunks(
        self, batch: Batch, patients: Patients, *, secret_dropout_seed: int | None = None
    ) -> Iterator[Chunk]:
        """Yields every patient of the batch once; see `GradientEngine`."""
        if len(patients) != len(batch.labels):
            raise ValueError(
                f"Expected a patient for each of {len(batch.labels)} utterances; came {len(patients)}."
            )
        for number, rows in enumerate(Rows.of(patients).parts(self._max_patients, self._utterances)):
            # Another chunk must not repeat the coins of the first.
            seed = None if secret_dropout_seed is None else (secret_dropout_seed + number) % 2**63
            with dropout(self._model, seed, self._buffer.device):
                gradients = self._gradients(batch, rows)
            yield Chunk(patients=rows.patients, gradients=gradients)

    def _gradients(self, batch: Batch, rows: Rows) -> Tensor:
        if len(self._buffer) < len(rows.patients):
            self._buffer = self._buffer.new_empty(len(rows.patients), self.n_parameters)
        matrix = self._buffer[: len(rows.patients)]
        sink = Sink(matrix, self._columns, rows)
        own = take(batch, rows.order).filled(self._utterances)
        with torch.enable_grad(), standing_in(self._layers, sink):
            losses = self._loss(self._model(own.inputs, own.lengths), own.labels)
            if losses.shape != own.labels.shape:
                raise ValueError(
                    f"Expected one loss for each of {len(own.labels)} utterances; came {tuple(losses.shape)}."
                )
            shares = torch.zeros_like(losses)
            shares[: len(rows.shares)] = torch.from_numpy(rows.shares).to(losses)
            torch.autograd.backward(losses, shares)
        with torch.no_grad():
            sink.finish()
        return matrix


def take(batch: Batch, order: Indices) -> Batch:
    """Returns the utterances of `order`; the batch itself where that is what it is."""
    if len(order) == len(batch.labels) and (order[:-1] < order[1:]).all():
        return batch
    rows = torch.from_numpy(order).to(batch.labels.device)
    return Batch(
        inputs={name: values[rows] for name, values in batch.inputs.items()},
        lengths={name: values[rows] for name, values in batch.lengths.items()},
        labels=batch.labels[rows],
    )


@contextmanager
def dropout(model: nn.Module, seed: int | None, device: torch.device) -> Iterator[None]:
    """Turns dropout off for a block, or on with coins of that seed; then all is as it was before."""
    modes = {module: module.training for module in model.modules()}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            model.train(seed is not None)
            yield
        finally:
            for module, training in modes.items():
                module.training = training
