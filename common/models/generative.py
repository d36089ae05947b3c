"""What hospitals train for a generator at the coordinator: a discriminator, or sums by class.

Both take a row and give a number for each class, as a classifier does: so that they go through the same private
steps, ledgers and secure sums. Neither is one.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sottovoce.common.model_specs import Discriminator, Moments
from sottovoce.common.models.encoders import Encoder, Inputs, Lengths

SLOPE = 0.2  # of a leaky rectifier left of zero


class Trunk(Encoder):
    """Two hidden layers on a pooled stream."""

    def __init__(self, spec: Discriminator, width: int) -> None:
        super().__init__(spec.stream, spec.hidden)
        self.first, self.second = nn.Linear(width, spec.hidden), nn.Linear(spec.hidden, spec.hidden)

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        hidden = functional.leaky_relu(self.first(inputs[self.stream]), SLOPE)
        return functional.leaky_relu(self.second(hidden), SLOPE)


class Projection(nn.Module):
    """A score for each class: one that all classes share, and the product with the class's own vector.

    Miyato and Koyama, "cGANs with projection discriminator", ICLR 2018, equation 3.
    """

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.shared = nn.Linear(width, 1)
        self.classes = nn.Linear(width, n_classes, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        scores: Tensor = self.shared(values) + self.classes(values)
        return scores


class ProjectionDiscriminator(nn.Module):
    """How real a row looks, as one of each class: (B, n_classes)."""

    def __init__(self, spec: Discriminator, width: int, n_classes: int) -> None:
        super().__init__()
        self.encoder = Trunk(spec, width)
        self.head = Projection(spec.hidden, n_classes)

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        scores: Tensor = self.head(self.encoder(inputs, lengths))
        return scores


class Statistics(Encoder):
    """A row and its squares, less the square of a standardised column, each part scaled to a norm of about one."""

    def __init__(self, spec: Moments, width: int) -> None:
        super().__init__(spec.stream, 2 * width)
        self.bound, self.columns = spec.bound, width

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        rows = inputs[self.stream].clamp(-self.bound, self.bound)
        return torch.cat([rows, (rows.square() - 1.0) / math.sqrt(2.0)], dim=1) / math.sqrt(self.columns)


class ClassMoments(nn.Module):
    """Sums by class, as weights: `head.bias` of one, `head.weight` of a row's statistics. They begin at zero."""

    def __init__(self, spec: Moments, width: int, n_classes: int) -> None:
        super().__init__()
        self.encoder = Statistics(spec, width)
        self.head = nn.Linear(self.encoder.width, n_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        sums: Tensor = self.head(self.encoder(inputs, lengths))
        return sums


def generative(spec: Discriminator | Moments, width: int, n_classes: int) -> nn.Module:
    """Returns the module of a spec; `width` is that of its stream."""
    match spec:
        case Discriminator():
            return ProjectionDiscriminator(spec, width, n_classes)
        case Moments():
            return ClassMoments(spec, width, n_classes)
