"""Claims of server/strategies: by hand, against Flower's own numbers, and purity."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flowers

from sottovoce.common import study
from sottovoce.server import strategies
from sottovoce.server.strategies import ServerState
from sottovoce.simulations.engines.inprocess import InProcessGrid
from tests.fakes.federations import honest_app, nodes_of, study_of

ByFlowerToo = study.FedAvg | study.FedProx | study.FedAvgM | study.FedAdam | study.FedYogi
SPECS: list[ByFlowerToo] = [
    study.FedAvg(kind="fedavg"),
    study.FedProx(kind="fedprox", mu=0.3),
    study.FedAvgM(kind="fedavgm", momentum=0.7),
    study.FedAdam(kind="fedadam", server_learning_rate=0.1, beta1=0.9, beta2=0.99, tau=1e-3),
    study.FedYogi(kind="fedyogi", server_learning_rate=0.05, beta1=0.8, beta2=0.9, tau=1e-2),
]
ADAM = study.FedAdam(kind="fedadam", server_learning_rate=0.5, beta1=0.5, beta2=0.75, tau=0.5)
YOGI = study.FedYogi(kind="fedyogi", server_learning_rate=0.5, beta1=0.5, beta2=0.75, tau=0.5)


def vector(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def after(spec: study.Strategy, start: np.ndarray, *updates: np.ndarray) -> ServerState:
    strategy = strategies.of(study_of(strategy=spec))
    state = strategy.init(start)
    for update in updates:
        state = strategy.apply(state, update)
    return state


def test_fedavg_adds_the_mean_update() -> None:
    state = after(study.FedAvg(kind="fedavg"), vector(1.0, -2.0), vector(0.5, 0.25))
    np.testing.assert_array_equal(state.weights, vector(1.5, -1.75))
    assert (state.round, dict(state.moments)) == (1, {})


def test_fedprox_is_fedavg_and_tells_the_clients_its_strength() -> None:
    strategy = strategies.of(study_of(strategy=study.FedProx(kind="fedprox", mu=0.3)))
    assert strategy.client_config == {"proximal-mu": 0.3}
    plain = strategies.of(study_of(strategy=study.FedAvg(kind="fedavg")))
    assert (strategy.init, strategy.rule, plain.client_config) == (plain.init, plain.rule, {})


def test_fedavgm_by_hand() -> None:
    # velocity 2, then 0.5 * 2 - 1 = 0, then 0.5 * 0 + 1 = 1
    spec = study.FedAvgM(kind="fedavgm", momentum=0.5)
    state = after(spec, vector(1.0), vector(2.0), vector(-1.0), vector(1.0))
    np.testing.assert_array_equal(state.weights, vector(4.0))


def test_fedadam_by_hand() -> None:
    # m = 0.5 * 2 = 1; v = 0.25 * 4 = 1; step = 0.5 * 1 / (1 + 0.5) = 1/3
    state = after(ADAM, vector(0.0), vector(2.0))
    np.testing.assert_allclose(state.weights, [1 / 3], rtol=1e-6)
    # m = 0.5 + 0.5 * -1 = 0; v = 0.75 + 0.25 = 1; step = 0
    state = after(ADAM, vector(0.0), vector(2.0), vector(-1.0))
    np.testing.assert_allclose(state.weights, [1 / 3], rtol=1e-6)
    np.testing.assert_allclose(state.moments["v"], [1.0])


def test_fedyogi_by_hand() -> None:
    # v = 0 - 0.25 * 4 * sign(0 - 4) = 1, as FedAdam; then v = 1 - 0.25 * 0.25 * sign(1 - 0.25) = 0.9375
    state = after(YOGI, vector(0.0), vector(2.0), vector(0.5))
    np.testing.assert_allclose(state.moments["v"], [0.9375])
    np.testing.assert_allclose(state.moments["m"], [0.75])
    np.testing.assert_allclose(state.weights, [1 / 3 + 0.5 * 0.75 / (0.9375**0.5 + 0.5)], rtol=1e-6)


def flowers_own(spec: ByFlowerToo) -> flowers.Strategy:
    match spec:
        case study.FedAvg() | study.FedProx():
            return flowers.FedAvg()
        case study.FedAvgM():
            return flowers.FedAvgM(server_learning_rate=1.0, server_momentum=spec.momentum)
        case study.FedAdam():
            rule: type[flowers.FedAdam] | type[flowers.FedYogi] = flowers.FedAdam
        case study.FedYogi():
            rule = flowers.FedYogi
    eta, tau = spec.server_learning_rate, spec.tau
    return rule(eta=eta, beta_1=spec.beta1, beta_2=spec.beta2, tau=tau)


def flowers_rounds(spec: ByFlowerToo, start: np.ndarray, returned: list[list[np.ndarray]]) -> np.ndarray:
    """Lets Flower's strategy aggregate the weights that the clients returned in each round."""
    grid = InProcessGrid(honest_app, nodes_of(len(returned[0])), {})
    strategy, arrays = flowers_own(spec), ArrayRecord({"w": Array(start)})
    for number, weights in enumerate(returned, start=1):
        if isinstance(strategy, flowers.FedAdam) and isinstance(spec, study.FedAdam):
            # Flower corrects the learning rate for the moments' bias, which the paper does not: taken out.
            correction = np.sqrt(1 - spec.beta2 ** (number + 1)) / (1 - spec.beta1 ** (number + 1))
            strategy.eta = spec.server_learning_rate / correction
        questions = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        replies = [
            Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord({"w": Array(own)}),
                        "metrics": MetricRecord({"num-examples": 1}),
                    }
                ),
                reply_to=question,
            )
            for question, own in zip(questions, weights, strict=True)
        ]
        aggregated, _ = strategy.aggregate_train(number, replies)
        assert aggregated is not None
        arrays = aggregated
    return arrays["w"].numpy()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_three_rounds_equal_flowers_own_but_for_its_bias_correction(spec: ByFlowerToo) -> None:
    random = np.random.default_rng(3)
    start = random.normal(size=200).astype(np.float32)
    strategy = strategies.of(study_of(strategy=spec))
    state, returned = strategy.init(start), []
    for _ in range(3):
        steps = np.asarray(0.1 * random.normal(size=(4, 200)), np.float32)
        weights = [state.weights + step for step in steps]
        returned.append(weights)
        mean = np.mean([own - state.weights for own in weights], axis=0, dtype=np.float64)
        state = strategy.apply(state, np.asarray(mean, np.float32))
    np.testing.assert_allclose(state.weights, flowers_rounds(spec, start, returned), atol=2e-6)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_apply_is_pure(spec: study.Strategy) -> None:
    start, update = vector(1.0, 2.0), vector(0.5, -0.5)
    strategy = strategies.of(study_of(strategy=spec))
    state = strategy.init(start)
    first, second = strategy.apply(state, update), strategy.apply(state, update)
    np.testing.assert_array_equal(first.weights, second.weights)
    np.testing.assert_array_equal(state.weights, vector(1.0, 2.0))
    np.testing.assert_array_equal(update, vector(0.5, -0.5))
    assert state.round == 0


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_state_cannot_be_written_to(spec: study.Strategy) -> None:
    state = after(spec, vector(1.0), vector(0.5))
    for array in [state.weights, *state.moments.values()]:
        assert array.dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.0
