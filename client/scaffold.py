"""The site's side of SCAFFOLD: the correction of its steps, and its control after a round.

Karimireddy et al.: "SCAFFOLD: stochastic controlled averaging for federated learning", ICML 2020, algorithm 1, option
II (`server/strategies/scaffold.py`). A control has the names and shapes of the model's weights. It is the mean of a
round's gradients; in mode `local` of released ones, and so private already.

Guarantees:
  - The weighted mean of all sites' controls stays the coordinator's, as long as a site goes on from the round that
    counted last: the message says which one it is, since a site cannot know whether its answer was used.
"""

import numpy as np

from sottovoce.common.weights import Array, Weights


def correction(own: Weights, shared: Weights) -> dict[str, Array]:
    """Returns what is added to the gradient of every step: c - c_i."""
    return {name: shared[name] - own[name] for name in shared}


def control_after(
    own: Weights, shared: Weights, *, sent: Weights, trained: Weights, descent: float
) -> dict[str, Array]:
    """Returns c_i - c + (x - y_i)/(K lr); `descent` is K lr, x the weights that were sent, y_i what came of them."""
    return {
        name: own[name] - shared[name] + (sent[name] - trained[name]) / np.float32(descent) for name in shared
    }


def without_examples(drift: Weights, *, sent: Weights, descent: float) -> dict[str, Array]:
    """Returns the weights after K steps without a gradient, at a site all of whose speakers are withheld.

    It takes part like any other, with a control of zero: else the mean of the controls would not be the shared one.
    """
    return {name: np.asarray(sent[name] - np.float32(descent) * drift[name], np.float32) for name in sent}
