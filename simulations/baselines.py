"""Classical classifiers on a pooled stream, for comparison: all training recordings in one place.

They are no federation: a report prints them beside it, to say what the networks have to beat.

Guarantees:
  - Rows of the result are finite and are log probabilities (they sum to one).
  - The same arguments give the same bits.
  - Nothing is read of the test rows but their features, and nothing is fitted to them.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

Baseline = Literal["svm", "decision_tree", "naive_bayes", "mlp", "logistic"]
SMALLEST_PROBABILITY = 1e-9  # a tree says "never"; a log probability has to stay finite

Floats = npt.NDArray[np.floating[Any]]


def fit_predict(
    name: Baseline,
    train_x: Floats,
    train_y: npt.NDArray[np.int64],
    test_x: Floats,
    seed: int,
    *,
    n_classes: int,
) -> npt.NDArray[np.float64]:
    """Fits a classifier and returns log probabilities (n, n_classes) of the test rows; see `fitted`."""
    return fitted(name, train_x, train_y, seed, n_classes=n_classes)(test_x)


def fitted(
    name: Baseline, train_x: Floats, train_y: npt.NDArray[np.int64], seed: int, *, n_classes: int
) -> Callable[[Floats], npt.NDArray[np.float64]]:
    """Fits a classifier and returns what gives log probabilities (n, n_classes) of rows.

    A class that no training row has gets the smallest probability. The SVM's are a softmax of its
    one-against-rest scores: their order is the SVM's own decision, their size is not calibrated.

    Raises:
        ValueError: the training rows hold fewer than two classes.
    """
    if len(np.unique(train_y)) < 2:
        raise ValueError("Expected training rows of at least two classes; came one or none.")
    pipeline = make_pipeline(StandardScaler(), _classifier(name, seed % 2**32))
    with warnings.catch_warnings():
        # The network runs its fixed number of epochs; that it has not converged by then is meant.
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline.fit(train_x, train_y)

    def log_probabilities(rows: Floats) -> npt.NDArray[np.float64]:
        probabilities = np.zeros((len(rows), n_classes))
        if len(rows):
            probabilities[:, pipeline.classes_] = _probabilities(pipeline, rows)
        probabilities = np.maximum(probabilities, SMALLEST_PROBABILITY)
        return np.asarray(np.log(probabilities / probabilities.sum(axis=1, keepdims=True)))

    return log_probabilities


def _classifier(name: Baseline, seed: int) -> Any:
    match name:
        case "svm":
            return SVC(C=3.0, kernel="rbf", class_weight="balanced", break_ties=True)
        case "decision_tree":
            return DecisionTreeClassifier(min_samples_leaf=5, class_weight="balanced", random_state=seed)
        case "naive_bayes":
            return GaussianNB()
        case "mlp":
            return MLPClassifier((64,), alpha=1.0, max_iter=60, random_state=seed)
        case "logistic":
            return LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000)


def _probabilities(pipeline: Any, rows: Floats) -> npt.NDArray[np.float64]:
    if not isinstance(pipeline[-1], SVC):
        return np.asarray(pipeline.predict_proba(rows))
    scores = pipeline.decision_function(rows)
    if scores.ndim == 1:  # two classes: one score, positive for the second
        scores = np.stack([-scores, scores], axis=1)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
