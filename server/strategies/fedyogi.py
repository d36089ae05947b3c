"""FedYogi: FedAdam whose second moment moves by a bounded amount, up or down.

Reddi et al.: "Adaptive federated optimization", ICLR 2021, algorithm 2 (option FedYogi), after Zaheer et al.,
"Adaptive methods for nonconvex optimization", NeurIPS 2018.
"""

import numpy as np

from sottovoce.common.study import FedYogi
from sottovoce.server.strategies.fedadam import first_moment, stepped
from sottovoce.server.strategies.state import ServerState, Vector


def apply(state: ServerState, mean_update: Vector, spec: FedYogi) -> ServerState:
    """Moves the weights by eta m / (sqrt(v) + tau)."""
    m = first_moment(state, mean_update, spec.beta1)
    square, old = mean_update * mean_update, state.moments["v"]
    v = old - (1.0 - spec.beta2) * square * np.sign(old - square)
    return stepped(state, m, v, eta=spec.server_learning_rate, tau=spec.tau)
