"""Coordinate-wise trimmed mean: the f largest and the f smallest of what is asked of a weight do not count.

Yin, Chen, Ramchandran, Bartlett: "Byzantine-robust distributed learning: towards optimal statistical rates", ICML
2018, algorithm 1, option II, with f sites to trim where the paper has a share beta of them.
"""

from collections.abc import Sequence

import numpy as np

from sottovoce.common.errors import RunError
from sottovoce.server.strategies.state import Single, Vector


def combine(updates: Sequence[Single], *, n_poisoned: int) -> Vector:
    """Returns the mean of each coordinate without its extremes. Raises: RunError where nothing would be left."""
    if len(updates) <= 2 * n_poisoned:
        raise RunError(f"Expected more than {2 * n_poisoned} updates to trim; came {len(updates)}.")
    ordered = np.sort([update.change for update in updates], axis=0)
    mean: Vector = ordered[n_poisoned : len(updates) - n_poisoned].mean(axis=0).astype(np.float32)
    return mean
