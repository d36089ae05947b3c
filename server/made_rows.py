"""The rows that a federation's generator makes in the end: of a discriminator's study, or of one that sums by class.

    made = made_rows(study, weights, others, seed=0)
    path, digest = synthetic.write(folder, made)

Guarantees:
  - Rows follow from the final state, the study and the seed: what sites released, and nothing else of theirs.
  - As many of each class as the study says: a public constant.
"""

import math
from collections.abc import Mapping

from sottovoce.common.errors import RunError
from sottovoce.common.generative.added import SEEN, seen_by_models
from sottovoce.common.generative.gaussians import from_sums
from sottovoce.common.generative.networks import Labels, Rows, each_class, sample
from sottovoce.common.generative.synthetic import SyntheticRows
from sottovoce.common.generative_specs import Adversarial
from sottovoce.common.model_specs import Discriminator, Moments
from sottovoce.common.privacy_specs import DistributedPrivacy, NoPrivacy
from sottovoce.common.study import Study
from sottovoce.common.weights import Layout, Weights
from sottovoce.server.strategies.adversarial import GENERATOR_MEAN, Game

PURPOSE = "made rows"


def made_rows(study: Study, weights: Weights, others: Mapping[str, Rows], *, seed: int) -> SyntheticRows:
    """Makes the study's rows from a federation's final state.

    Raises:
        RunError: the study's model makes no rows.
    """
    model, classes = study.model, study.labels.classes
    match model:
        case Discriminator():
            labels = each_class(len(classes), model.per_class)
            rows = _generated(study, weights, others, labels, seed)
        case Moments():
            labels = each_class(len(classes), model.per_class)
            columns = weights["head.weight"].shape[1] // 2
            fitted = from_sums(weights, columns=columns, noise=noise_on_sums(study))
            rows = fitted.sample(labels, seed=seed)
        case _:
            raise RunError(f"Expected model.kind 'discriminator' or 'moments'; {model.kind!r} makes no rows.")
    facts = {
        "study": study.digest(),
        "seed": str(seed),
        "model": model.kind,
        SEEN: seen_by_models(study, model.stream),
    }
    return SyntheticRows(streams={model.stream: rows}, labels=labels, classes=classes, facts=facts)


def noise_on_sums(study: Study) -> float:
    """Returns the deviation of the noise on each weight of a `moments` study after its last round: public."""
    spec, federation = study.privacy, study.federation
    if isinstance(spec, NoPrivacy):
        return 0.0
    one = study.training.learning_rate * spec.noise_multiplier * spec.clip_norm / spec.expected_patients
    if isinstance(spec, DistributedPrivacy):  # one noise for all sites, at least so loud
        return one * math.sqrt(federation.rounds) / federation.n_sites
    return one * math.sqrt(federation.rounds / study.cohort_size)


def _generated(study: Study, weights: Weights, others: Mapping[str, Rows], labels: Labels, seed: int) -> Rows:
    strategy = study.federation.strategy
    if not isinstance(strategy, Adversarial) or GENERATOR_MEAN not in others:
        raise RunError("Expected the state of a study with strategy 'adversarial'; it holds no generator.")
    flat = Layout.of(weights).flatten(weights)
    generator = Game(study, strategy, seed).generator(flat, others[GENERATOR_MEAN])
    return sample(generator, labels, seed=seed, purpose=PURPOSE)
