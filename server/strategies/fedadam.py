"""FedAdam: Adam at the server, with the mean update in the place of the gradient.

Reddi et al.: "Adaptive federated optimization", ICLR 2021, algorithm 2 (option FedAdam). No bias correction,
as in the paper; Flower 1.41 adds one whose exponent is one too high (`server_round + 1`, counting from 1). Both
moments start at zero, as in Flower; the paper lets v start at tau^2 or more.
"""

import numpy as np

from sottovoce.common.study import FedAdam
from sottovoce.server.strategies.state import ServerState, Vector, frozen


def init(weights: Vector) -> ServerState:
    """Returns the state before the first round, with both moments at zero."""
    zeros = frozen(np.zeros_like(weights))
    return ServerState(round=0, weights=frozen(weights.copy()), moments={"m": zeros, "v": zeros})


def apply(state: ServerState, mean_update: Vector, spec: FedAdam) -> ServerState:
    """Moves the weights by eta m / (sqrt(v) + tau)."""
    m = first_moment(state, mean_update, spec.beta1)
    v = spec.beta2 * state.moments["v"] + (1.0 - spec.beta2) * mean_update * mean_update
    return stepped(state, m, v, eta=spec.server_learning_rate, tau=spec.tau)


def first_moment(state: ServerState, mean_update: Vector, beta1: float) -> Vector:
    """Returns the decaying mean of the updates."""
    return beta1 * state.moments["m"] + (1.0 - beta1) * mean_update


def stepped(state: ServerState, m: Vector, v: Vector, *, eta: float, tau: float) -> ServerState:
    """Returns the state after the step that the two moments ask for."""
    weights = state.weights + eta * np.asarray(m / (np.sqrt(v) + tau), np.float32)
    moments = {"m": frozen(m), "v": frozen(v)}
    return ServerState(round=state.round + 1, weights=frozen(weights), moments=moments)
