"""Every patient's own gradient, for one private step: what is clipped is the patient, never the batch.

    engine = BookKeeping(model, loss)                       # or any other GradientEngine
    rows = all_rows(engine, batch, draw.rows)               # draw: common.privacy.plan
    update = release(PatientGradients(values=rows.numpy()), privacy, source)

Guarantees, for every engine:
  - A row is the mean, over that patient's utterances in the batch, of the gradients of their losses.
  - A row does not change with the batch around it (relative 1e-6), nor with the chunks it is cut into.
  - Columns are the trainable parameters in the order of `FlatParameters`.
  - Nothing outlives a step but one buffer for a chunk: memory is the same after 1,000 steps as after one.
  - The model is left as it was: same parameters, same `.grad`, same mode.

No loss is returned: a training loss is a number computed from private data, and nobody has paid for it.

**Dropout** is off, whatever the model's mode, unless the caller hands in a seed. Its coins fall by the row of
the batch, so with a public seed one patient more would change every later patient's mask and gradient, and
the sum would move by more than one clip. With a seed from the release's own secret generator the masks are
independent of who is in the batch, and the bound holds mask by mask.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sottovoce.common.dataset import Batch

LossOf = Callable[[Tensor, Tensor], Tensor]  # (logits, labels) -> one loss for each utterance
Patients = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some patients' gradients. The next chunk overwrites them: use them up first, or copy."""

    patients: Patients = field(repr=False)  # (n,) the numbers that the caller gave
    gradients: Tensor = field(repr=False)  # (n, n_parameters) float32, row i belongs to patients[i]


class GradientEngine(Protocol):
    """One way to compute the rows. Which one it is changes speed, never the result beyond rounding."""

    @property
    def n_parameters(self) -> int:
        """Returns the number of columns: all trainable parameters."""

    def chunks(
        self, batch: Batch, patients: Patients, *, secret_dropout_seed: int | None = None
    ) -> Iterator[Chunk]:
        """Yields every patient of the batch once; `patients[i]` is the patient of utterance i."""


def all_rows(engine: GradientEngine, batch: Batch, patients: Patients) -> Tensor:
    """Returns one row for each patient in the batch, in no order that matters: what a clipped sum takes.

    Without a copy where one chunk holds them all; the next step then overwrites it. An empty batch has no row.
    """
    found: list[Tensor] = []
    for chunk in engine.chunks(batch, patients):
        complete = not found and len(chunk.patients) == len(np.unique(patients))
        found.append(chunk.gradients if complete else chunk.gradients.clone())
    if len(found) == 1:
        return found[0]
    return torch.cat(found) if found else torch.empty(0, engine.n_parameters)


def matrix(engine: GradientEngine, batch: Batch, patients: Patients, n_patients: int) -> Tensor:
    """Returns all rows at once, (n_patients, n_parameters): row p belongs to patient number p.

    A patient without an utterance in the batch has a row of zeros. Memory grows with the number of patients:
    a site with many uses `chunks`.
    """
    rows = batch.labels.new_zeros((n_patients, engine.n_parameters), dtype=torch.float32)
    for chunk in engine.chunks(batch, patients):
        rows[torch.from_numpy(chunk.patients)] = chunk.gradients
    return rows


def clipped_sum(engine: GradientEngine, batch: Batch, patients: Patients, l2_norm_bound: float) -> Tensor:
    """Returns the sum of all rows, each scaled to a norm of at most `l2_norm_bound`.

    For measurement and comparison. In floats, so the bound holds up to rounding: a release takes the integer
    grid of `common/privacy` instead.
    """
    total = torch.zeros(engine.n_parameters)
    for chunk in engine.chunks(batch, patients):
        norms = torch.linalg.vector_norm(chunk.gradients, dim=1)
        total += (l2_norm_bound / norms).clamp(max=1.0) @ chunk.gradients
    return total
