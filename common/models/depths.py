"""How far below the classifier each parameter of a model lies: layers near the features change less when transferred.

    depths(model)["encoder.convs.convs.0.weight"]        # 2 in a network of two convolutions; the head's are 0

Guarantees:
  - Heads are at 0, the layer below them at 1, and so on down; branches of a fusion side by side.
  - Every parameter has a depth; one that no layer claims has 0 and learns at the full rate.
"""

from torch import nn

from sottovoce.common.models import Classifier
from sottovoce.common.models.encoders import Encoder


def depths(model: nn.Module) -> dict[str, int]:
    """Returns the depth of each parameter by its name."""
    found: dict[int, int] = {}
    for body in _bodies(model):
        for depth, layer in enumerate(body.layers(), start=1):
            for part in layer:
                found |= {id(parameter): depth for parameter in part.parameters()}
    return {name: found.get(id(parameter), 0) for name, parameter in model.named_parameters()}


def _bodies(model: nn.Module) -> list[Encoder]:
    """The bodies right under a classifier. A fusion's own branches are among its layers."""
    return [part.encoder for part in model.modules() if isinstance(part, Classifier)]
