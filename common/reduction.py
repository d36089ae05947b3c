"""Public linear maps to fewer columns, fitted on a public corpus alone.

    public_map = fit(data, "many", by="pca", columns=32)       # (D, 32), applied by `dataset.normalise`

Under differential privacy noise goes to every trained number, and a linear head on 32 columns has a fraction of the
numbers of one on 800. Directions in which public voices differ are those in which private ones do.

Guarantees:
  - Equal data give an equal map, signs included (one machine and thread).
  - The first k columns of a map to more columns are the map to k columns, but for the common scale of `pca`.

| by         | directions                                     | scale                                          |
|------------|------------------------------------------------|------------------------------------------------|
| `pca`      | of largest variance                            | one for all: variance 1 in the mean of columns |
| `whitened` | of largest variance                            | variance 1 in each column                      |
| `labels`   | that best tell the public labels apart (LDA)   | variance 1 within a class in each column       |
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import CorpusError

By = Literal["pca", "whitened", "labels"]
REGULARISATION = 0.1  # of within-class variance towards its mean over columns: columns outnumber speakers
FLOOR = 1e-6  # of the largest variance: a direction below it is rounding

Columns = npt.NDArray[np.float64]


def fit(data: SiteData, stream: str, *, by: By, columns: int) -> Columns:
    """Returns the map of a stream, (D, columns), from all rows of it that may be trained on.

    Raises:
        CorpusError: the recordings do not span so many directions.
    """
    seen = data.select(data.trains & (data.copies == 0))
    if by == "labels":
        directions, values = _discriminants(seen, stream)
    else:
        directions, values = _principal(_scatter(seen, stream))
    usable = int((values > FLOOR * values[0]).sum())
    if columns > usable:
        raise CorpusError(
            f"--reduction: expected at most {usable} columns of stream {stream!r}, by {by}, from these recordings; "
            f"came {columns}."
        )
    chosen = _upright(directions[:, :columns])
    match by:
        case "pca":
            return np.asarray(chosen / np.sqrt(values[:columns].mean()))
        case "whitened":
            return np.asarray(chosen / np.sqrt(values[:columns]))
        case "labels":
            return chosen


def _principal(scatter: Columns) -> tuple[Columns, Columns]:
    """Returns unit eigenvectors as columns, and eigenvalues, largest first."""
    values, vectors = np.linalg.eigh(scatter)
    return vectors[:, ::-1], values[::-1].clip(0.0)


def _discriminants(data: SiteData, stream: str) -> tuple[Columns, Columns]:
    """Fisher's directions with a regularised within-class scatter; their values are ratios of variances."""
    classes = sorted(set(data.labels.tolist()))
    centres = np.stack([_mean(data.select(data.labels == label), stream) for label in classes])
    shares = np.array([(data.labels == label).mean() for label in classes])
    parts = [_scatter(data.select(data.labels == label), stream) for label in classes]
    within = sum(share * part for share, part in zip(shares, parts, strict=True))
    level = np.trace(within) / len(within)
    within = (1 - REGULARISATION) * within + REGULARISATION * level * np.eye(len(within))
    offsets = (centres - shares @ centres) * np.sqrt(shares)[:, None]
    values, vectors = np.linalg.eigh(within)
    whitener = vectors / np.sqrt(values)
    directions, ratios = _principal(whitener.T @ offsets.T @ offsets @ whitener)
    return whitener @ directions, ratios


def _scatter(data: SiteData, stream: str) -> Columns:
    """Returns the covariance of all valid rows, one recording in memory at a time."""
    centre, count = _mean(data, stream), 0
    total = np.zeros((len(centre), len(centre)))
    for rows in _rows(data, stream):
        total += (rows - centre).T @ (rows - centre)
        count += len(rows)
    return total / count


def _mean(data: SiteData, stream: str) -> Columns:
    total, count = np.zeros(data.shapes[stream].width), 0
    for rows in _rows(data, stream):
        total, count = total + rows.sum(axis=0), count + len(rows)
    return total / count


def _rows(data: SiteData, stream: str) -> Iterator[Columns]:
    if data.shapes[stream].n_frames is None:  # all at once: a pooled stream is small, and a row each is slow
        yield data.pooled(stream).astype(np.float64)
        return
    for index in range(len(data)):
        yield data.valid(stream, index).astype(np.float64)


def _upright(directions: Columns) -> Columns:
    """Turns each direction so that its largest number is positive: an eigenvector has no sign of its own."""
    largest = np.abs(directions).argmax(axis=0)
    return directions * np.where(directions[largest, np.arange(directions.shape[1])] < 0, -1.0, 1.0)
