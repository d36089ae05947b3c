"""A generator of rows by class: noise and a label in, a row of features out.

    generator = new_generator(width=88, n_classes=8, spec=GeneratorSpec(), seed=0)
    rows = sample(generator, labels, seed=0)

Guarantees:
  - Weights and rows follow from the seeds alone; torch's global random state is left as it was.
  - A row does not change with the rows that are sampled beside it, but for the noise that its place draws.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sottovoce.common.config import Interval
from sottovoce.common.models.generative import SLOPE
from sottovoce.common.streams import torch_seed
from sottovoce.common.weights import Layout, from_state_dict, to_state_dict

Rows = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class GeneratorSpec:
    """The size of a generator: numbers of noise, width of its two hidden layers."""

    noise: Annotated[int, Interval(1, 512)] = 32
    hidden: Annotated[int, Interval(1, 1024)] = 128


class Conditional(nn.Module):
    """Any generator: `forward(noise, labels)` with `noise` numbers for each example."""

    noise: int


class Generator(Conditional):
    """Two hidden layers; the label joins as a learned vector as long as the noise."""

    def __init__(self, width: int, n_classes: int, spec: GeneratorSpec) -> None:
        super().__init__()
        self.noise = spec.noise
        self.label = nn.Embedding(n_classes, spec.noise)
        self.layers = nn.Sequential(
            nn.Linear(2 * spec.noise, spec.hidden),
            nn.LeakyReLU(SLOPE),
            nn.Linear(spec.hidden, spec.hidden),
            nn.LeakyReLU(SLOPE),
            nn.Linear(spec.hidden, width),
        )

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        rows: Tensor = self.layers(torch.cat([noise, self.label(labels)], dim=1))
        return rows


def new_generator(width: int, n_classes: int, spec: GeneratorSpec, *, seed: int) -> Generator:
    """Returns a generator before any training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "generator"))
        return Generator(width, n_classes, spec)


def sample(generator: Conditional, labels: Labels, *, seed: int, purpose: str = "synthetic rows") -> Rows:
    """Returns a row for each label, by public draws."""
    coins = torch.Generator().manual_seed(torch_seed(seed, purpose))
    with torch.no_grad():
        noise = torch.randn(len(labels), generator.noise, generator=coins)
        rows: Rows = generator(noise, torch.from_numpy(labels)).numpy()
    return rows


def each_class(n_classes: int, per_class: int) -> Labels:
    """Returns so many labels of each class, class after class.

    >>> each_class(2, 3).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    return np.repeat(np.arange(n_classes, dtype=np.int64), per_class)


def flat_weights(module: nn.Module) -> Rows:
    """Copies a module's weights into one vector."""
    weights = from_state_dict(module.state_dict())
    return Layout.of(weights).flatten(weights)


def put_flat_weights(module: nn.Module, flat: Rows) -> None:
    """Writes one vector into a module's weights. Raises: ValueError where it has another length."""
    layout = Layout.of(from_state_dict(module.state_dict()))
    module.load_state_dict(to_state_dict(layout.unflatten(flat)))
