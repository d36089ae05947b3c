"""One site's local training in one round, non-private (mode `none`).

Guarantees:
  - Given model weights, data, study, seed, site and round, the trained weights are the same bits in any
    process, worker or attempt (one thread, one machine).
  - torch's global random state is left as it was.
  - The optimiser is fresh: nothing but the weights passes from round to round.
  - Masks on features hit training batches only, by public draws of their own.
  - FedProx adds the gradient of 0.5 * mu * |w - w0|^2, w0 being the weights the round began with.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sottovoce.client.transferred import Anchored, stepping
from sottovoce.common.dataset import SiteData
from sottovoce.common.feature_specs import Frames
from sottovoce.common.models import streams_of
from sottovoce.common.optimiser import FlatParameters, Optimiser
from sottovoce.common.schedule import learning_rate_at
from sottovoce.common.streams import stream, torch_seed
from sottovoce.common.study import Training
from sottovoce.common.training import Masks, dropout_coins, epochs, losses_of
from sottovoce.common.weights import Weights


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What local training reports: the mean training loss over the round, and how much was done."""

    loss: float
    n_examples: int
    n_steps: int


def train(
    model: nn.Module,
    data: SiteData,
    spec: Training,
    *,
    seed: int,
    site: str,
    round: int,
    rounds: int,
    proximal_mu: float = 0.0,
    anchor: Weights | None = None,
    correction: Weights | None = None,
    transfer: Anchored | None = None,
    device: str | torch.device = "cpu",
    frames: Frames | None = None,
    row_weights: npt.NDArray[np.float32] | None = None,
) -> TrainResult:
    """Trains `model` in place on a site's examples; `round` counts from 1 to `rounds`.

    The proximal term pulls to `anchor`, or to the weights that the round begins with. `correction` is added to the
    gradient of every step (SCAFFOLD); `transfer` changes steps (`client/transferred.py`). `frames` is the study's grid:
    masks on features are stated in seconds. `row_weights` multiply the loss of each example (`group_weights.py`).

    Raises:
        ValueError: there is nothing to train on, or masks are asked for without `frames`.
    """
    if len(data) == 0:
        raise ValueError(f"Expected examples to train on at site {site!r}; came none.")
    device = torch.device(device)
    data = data.only(streams_of(model))
    learning_rate = learning_rate_at(spec, round, rounds)
    masks = Masks(spec.augmentation, frames, stream(seed, "feature masks", site, round))
    model.to(device).train()
    total, n_steps, n_seen = torch.zeros((), device=device), 0, 0
    with dropout_coins(torch_seed(seed, "dropout", site, round), device), FlatParameters(model) as flat:
        start = None
        if proximal_mu:
            start = flat.values.clone() if anchor is None else flat.vector(anchor)
        drift = None if correction is None else flat.vector(correction)
        optimiser = stepping(Optimiser(spec, flat.values), model, flat, transfer)
        for indices in epochs(len(data), spec, stream(seed, "epoch order", site, round)):
            batch = data.batch(indices).to(device)
            losses = losses_of(model(masks(batch), batch.lengths), batch.labels, spec)
            if row_weights is not None:
                losses = losses * torch.from_numpy(row_weights[indices]).to(device)
            flat.gradient.zero_()
            losses.mean().backward()  # type: ignore[no-untyped-call]
            if start is not None:
                flat.gradient.add_(flat.values - start, alpha=proximal_mu)
            if drift is not None:
                flat.gradient.add_(drift)
            optimiser.step(flat.values, flat.gradient, learning_rate)
            total += losses.detach().sum()
            n_steps, n_seen = n_steps + 1, n_seen + len(indices)
    return TrainResult(loss=float(total) / n_seen, n_examples=len(data), n_steps=n_steps)
