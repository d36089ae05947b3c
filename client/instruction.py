"""What a coordinator may tell a site to do in a study: the study's own seeds, folds, rounds and pull, no others."""

from sottovoce.common import group_weights
from sottovoce.common.folds import n_folds
from sottovoce.common.study import FedProx, Scaffold, Study

NOT_OF_THE_STUDY = "Expected the study's own rounds, folds, seeds and pull; this site was told others."


def is_of_study(
    study: Study,
    *,
    seed: int,
    fold: int,
    round: int,
    rounds: int,
    proximal_mu: float,
    leaks: bool,
    counted: int | None = None,
    personal: bool = False,
    weights: object = None,
) -> bool:
    """Says whether an instruction is one that a run of this study has. What it has need not be believed of anybody.

    `counted` is the last round whose update was used, as a study with SCAFFOLD tells each site, and no other does;
    `weights` are those of the groups of a study that moves them, as a text.
    """
    strategy = study.federation.strategy
    mu = strategy.mu if isinstance(strategy, FedProx) else 0.0
    tells = isinstance(strategy, Scaffold)
    if personal is not (study.federation.personalisation is not None):
        return False
    if (weights is not None) is not group_weights.moves(study):
        return False
    if weights is not None and group_weights.read(weights, study) is None:
        return False
    if counted is not None and not (tells and 0 <= counted < round):
        return False
    return (
        (rounds, proximal_mu, leaks) == (study.federation.rounds, mu, False)
        and 1 <= round <= rounds
        and -1 <= fold < n_folds(study.evaluation.folds)
        and seed in study.evaluation.seeds
    )
