"""A generator at the coordinator, against discriminators that sites train: rows of nobody, from what sites released.

Augenstein et al.: "Generative models for effective ML on private, decentralized datasets", ICLR 2020, algorithm 1,
with a hinge loss (Lim and Ye 2017) and a projection discriminator (Miyato and Koyama 2018).

The discriminator's gradient is a sum of two. The part on real rows is private: a site releases it as one step of
DP-SGD, and that is all it ever releases. The part on made rows needs the generator and nothing else, so it is computed
here. The mean update of a round is minus the learning rate times the first part.

    1. gradient = (mean update) / (-learning rate) + gradient on made patients
    2. Adam on the discriminator; each of its weights is then brought to a spectral norm of at most `bound`
    3. Adam on the generator, up the discriminator's score of what it makes; `mean` follows its weights

Guarantees:
  - The generator is a function of the released updates, the study and a seed: post-processing. A replay of the updates
    gives it again, to the bit (one thread, one machine).
  - A made patient is clipped like a real one where real ones are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sottovoce.common.errors import RunError
from sottovoce.common.generative_specs import Adversarial
from sottovoce.common.model_specs import Discriminator
from sottovoce.common.privacy_specs import NoPrivacy
from sottovoce.common.schedule import learning_rate_at
from sottovoce.common.study import Study
from sottovoce.server.strategies.state import ServerState, Vector, frozen

if TYPE_CHECKING:  # a coordinator of other studies has no use for torch
    import torch
    from torch import Tensor, nn

    from sottovoce.common.generative.networks import Generator

SQUARE = "square"  # of the discriminator's gradients: Adam's second moment
GENERATOR, GENERATOR_SQUARE, GENERATOR_MEAN = "generator", "generator-square", "generator-mean"
BETA, EPSILON = 0.99, 1e-8  # of Adam; there is no first moment
ROWS_WITHOUT_PRIVACY = 8  # of a made patient, where no study says how many of a real one count


@dataclass(frozen=True)
class Game:
    """What stays the same over the rounds of one federation."""

    study: Study
    spec: Adversarial
    seed: int

    @property
    def n_classes(self) -> int:
        """Returns how many classes there are."""
        return len(self.study.labels.classes)

    @cached_property
    def model(self) -> Discriminator:
        """Returns the spec of the discriminator."""
        model = self.study.model
        if not isinstance(model, Discriminator):
            raise RunError(f"Expected model.kind = 'discriminator' with 'adversarial'; came {model.kind!r}.")
        return model

    def init(self, weights: Vector) -> ServerState:
        """Returns the state before the first round: a generator of the right width, from the seed."""
        from sottovoce.common.generative.networks import flat_weights

        start = flat_weights(self.generator(weights))
        return ServerState(
            round=0,
            weights=frozen(weights.copy()),
            moments={SQUARE: frozen(np.zeros_like(weights))},
            others={
                GENERATOR: frozen(start),
                GENERATOR_MEAN: frozen(start.copy()),
                GENERATOR_SQUARE: frozen(np.zeros_like(start)),
            },
        )

    def apply(self, state: ServerState, mean_update: Vector) -> ServerState:
        """Returns the state after a round."""
        number = state.round + 1
        rate = learning_rate_at(self.study.training, number, self.study.federation.rounds)
        # 1. Both parts of the discriminator's gradient, at the weights that the sites were sent.
        generator = self.generator(state.weights, state.others[GENERATOR])
        judge = self.discriminator(state.weights)
        gradient = self._on_made_patients(judge, generator, number) - mean_update / np.float32(rate)
        # 2. The discriminator.
        weights, square = _adam(
            state.weights, gradient, state.moments[SQUARE], self.spec.discriminator_rate, number
        )
        weights = self._bounded(weights)
        # 3. The generator.
        others = self._generator_steps(weights, generator, state, number)
        return ServerState(
            round=number, weights=frozen(weights), moments={SQUARE: frozen(square)}, others=others
        )

    def generator(self, weights: Vector, own: Vector | None = None) -> "Generator":
        """Returns the generator for a discriminator of these weights; with its `own`, or as it began."""
        from sottovoce.common.generative.networks import GeneratorSpec, new_generator, put_flat_weights

        spec = GeneratorSpec(noise=self.spec.noise, hidden=self.spec.hidden)
        made = new_generator(
            columns_of(self.model, len(weights), self.n_classes), self.n_classes, spec, seed=self.seed
        )
        if own is not None:
            put_flat_weights(made, own)
        return made

    def discriminator(self, weights: Vector) -> "nn.Module":
        """Returns the discriminator with these weights."""
        from sottovoce.common.generative.networks import put_flat_weights
        from sottovoce.common.models import build

        width = columns_of(self.model, len(weights), self.n_classes)
        made = build(self.model, {self.model.stream: width}, self.n_classes, self.seed)
        put_flat_weights(made, weights)
        return made

    def _on_made_patients(self, judge: "nn.Module", generator: "Generator", number: int) -> Vector:
        """Returns the mean over made patients of the gradient of max(0, 1 + score) on their rows."""
        import torch

        privacy = self.study.privacy
        n_rows = ROWS_WITHOUT_PRIVACY if isinstance(privacy, NoPrivacy) else privacy.utterances_per_patient
        bound = math.inf if isinstance(privacy, NoPrivacy) else privacy.clip_norm
        parameters, total = list(judge.parameters()), None
        rows, labels = self._made(generator, self.spec.fakes * n_rows, "made patients", number)
        for patient in range(self.spec.fakes):
            own = slice(patient * n_rows, (patient + 1) * n_rows)
            loss = (1.0 + self._score(judge, rows[own].detach(), labels[own])).relu().mean()
            found = _flat(torch.autograd.grad(loss, parameters))
            clipped = found * min(1.0, bound / max(float(found.norm()), 1e-12))
            total = clipped if total is None else total + clipped
        mean: Vector = (total / self.spec.fakes).numpy()  # type: ignore[union-attr,operator]  # fakes is 1 or more
        return mean

    def _generator_steps(
        self, weights: Vector, generator: "Generator", state: ServerState, number: int
    ) -> dict[str, Vector]:
        import torch

        from sottovoce.common.generative.networks import put_flat_weights

        judge = self.discriminator(weights)
        own, square, mean = (state.others[name] for name in (GENERATOR, GENERATOR_SQUARE, GENERATOR_MEAN))
        for step in range(self.spec.generator_steps):
            n_rows = self.spec.fakes * ROWS_WITHOUT_PRIVACY
            rows, labels = self._made(generator, n_rows, "generator step", number, step)
            loss = -self._score(judge, rows, labels).mean()
            gradient = _flat(torch.autograd.grad(loss, list(generator.parameters()))).numpy()
            steps = state.round * self.spec.generator_steps + step + 1
            own, square = _adam(own, gradient, square, self.spec.generator_rate, steps)
            put_flat_weights(generator, own)
            decay = np.float32(min(self.spec.average, steps / (9 + steps)))  # at first it follows closely
            mean = decay * mean + (1 - decay) * own
        return {GENERATOR: frozen(own), GENERATOR_SQUARE: frozen(square), GENERATOR_MEAN: frozen(mean)}

    def _made(self, generator: "Generator", n_rows: int, purpose: str, *keys: int) -> "tuple[Tensor, Tensor]":
        import torch

        from sottovoce.common.streams import torch_seed

        coins = torch.Generator().manual_seed(torch_seed(self.seed, purpose, *keys))
        labels = torch.randint(0, self.n_classes, (n_rows,), generator=coins)
        noise = torch.randn((n_rows, self.spec.noise), generator=coins)
        return generator(noise, labels), labels

    def _score(self, judge: "nn.Module", rows: "Tensor", labels: "Tensor") -> "Tensor":
        scores: Tensor = judge({self.model.stream: rows}, {})
        return scores.gather(1, labels[:, None])[:, 0]

    def _bounded(self, weights: Vector) -> Vector:
        import torch

        from sottovoce.common.generative.networks import flat_weights

        judge = self.discriminator(weights)
        with torch.no_grad():
            for weight in judge.parameters():
                if weight.dim() == 2:
                    weight.mul_(
                        min(1.0, self.spec.bound / max(float(torch.linalg.matrix_norm(weight, 2)), 1e-12))
                    )
        return flat_weights(judge)


def columns_of(model: Discriminator, n_weights: int, n_classes: int) -> int:
    """Returns how many columns a discriminator of so many weights reads.

    >>> columns_of(Discriminator(kind="discriminator", stream="s", hidden=2), 2 * 5 + 2 + 6 + 3 + 2 * 4, 4)
    5
    """
    h = model.hidden
    columns, rest = divmod(n_weights - (h + h * (h + 1) + h + 1 + h * n_classes), h)
    if rest or columns < 1:
        raise RunError(f"Expected the weights of the study's discriminator; came {n_weights} numbers.")
    return columns


def _adam(values: Vector, gradient: Vector, square: Vector, rate: float, steps: int) -> tuple[Vector, Vector]:
    square = np.asarray(BETA * square + (1 - BETA) * gradient * gradient, np.float32)
    root = np.sqrt(square / np.float32(1 - BETA**steps)) + np.float32(EPSILON)
    return np.asarray(values - np.float32(rate) * gradient / root, np.float32), square


def _flat(gradients: "Sequence[torch.Tensor]") -> "Tensor":
    import torch

    return torch.cat([one.reshape(-1) for one in gradients])
