"""How many numbers a study's model has: `privacy.n_parameters` of mode `distributed`, which its accountant needs.

Guarantees:
  - The count is of the very model that is trained: it is built, without memory for its weights, and counted.
  - torch, which takes a second to load, is loaded for studies that state a number, and for no others.
"""

import math

from sottovoce.common.privacy_specs import DistributedPrivacy
from sottovoce.common.study import Study


def widths_of(study: Study) -> dict[str, int]:
    """Returns how many columns each stream of a study has."""
    from sottovoce.common.features import width

    return {
        stream.name: stream.reduction.columns
        if stream.reduction
        else width(stream, study.frames, study.audio.sample_rate_hz)
        for stream in study.streams
    }


def shapes_of(study: Study) -> dict[str, tuple[int, ...]]:
    """Returns the name and shape of each tensor of the study's model, in order: what travels as its weights."""
    import torch

    from sottovoce.common.models import build

    with torch.device("meta"):
        model = build(study.model, widths_of(study), len(study.labels.classes), seed=0)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def n_parameters_of(study: Study) -> int:
    """Returns how many numbers the study's model has."""
    return sum(math.prod(shape) for shape in shapes_of(study).values())


def size_problems(study: Study) -> list[str]:
    """Returns what is wrong with the number of parameters that a study states, if it states one.

    Reading a study does not ask this, because of what torch takes to load: `sottovoce study check` does.
    """
    if not isinstance(study.privacy, DistributedPrivacy):
        return []
    stated, found = study.privacy.n_parameters, n_parameters_of(study)
    if stated == found:
        return []
    return [f"privacy.n_parameters: expected {found}, which is how many this model has; came {stated}."]
