"""How a model does on a site's examples: confusion counts of all and of groups, and log probabilities for simulations.

Guarantees:
  - An augmented copy is never scored.
  - A recording's row is the same bits whichever others are scored with it, and wherever it stands among them.
  - The model's mode (training or not) is put back.

Counts leave a site only in mode `none`, or noised and charged (DESIGN section 1). Log probabilities never do:
they exist in simulation on public corpora.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sottovoce.common.calibration_counts import cells
from sottovoce.common.dataset import SiteData
from sottovoce.common.groups import Tables
from sottovoce.common.models import streams_of
from sottovoce.common.study import Training
from sottovoce.common.training import losses_of

BATCH = 128


def log_probabilities(
    model: nn.Module, data: SiteData, device: str | torch.device = "cpu"
) -> npt.NDArray[np.float32]:
    """Returns (n, C): one row for each example, in order.

    Raises:
        ValueError: the data holds augmented copies (`data.originals()` leaves them out).
    """
    if (data.copies != 0).any():
        raise ValueError(
            "Expected recordings as they were made; came augmented copies. Use data.originals()."
        )
    device = torch.device(device)
    data = data.only(streams_of(model))
    was_training = model.training
    model.to(device).eval()
    rows = []
    with torch.inference_mode():
        for first in range(0, len(data), BATCH):
            chosen = np.arange(first, min(first + BATCH, len(data)))
            batch = data.batch(chosen).to(device).filled(BATCH)
            logits = model(batch.inputs, batch.lengths)[: len(chosen)]
            rows.append(logits.log_softmax(dim=1).cpu().numpy())
    model.train(was_training)
    return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)


def mean_loss(model: nn.Module, data: SiteData, spec: Training, device: str | torch.device = "cpu") -> float:
    """Returns the mean loss over the recordings as they were made, by the study's own loss. There must be some."""
    data = data.originals()
    log_probs = torch.from_numpy(log_probabilities(model, data, device))
    return float(losses_of(log_probs, torch.from_numpy(data.labels), spec).mean())


def confusion(
    model: nn.Module, data: SiteData, tables: Tables, device: str | torch.device = "cpu"
) -> npt.NDArray[np.int64]:
    """Returns counts (table, truth, predicted) over the examples; zeros for none."""
    counts = np.zeros(tables.shape, np.int64)
    if len(data):
        log_probs = log_probabilities(model, data, device)
        predicted = log_probs.argmax(axis=1)
        rows, within = tables.memberships(data.groups)
        np.add.at(counts, (within, data.labels[rows], predicted[rows]), 1)
        if tables.confidence_bins:
            beside = cells(log_probs.astype(np.float64), data.labels, tables.confidence_bins)
            np.add.at(counts.reshape(-1), tables.n_confusions + beside, 1)
    return counts
