"""What a whole study costs, whatever its mode: the one way from a study to events, to its stamp and to its plan.

Guarantees:
  - What is printed (`stamp`), planned (`tables`), approved and recorded are figures of the same events.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy import distributed_plan
from sottovoce.common.privacy.distributed_accountant import DistributedEvent, epsilon
from sottovoce.common.privacy_specs import NOT_PRIVATE, DistributedPrivacy, LocalPrivacy, NoPrivacy
from sottovoce.common.study import Study

if TYPE_CHECKING:
    from sottovoce.common.privacy.accountant import Event

# `plan` is imported where mode `local` asks for it: its accountant takes more than a second to load.


def updates_of(study: Study) -> "Event | DistributedEvent | None":
    """Returns all of a study's training steps as one event; None in mode `none`."""
    spec, federation = study.privacy, study.federation
    match spec:
        case NoPrivacy():
            return None
        case LocalPrivacy():
            from sottovoce.common.privacy import plan

            return plan.training_event(spec, spec.steps_in(federation.rounds))
        case DistributedPrivacy():
            return distributed_plan.training_event(
                spec, spec.steps_in(federation.rounds), n_sites=federation.n_sites
            )


def counts_of(study: Study) -> "Event | DistributedEvent | None":
    """Returns all releases of evaluation counts as one event; None where the study pays for none."""
    spec = study.privacy
    match spec:
        case NoPrivacy():
            return None
        case LocalPrivacy():
            from sottovoce.common.privacy import plan

            return next(iter(plan.counts_events(spec, study.n_evaluations)), None)
        case DistributedPrivacy():
            return next(iter(distributed_events(study, spec)[1:]), None)


def stamp(study: Study) -> str:
    """Returns what every artefact of a study says of its privacy, in one line.

    Raises:
        PrivacyError: the study has no finite epsilon: it promises nothing.
    """
    spec = study.privacy
    match spec:
        case NoPrivacy():
            return NOT_PRIVATE
        case LocalPrivacy():
            from sottovoce.common.privacy import plan

            return plan.stamp(spec, study.federation.rounds, n_counts=study.n_evaluations)
        case DistributedPrivacy():
            charged = distributed_events(study, spec)
            if not math.isfinite(epsilon(charged, spec.delta)):
                raise PrivacyError(
                    f"privacy: this study has no finite epsilon at delta {spec.delta:g}; expected more noise, fewer "
                    "rounds, or a larger cap on the draw. Ask `sottovoce privacy plan`."
                )
            return distributed_plan.sentence(spec, charged, n_sites=study.federation.n_sites)


def tables(study: Study, *, target_epsilon: float | None = None) -> Iterator[tuple[str, Any]]:
    """Yields the tables of `privacy plan`, as (name, plain data), each as soon as it is known.

    Raises:
        PrivacyError: the study promises nothing: mode `none`, or no finite epsilon.
    """
    spec = study.privacy
    match spec:
        case NoPrivacy():
            raise PrivacyError(
                "Expected a study of mode local or distributed; came mode none: it promises nothing."
            )
        case LocalPrivacy():
            from sottovoce.common.privacy import planning_local

            n_counts, rounds = study.n_evaluations, study.federation.rounds
            found = planning_local.tables(spec, rounds, n_counts=n_counts, target_epsilon=target_epsilon)
        case DistributedPrivacy():
            from sottovoce.common.privacy import planning_distributed

            found = planning_distributed.tables(study, spec, target_epsilon=target_epsilon)
    for name, table in found:
        yield name, with_the_study(study, name, table)


def with_the_study(study: Study, name: str, table: Any) -> Any:
    """Returns a table of a plan with what does not follow from `[privacy]` alone."""
    beyond = not_of_a_recording(study)
    if name == "study":
        return {**table, "counted": list(study.tables.names)}
    if name == "promise" and beyond:
        return {**table, "not_covered": f"{table['not_covered']}; {beyond}"}
    return table


def not_of_a_recording(study: Study) -> str:
    """Returns what the figure for one recording is not about, where a study draws recordings; else nothing."""
    draws = isinstance(study.privacy, LocalPrivacy) and study.privacy.unit == "utterance"
    if not draws or not study.normalisation.by_person:
        return ""
    by = "a few recordings of the speaker" if study.normalisation.enrols else "all of a speaker's recordings"
    return (
        f"in the figure for one recording: what it does to the same speaker's others, since features are standardised "
        f"by {by} (the figure for a patient has that in it)"
    )


def distributed_events(study: Study, spec: DistributedPrivacy) -> list[DistributedEvent]:
    """Returns what ledgers record for a study with these constants: its sums, and its counts if it pays for any."""
    return distributed_plan.events(
        spec,
        rounds=study.federation.rounds,
        n_sites=study.federation.n_sites,
        n_counts=study.n_evaluations,
        tables=study.tables,
    )
