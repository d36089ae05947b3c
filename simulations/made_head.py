"""What rows of a generator are good for: a softmax head that has seen nothing else, on people whom it has never heard.

Guarantees:
  - Only made rows are fitted to; of the scored recordings nothing but features is read.
  - The figures beside it (distance, copies, membership) exist in simulation alone: they look at everybody's rows.
"""

import math

import numpy as np
import numpy.typing as npt

from sottovoce.common.dataset import SiteData
from sottovoce.common.generative import quality
from sottovoce.common.generative.figures import MadeFigures
from sottovoce.common.generative.synthetic import SyntheticRows
from sottovoce.common.streams import stream
from sottovoce.simulations.softmax import fit_head

DECAY = 0.02  # of the head's weights; chosen on no fold


def log_probabilities_by(made: SyntheticRows, scored: SiteData) -> npt.NDArray[np.float64]:
    """Returns log probabilities (n, classes) of a head that made rows taught."""
    ((stream, rows),) = made.streams.items()
    head = fit_head(rows, made.labels, n_classes=len(made.classes), decay=DECAY)
    scores = head.scores(scored.pooled(stream))
    scores -= scores.max(axis=1, keepdims=True)
    log_probs: npt.NDArray[np.float64] = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return log_probs


def figures_of(
    made: SyntheticRows, trained: SiteData, withheld: SiteData, *, cell: str, file: str
) -> MadeFigures | None:
    """Returns how made rows stand between those who were trained on and those who were withheld; None without both."""
    if len(trained) == 0 or len(withheld) == 0:
        return None
    ((name, rows),) = made.streams.items()
    one, other = trained.pooled(name), withheld.pooled(name)
    n_classes = len(made.classes)

    def distance(of: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float | None:
        found = quality.mean_distance(of, labels, other, withheld.labels, axes_of=one, n_classes=n_classes)
        return None if math.isnan(found) else found

    return MadeFigures(
        cell=cell,
        file=file,
        n_rows=len(made.labels),
        distance=distance(rows, made.labels),
        distance_of_real=distance(one, trained.labels),
        copies=quality.copies(rows, one, other, random=stream(0, "copies", cell)),
        membership=quality.membership_auc(rows, one, other),
    )
