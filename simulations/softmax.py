"""Softmax regression on a matrix, to its optimum: a head on cached features in a fraction of a second.

Guarantees:
  - The result is the minimum of the weighted mean loss plus `decay` / 2 |weights|^2 (biases free): it does not depend
    on a seed or a batch (to 1e-3 of a logit: it stops there).
  - Rows of weight zero change nothing.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """Weights (n_classes, columns) and biases (n_classes,)."""

    weights: Floats
    biases: Floats

    def predict(self, rows: npt.NDArray[np.floating]) -> Labels:
        """Returns the class of each row."""
        found: Labels = self.scores(rows).argmax(axis=1)
        return found

    def scores(self, rows: npt.NDArray[np.floating]) -> Floats:
        """Returns the logits of each row."""
        scores: Floats = rows.astype(np.float64) @ self.weights.T + self.biases
        return scores


def adjusted(head: Head, labels: Labels, weights: Floats) -> Head:
    """Returns the head for classes that are equally likely: log shares of the training rows leave the biases.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, section 4.1. Classes without rows stay.
    """
    shares = np.bincount(labels, weights, minlength=len(head.biases)) / weights.sum()
    return Head(weights=head.weights, biases=head.biases - np.log(np.where(shares > 0, shares, 1.0)))


def fit_head(
    rows: npt.NDArray[np.floating],
    labels: Labels,
    *,
    n_classes: int,
    decay: float,
    weights: Floats | None = None,
) -> Head:
    """Fits a head; `weights` say how much each row counts (alike, if None), and add up to anything."""
    from scipy.optimize import minimize

    basis = _row_space(rows)
    inputs = (rows @ basis.T).astype(np.float32)  # a product in float32 takes half the time
    counts = np.ones(len(rows)) if weights is None else weights
    counts = counts / counts.sum()
    truth = np.eye(n_classes)[labels]

    def loss(flat: Floats) -> tuple[float, Floats]:
        matrix = flat.reshape(n_classes, -1)
        logits = inputs @ matrix[:, :-1].T.astype(np.float32) + matrix[:, -1]
        logits -= logits.max(axis=1, keepdims=True)
        powers = np.exp(logits)
        sums = powers.sum(axis=1, keepdims=True)
        error = counts[:, None] * (powers / sums - truth)
        value = counts @ (np.log(sums[:, 0]) - (logits * truth).sum(axis=1))
        slopes = np.concatenate(
            [error.astype(np.float32).T @ inputs + decay * matrix[:, :-1], error.sum(axis=0)[:, None]], axis=1
        )
        return float(value + decay / 2 * (matrix[:, :-1] ** 2).sum()), slopes.reshape(-1)

    start = np.zeros(n_classes * (inputs.shape[1] + 1))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-7})
    matrix = found.x.reshape(n_classes, -1)
    return Head(weights=matrix[:, :-1] @ basis, biases=matrix[:, -1])


def _row_space(rows: npt.NDArray[np.floating]) -> Floats:
    """Returns an orthonormal basis that all rows lie in: the best weights lie in it too, and it may be small."""
    if len(rows) >= rows.shape[1]:
        return np.eye(rows.shape[1])
    basis, _ = np.linalg.qr(rows.astype(np.float64).T)
    return basis.T
