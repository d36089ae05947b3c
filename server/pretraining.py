"""Training on a public corpus: with its labels, or by guessing frames that were hidden. No federation, no privacy.

Guarantees:
  - The same data, study and seed give the same weights, to the bit (one machine, one thread).
  - torch's global random state is left as it was.
  - Masked frames read no label; what they teach nothing, heads and attention pooling, is not in the result.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sottovoce.common.dataset import Batch, SiteData
from sottovoce.common.errors import RunError
from sottovoce.common.feature_specs import Frames
from sottovoce.common.models import build
from sottovoce.common.models.encoders import SequenceEncoder
from sottovoce.common.models.layers import FrameAverage, valid_frames
from sottovoce.common.optimiser import FlatParameters, Optimiser
from sottovoce.common.progress import OnEvent, Step
from sottovoce.common.schedule import learning_rate_at
from sottovoce.common.streams import stream, torch_seed
from sottovoce.common.study import Study, Training
from sottovoce.common.training import Masks, dropout_coins, epochs, losses_of
from sottovoce.common.weights import from_state_dict

# Liu et al. 2021 (TERA): spans of frames, 15 % of a recording; most become zero, some another place, some stay.
SPAN_SECONDS = 0.15
HIDDEN_SHARE = 0.15
ZERO_SHARE, OTHER_SHARE = 0.8, 0.1
NO_SEQUENCE = (
    "--method masked_frames: expected a model of a sequence; {kind!r} reads pooled streams alone. "
    "Take --method supervised."
)

Array = npt.NDArray[np.float32]


def supervised(
    study: Study, data: SiteData, *, n_epochs: int, seed: int, device: str, tell: OnEvent
) -> dict[str, Array]:
    """Returns the weights of the study's model, trained on the labels by the study's own settings."""
    model = build(study.model, data.widths, len(study.labels.classes), seed).to(device)
    masks = Masks(study.training.augmentation, study.frames, stream(seed, "pretraining masks"))

    def losses(batch: Batch) -> Tensor:
        return losses_of(model(masks(batch), batch.lengths), batch.labels, study.training)

    _fit(model, data, study.training, losses, n_epochs=n_epochs, seed=seed, device=device, tell=tell)
    return from_state_dict(model.state_dict())


def masked_frames(
    study: Study, data: SiteData, *, n_epochs: int, seed: int, device: str, tell: OnEvent
) -> dict[str, Array]:
    """Returns the weights of the sequence bodies of the study's model, trained to restore hidden frames.

    Raises:
        RunError: the study's model reads no sequence.
    """
    model = build(study.model, data.widths, len(study.labels.classes), seed)
    bodies = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, SequenceEncoder) and part.stream
    }
    if not bodies:
        raise RunError(NO_SEQUENCE.format(kind=study.model.kind))
    rng = stream(seed, "hidden frames")
    guesses = nn.ModuleList(_guess(body, data, study.frames, rng, seed) for body in bodies.values()).to(
        device
    )

    def losses(batch: Batch) -> Tensor:
        return torch.stack([guess(batch) for guess in guesses]).sum(0)

    _fit(guesses, data, study.training, losses, n_epochs=n_epochs, seed=seed, device=device, tell=tell)
    taught = tuple(f"{name}." for name in bodies)
    weights = from_state_dict(model.state_dict())
    return {
        name: array
        for name, array in weights.items()
        if name.startswith(taught) and "pooling" not in name.split(".")
    }


class FrameGuess(nn.Module):
    """A body with a throwaway linear layer that guesses, for each step, what its frames were on average."""

    def __init__(
        self, body: SequenceEncoder, restore: nn.Linear, span: int, rng: np.random.Generator
    ) -> None:
        super().__init__()
        self.body, self.restore = body, restore
        self.average = FrameAverage(body.frames_per_step)
        self._span, self._rng = span, rng

    def forward(self, batch: Batch) -> Tensor:
        """Returns one loss for each recording: mean absolute error over hidden steps and columns, (B,)."""
        name = self.body.stream
        values, lengths = batch.inputs[name], batch.lengths[name]
        hidden, changed = hide(values, lengths, span=self._span, rng=self._rng)
        steps, n_steps = self.body.steps({name: changed}, {name: lengths})
        wanted, _ = self.average(values, lengths)
        any_hidden, _ = self.average(hidden[:, :, None].to(values.dtype), lengths)
        counted = (any_hidden[:, :, 0] > 0) & valid_frames(n_steps, steps.shape[1])
        errors = (self.restore(steps) - wanted).abs().mean(2) * counted
        losses: Tensor = errors.sum(1) / counted.sum(1).clamp(min=1)
        return losses


def hide(values: Tensor, lengths: Tensor, *, span: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Hides spans of frames; returns which (B, T), and the values without them.

    Guarantees:
      - About `HIDDEN_SHARE` of each recording's valid frames are hidden, one span at least; padding never.
      - What stands in the place of a hidden span is zero, another span of the same recording, or the span itself.
    """
    mask = torch.zeros(values.shape[:2], dtype=torch.bool)
    changed = values.clone()
    for row, length in enumerate(lengths.tolist()):
        wide = min(span, length)
        for _ in range(max(1, round(HIDDEN_SHARE * length / wide))):
            first, other = rng.integers(0, length - wide + 1, 2).tolist()
            mask[row, first : first + wide] = True
            coin = rng.random()
            if coin < ZERO_SHARE:
                changed[row, first : first + wide] = 0.0
            elif coin < ZERO_SHARE + OTHER_SHARE:
                changed[row, first : first + wide] = values[row, other : other + wide]
    return mask.to(values.device), changed


def _guess(
    body: SequenceEncoder, data: SiteData, frames: Frames, rng: np.random.Generator, seed: int
) -> FrameGuess:
    example = data.batch(np.arange(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "restoring layer", body.stream))
        with torch.no_grad():
            steps, _ = body.eval().steps(example.inputs, example.lengths)
        restore = nn.Linear(steps.shape[2], data.shapes[body.stream].width)
    return FrameGuess(body, restore, max(1, round(SPAN_SECONDS / frames.hop_seconds)), rng)


def _fit(
    trained: nn.Module,
    data: SiteData,
    training: Training,
    losses: Callable[[Batch], Tensor],
    *,
    n_epochs: int,
    seed: int,
    device: str,
    tell: OnEvent,
) -> None:
    """Trains in place: the study's optimiser and schedule, an epoch where a federation has a round."""
    spec, where = replace(training, local_epochs=1, steps_per_round=None), torch.device(device)
    order = stream(seed, "pretraining order")
    trained.train()
    with dropout_coins(torch_seed(seed, "pretraining dropout"), where), FlatParameters(trained) as flat:
        optimiser = Optimiser(spec, flat.values)
        for epoch in range(1, n_epochs + 1):
            rate = learning_rate_at(spec, epoch, n_epochs)
            for indices in epochs(len(data), spec, order):
                flat.gradient.zero_()
                losses(data.batch(indices).to(where)).mean().backward()  # type: ignore[no-untyped-call]
                optimiser.step(flat.values, flat.gradient, rate)
            tell(Step(stage="pretraining", done=epoch, total=n_epochs))
