"""Losses of one recording, and their mean over a batch.

Guarantees:
  - A recording's loss and gradient do not change with the labels, lengths or number of its batch-mates.
  - Class weights are the study's public constants. They multiply; they are never divided by the batch's own
    sum (with `weight=` and `reduction="mean"` one sample's gradient norm moved 26-fold with its batch).
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

Loss = Literal["cross_entropy", "focal", "hinge", "label_score"]
FOCAL_GAMMA = 2.0  # Lin et al. 2017


def per_example(
    logits: Tensor,
    labels: Tensor,
    *,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Returns one loss for each recording, (B,).

    `hinge` is a discriminator's on real rows: max(0, 1 - score of the label). `label_score` is minus that score: its
    gradient is the row itself, so that a step sums rows by class (`Moments`).
    """
    if loss == "hinge" or loss == "label_score":
        score = logits.gather(1, labels[:, None])[:, 0]
        return (1.0 - score).relu() if loss == "hinge" else -score
    log_probs = logits.log_softmax(dim=1)
    at_label = log_probs.gather(1, labels[:, None])[:, 0]
    if loss == "focal":
        at_label = at_label * (1.0 - at_label.exp()).pow(FOCAL_GAMMA)
    values = -(1.0 - label_smoothing) * at_label - label_smoothing * log_probs.mean(dim=1)
    if class_weights is not None:
        values = values * values.new_tensor(class_weights)[labels]
    return values
