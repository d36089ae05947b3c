"""SCAFFOLD: FedAvg whose sites correct each step for how their data differ from everybody's.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: "SCAFFOLD: stochastic controlled averaging for federated learning",
ICML 2020, algorithm 1, option II. A site keeps its control c_i, the mean of the gradients of its last round, and steps
by g - c_i + c (`client/scaffold.py`). The coordinator's c is the mean of all sites' c_i.

Sites need not send how their controls changed. All take the same public number of steps K at the same learning rate,
so that site i's change is -c + (x - y_i)/(K lr), and the mean of the changes is -c - (mean update)/(K lr): it follows
from the mean of the updates, which may have been summed under masks. With public weights the means are weighted ones.
"""

import numpy as np

from sottovoce.server.strategies.state import ServerState, Vector, frozen

CONTROL = "control"


def init(weights: Vector) -> ServerState:
    """Returns the state before the first round, with the control at zero, as those of the sites are."""
    control = frozen(np.zeros_like(weights))
    return ServerState(round=0, weights=frozen(weights.copy()), moments={CONTROL: control})


def apply(
    state: ServerState, mean_update: Vector, *, eta: float, descent: float, share: float
) -> ServerState:
    """Moves the weights by eta times the mean update, and the control by the mean of the sites' changes.

    `descent` is K times the sites' learning rate in this round; `share` is the part of all sites (by their public
    weights) whose updates are in the mean: the controls of the others stay as they are.
    """
    control = state.moments[CONTROL]
    change: Vector = -control - mean_update / np.float32(descent)
    return ServerState(
        round=state.round + 1,
        weights=frozen(state.weights + np.float32(eta) * mean_update),
        moments={CONTROL: frozen(np.asarray(control + np.float32(share) * change, np.float32))},
    )
