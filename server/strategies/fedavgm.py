"""FedAvgM: momentum at the server, with the mean update in the place of the gradient.

Hsu, Qi, Brown: "Measuring the effects of non-identical data distribution for federated visual classification",
2019 (arXiv 1909.06335), section 4.3; the server's learning rate is 1, as there. With one step in a round it is SGD
with momentum on all sites' data.
"""

import numpy as np

from sottovoce.common.study import FedAvgM
from sottovoce.server.strategies.state import ServerState, Vector, frozen


def init(weights: Vector) -> ServerState:
    """Returns the state before the first round, at rest."""
    return ServerState(
        round=0, weights=frozen(weights.copy()), moments={"velocity": frozen(np.zeros_like(weights))}
    )


def apply(state: ServerState, mean_update: Vector, spec: FedAvgM) -> ServerState:
    """Adds the mean update and what is left of all earlier ones."""
    velocity = np.float32(spec.momentum) * state.moments["velocity"] + mean_update
    weights = frozen(state.weights + velocity)
    return ServerState(round=state.round + 1, weights=weights, moments={"velocity": frozen(velocity)})
