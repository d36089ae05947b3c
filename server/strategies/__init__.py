"""How a round's mean update becomes the next weights: `init` and `apply` over frozen state.

A strategy is a pair of pure functions on flat vectors. It sees the weighted mean of the accepted updates (weights after
local training minus weights sent) and nothing of any single site; but for those rules that must see each one, which
say so (`combine`), and which `study check` refuses where sites mask what they send.

    strategy = of(study)
    state = strategy.init(weights)
    state = strategy.apply(state, mean_update)

Guarantees:
  - `apply` changes nothing it is given; equal arguments give equal bits.
  - Arithmetic is float32, elementwise: no bit depends on the machine's vector width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from sottovoce.common.errors import RunError
from sottovoce.common.generative_specs import Adversarial
from sottovoce.common.schedule import learning_rate_at
from sottovoce.common.study import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Krum,
    Median,
    NormBound,
    QFedAvg,
    Scaffold,
    Study,
    TrimmedMean,
)
from sottovoce.server.strategies import (
    adversarial,
    fedadam,
    fedavg,
    fedavgm,
    fedprox,
    fedyogi,
    krum,
    median,
    norm_bound,
    qfedavg,
    scaffold,
    trimmed_mean,
)
from sottovoce.server.strategies.state import ServerState, Single, Vector, frozen

__all__ = ["Algorithm", "ServerState", "Single", "Vector", "frozen", "of"]


Rule = Callable[[ServerState, Vector, float], ServerState]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """A strategy's two functions, and what it asks of the clients.

    `rule` is given the mean update and the part of all sites that it is of. `sends` names the vector of the state that
    goes to the sites beside the weights. With `combine` the mean update is what that makes of the single updates of a
    round, in the order of the cohort: then they must be there one by one, and public weights do not count.
    """

    init: Callable[[Vector], ServerState]
    rule: Rule
    client_config: Mapping[str, float] = field(default_factory=dict)
    sends: str | None = None
    combine: Callable[[Sequence[Single]], Vector] | None = None

    def apply(self, state: ServerState, mean_update: Vector, *, share: float = 1.0) -> ServerState:
        """Returns the state after a round; `share` is the part of all sites whose updates are in the mean."""
        return self.rule(state, mean_update, share)


def of(study: Study, *, seed: int = 0) -> Algorithm:
    """Returns the strategy that a study names; `seed` is for what a strategy itself draws, in public."""
    spec = study.federation.strategy
    match spec:
        case FedAvg():
            return Algorithm(init=fedavg.init, rule=_averaged)
        case FedProx():
            config = fedprox.client_config(spec.mu)
            return Algorithm(init=fedavg.init, rule=_averaged, client_config=config)
        case FedAvgM():
            return Algorithm(init=fedavgm.init, rule=lambda state, mean, _: fedavgm.apply(state, mean, spec))
        case FedAdam():
            return Algorithm(init=fedadam.init, rule=lambda state, mean, _: fedadam.apply(state, mean, spec))
        case FedYogi():
            return Algorithm(init=fedadam.init, rule=lambda state, mean, _: fedyogi.apply(state, mean, spec))
        case Scaffold():
            return _scaffold(study, spec)
        case Adversarial():
            game = adversarial.Game(study, spec, seed)
            return Algorithm(init=game.init, rule=lambda state, mean, _: game.apply(state, mean))
        case Median():
            return _combined(median.combine)
        case TrimmedMean():
            return _combined(partial(trimmed_mean.combine, n_poisoned=spec.n_poisoned))
        case Krum():
            return _combined(partial(krum.combine, n_poisoned=spec.n_poisoned, n_kept=spec.n_kept))
        case NormBound():
            return _combined(partial(norm_bound.combine, norm=spec.norm))
        case QFedAvg():
            rate = study.training.learning_rate
            return _combined(partial(qfedavg.combine, q=spec.q, learning_rate=rate))


def _averaged(state: ServerState, mean: Vector, _: float) -> ServerState:
    return fedavg.apply(state, mean)


def _combined(combine: Callable[[Sequence[Single]], Vector]) -> Algorithm:
    return Algorithm(init=fedavg.init, rule=_averaged, combine=combine)


def _scaffold(study: Study, spec: Scaffold) -> Algorithm:
    steps = study.steps_per_round
    if steps is None:
        raise RunError("Expected training.steps_per_round in a study with 'scaffold'; it has none.")

    def rule(state: ServerState, mean: Vector, share: float) -> ServerState:
        rate = learning_rate_at(study.training, state.round + 1, study.federation.rounds)
        return scaffold.apply(state, mean, eta=spec.server_learning_rate, descent=steps * rate, share=share)

    return Algorithm(init=scaffold.init, rule=rule, sends=scaffold.CONTROL)
