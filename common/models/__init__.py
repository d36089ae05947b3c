"""The models of DESIGN section 4: plain small modules from a spec and a seed.

    model = build(study.model, data.widths, n_classes=8, seed=0)
    logits = model(batch.inputs, batch.lengths)

Guarantees:
  - No cross-influence: one recording's logits, loss and gradient do not change with the batch around it.
  - Padding changes nothing: neither its content nor its amount.
  - The weights come from the seed alone; torch's global random state is left as it was.
  - Parameters of the body start with `encoder.`, those of the classifier with `head.` (decision fusion: the
    same within each of its `branches.`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sottovoce.common.model_specs import Discriminator, Fusion, ModelSpec, Moments
from sottovoce.common.models.encoders import Encoder, Inputs, Lengths, encoder
from sottovoce.common.models.fusion import DecisionFusion, DeepFusion, FeatureFusion
from sottovoce.common.models.generative import generative
from sottovoce.common.streams import torch_seed


class Classifier(nn.Module):
    """An encoder and a linear head."""

    def __init__(self, body: Encoder, n_classes: int) -> None:
        super().__init__()
        self.encoder = body
        self.head = nn.Linear(body.width, n_classes)

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        logits: Tensor = self.head(self.encoder(inputs, lengths))
        return logits


def build(spec: ModelSpec, widths: Mapping[str, int], n_classes: int, seed: int) -> nn.Module:
    """Builds a model: `forward(inputs, lengths) -> logits (B, n_classes)`. `widths`: columns per stream."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "initialisation"))
        return _build(spec, widths, n_classes)


def streams_of(model: nn.Module) -> set[str]:
    """Returns the names of the streams that the model reads."""
    return {part.stream for part in model.modules() if isinstance(part, Encoder) and part.stream}


def _build(spec: ModelSpec, widths: Mapping[str, int], n_classes: int) -> nn.Module:
    if isinstance(spec, Discriminator | Moments):
        return generative(spec, widths[spec.stream], n_classes)
    if not isinstance(spec, Fusion):
        return Classifier(encoder(spec, widths), n_classes)
    branches = [encoder(branch, widths) for branch in spec.branches]
    match spec.level:
        case "feature":
            return Classifier(FeatureFusion(branches, spec.width, spec.dropout), n_classes)
        case "deep":
            return Classifier(DeepFusion(branches, spec.width, spec.dropout), n_classes)
        case "decision":
            return DecisionFusion([Classifier(branch, n_classes) for branch in branches])
