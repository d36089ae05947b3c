"""How large a step is in which round: public, and the same wherever the step is taken, at a site or the coordinator."""

import math

from sottovoce.common.study import Training


def learning_rate_at(spec: Training, round: int, rounds: int) -> float:
    """Returns the learning rate of a round: constant, or half a cosine from full to nearly nothing."""
    if spec.schedule == "constant":
        return spec.learning_rate
    return spec.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (round - 1) / rounds))
