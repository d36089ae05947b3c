"""Krum: the update that lies closest to its neighbours; multi-Krum: the mean of the closest ones.

Blanchard, El Mhamdi, Guerraoui, Stainer: "Machine learning with adversaries: Byzantine tolerant gradient descent",
NeurIPS 2017, section 4 and (multi-Krum) section 5. Of n updates, f of them perhaps poisoned, an update's score is the
sum of its squared distances to the n - f - 2 nearest others. n is at least 2 f + 3.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import RunError
from sottovoce.server.strategies.state import Single, Vector


def combine(updates: Sequence[Single], *, n_poisoned: int, n_kept: int) -> Vector:
    """Returns the mean of the `n_kept` updates of the smallest scores; of equal ones the first.

    Raises:
        RunError: there are too few updates for so many poisoned ones, or to keep so many.
    """
    least = max(2 * n_poisoned + 3, n_kept)
    if len(updates) < least:
        raise RunError(f"Expected at least {least} updates for Krum; came {len(updates)}.")
    changes = np.stack([update.change for update in updates])
    kept = np.sort(np.argsort(scores(changes, n_poisoned), kind="stable")[:n_kept])
    mean: Vector = changes[kept].mean(axis=0).astype(np.float32)
    return mean


def scores(changes: npt.NDArray[np.float64], n_poisoned: int) -> npt.NDArray[np.float64]:
    """Returns the score of each row."""
    n = len(changes)
    distances = np.stack([np.square(changes - row).sum(axis=1) for row in changes])
    np.fill_diagonal(distances, np.inf)
    nearest: npt.NDArray[np.float64] = np.sort(distances, axis=1)[:, : n - n_poisoned - 2].sum(axis=1)
    return nearest
