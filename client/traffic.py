"""Every message that a study brings to a hospital and takes from it: which fields, how large, how often.

    for message in messages_of(study, roster=roster):
        print(message.phase, message.direction, message.n_bytes, message.n)

What is listed is what is inside of the signed envelopes of `common/envelope.py`; those add a header of at most 2 KiB,
a signature, and the names of the fields.

| size of                        | is                                                                        |
|--------------------------------|---------------------------------------------------------------------------|
| an array, a masked vector      | exact                                                                     |
| a setting or metric            | 8 bytes for each number                                                   |
| a message of a secure sum      | exact where every invited hospital answers; no longer where some are lost |
| an opening, a checkpoint, a name | at most: it holds names and numbers of one digit or more               |

Guarantees:
  - Nothing goes to or from a site in a round that is not listed, but a refusal: one of a few short fixed texts, or in
    a secure sum a signed complaint (`test_preview.py` records a federation and compares).
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sottovoce.common import counted, group_weights
from sottovoce.common.folds import n_folds
from sottovoce.common.model_size import shapes_of
from sottovoce.common.privacy_specs import NoPrivacy
from sottovoce.common.secagg.complaint import Phase
from sottovoce.common.secagg.journal import PHASES
from sottovoce.common.secagg.session import MAX_SESSION_BYTES, Roster, Session, session_for
from sottovoce.common.secagg.sizes import sizes_of
from sottovoce.common.study import Scaffold, Study
from sottovoce.common.sums import ATTEMPTS, COUNTS, EVALUATION_ATTEMPTS, UPDATE, What, run_name, terms_of

Direction = Literal["to the site", "from the site"]
TO: Direction = "to the site"
FROM: Direction = "from the site"
NUMBER_BYTES, DIGEST_CHARS = 8, 64
CHECKPOINT_BYTES = 270  # of a ledger of up to a billion entries
MOST_ATTEMPTS = 999  # the number of an attempt, for the length of its digits
KINDS: Mapping[What, str] = {UPDATE: "train", COUNTS: "evaluate"}


@dataclass(frozen=True, kw_only=True)
class Field:
    """One named part of a message. `shape` is None for what is no array; `exact` is False for an upper bound."""

    record: str
    name: str
    dtype: str
    n_bytes: int
    shape: tuple[int, ...] | None = None
    exact: bool = True


@dataclass(frozen=True, kw_only=True)
class MessageKind:
    """One kind of message. `n` counts a run in which nothing fails; `n_most` one in which attempts are repeated.

    A coordinator that starts anew after a crash repeats the round that it was in.
    """

    phase: str
    direction: Direction
    fields: tuple[Field, ...]
    n: int
    n_most: int

    @property
    def n_bytes(self) -> int:
        """What all fields take together."""
        return sum(field.n_bytes for field in self.fields)

    @property
    def exact(self) -> bool:
        """Says whether that is exact, or an upper bound."""
        return all(field.exact for field in self.fields)


def messages_of(study: Study, *, roster: Roster | None = None) -> tuple[MessageKind, ...]:
    """Returns every kind of message of one run of a study, in the order of a round. The sites' names make openings
    longer or shorter: with a `roster` their size is known better."""
    shapes = shapes_of(study)
    phases = _secure if study.sums_are_secure else _plain
    updates = phases(study, UPDATE, shapes, roster)
    counts = phases(study, COUNTS, shapes, roster) if n_counts_of(study) else ()
    return (*_names(), *updates, *counts)


def n_counts_of(study: Study) -> int:
    """Returns how often evaluation counts are asked for: never where a private study does not pay for them."""
    spec = study.privacy
    if not isinstance(spec, NoPrivacy) and spec.counts_noise_multiplier is None:
        return 0
    return study.n_evaluations


def _names() -> Iterator[MessageKind]:
    site = Field(record="config", name="site", dtype="text", n_bytes=64 * 4, exact=False)
    for direction, fields in ((TO, ()), (FROM, (site,))):
        # A coordinator of ours knows its sites by their keys, and does not ask.
        yield MessageKind(phase="query", direction=direction, fields=fields, n=0, n_most=1)


def _plain(
    study: Study, what: What, shapes: Mapping[str, tuple[int, ...]], roster: Roster | None
) -> Iterator[MessageKind]:
    n, most = _times(study, what)
    asked = (*_weights(shapes), *_instruction(study), *_beside(study, what, shapes))
    reply = (*_weights(shapes), *_metrics(study)) if what == UPDATE else (_confusion(study),)
    private = not isinstance(study.privacy, NoPrivacy)
    answers = (*reply, _checkpoint()) if private else reply
    for direction, fields in ((TO, asked), (FROM, answers)):
        yield MessageKind(phase=KINDS[what], direction=direction, fields=fields, n=n, n_most=most)


def _secure(
    study: Study, what: What, shapes: Mapping[str, tuple[int, ...]], roster: Roster | None
) -> Iterator[MessageKind]:
    n, most = _times(study, what)
    n_invited = study.cohort_size if what == UPDATE else study.federation.n_sites
    terms = terms_of(study, what, n_parameters=sum(map(math.prod, shapes.values())))
    sizes = sizes_of(
        n_sites=n_invited,
        opening_bytes=_opening_bytes(study, what, shapes, roster),
        vector_bytes=terms.length * terms.ring_bits // 8,
    )
    private = not isinstance(study.privacy, NoPrivacy)
    for phase in PHASES:
        beside = (*_beside(study, what, shapes), *_counted_of_all(study, what))
        if phase != "mask":
            beside = tuple(field for field in beside if field.record == "config")
        asked = (*_instruction(study), *beside, *_body(phase, sizes[phase].down), _model())
        if phase == "mask":
            asked = (*asked, *_weights(shapes))
        answer = _body(phase, sizes[phase].up, exact=True)
        if phase == "mask" and private:
            answer = (*answer, _checkpoint())
        name = f"{KINDS[what]}.{phase}"
        yield MessageKind(phase=name, direction=TO, fields=asked, n=n, n_most=most)
        yield MessageKind(phase=name, direction=FROM, fields=answer, n=n, n_most=most)


def _times(study: Study, what: What) -> tuple[int, int]:
    if what == UPDATE:
        return study.federation.rounds, ATTEMPTS * study.federation.rounds
    n = n_counts_of(study)
    return n, n * (EVALUATION_ATTEMPTS if study.sums_are_secure else 1)


def _beside(study: Study, what: What, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Field, ...]:
    """What SCAFFOLD sends beside the weights: the shared control, and the last round whose update was used."""
    if what != UPDATE or not isinstance(study.federation.strategy, Scaffold):
        return ()
    last = Field(record="config", name="counted", dtype="int64", n_bytes=NUMBER_BYTES)
    return (last, *_weights(shapes, record="control"))


def _counted_of_all(study: Study, what: What) -> tuple[Field, ...]:
    """What each site of a secure sum is told of all: they agree on it (`common/counted.py`)."""
    if what != UPDATE or not isinstance(study.federation.strategy, Scaffold):
        return ()
    n_bytes = counted.longest(n_sites=study.federation.n_sites, rounds=study.federation.rounds)
    return (Field(record="config", name=counted.TOLD, dtype="text", n_bytes=n_bytes, exact=False),)


def _weights(shapes: Mapping[str, tuple[int, ...]], record: str = "arrays") -> tuple[Field, ...]:
    return tuple(
        Field(record=record, name=name, dtype="float32", shape=shape, n_bytes=4 * math.prod(shape))
        for name, shape in shapes.items()
    )


def _instruction(study: Study) -> tuple[Field, ...]:
    numbers = {
        "round": "int64",
        "rounds": "int64",
        "seed": "int64",
        "fold": "int64",
        "proximal-mu": "float64",
        **({} if study.federation.personalisation is None else {"personal": "bool"}),
    }
    fields = tuple(
        Field(record="config", name=name, dtype=dtype, n_bytes=NUMBER_BYTES)
        for name, dtype in numbers.items()
    )
    if not group_weights.moves(study):
        return fields
    n_bytes = len(
        group_weights.told(group_weights.weights_after(study, ()))
    )  # below 10, all texts are as long
    return (*fields, Field(record="config", name=group_weights.TOLD, dtype="text", n_bytes=n_bytes))


def _metrics(study: Study) -> tuple[Field, ...]:
    stated = {"loss": "float64", "n-examples": "int64", "n-steps": "int64"}
    names = stated if isinstance(study.privacy, NoPrivacy) else {"n-steps": "int64"}  # a public constant
    return tuple(
        Field(record="metrics", name=name, dtype=dtype, n_bytes=NUMBER_BYTES) for name, dtype in names.items()
    )


def _confusion(study: Study) -> Field:
    n_cells = study.tables.n_cells
    return Field(
        record="metrics", name="confusion", dtype="int64", shape=(n_cells,), n_bytes=NUMBER_BYTES * n_cells
    )


def _checkpoint() -> Field:
    return Field(record="ledger", name="checkpoint", dtype="text", n_bytes=CHECKPOINT_BYTES, exact=False)


def _model() -> Field:
    return Field(record="secagg", name="model", dtype="text", n_bytes=DIGEST_CHARS)


def _body(phase: Phase, n_bytes: int, *, exact: bool | None = None) -> tuple[Field, ...]:
    sure = phase != "advert" if exact is None else exact  # openings hold names and numbers
    return (Field(record="secagg", name="body", dtype="bytes", n_bytes=n_bytes, exact=sure),)


def _opening_bytes(
    study: Study, what: What, shapes: Mapping[str, tuple[int, ...]], roster: Roster | None
) -> int:
    """Returns the length of the longest session that an opening may hold."""
    if roster is None:
        return MAX_SESSION_BYTES
    n_invited = study.cohort_size if what == UPDATE else study.federation.n_sites
    longest = sorted(roster.members, key=lambda member: len(json.dumps(member.site)))[-n_invited:]
    terms = terms_of(study, what, n_parameters=sum(map(math.prod, shapes.values())))
    run = max(
        (run_name(study, seed=seed, fold=fold, what=what) for seed in study.evaluation.seeds for fold in _folds(study)),
        key=len,
    )  # fmt: skip
    agreement = terms.agreement(roster, run=run, round=study.federation.rounds, model_digest="0" * 64)
    session: Session = session_for(
        agreement, attempt=MOST_ATTEMPTS, sites=[member.site for member in longest]
    )
    return len(session.encoded)


def _folds(study: Study) -> tuple[int, ...]:
    return (-1, n_folds(study.evaluation.folds) - 1)
