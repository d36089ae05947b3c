"""What a study means in plain words: who can learn what, what nobody promised, and a paragraph for the ethics board.

Guarantees:
  - Every sentence follows from the study's own fields; a study that promises nothing is told so first.
  - A figure never stands without its delta, and without what it means for one patient.
"""

import math
from collections.abc import Iterator

from sottovoce.common.generative_specs import is_generative
from sottovoce.common.group_weights import moves
from sottovoce.common.personal_specs import Ditto, PersonalHead
from sottovoce.common.privacy.of_study import not_of_a_recording
from sottovoce.common.privacy.planning import NOT_COVERED
from sottovoce.common.privacy.planning_distributed import quorum
from sottovoce.common.privacy_specs import DistributedPrivacy, LocalPrivacy, NoPrivacy, rounded_up
from sottovoce.common.study import Study
from sottovoce.common.sums import least_of

COORDINATOR, HOSPITALS, PUBLIC = "the coordinator", "the other hospitals", "whoever gets the final model"
OUTSIDE = "somebody on the line"


def learned_of(study: Study) -> Iterator[tuple[str, str]]:
    """Yields who can learn what from everything that is sent, and from when it is sent."""
    spec, rounds = study.privacy, study.federation.rounds
    least = quorum(study.cohort_size, least_of(study, study.cohort_size))
    if not study.sums_are_secure:
        own = f"this hospital's own numbers of each of {rounds} rounds, under its name"
    else:
        own = f"of this hospital nothing by itself: only sums of at least {least} hospitals, who is in them"
    yield COORDINATOR, f"{own}; {_worth(study)}"
    yield COORDINATOR, "that this hospital takes part, when it answers, and how long each answer took"
    if isinstance(spec, NoPrivacy) and study.sums_are_secure:
        yield (
            COORDINATOR,
            "where a round is repeated with other hospitals lost, possibly a single update after all",
        )
    if study.evaluation.groups is not None and (isinstance(spec, NoPrivacy) or spec.counts_noise_multiplier):
        yield COORDINATOR, f"how well the model does for each group: {_group_names(study)}; {_worth(study)}"
    if isinstance(spec, NoPrivacy) and not study.sums_are_secure:
        yield (
            COORDINATOR,
            "how many recordings were trained on, the training loss, and exact counts of mistakes",
        )
    if moves(study):
        yield HOSPITALS, "how much each group counts in training: it follows from the released counts"
    names = (
        "the names and public keys of all hospitals"
        if study.sums_are_secure
        else "that the study takes place"
    )
    yield HOSPITALS, f"{names}; the common model of each round, and from it what {_public(study)}"
    if isinstance(spec, DistributedPrivacy):
        others = f"{spec.n_colluding} other hospital{'s' if spec.n_colluding > 1 else ''}"
        yield f"{COORDINATOR} with {others}", "the sum of the rest: its noise was sized for that"
    yield PUBLIC, f"what {_public(study)}"
    yield OUTSIDE, "who talks to whom, when, and how much; not what"


def not_covered_of(study: Study) -> Iterator[str]:
    """Yields what no figure of this study is about."""
    if isinstance(study.privacy, NoPrivacy):
        yield "anything: mode 'none' promises nothing, to nobody"
    yield "the clinician's voice, and every other voice in a patient's recordings"
    if study.normalisation.scheme == "speaker":
        yield "enrolment: features are standardised by all of a speaker's own recordings, those never trained on too"
    if study.normalisation.scheme == "enrolment":
        yield (
            "enrolment: features are standardised by a few recordings of each speaker that are never trained on; a "
            "patient's figure covers them, a recording's takes them, and which they are, as given"
        )
    if beyond := not_of_a_recording(study):
        yield beyond
    if isinstance(study.federation.personalisation, Ditto):
        yield (
            "this hospital's own model on its disk: it is trained without noise and sent to nobody; when a patient "
            "withdraws it is removed, and begun anew without that patient"
        )
    if named := sorted({part.kind for stream in study.streams for part in stream.encoders}):
        yield (
            f"the features in this hospital: what {' and '.join(named)} make of a recording names its speaker; "
            "it is computed here, and never sent"
        )
    yield "the time of a reply, retries, and that a site is away: they follow this site's load and what was drawn"
    if study.federation.n_sites > 1:
        yield "a patient of several hospitals: the figure is for one; `privacy plan` has those for more"
    yield NOT_COVERED


def paragraph_of(study: Study, *, site: str, epsilon: float | None) -> str:
    """Returns one paragraph for people who decide and do not compute."""
    return " ".join([*_what(study, site), *_leaves(study), *_promise(study, epsilon), *_limits(study)])


def _what(study: Study, site: str) -> Iterator[str]:
    federation, classes = study.federation, study.labels.classes
    reference = f" ({study.purpose_reference})" if study.purpose_reference else ""
    does = "tells {} from a voice"
    if is_generative(study):
        does = "makes up numbers like those measured from voices, for each of {}, with which others are then trained"
    emotions = f"{len(classes)} emotions ({', '.join(classes)})"
    yield (
        f"In the study “{study.name}” (purpose: {study.purpose}{reference}) {federation.n_sites} hospitals train one "
        f"program together that {does.format(emotions)}."
    )
    yield (
        f"The recordings of {site}, what was said in them, and everything measured from a recording stay here; the "
        "training of this hospital's part happens here."
    )


def _leaves(study: Study) -> Iterator[str]:
    rounds = study.federation.rounds
    what = "a change of the common model" if study.privacy.mode != "distributed" else "a part of a sum"
    hidden = (
        ", hidden so that the coordinator can read only the sum of all hospitals"
        if study.sums_are_secure
        else ""
    )
    yield f"In each of {rounds} rounds {what} leaves the hospital{hidden}."
    own = study.federation.personalisation
    if own is not None:
        part = (
            "The last layer of the model"
            if isinstance(own, PersonalHead)
            else "A model of this hospital's own"
        )
        yield f"{part} is trained here, too, stays here, and is sent to nobody."


def _promise(study: Study, epsilon: float | None) -> Iterator[str]:
    spec = study.privacy
    if isinstance(spec, NoPrivacy) or epsilon is None:
        yield (
            "NO PRIVACY IS PROMISED: such changes can betray who took part and what their recordings were like. "
            "This is for recordings that are public already."
        )
        return
    if spec.seeded_noise:
        yield "THE NOISE IS SIMULATED, so that NO PRIVACY IS PROMISED: whoever has the study can take it off again."
    whose = "this hospital's ledger" if isinstance(spec, LocalPrivacy) else "the ledgers of all hospitals"
    promised = (
        "It would be promised" if spec.seeded_noise else "It is promised, and recorded in " + whose + ","
    )
    yield (
        f"{promised} that nobody who sees all of it, and the final program, can be much surer than before whether any "
        f"one patient took part: epsilon is {rounded_up(epsilon)} at delta {spec.delta:g}."
    )
    yield (
        f"Somebody who held it for as likely as not may become at most {_certainty(epsilon)} sure (but for a chance of "
        f"{spec.delta:g}); nothing is said about what was known before from elsewhere."
    )


def _limits(study: Study) -> Iterator[str]:
    yield (
        "Not covered are other voices in a recording, such as the clinician's, patients who are entered under two "
        "names, and when and how fast this hospital answers."
    )
    yield (
        "The hospital can stop at any time, and a patient can withdraw: nothing of that patient is used from then on, "
        "but what has left cannot be called back."
    )


def _certainty(epsilon: float) -> str:
    share = 1.0 if epsilon > 50 else 1.0 / (1.0 + math.exp(-epsilon))
    # Rounded up: a bound that is printed too low would be none.
    return f"{math.ceil(1000 * share) / 10:.1f} %"


def _group_names(study: Study) -> str:
    return "; ".join(study.tables.names[1:])


def _worth(study: Study) -> str:
    spec = study.privacy
    if isinstance(spec, NoPrivacy):
        return "from such numbers it can be told who took part, and recordings can be guessed at: NOT PRIVATE"
    if spec.seeded_noise:
        return "the noise is seeded, and can be taken off: NOT PRIVATE"
    return f"of any one patient no more than the figure allows ({_figure_of(study)})"


def _public(study: Study) -> str:
    spec = study.privacy
    if isinstance(spec, NoPrivacy):
        return "a model that was trained without privacy tells of the recordings it was trained on"
    if spec.seeded_noise:
        return "a model with simulated noise tells: NOT PRIVATE"
    return "the figure allows, of any one patient"


def _figure_of(study: Study) -> str:
    if isinstance(study.privacy, DistributedPrivacy):
        return f"while at most {study.privacy.n_colluding} hospitals work together with the coordinator"
    return "whoever works together with whom"
