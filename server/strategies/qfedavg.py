"""q-FedAvg: sites on whose recordings the model is worse count for more.

Li, Sanjabi, Beirami, Smith: "Fair resource allocation in federated learning", ICLR 2020, algorithm 2. With F_k the
loss of the round's first weights on site k's training recordings, u_k its update and L = 1 / learning rate:

    update = sum_k F_k^q L u_k / sum_k (q F_k^(q-1) L^2 |u_k|^2 + L F_k^q)

With q = 0 it is the plain mean. F_k is a number about a site's patients: it leaves the site in mode `none` alone.
"""

from collections.abc import Sequence

import numpy as np

from sottovoce.common.errors import RunError
from sottovoce.server.strategies.state import Single, Vector

SMALLEST_LOSS = (
    1e-10  # a loss of nothing to the power of q - 1 < 0 has no value; the authors' code does the same
)


def combine(updates: Sequence[Single], *, q: float, learning_rate: float) -> Vector:
    """Returns the step that q asks for. Raises: RunError where a site stated no loss."""
    lipschitz = 1.0 / learning_rate
    top, bottom = np.zeros_like(updates[0].change), 0.0
    for update in updates:
        if update.loss is None:
            raise RunError("Expected the loss of each site for q-FedAvg; one stated none.")
        loss = max(update.loss, 0.0) + SMALLEST_LOSS
        top += loss**q * lipschitz * update.change
        squared = lipschitz**2 * float(np.dot(update.change, update.change))
        bottom += q * loss ** (q - 1.0) * squared + lipschitz * loss**q
    return (top / bottom).astype(np.float32)
