"""Weights of recordings by speaker group: public constants of a study, or moved between rounds by paid-for counts.

    [training.group_robust]
    attribute = "sex"
    step = 0.5

Group-robust training (Sagawa et al. 2020, "Distributionally Robust Neural Networks"): after each evaluation the weight
of every group is multiplied by exp(step * its error), its error being 1 - UAR in the counts that were released; so the
group that is served worst counts more. Weights follow from released counts and public numbers alone: post-processing.

Who is counted: those who are trained on, in every evaluation but the last. Counts of the withheld speakers would choose
the training by the speakers that it is judged on. The last evaluation is of the withheld, as always.

Where they act: on losses in mode `none`; in private modes on each patient's gradient after it was clipped, divided by
the largest weight: nobody counts more than a clipping norm, and the guarantee is the same. (Before clipping they would
do nothing: clipping takes off what they add.)

Guarantees:
  - A recording's weight depends on its own group and label, and on public numbers; never on others'.
  - Weights have mean 1 over groups and stay within `most` of it; the same counts give the same text at every site.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from sottovoce.common.config import Interval
from sottovoce.common.groups import Groups

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sottovoce.common.run_files import Counted
    from sottovoce.common.study import Study

TOLD = "group-weights"  # in the message of an instruction
DIGITS = 6

Weight = Annotated[float, Interval(0.001, 1000.0)]


@dataclass(frozen=True, kw_only=True)
class GroupRobust:
    """Which attribute of `evaluation.groups` weights go by.

    `step` moves them after each evaluation; 0 leaves them alone. `most` bounds how far. `constants` are public weights
    for each value, one for each class of `labels.classes`; a value without any has ones.
    """

    attribute: str
    step: Annotated[float, Interval(0.0, 10.0)] = 0.0
    most: Annotated[float, Interval(1.0, 9.0)] = 3.0
    constants: Mapping[str, tuple[Weight, ...]] = field(default_factory=dict)


def problems(
    spec: GroupRobust, groups: Groups | None, *, n_classes: int, paid: bool, several: bool, personal: bool
) -> list[str]:
    """Returns what is wrong with it in its study, each with its key."""
    key = "training.group_robust"
    if groups is None or spec.attribute not in groups.attributes:
        return [f"{key}.attribute: expected one of evaluation.groups.attributes; came {spec.attribute!r}."]
    found = [
        f"{key}.constants.{value}: expected a value of the attribute and {n_classes} weights; came others."
        for value, weights in spec.constants.items()
        if value not in groups.attributes[spec.attribute] or len(weights) != n_classes
    ]
    if spec.step and not paid:
        found.append(
            f"{key}.step: expected privacy.counts_noise_multiplier beside it; weights move by paid counts."
        )
    if spec.step and not several:
        found.append(
            f"{key}.step: expected evaluation.every_rounds below federation.rounds; weights move in between."
        )
    if personal:
        found.append(f"{key}: expected no federation.personalisation beside it.")
    if not spec.step and not spec.constants:
        found.append(f"{key}: expected a step above 0, or constants; with neither it does nothing.")
    return found


def moves(study: "Study") -> bool:
    """Says whether weights move between rounds."""
    return study.training.group_robust is not None and study.training.group_robust.step > 0


def steers(study: "Study", round: int) -> bool:
    """Says whether the evaluation after a round is of who is trained on: all but the last, where weights move."""
    return moves(study) and round < study.federation.rounds


def weights_after(study: "Study", counted: "Sequence[Counted]") -> tuple[float, ...]:
    """Returns each value's weight after these releases, in order; ones where nothing moves."""
    spec, groups = study.training.group_robust, study.evaluation.groups
    if spec is None or groups is None:
        return ()
    weights = (1.0,) * len(groups.attributes[spec.attribute])
    for one in counted:
        weights = moved(weights, errors_of(study, one), step=spec.step, most=spec.most)
    return weights


def errors_of(study: "Study", counted: "Counted") -> tuple[float, ...]:
    """Returns 1 - UAR of each value of the attribute; of one that cannot be read, the mean of the others."""
    from sottovoce.common.fairness import of_released

    spec, groups = study.training.group_robust, study.evaluation.groups
    if spec is None or groups is None:
        return ()
    found = of_released(
        counted,
        study.tables,
        classes=study.labels.classes,
        minimum_size=groups.minimum_size,
        arm="",
        n_draws=2,
    )
    uars = [found.groups[index - 1].uar for index in study.tables.of_attribute(spec.attribute)]
    known = [1.0 - uar for uar in uars if uar is not None]
    mean = math.fsum(known) / len(known) if known else 0.0
    return tuple(mean if uar is None else 1.0 - uar for uar in uars)


def moved(
    weights: Sequence[float], errors: Sequence[float], *, step: float, most: float
) -> tuple[float, ...]:
    """Returns weights after one exponentiated step, with mean 1, each within `most` of it.

    >>> moved((1.0, 1.0), (0.4, 0.2), step=1.0, most=3.0)
    (1.099668, 0.900332)
    """
    raised = [weight * math.exp(step * error) for weight, error in zip(weights, errors, strict=True)]
    mean = math.fsum(raised) / len(raised)
    bounded = [min(max(weight / mean, 1.0 / most), most) for weight in raised]
    again = math.fsum(bounded) / len(bounded)
    return tuple(round(min(max(weight / again, 1.0 / most), most), DIGITS) for weight in bounded)


def told(weights: Sequence[float]) -> str:
    """Returns the text of weights in an instruction."""
    return ",".join(f"{weight:.{DIGITS}f}" for weight in weights)


def read(text: object, study: "Study") -> tuple[float, ...] | None:
    """Returns the weights that an instruction tells; None where the study has no such weights, in number or size."""
    spec, groups = study.training.group_robust, study.evaluation.groups
    if not isinstance(text, str) or spec is None or groups is None or not moves(study):
        return None
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        return None
    slack = 10.0**-DIGITS
    bounded = all(1.0 / spec.most - slack <= weight <= spec.most + slack for weight in weights)
    is_whole = len(weights) == len(groups.attributes[spec.attribute]) and told(weights) == text
    return weights if bounded and is_whole else None


def bound_to(model: str, text: object) -> str:
    """Returns the digest of a model with the weights told beside it: sites of one sum were told the same."""
    if not isinstance(text, str):
        return model
    return hashlib.sha256(f"sottovoce/group weights/1\n{model}\n{text}".encode()).hexdigest()


def of_recordings(
    study: "Study",
    weights: Sequence[float],
    stated: Sequence[Mapping[str, str]],
    labels: "npt.NDArray[np.int64]",
) -> "npt.NDArray[np.float32] | None":
    """Returns a weight for each recording; 1 for one of no group. None where the study weighs nobody.

    `weights` are those of the attribute's values; none of them means ones.
    """
    import numpy as np

    spec, groups = study.training.group_robust, study.evaluation.groups
    if spec is None or groups is None:
        return None
    values, n_classes = groups.attributes[spec.attribute], len(study.labels.classes)
    table = np.ones((len(values) + 1, n_classes), np.float32)
    for row, value in enumerate(values):
        table[row] = spec.constants.get(value, (1.0,) * n_classes)
        table[row] *= weights[row] if weights else 1.0
    place = {value: row for row, value in enumerate(values)}
    rows = [place.get(groups.value_of(spec.attribute, one) or "", -1) for one in stated]
    found: npt.NDArray[np.float32] = table[np.array(rows, np.int64), labels]
    return found


def largest(study: "Study", weights: Sequence[float]) -> float:
    """Returns the largest weight that any recording can have: a public number, that of private modes divide by."""
    spec, groups = study.training.group_robust, study.evaluation.groups
    if spec is None or groups is None:
        return 1.0
    values = groups.attributes[spec.attribute]
    by_value = weights or (1.0,) * len(values)
    tops = [
        max(spec.constants.get(value, (1.0,))) * weight
        for value, weight in zip(values, by_value, strict=True)
    ]
    return max(1.0, *tops)
