"""How a round's mean update becomes the next weights: `init` and `apply` over frozen state.

A strategy is a pair of pure functions on flat vectors. It sees the weighted mean of the accepted updates
(weights after local training minus weights sent) and nothing of any single site.

    strategy = of(study.federation.strategy)
    state = strategy.init(weights)
    state = strategy.apply(state, mean_update)

Guarantees:
  - `apply` changes nothing it is given; equal arguments give equal bits.
  - Arithmetic is float32, elementwise: no bit depends on the machine's vector width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sottovoce.common.study import FedAdam, FedAvg, FedAvgM, FedProx, FedYogi, Strategy
from sottovoce.server.strategies import fedadam, fedavg, fedavgm, fedprox, fedyogi
from sottovoce.server.strategies.state import ServerState, Vector, frozen

__all__ = ["Algorithm", "ServerState", "Vector", "frozen", "of"]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """A strategy's two functions, and what it asks of the clients."""

    init: Callable[[Vector], ServerState]
    apply: Callable[[ServerState, Vector], ServerState]
    client_config: Mapping[str, float] = field(default_factory=dict)


def of(spec: Strategy) -> Algorithm:
    """Returns the strategy that a study names."""
    match spec:
        case FedAvg():
            return Algorithm(init=fedavg.init, apply=fedavg.apply)
        case FedProx():
            return Algorithm(
                init=fedavg.init, apply=fedavg.apply, client_config=fedprox.client_config(spec.mu)
            )
        case FedAvgM():
            return Algorithm(init=fedavgm.init, apply=lambda state, mean: fedavgm.apply(state, mean, spec))
        case FedAdam():
            return Algorithm(init=fedadam.init, apply=lambda state, mean: fedadam.apply(state, mean, spec))
        case FedYogi():
            return Algorithm(init=fedadam.init, apply=lambda state, mean: fedyogi.apply(state, mean, spec))
