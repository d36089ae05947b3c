"""What rows of a generator are good for: a softmax head that has seen nothing else, on people whom it has never heard.

Guarantees:
  - Only made rows are fitted to; of the scored recordings nothing but features is read.
  - The figures beside it (distance, copies, membership) exist in simulation alone: they look at everybody's rows.
"""

import math

import numpy as np
import numpy.typing as npt

from sottovoce.common import metrics
from sottovoce.common.dataset import SiteData
from sottovoce.common.generative import quality
from sottovoce.common.generative.figures import MadeFigures
from sottovoce.common.generative.networks import Labels, Rows
from sottovoce.common.generative.synthetic import SyntheticRows
from sottovoce.common.streams import stream
from sottovoce.simulations.softmax import fit_head

Floats = npt.NDArray[np.float64]

DECAY = 0.02  # of the head's weights; chosen on no fold


def log_probabilities_by(made: SyntheticRows, scored: SiteData) -> Floats:
    """Returns log probabilities (n, classes) of a head that made rows taught."""
    ((name, rows),) = made.streams.items()
    head = fit_head(_flat(rows), made.labels, n_classes=len(made.classes), decay=DECAY)
    scores = head.scores(_rows(scored, name))
    scores -= scores.max(axis=1, keepdims=True)
    log_probs: Floats = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return log_probs


def figures_of(
    made: SyntheticRows, trained: SiteData, withheld: SiteData, *, cell: str, file: str
) -> MadeFigures | None:
    """Returns how made rows stand between those who were trained on and those who were withheld; None without both.

    Of a sequence, the mean and deviation over time are compared: made patches and recordings differ in length.
    """
    if len(trained) == 0 or len(withheld) == 0:
        return None
    ((name, made_rows),) = made.streams.items()
    rows, one, other = _flat(made_rows), _rows(trained, name), _rows(withheld, name)
    n_classes = len(made.classes)

    def distance(of: Rows, labels: Labels) -> float | None:
        found = quality.mean_distance(of, labels, other, withheld.labels, axes_of=one, n_classes=n_classes)
        return None if math.isnan(found) else found

    def uar(of: Rows, labels: Labels) -> float:
        head = fit_head(of, labels, n_classes=n_classes, decay=DECAY)
        nobody = np.zeros(len(other), np.int64)  # all recordings as one table
        answers = head.predict(other)
        counts = metrics.counts_by(nobody, withheld.labels, answers, n_units=1, n_classes=n_classes)
        return float(metrics.uars(counts[0]))

    return MadeFigures(
        cell=cell,
        file=file,
        n_rows=len(made.labels),
        distance=distance(rows, made.labels),
        distance_of_real=distance(one, trained.labels),
        copies=quality.copies(rows, one, other, random=stream(0, "copies", cell)),
        membership=quality.membership_auc(rows, one, other),
        uar=uar(rows, made.labels),
        uar_of_real=uar(one, trained.labels),
    )


def addable(made: SyntheticRows, per_class: int) -> SyntheticRows:
    """Returns the rows of a file that a study may add: the first of each class."""
    chosen = np.concatenate([made.of_class(label, per_class) for label in range(len(made.classes))])
    streams = {name: rows[chosen] for name, rows in made.streams.items()}
    return SyntheticRows(streams=streams, labels=made.labels[chosen], classes=made.classes, facts=made.facts)


def _rows(data: SiteData, name: str) -> Rows:
    if data.shapes[name].n_frames is None:
        return data.pooled(name)
    return np.stack([_over_time(data.valid(name, index)) for index in range(len(data))])


def _flat(rows: Rows) -> Rows:
    return rows if rows.ndim == 2 else np.stack([_over_time(row) for row in rows])


def _over_time(frames: Rows) -> Rows:
    return np.concatenate([frames.mean(axis=0), frames.std(axis=0)])
