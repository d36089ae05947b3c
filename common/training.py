"""What every way of training a model by plain gradient steps has in common, at a site and at the coordinator.

Guarantees:
  - Each epoch visits every recording once, in a new order.
  - torch's global random state is left as it was.
  - Masks on features hit training batches only, by public draws of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sottovoce.common.augment import mask
from sottovoce.common.dataset import Batch
from sottovoce.common.feature_specs import Frames
from sottovoce.common.models.losses import per_example
from sottovoce.common.study import Augmentation, Training


def epochs(n_examples: int, spec: Training, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yields the indices of each step: every epoch a new order, in equal parts of at most `batch_size`.

    There are `local_epochs` of them, or as many as `steps_per_round` steps need.
    """
    n_batches = -(-n_examples // spec.batch_size)
    n_steps = spec.steps_per_round or spec.local_epochs * n_batches
    while n_steps > 0:
        yield from np.array_split(rng.permutation(n_examples), n_batches)[:n_steps]
        n_steps -= n_batches


def losses_of(logits: Tensor, labels: Tensor, spec: Training) -> Tensor:
    """Returns the loss of each utterance, (B,), as the study states it."""
    return per_example(
        logits,
        labels,
        loss=spec.loss,
        label_smoothing=spec.label_smoothing,
        class_weights=spec.class_weights,
    )


class Masks:
    """SpecAugment on the sequence streams of a batch, or nothing where the study asks for none.

    Raises:
        ValueError: masks are asked for without `frames`, the grid that they are stated on.
    """

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


@contextmanager
def dropout_coins(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch for a block and puts its global state back after."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # torch.manual_seed would format the call stack once for each kind of device that is not there: 1 ms.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield
