"""Coordinate-wise median: each weight moves by the median of what the sites ask for.

Yin, Chen, Ramchandran, Bartlett: "Byzantine-robust distributed learning: towards optimal statistical rates", ICML
2018, algorithm 1, option I. Fewer than half of the sites can make no weight move further than an honest site asked.
"""

from collections.abc import Sequence

import numpy as np

from sottovoce.server.strategies.state import Single, Vector


def combine(updates: Sequence[Single]) -> Vector:
    """Returns the median of each coordinate; of an even number the mean of the two in the middle."""
    return np.median([update.change for update in updates], axis=0).astype(np.float32)
