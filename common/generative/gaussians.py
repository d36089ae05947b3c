"""A Gaussian for each class, columns apart: what a GAN must beat. Plain, or from sums that hospitals noised.

    plain = fit_gaussians(rows, labels, n_classes=8)
    noised = from_sums(weights, columns=88, noise=deviation_of_noise)     # weights of a `moments` model
    rows = plain.sample(each_class(8, 100), seed=0)

The noised form costs what one private step costs: `model.kind = "moments"` with loss `label_score`, SGD at any rate.
Its weights are sums over patients of each patient's mean statistics, clipped, noised and charged like any update.
Sums of rows, of squares and of ones are divided by each other here, so that constants of the step cancel.

Guarantees:
  - `from_sums` reads nothing but the weights and public constants: post-processing.
  - Deviations are at least `FLOOR`; a class of which nothing is known is that of a standardised column.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.common.generative.networks import Labels, Rows
from sottovoce.common.streams import stream
from sottovoce.common.weights import Weights

FLOOR = 0.1  # of a deviation, where a standardised column has 1
SHRINKAGE = 3.0  # so many rows' worth of "as all classes together" in a class's deviation

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassGaussians:
    """Mean and deviation of each column, by class: (n_classes, columns)."""

    means: Floats
    deviations: Floats

    def sample(self, labels: Labels, *, seed: int) -> Rows:
        """Returns a row for each label, by public draws."""
        normal = stream(seed, "gaussian rows").standard_normal((len(labels), self.means.shape[1]))
        return (self.means[labels] + self.deviations[labels] * normal).astype(np.float32)


def fit_gaussians(rows: Rows, labels: Labels, *, n_classes: int) -> ClassGaussians:
    """Fits plain Gaussians. A class's variance leans on that within all classes; one without rows is as all rows."""
    exact = rows.astype(np.float64)
    means = np.tile(exact.mean(axis=0), (n_classes, 1))
    present = [label for label in range(n_classes) if (labels == label).any()]
    for label in present:
        means[label] = exact[labels == label].mean(axis=0)
    squares = (exact - means[labels]) ** 2
    within = squares.mean(axis=0)
    variances = np.tile(exact.var(axis=0), (n_classes, 1))
    for label in present:
        own = squares[labels == label]
        variances[label] = (own.sum(axis=0) + SHRINKAGE * within) / (len(own) + SHRINKAGE)
    return ClassGaussians(means=means, deviations=np.maximum(np.sqrt(variances), FLOOR))


def from_sums(weights: Weights, *, columns: int, noise: float) -> ClassGaussians:
    """Reads Gaussians off the weights of a `moments` model; `noise` is the deviation of the noise on each weight.

    A class's mean is shrunk by how much of its length is noise (James and Stein's estimator, positive part).
    """
    counts = np.maximum(weights["head.bias"].astype(np.float64), max(2.0 * noise, 1e-12))[:, None]
    sums = weights["head.weight"].astype(np.float64) * math.sqrt(columns)
    loudness = noise * math.sqrt(columns) / counts
    means = _shrunk(sums[:, :columns] / counts, loudness)
    squares = 1.0 + math.sqrt(2.0) * _shrunk(sums[:, columns:] / counts, loudness)
    variances = squares - means**2
    return ClassGaussians(means=means, deviations=np.sqrt(np.clip(variances, FLOOR**2, 4.0)))


def _shrunk(values: Floats, loudness: Floats) -> Floats:
    """Shrinks each row towards zero; `loudness` (rows, 1) is the noise on each of its numbers."""
    n = values.shape[1]
    length = (values**2).sum(axis=1, keepdims=True)
    kept = np.maximum(0.0, 1.0 - max(n - 2, 1) * loudness**2 / np.maximum(length, 1e-12))
    shrunk: Floats = kept * values
    return shrunk
