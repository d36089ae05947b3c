"""A batch of several patients with unequal recordings, and the slow, sure way to their gradients."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.client.private import Patients
from sottovoce.common.dataset import Batch

Loss = Callable[[Tensor, Tensor], Tensor]
Recordings = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]  # inputs, lengths, labels


def batch_of(*patients: Recordings, shuffle: int | None = None) -> tuple[Batch, Patients]:
    """Returns the recordings of patients 0, 1, ... in float32, in their order or in that of a seed."""
    inputs = {name: torch.cat([one[0][name] for one in patients]).float() for name in patients[0][0]}
    lengths = {name: torch.cat([one[1][name] for one in patients]) for name in patients[0][1]}
    labels = torch.cat([one[2] for one in patients])
    owners = np.repeat(np.arange(len(patients)), [len(one[2]) for one in patients])
    whole = Batch(inputs=inputs, lengths=lengths, labels=labels)
    if shuffle is None:
        return whole, owners
    order = np.random.default_rng(shuffle).permutation(len(labels))
    return picked(whole, order), owners[order]


def picked(batch: Batch, rows: Patients | slice) -> Batch:
    """Returns some recordings of a batch."""
    return Batch(
        inputs={name: values[rows] for name, values in batch.inputs.items()},
        lengths={name: values[rows] for name, values in batch.lengths.items()},
        labels=batch.labels[rows],
    )


def one_by_one(model: nn.Module, loss: Loss, batch: Batch, patients: Patients, n_patients: int) -> Tensor:
    """Returns each patient's mean gradient by torch's own layers in float64, one recording at a time.

    In float64 because nn.LSTM in float32 is itself 4.8e-4 off (oneDNN).
    """
    exact = copy.deepcopy(model).double()
    trained = [parameter for parameter in exact.parameters() if parameter.requires_grad]
    rows = torch.zeros(n_patients, sum(p.numel() for p in trained), dtype=torch.float64)
    for row, patient in enumerate(patients):
        one = picked(batch, slice(row, row + 1))
        logits = exact({name: values.double() for name, values in one.inputs.items()}, one.lengths)
        found = torch.autograd.grad(loss(logits, one.labels).sum(), trained, materialize_grads=True)
        rows[patient] += torch.cat([g.reshape(-1) for g in found]) / int((patients == patient).sum())
    return rows


def worst_tensor(found: Tensor, wanted: Tensor, parameters: Sequence[nn.Parameter]) -> float:
    """Returns the largest relative error of one parameter's gradient in one patient's row.

    Relative to that tensor's norm, or to a hundredth of the row's where that is more: at 1e-5 this is one
    rounding of a float32 row. The gradient of a bias in front of a softmax over time is zero, and what stands
    there in float32 is the rounding of others.
    """
    sizes = [p.numel() for p in parameters if p.requires_grad]
    floor = 1e-2 * wanted.norm(dim=1)
    return max(
        float(((a - b).norm(dim=1) / torch.maximum(b.norm(dim=1), floor)).nan_to_num(0.0).max())
        for a, b in zip(
            torch.split(found.double(), sizes, dim=1), torch.split(wanted, sizes, dim=1), strict=True
        )
    )
