"""FedAvg: the mean of the sites' weights.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: "Communication-efficient learning of deep networks from
decentralized data", AISTATS 2017, algorithm 1. Written as the old weights plus the mean update, which is the
same number with less rounding.
"""

from sottovoce.server.strategies.state import ServerState, Vector, frozen


def init(weights: Vector) -> ServerState:
    """Returns the state before the first round."""
    return ServerState(round=0, weights=frozen(weights.copy()))


def apply(state: ServerState, mean_update: Vector) -> ServerState:
    """Adds the mean update."""
    return ServerState(round=state.round + 1, weights=frozen(state.weights + mean_update))
