"""What a study says of made rows: a generator at the coordinator, sums by class, or rows that sites add to their own.

| the study says                              | what it means                                                     |
|---------------------------------------------|-------------------------------------------------------------------|
| `model.kind = "discriminator"` and          | sites train a discriminator, the coordinator a generator          |
| `strategy.kind = "adversarial"`             |                                                                   |
| `model.kind = "moments"`                    | sites sum rows by class, the coordinator reads Gaussians off them |
| `training.synthetic = { sha256, per_class }` | sites add public rows of that file to their own                  |

The first two make `per_class` rows of each class in the end. A release of theirs is an update like any other: clipped,
noised, charged and summed by the same code, at the same price. What follows from it is post-processing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from sottovoce.common.config import Interval
from sottovoce.common.model_specs import Discriminator, Moments
from sottovoce.common.privacy_specs import NoPrivacy

if TYPE_CHECKING:
    from sottovoce.common.study import Study

Width = Annotated[int, Interval(1, 1024)]
Rate = Annotated[float, Interval(1e-6, 1.0)]


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Augenstein et al. 2020: the generator is the coordinator's, and meets discriminators that sites trained.

    Sites send one gradient step on their real rows. The coordinator adds the gradient on made rows, which is public,
    and steps by Adam; then it moves the generator. `fakes` made patients meet the discriminator in a round, clipped
    as real ones are. `bound` is the largest spectral norm of a weight of the discriminator after a round.
    """

    kind: Literal["adversarial"]
    noise: Annotated[int, Interval(1, 512)] = 16
    hidden: Width = 64
    discriminator_rate: Rate = 2e-3
    generator_rate: Rate = 2e-3
    generator_steps: Annotated[int, Interval(1, 100)] = 1
    fakes: Annotated[int, Interval(1, 1024)] = 16
    bound: Annotated[float, Interval(0.01, 1e6)] = 2.0
    average: Annotated[float, Interval(0.0, 1.0, high_open=True)] = 0.98


@dataclass(frozen=True, kw_only=True)
class SyntheticRows:
    """Rows of a public file that every site adds to its own, at most `per_class` of each class. Mode `none` only.

    `fill = "rarer"` adds to a class only as many as it lacks against the site's commonest one.
    """

    sha256: Annotated[str, Interval(64, 64)]
    per_class: Annotated[int, Interval(1, 100_000)]
    fill: Literal["all", "rarer"] = "all"


def problems(study: "Study") -> list[str]:
    """Returns what is wrong between what makes rows and the rest of a study."""
    return [*_model_problems(study), *_synthetic_problems(study)]


def is_generative(study: "Study") -> bool:
    """Says whether a study's model is no classifier: it makes rows, and a classifier is fitted to those."""
    return isinstance(study.model, Discriminator | Moments)


def _model_problems(study: "Study") -> Iterator[str]:
    kind, loss, strategy = study.model.kind, study.training.loss, study.federation.strategy.kind
    for one, wants in (("discriminator", "hinge"), ("moments", "label_score")):
        if (kind == one) != (loss == wants):
            yield f"training.loss: {wants!r} belongs to model.kind = {one!r}, and the other way round; came {loss!r}."
    if (kind == "discriminator") != (strategy == "adversarial"):
        yield f"federation.strategy: 'adversarial' belongs to model.kind = 'discriminator'; came {strategy!r}."
    if kind == "moments" and strategy != "fedavg":
        yield f"federation.strategy: model.kind = 'moments' expects 'fedavg'; came {strategy!r}."
    if is_generative(study):
        yield from _step_problems(study)


def _step_problems(study: "Study") -> Iterator[str]:
    training, privacy = study.training, study.privacy
    plain = training.optimiser == "sgd" and not training.momentum and not training.weight_decay
    if not plain or training.label_smoothing or training.class_weights is not None:
        yield (
            "training: a model that makes rows expects 'sgd' without momentum, weight_decay, label_smoothing and "
            "class_weights; the coordinator reads gradients off the steps."
        )
    if training.steps_per_round != 1 or getattr(privacy, "steps_per_round", 1) != 1:
        yield "steps_per_round: a model that makes rows expects 1, in training (for twins) and in privacy."
    if getattr(privacy, "trained", "all") != "all":
        yield "privacy.trained: a model that makes rows expects 'all'."
    if getattr(privacy, "counts_noise_multiplier", None) is not None:
        yield "privacy.counts_noise_multiplier: expected none; a model that makes rows classifies nothing."


def _synthetic_problems(study: "Study") -> Iterator[str]:
    spec = study.training.synthetic
    if spec is None:
        return
    if not set(spec.sha256) <= set("0123456789abcdef"):
        yield f"training.synthetic.sha256: expected 64 lower-case hexadecimal digits; came {spec.sha256[:20]!r}…"
    if not isinstance(study.privacy, NoPrivacy):
        yield (
            "training.synthetic: expected none in a private mode; public rows cost nothing as a start: train on them "
            "at the coordinator (`sottovoce server pretrain`) and begin from there."
        )
    if is_generative(study):
        yield "training.synthetic: expected none beside a model that makes rows."
