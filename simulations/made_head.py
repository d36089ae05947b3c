"""What rows of a generator are good for: a softmax head that has seen nothing else, on people whom it has never heard.

Guarantees:
  - Only made rows are fitted to; of the scored recordings nothing but features is read.
"""

import numpy as np
import numpy.typing as npt

from sottovoce.common.dataset import SiteData
from sottovoce.common.generative.synthetic import SyntheticRows
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
