"""What a coordinator carries from round to round."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """The weights after `round` rounds, flat, and the strategy's own vectors of the same length by name.

    `others` are vectors of other lengths: of a network that is the coordinator's alone.
    """

    round: int
    weights: Vector
    moments: Mapping[str, Vector] = field(default_factory=dict)
    others: Mapping[str, Vector] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Single:
    """One site's accepted update, for rules that look at each; `loss` as the site stated it, None in a private mode."""

    change: npt.NDArray[np.float64]
    loss: float | None = None


def frozen(vector: Vector) -> Vector:
    """Returns the vector, read-only: what is state is not written to again."""
    vector.setflags(write=False)
    return vector
