"""Claims of rules that look at single updates: by hand, and with sites that are poisoned."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from sottovoce.common import strategy_names
from sottovoce.common import study as studies
from sottovoce.common.errors import RunError, StudyError
from sottovoce.common.flower import Context, Message
from sottovoce.common.personal_specs import Ditto, Personalisation
from sottovoce.common.study import Krum, Median, NormBound, QFedAvg, Strategy, TrimmedMean
from sottovoce.common.weights import Layout
from sottovoce.server import strategies
from sottovoce.server.exchange import GridExchange
from sottovoce.server.rounds import Cell, Outcome, run
from sottovoce.server.strategies import Single, krum, median, norm_bound, qfedavg, trimmed_mean
from sottovoce.simulations.engines.inprocess import InProcessGrid
from tests.fakes import federations
from tests.fakes.federations import app_of, nodes_of, reply, study_of, trained, weights_of

CELL = Cell(seed=0, fold=1, arm="federated")
ROBUST: list[Strategy] = [
    Median(kind="median"),
    TrimmedMean(kind="trimmed_mean", n_poisoned=2),
    Krum(kind="krum", n_poisoned=2),
    Krum(kind="krum", n_poisoned=2, n_kept=3),
    NormBound(kind="norm_bound", norm=3.0),
]
IDS = ["median", "trimmed mean", "krum", "multi-krum", "norm bound"]


def singles(*rows: list[float], losses: list[float] | None = None) -> list[Single]:
    return [
        Single(change=np.asarray(row, np.float64), loss=None if losses is None else losses[index])
        for index, row in enumerate(rows)
    ]


def test_the_median_by_hand() -> None:
    odd = singles([1.0, -9.0], [2.0, 0.0], [100.0, 1.0])
    np.testing.assert_array_equal(median.combine(odd), [2.0, 0.0])
    np.testing.assert_array_equal(median.combine([*odd, *singles([4.0, 0.5])]), [3.0, 0.25])


def test_the_trimmed_mean_by_hand() -> None:
    updates = singles([1.0, 5.0], [2.0, 6.0], [1000.0, 7.0], [3.0, -1000.0], [4.0, 8.0])
    np.testing.assert_array_equal(trimmed_mean.combine(updates, n_poisoned=1), [3.0, 6.0])
    np.testing.assert_array_equal(trimmed_mean.combine(updates, n_poisoned=2), [3.0, 6.0])
    with pytest.raises(RunError, match="more than 6 updates"):
        trimmed_mean.combine(updates, n_poisoned=3)


def test_krum_by_hand() -> None:
    """Of 0, 1, 3, 4.5 and 50, one of them perhaps poisoned, a score adds the 2 smallest squared distances."""
    updates = singles([0.0], [1.0], [3.0], [4.5], [50.0])
    changes = np.array([[0.0], [1.0], [3.0], [4.5], [50.0]])
    expected = [1 + 9, 1 + 4, 4 + 2.25, 2.25 + 12.25, 45.5**2 + 47.0**2]
    np.testing.assert_allclose(krum.scores(changes, 1), expected)
    np.testing.assert_array_equal(krum.combine(updates, n_poisoned=1, n_kept=1), [1.0])
    np.testing.assert_array_equal(krum.combine(updates, n_poisoned=1, n_kept=2), [2.0])
    with pytest.raises(RunError, match="at least 7 updates"):
        krum.combine(updates, n_poisoned=2, n_kept=1)


def test_the_norm_bound_by_hand() -> None:
    updates = singles([3.0, 4.0], [0.3, 0.4], [0.0, 0.0])
    np.testing.assert_allclose(norm_bound.combine(updates, norm=1.0), [0.3, 0.4])


def test_qfedavg_by_hand() -> None:
    """Losses 2 and 1, updates -0.1 and 0.3 at rate 0.1: L u is -1 and 3; with q = 1 the sum is 2(-1) + 3 = 1.

    Below stand 1 + 10 * 2 = 21 and 9 + 10 * 1 = 19: the update is 1 / 40.
    """
    updates = singles([-0.1], [0.3], losses=[2.0, 1.0])
    np.testing.assert_allclose(qfedavg.combine(updates, q=1.0, learning_rate=0.1), [1 / 40], rtol=1e-6)
    np.testing.assert_allclose(qfedavg.combine(updates, q=0.0, learning_rate=0.1), [0.1], rtol=1e-6)
    with pytest.raises(RunError, match="stated none"):
        qfedavg.combine(singles([1.0]), q=1.0, learning_rate=0.1)


def test_qfedavg_leans_to_the_site_with_the_larger_loss() -> None:
    updates = singles([-0.1], [0.1], losses=[2.0, 1.0])
    steps = [qfedavg.combine(updates, q=q, learning_rate=0.1)[0] for q in (0.0, 0.5, 1.0)]
    assert steps[0] == pytest.approx(0.0, abs=1e-9)
    assert steps[1] < -0.001
    assert steps[2] < -0.001


def poisoned(message: Message, context: Context) -> Message:
    """Answers as a site should, but for site-2 and site-5, which push everything the same way."""
    honest = trained(message, context)
    if context.node_config["site"] not in ("site-2", "site-5"):
        return reply(message, honest)
    return reply(message, {name: np.asarray(array + 15.0, np.float32) for name, array in honest.items()})


def federate(strategy: Strategy, answer: Callable[..., Any]) -> Outcome:
    grid = InProcessGrid(app_of(answer), nodes_of(7), {})
    study = study_of(n_sites=7, rounds=2, strategy=strategy, quorum=7)
    return run(GridExchange(grid, grid.sites), study, cell=CELL, weights=weights_of())


def distance(one: Outcome, other: Outcome) -> float:
    layout = Layout.of(one.weights)
    return float(np.linalg.norm(layout.flatten(one.weights) - layout.flatten(other.weights)))


@pytest.mark.parametrize("strategy", ROBUST, ids=IDS)
def test_two_poisoned_sites_of_seven_ruin_the_mean_and_not_the_rule(strategy: Strategy) -> None:
    average = studies.FedAvg(kind="fedavg")
    honest = federate(average, federations.honestly)
    ruined = distance(federate(average, poisoned), honest)
    assert ruined > 20.0  # two rounds of 2/7 of 15 in each of ten coordinates
    assert distance(federate(strategy, poisoned), honest) < ruined / 4


@pytest.mark.parametrize("strategy", [*ROBUST, QFedAvg(kind="qfedavg")], ids=lambda spec: spec.kind)
def test_no_single_update_is_kept_after_its_round_and_state_is_read_only(strategy: Strategy) -> None:
    algorithm = strategies.of(study_of(strategy=strategy))
    state = algorithm.apply(algorithm.init(np.ones(3, np.float32)), np.ones(3, np.float32))
    assert algorithm.combine is not None
    assert dict(state.moments) == {}
    with pytest.raises(ValueError, match="read-only"):
        state.weights[0] = 0.0


@pytest.mark.parametrize(
    ("strategy", "more", "privacy", "wanted"),
    [
        ('{ kind = "median" }', ", secure_sum = true", "none", "federation.secure_sum = false"),
        ('{ kind = "krum" }', "", "none", "federation.quorum of at least 5"),
        ('{ kind = "trimmed_mean", n_poisoned = 2 }', "", "none", "federation.quorum of at least 5"),
        ('{ kind = "norm_bound", norm = 1.0 }', ", site_weights = [1, 1, 1, 2]", "none", "no federation.site_weights"),
        ('{ kind = "qfedavg" }', ", secure_sum = false", "local", "nobody has paid for"),
        ('{ kind = "median" }', "", "local", "federation.secure_sum = false"),
    ],
)  # fmt: skip
def test_a_study_that_cannot_show_single_updates_is_refused(
    strategy: str, more: str, privacy: str, wanted: str
) -> None:
    text = federations.STUDY.replace("max_update_norm = 100.0", f"strategy = {strategy}{more}")
    if privacy == "local":
        text = text.replace('"by_speaker"', '"by_patient_hash"').replace(
            'privacy = { mode = "none" }',
            'privacy = { mode = "local", clip_norm = 1.0, noise_multiplier = 1.0, sampling_prob = 0.5, '
            "n_patients_public = 8, expected_patients = 4.0, steps_per_round = 1, "
            "delta = 0.05, small_population = true }",
        )
    with pytest.raises(StudyError) as caught:
        studies.loads(text)
    assert wanted in str(caught.value)


def test_every_strategy_and_every_personal_model_has_a_name_with_its_paper() -> None:
    assert set(strategy_names.KINDS) == {_kind(spec) for spec in get_args(studies.Strategy)}
    assert set(strategy_names.PERSONAL_KINDS) == {_kind(spec) for spec in get_args(Personalisation)}
    study = study_of(strategy=Median(kind="median"), personalisation=Ditto(kind="ditto"))
    expected = "coordinate-wise median (Yin et al. 2018), with Ditto (Li et al. 2021)"
    assert strategy_names.strategy_of(study) == expected


def _kind(spec: type[Any]) -> str:
    (kind,) = get_args(spec.__annotations__["kind"])
    return str(kind)
