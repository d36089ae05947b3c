"""Norm bound: the mean of updates that are shortened to a public length first.

Sun, Kairouz, Suresh, McMahan: "Can you really backdoor federated learning?", 2019 (arXiv 1911.07963), section 5. One
site moves the mean by at most norm / n, whatever it sends.
"""

from collections.abc import Sequence

import numpy as np

from sottovoce.server.strategies.state import Single, Vector


def combine(updates: Sequence[Single], *, norm: float) -> Vector:
    """Returns the mean of the shortened updates."""
    lengths = [float(np.linalg.norm(update.change)) for update in updates]
    shortened = [u.change * min(1.0, norm / max(n, norm)) for u, n in zip(updates, lengths, strict=True)]
    mean: Vector = np.mean(shortened, axis=0).astype(np.float32)
    return mean
