"""One site's local training in one round, non-private (mode `none`).

Guarantees:
  - Given model weights, data, study, seed, site and round, the trained weights are the same bits in any
    process, worker or attempt (one thread, one machine).
  - torch's global random state is left as it was.
  - The optimiser is fresh: nothing but the weights passes from round to round.
  - Masks on features hit training batches only, by public draws of their own.
  - FedProx adds the gradient of 0.5 * mu * |w - w0|^2, w0 being the weights the round began with.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sottovoce.client.optimiser import FlatParameters, Optimiser
from sottovoce.common.augment import mask
from sottovoce.common.dataset import Batch, SiteData
from sottovoce.common.feature_specs import Frames
from sottovoce.common.models import streams_of
from sottovoce.common.models.losses import per_example
from sottovoce.common.schedule import learning_rate_at
from sottovoce.common.streams import stream, torch_seed
from sottovoce.common.study import Augmentation, Training


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
    device: str | torch.device = "cpu",
    frames: Frames | None = None,
) -> TrainResult:
    """Trains `model` in place on a site's examples; `round` counts from 1 to `rounds`.

    `frames` is the study's grid: masks on features are stated in seconds.

    Raises:
        ValueError: there is nothing to train on, or masks are asked for without `frames`.
    """
    if len(data) == 0:
        raise ValueError(f"Expected examples to train on at site {site!r}; came none.")
    device = torch.device(device)
    data = data.only(streams_of(model))
    learning_rate = learning_rate_at(spec, round, rounds)
    masks = _Masks(spec.augmentation, frames, stream(seed, "feature masks", site, round))
    model.to(device).train()
    total, n_steps = torch.zeros((), device=device), 0
    with _dropout_coins(torch_seed(seed, "dropout", site, round), device), FlatParameters(model) as flat:
        start = flat.values.clone() if proximal_mu else None
        optimiser = Optimiser(spec, flat.values)
        for indices in epochs(len(data), spec, stream(seed, "epoch order", site, round)):
            batch = data.batch(indices).to(device)
            losses = losses_of(model(masks(batch), batch.lengths), batch.labels, spec)
            flat.gradient.zero_()
            losses.mean().backward()  # type: ignore[no-untyped-call]
            if start is not None:
                flat.gradient.add_(flat.values - start, alpha=proximal_mu)
            optimiser.step(flat.values, flat.gradient, learning_rate)
            total += losses.detach().sum()
            n_steps += 1
    return TrainResult(
        loss=float(total) / (len(data) * spec.local_epochs), n_examples=len(data), n_steps=n_steps
    )


def epochs(n_examples: int, spec: Training, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yields the indices of each step: every epoch a new order, in equal parts of at most `batch_size`."""
    n_batches = -(-n_examples // spec.batch_size)
    for _ in range(spec.local_epochs):
        yield from np.array_split(rng.permutation(n_examples), n_batches)


class _Masks:
    """SpecAugment on the sequence streams of a batch, or nothing where the study asks for none."""

    def __init__(self, spec: Augmentation, frames: Frames | None, rng: np.random.Generator) -> None:
        self._wanted = bool(spec.time_masks or spec.band_masks)
        if self._wanted and frames is None:
            raise ValueError("Expected `frames` for masks on features; came None. Pass the study's frames.")
        self._spec, self._frames, self._rng = spec, frames or Frames(), rng

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        if not self._wanted:
            return batch.inputs
        masked = {
            name: mask(batch.inputs[name], lengths, self._spec, self._frames, self._rng)
            for name, lengths in batch.lengths.items()
        }
        return batch.inputs | masked


def losses_of(logits: Tensor, labels: Tensor, spec: Training) -> Tensor:
    """Returns the loss of each utterance, (B,), as the study states it."""
    return per_example(
        logits,
        labels,
        loss=spec.loss,
        label_smoothing=spec.label_smoothing,
        class_weights=spec.class_weights,
    )


@contextmanager
def _dropout_coins(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch for a block and puts its global state back after."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # torch.manual_seed would format the call stack once for each kind of device that is not there: 1 ms.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield
