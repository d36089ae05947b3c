"""Claims about the classical baselines."""

from typing import get_args

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sottovoce.simulations.baselines import Baseline, fit_predict

N_CLASSES = 4
NAMES: tuple[Baseline, ...] = get_args(Baseline)


def rows(n: int, seed: int, classes: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n)
    return rng.standard_normal((n, 6)) + 3.0 * np.eye(6)[labels], labels


@pytest.mark.parametrize("name", NAMES)
def test_every_baseline_tells_easy_classes_apart(name: Baseline) -> None:
    (x, y), (test_x, test_y) = rows(300, 0), rows(200, 1)
    found = fit_predict(name, x, y, test_x, 0, n_classes=N_CLASSES)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1)
    assert np.isfinite(found).all()
    assert (found.argmax(axis=1) == test_y).mean() > 0.75


@pytest.mark.parametrize("name", NAMES)
def test_the_same_arguments_give_the_same_bits(name: Baseline) -> None:
    (x, y), (test_x, _) = rows(100, 0), rows(20, 1)
    once, again = (fit_predict(name, x, y, test_x, 2**40 + 5, n_classes=N_CLASSES) for _ in range(2))
    assert np.array_equal(once, again)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_nobody_has_is_possible_but_never_likely(name: Baseline) -> None:
    (x, y), (test_x, _) = rows(100, 0, classes=(0, 3)), rows(20, 1)
    found = fit_predict(name, x, y, test_x, 0, n_classes=N_CLASSES)
    assert found.shape == (20, N_CLASSES)
    assert np.isfinite(found).all()
    assert (found[:, 1:3] < -15).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_test_row_is_scored_alone(name: Baseline) -> None:
    (x, y), (test_x, _) = rows(100, 0), rows(20, 1)
    among = fit_predict(name, x, y, test_x, 0, n_classes=N_CLASSES)
    alone = fit_predict(name, x, y, test_x[7:8], 0, n_classes=N_CLASSES)
    np.testing.assert_allclose(alone[0], among[7], atol=1e-9)


def test_the_svms_decision_is_its_own() -> None:
    (x, y), (test_x, _) = rows(200, 0), rows(100, 1)
    scaler = StandardScaler().fit(x)
    svm = SVC(C=3.0, class_weight="balanced", break_ties=True).fit(scaler.transform(x), y)
    found = fit_predict("svm", x, y, test_x, 0, n_classes=N_CLASSES)
    assert np.array_equal(found.argmax(axis=1), svm.predict(scaler.transform(test_x)))


def test_one_class_is_nothing_to_tell_apart() -> None:
    x, y = rows(10, 0, classes=(2,))
    with pytest.raises(ValueError, match="at least two classes"):
        fit_predict("svm", x, y, x, 0, n_classes=N_CLASSES)
