"""A class-conditional GAN on rows that the trainer may look at: a public corpus, or a site's own rows.

    generator = train_gan(rows, labels, GanSpec(), n_classes=8, seed=0)

Non-saturating loss with a gradient penalty on real rows (R1: Mescheder, Geiger and Nowozin, "Which training methods
for GANs do actually converge?", ICML 2018), against a projection discriminator. Every batch has all classes alike, so
that a rare class is learned as well as its few rows allow. What comes out is the generator's decaying mean of weights.

Guarantees:
  - Equal rows, labels, spec and seed give the same generator, to the bit (one thread, one machine).
  - torch's global random state is left as it was.
  - Nothing here is private: rows of a generator that saw people's rows are as private as those people's.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sottovoce.common.config import Interval
from sottovoce.common.generative.networks import (
    Conditional,
    Generator,
    GeneratorSpec,
    Labels,
    Rows,
    new_generator,
)
from sottovoce.common.model_specs import Discriminator
from sottovoce.common.models import build
from sottovoce.common.optimiser import EPSILON, FlatParameters
from sottovoce.common.streams import stream, torch_seed

STREAM = "rows"  # by which the discriminator reads them
PENALTY_EVERY = 4  # steps; it counts four times then (Karras et al. 2020, lazy regularisation)
BETA2 = 0.99  # of Adam, for both; there is no first moment (Mescheder et al., section 5)


@dataclass(frozen=True, kw_only=True)
class GanSpec:
    """How long and how hard. `average` is the decay of the mean of the generator's weights over steps."""

    generator: GeneratorSpec = field(default_factory=GeneratorSpec)
    hidden: Annotated[int, Interval(1, 1024)] = 128
    steps: Annotated[int, Interval(1, 1_000_000)] = 1500
    batch_size: Annotated[int, Interval(2, 4096)] = 64
    learning_rate: Annotated[float, Interval(1e-6, 1.0)] = 1e-3
    penalty: Annotated[float, Interval(0.0, 1e4)] = 1.0
    average: Annotated[float, Interval(0.0, 1.0, high_open=True)] = 0.995


class OnRows(nn.Module):
    """The discriminator that sites train, on a bare matrix."""

    def __init__(self, width: int, n_classes: int, hidden: int, seed: int) -> None:
        super().__init__()
        spec = Discriminator(kind="discriminator", stream=STREAM, hidden=hidden)
        self.inner = build(spec, {STREAM: width}, n_classes, seed)

    def forward(self, examples: Tensor) -> Tensor:
        scores: Tensor = self.inner({STREAM: examples}, {})
        return scores


def train_gan(rows: Rows, labels: Labels, spec: GanSpec, *, n_classes: int, seed: int) -> Generator:
    """Trains a generator of rows (n, width).

    Raises:
        ValueError: there are no rows, or some are not finite.
    """
    generator = new_generator(rows.shape[1], n_classes, spec.generator, seed=seed)
    discriminator = OnRows(rows.shape[1], n_classes, spec.hidden, seed)
    return fit(generator, discriminator, rows, labels, spec, seed=seed)


G = TypeVar("G", bound=Conditional)


def fit(
    generator: G, discriminator: nn.Module, examples: Rows, labels: Labels, spec: GanSpec, *, seed: int
) -> G:
    """Trains both in turn, on examples of any shape (n, ...); the generator ends as the mean of its way."""
    if len(examples) == 0 or not np.isfinite(examples).all():
        raise ValueError("Expected finite examples, at least one; came none, or some that are not finite.")
    draw = _Balanced(examples, labels, spec.batch_size, seed)
    coins = torch.Generator().manual_seed(torch_seed(seed, "gan noise"))
    with _Player(discriminator, spec) as judge, _Player(generator, spec) as maker:
        for step in range(spec.steps):
            real, truth = draw()
            fake = _fake(generator, truth, coins)
            penalty = spec.penalty * PENALTY_EVERY if step % PENALTY_EVERY == 0 else 0.0
            judge.step(discriminator_loss(discriminator, real, fake.detach(), truth, penalty))
            maker.step(functional.softplus(-own_scores(discriminator(fake), truth)).mean())
        maker.take_the_mean()
    return generator


def discriminator_loss(
    discriminator: nn.Module, real: Tensor, fake: Tensor, labels: Tensor, penalty: float
) -> Tensor:
    """Returns the logistic loss, with R1 of that strength on real examples."""
    real = real.requires_grad_(penalty > 0)
    scores = own_scores(discriminator(real), labels)
    loss = (
        functional.softplus(-scores).mean()
        + functional.softplus(own_scores(discriminator(fake), labels)).mean()
    )
    if penalty == 0:
        return loss
    (slopes,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
    return loss + penalty / 2 * slopes.flatten(1).square().sum(1).mean()


class _Balanced:
    """Batches of real examples: labels drawn alike from the classes that are there, then a row of the class."""

    def __init__(self, examples: Rows, labels: Labels, batch_size: int, seed: int) -> None:
        self._examples, self._labels = torch.from_numpy(np.ascontiguousarray(examples)), labels
        self._by_class = np.argsort(labels, kind="stable")
        _, self._first, self._counts = np.unique(
            labels[self._by_class], return_index=True, return_counts=True
        )
        self._size, self._random = batch_size, stream(seed, "gan batches")

    def __call__(self) -> tuple[Tensor, Tensor]:
        classes = self._random.integers(0, len(self._counts), self._size)
        places = (self._random.random(self._size) * self._counts[classes]).astype(np.int64)
        chosen = self._by_class[self._first[classes] + places]
        return self._examples[torch.from_numpy(chosen)], torch.from_numpy(self._labels[chosen])


def _fake(generator: Conditional, labels: Tensor, coins: torch.Generator) -> Tensor:
    noise = torch.randn((len(labels), generator.noise), generator=coins)
    examples: Tensor = generator(noise, labels)
    return examples


def own_scores(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns the score of each example as one of its own class."""
    return scores.gather(1, labels[:, None])[:, 0]


class _Player:
    """One of the two: Adam without a first moment on one flat vector, and the decaying mean of where it was."""

    def __init__(self, module: nn.Module, spec: GanSpec) -> None:
        self._parameters, self._flat = list(module.parameters()), FlatParameters(module)
        self._spec, self._steps = spec, 0

    def __enter__(self) -> "_Player":
        values = self._flat.__enter__().values
        self._square, self._mean = torch.zeros_like(values), values.clone()
        return self

    def __exit__(self, *of_error: Any) -> None:
        self._flat.__exit__(*of_error)

    def step(self, loss: Tensor) -> None:
        """Goes one step down the loss."""
        self._steps += 1
        found = torch.autograd.grad(loss, self._parameters)
        gradient = torch.cat([one.reshape(-1) for one in found])
        self._square.mul_(BETA2).addcmul_(gradient, gradient, value=1.0 - BETA2)
        root = (self._square / (1.0 - BETA2**self._steps)).sqrt_().add_(EPSILON)
        self._flat.values.addcdiv_(gradient, root, value=-self._spec.learning_rate)
        # At first the mean follows closely: it should not remember the start.
        decay = min(self._spec.average, self._steps / (9 + self._steps))
        self._mean.lerp_(self._flat.values, 1.0 - decay)

    def take_the_mean(self) -> None:
        """Ends where it was on average."""
        self._flat.values.copy_(self._mean)
