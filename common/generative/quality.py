"""How good made rows are, in figures: distance of each class to real rows, copies, membership.

Looks are no figure: a table trained on made rows and tested on real ones is (`simulations/augmentations.py`).
"""

import numpy as np
import numpy.typing as npt

from sottovoce.common.generative.networks import Labels, Rows

COLUMNS = (
    32  # in which distances of rows are measured: more than classes differ in, fewer than rows of a class
)

Floats = npt.NDArray[np.float64]


def frechet(mean: Floats, covariance: Floats, other_mean: Floats, other_covariance: Floats) -> float:
    """Returns the squared Frechet distance of two Gaussians (Dowson and Landau 1982).

    >>> zero, one = np.zeros(2), np.eye(2)
    >>> frechet(zero, one, np.array([3.0, 4.0]), one)
    25.0
    """
    root = _root(covariance)
    # The trace of the root of a product is that of this symmetric one: no complex numbers.
    inner = np.linalg.eigvalsh(root @ other_covariance @ root)
    cross = np.sqrt(np.maximum(inner, 0.0)).sum()
    gap = float(((mean - other_mean) ** 2).sum())
    return round(gap + float(np.trace(covariance) + np.trace(other_covariance) - 2.0 * cross), 9)


def frechet_by_class(
    made: Rows, made_labels: Labels, real: Rows, real_labels: Labels, n_classes: int
) -> Floats:
    """Returns the distance of each class; NaN where one side has fewer than two rows."""
    found = np.full(n_classes, np.nan)
    for label in range(n_classes):
        one, other = made[made_labels == label], real[real_labels == label]
        if len(one) > 1 and len(other) > 1:
            found[label] = frechet(*_moments(one), *_moments(other))
    return found


def mean_distance(
    made: Rows, made_labels: Labels, real: Rows, real_labels: Labels, *, axes_of: Rows, n_classes: int
) -> float:
    """Returns the mean of the classes' distances in the `COLUMNS` principal columns of the rows `axes_of`.

    NaN where no class has two rows on both sides.
    """
    centre = axes_of.mean(axis=0)
    _, _, axes = np.linalg.svd(axes_of - centre, full_matrices=False)
    one, other = ((rows - centre) @ axes[:COLUMNS].T for rows in (made, real))
    found = frechet_by_class(one, made_labels, other, real_labels, n_classes)
    known = found[~np.isnan(found)]
    return float(known.mean()) if len(known) else float("nan")


def copies(made: Rows, training: Rows, held_out: Rows, *, random: np.random.Generator) -> float:
    """Returns the share of made rows that are nearer to a training row than to any held-out row.

    Both sides are cut to equally many rows, so that rows which copy nobody come out near one half; copies near one.
    """
    n = min(len(training), len(held_out))
    near = [_nearest(made, side[random.permutation(len(side))[:n]]) for side in (training, held_out)]
    return float(np.mean(np.where(near[0] == near[1], 0.5, near[0] < near[1])))


def membership_auc(made: Rows, training: Rows, held_out: Rows) -> float:
    """Returns how well distance to the nearest made row tells training rows from held-out ones: 0.5 is not at all."""
    distances = np.concatenate([_nearest(training, made), _nearest(held_out, made)])
    return auc(-distances, np.arange(len(distances)) < len(training))


def auc(scores: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """Returns the chance that a positive's score is above a negative's; ties count one half.

    >>> auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, False]))
    1.0
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # equal scores share the mean of their ranks
    n_positive = int(positive.sum())
    pairs = n_positive * (len(scores) - n_positive)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / pairs)


def _nearest(rows: Rows, others: Rows) -> Floats:
    """Returns each row's distance to the nearest of the others, squared."""
    a, b = rows.astype(np.float64), others.astype(np.float64)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2.0 * a @ b.T
    nearest: Floats = np.maximum(squares, 0.0).min(axis=1)
    return nearest


def _moments(rows: Rows) -> tuple[Floats, Floats]:
    exact = rows.astype(np.float64)
    return exact.mean(axis=0), np.atleast_2d(np.cov(exact, rowvar=False))


def _root(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    root: Floats = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root
