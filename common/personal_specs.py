"""How a site's model may differ from the shared one: `federation.personalisation`. Public constants, no arithmetic.

| kind          | a site's own                             | feeds the shared model | modes                     |
|---------------|------------------------------------------|------------------------|---------------------------|
| `fedper`      | the head, trained together with the body | yes                    | `none`; `local`, by DP-SGD |
| `fedrep`      | the head, trained first, body after      | yes                    | `none`                    |
| `ditto`       | a whole model, pulled to the shared one  | no                     | all; without noise        |
| `fine_tuning` | the last model, trained a little further | no                     | all; without noise        |

What is a site's own never leaves it (`client/personalise.py`). In a private mode counts that leave are of the shared
model where the site's own was trained without noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from sottovoce.common.config import Interval
from sottovoce.common.privacy_specs import DistributedPrivacy, LocalPrivacy, NoPrivacy

if TYPE_CHECKING:
    from sottovoce.common.study import Study

Epochs = Annotated[int, Interval(1, 1000)]
Pull = Annotated[float, Interval(0.0, 1e6)]


@dataclass(frozen=True, kw_only=True)
class FedPer:
    """Arivazhagan et al. 2019: the head stays at the site; head and body are trained together."""

    kind: Literal["fedper"]


@dataclass(frozen=True, kw_only=True)
class FedRep:
    """Collins et al. 2021: in a round the site trains its head for `head_epochs`, then the body with that head."""

    kind: Literal["fedrep"]
    head_epochs: Epochs = 1


@dataclass(frozen=True, kw_only=True)
class Ditto:
    """Li et al. 2021: beside its part in the shared model a site trains its own, pulled to the shared by `pull`."""

    kind: Literal["ditto"]
    pull: Pull = 0.1


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """The shared model of the last round, trained for some epochs more at each site."""

    kind: Literal["fine_tuning"]
    epochs: Epochs = 2
    pull: Pull = 0.0


Personalisation = FedPer | FedRep | Ditto | FineTuning
PersonalHead = FedPer | FedRep


def problems(study: "Study") -> Iterator[str]:
    """Yields what is wrong between a study's personalisation and the rest of it."""
    spec = study.federation.personalisation
    if spec is None:
        return
    for wanted in _wants(study, spec):
        yield f"federation.personalisation: {spec.kind!r} expects {wanted}."


def _wants(study: "Study", spec: Personalisation) -> Iterator[str]:
    if study.federation.strategy.kind == "scaffold":
        yield "another strategy than 'scaffold': a control is of steps that all sites take on one model"
    if study.federation.strategy.kind == "adversarial":
        yield "another strategy than 'adversarial': what it trains tells no emotions"
    if not isinstance(spec, PersonalHead):
        return
    if study.model.kind == "linear":
        yield "a model with a body: in a linear one all is head, and nothing would be shared"
    if study.transfer is not None and study.transfer.kind == "feature":
        yield "a body that is trained: with transfer 'feature' nothing would be shared"
    if isinstance(study.privacy, LocalPrivacy) and study.privacy.trained == "head":
        yield "privacy.trained 'all' or 'low_rank': with 'head' nothing would be shared"
    if isinstance(spec, FedRep) and not isinstance(study.privacy, NoPrivacy):
        yield "mode 'none': head and body in turn would be paid for twice; take 'fedper', or 'ditto'"
    if isinstance(study.privacy, DistributedPrivacy):
        yield "mode 'none' or 'local': in 'distributed' a gradient of the head is a part of the one sum"
