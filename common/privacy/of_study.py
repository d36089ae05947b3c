"""What a whole study costs, whatever its mode: the one way from a study to events and to its stamp.

Guarantees:
  - What is printed (`stamp`), planned, approved and recorded are figures of the same events.
"""

from sottovoce.common.privacy import distributed_plan, plan
from sottovoce.common.privacy.accountant import Event
from sottovoce.common.privacy.distributed_accountant import DistributedEvent
from sottovoce.common.privacy_specs import DistributedPrivacy, LocalPrivacy, NoPrivacy
from sottovoce.common.study import Study


def updates_of(study: Study) -> Event | DistributedEvent | None:
    """Returns all of a study's training steps as one event; None in mode `none`."""
    spec, federation = study.privacy, study.federation
    match spec:
        case NoPrivacy():
            return None
        case LocalPrivacy():
            return plan.training_event(spec, spec.steps_in(federation.rounds))
        case DistributedPrivacy():
            return distributed_plan.training_event(
                spec, spec.steps_in(federation.rounds), n_sites=federation.n_sites
            )


def counts_of(study: Study) -> Event | DistributedEvent | None:
    """Returns all releases of evaluation counts as one event; None where the study pays for none."""
    spec = study.privacy
    if isinstance(spec, NoPrivacy):
        return None
    if isinstance(spec, LocalPrivacy):
        return next(iter(plan.counts_events(spec, study.n_evaluations)), None)
    return next(iter(_distributed(study, spec)[1:]), None)


def stamp(study: Study) -> str:
    """Returns what every artefact of a study says of its privacy, in one line.

    Raises:
        PrivacyError: the study has no finite epsilon: it promises nothing.
    """
    spec = study.privacy
    if isinstance(spec, DistributedPrivacy):
        return distributed_plan.sentence(spec, _distributed(study, spec), n_sites=study.federation.n_sites)
    return plan.stamp(spec, study.federation.rounds, n_counts=study.n_evaluations)


def _distributed(study: Study, spec: DistributedPrivacy) -> list[DistributedEvent]:
    return distributed_plan.events(
        spec,
        rounds=study.federation.rounds,
        n_sites=study.federation.n_sites,
        n_counts=study.n_evaluations,
        n_classes=len(study.labels.classes),
    )
