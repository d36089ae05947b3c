"""What a hospital is told of a study before anybody approves it: every message, every release, every figure.

    shown = preview(study, site="hospital-a", policy=policy, roster=roster)
    shown.plain()                      # JSON; `preview_terminal.py` prints it
    shown.paragraph                    # for the ethics board

Guarantees:
  - Figures are those of the ledger: of the same charges, by the same accountant, as approval and audit have.
  - The messages are all that there are (`client/traffic.py`).
  - What is not covered is said beside what is, also where the study says nothing of it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sottovoce.client.preview_words import learned_of, not_covered_of, paragraph_of
from sottovoce.client.site_ledger import charges_of, request_of
from sottovoce.client.traffic import MessageKind, messages_of, n_counts_of
from sottovoce.common.config import as_plain
from sottovoce.common.errors import LedgerError, WeightsError
from sottovoce.common.group_weights import moves
from sottovoce.common.ledger.entries import AnyCharge, Approval
from sottovoce.common.ledger.rule import decide
from sottovoce.common.ledger.show import charge_in_words
from sottovoce.common.ledger.state import State
from sottovoce.common.ledger.terms import Policy, refusals
from sottovoce.common.model_size import n_parameters_of
from sottovoce.common.model_specs import kinds_of
from sottovoce.common.privacy.budget import PldAccountant
from sottovoce.common.privacy.of_study import stamp
from sottovoce.common.privacy.planning import misfits, room_in
from sottovoce.common.privacy_specs import NoPrivacy, Private
from sottovoce.common.provenance import code_sha256, versions
from sottovoce.common.secagg.session import Roster
from sottovoce.common.study import Study
from sottovoce.common.sums import COUNTS, UPDATE, quorum_of
from sottovoce.common.transfer import facts_of, in_words

CURVE = (0.5,)  # of the rounds: figures in between; each takes a second or two


@dataclass(frozen=True, kw_only=True)
class Release:
    """One kind of number computed from private data that leaves. `n` in a run without failures; `n_most` is what the
    ledger lets out at most, None where no ledger counts it. `charge` is in words; None where nothing is promised."""

    what: str
    form: str
    n: int
    n_most: int | None
    charge: str | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """What has been given away after so many rounds: epsilon at the study's delta."""

    after: str
    updates: int
    counts: int
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the study would do to a domain's budget, by the rule that decides at approval."""

    domain: str
    cap: float
    delta: float
    promised_before: float
    promised_after: float
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Preview:
    """All of it. `refusals` is None where no policy was asked, `standing` None where no ledger was."""

    study: str
    digest: str
    site: str
    purpose: str
    purpose_reference: str | None
    mode: str
    stamp: str
    model: Mapping[str, Any]
    federation: Mapping[str, Any]
    hospitals: tuple[str, ...]
    messages: tuple[MessageKind, ...]
    releases: tuple[Release, ...]
    epsilon: tuple[Point, ...]
    standing: Standing | None
    refusals: tuple[str, ...] | None
    learned: tuple[tuple[str, str], ...]
    not_covered: tuple[str, ...]
    code: Mapping[str, str]
    paragraph: str
    starts_from: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Returns it for JSON, with the size of each kind of message, and of all of them."""
        table: dict[str, Any] = as_plain(self)
        for plain, message in zip(table["messages"], self.messages, strict=True):
            plain |= {"n_bytes": message.n_bytes, "exact": message.exact}
        table["bytes"] = {
            direction: {
                "in_a_run": sum(one.n * one.n_bytes for one in self.messages if one.direction == direction),
                "at_most": sum(
                    one.n_most * one.n_bytes for one in self.messages if one.direction == direction
                ),
            }
            for direction in ("to the site", "from the site")
        }
        return table


def preview(
    study: Study,
    *,
    site: str,
    policy: Policy | None = None,
    roster: Roster | None = None,
    state: State | None = None,
    domain: str | None = None,
) -> Preview:
    """Says what a study would bring to a site and take from it; with a ledger's `state` also from which budget.

    Raises:
        PrivacyError: the study has no finite epsilon: it promises nothing.
        LedgerError: the ledger has no such domain.
    """
    charges = charges_of(study)
    points = tuple(_curve(study, charges))
    at_end = points[-1].epsilon if points else None
    standing = None if state is None or domain is None else _standing(study, charges, state, domain)
    return Preview(
        study=study.name,
        digest=study.digest(),
        site=site,
        purpose=study.purpose,
        purpose_reference=study.purpose_reference,
        mode=study.privacy.mode,
        stamp=stamp(study),
        model=_model(study),
        federation=_federation(study),
        hospitals=() if roster is None else tuple(member.site for member in roster.members),
        messages=messages_of(study, roster=roster),
        releases=tuple(_releases(study, charges)),
        epsilon=points,
        standing=standing,
        refusals=None if policy is None else tuple(_refused(policy, study, charges, at_end, standing)),
        learned=tuple(learned_of(study)),
        not_covered=tuple(not_covered_of(study)),
        code={"version": versions()["sottovoce"], "sha256": code_sha256()},
        paragraph=paragraph_of(study, site=site, epsilon=at_end),
        starts_from=tuple(_starts_from(study)),
    )


def _model(study: Study) -> dict[str, Any]:
    n = n_parameters_of(study)
    kinds = " ".join(kinds_of(study.model))
    return {"kind": kinds, "parameters": n, "bytes": 4 * n, "classes": list(study.labels.classes)}


def _starts_from(study: Study) -> list[str]:
    """What comes from a public corpus, and who signed it; that it is missing, where it is."""
    try:
        facts = facts_of(study)
    except WeightsError as error:
        return [f"NOT HERE: {error}"]
    return [] if facts is None else in_words(facts)


def _federation(study: Study) -> dict[str, Any]:
    return {
        "hospitals": study.federation.n_sites,
        "in_a_round": study.cohort_size,
        "needed_in_a_round": quorum_of(study, study.cohort_size),
        "rounds": study.federation.rounds,
        "evaluations": n_counts_of(study),
        "secure_sums": study.sums_are_secure,
        "deadline_seconds": study.federation.deadline_seconds,
    }


def _releases(study: Study, charges: Sequence[AnyCharge]) -> Iterator[Release]:
    words = {charge.what: charge_in_words(charge) for charge in charges}
    spec, rounds = study.privacy, study.federation.rounds
    most = None if isinstance(spec, NoPrivacy) else rounds + spec.spare_rounds
    yield Release(what=UPDATE, form=_form(study), n=rounds, n_most=most, charge=words.get(UPDATE))
    if not n_counts_of(study):
        return
    n_classes = len(study.labels.classes)
    form = f"how often each of {n_classes} classes was taken for each, over {_whom(study)}{_groups(study)}"
    granted = next((charge.steps for charge in charges if charge.what == COUNTS), None)
    masked = ", masked: read only in the sum of all hospitals" if study.sums_are_secure else ""
    yield Release(
        what=COUNTS,
        form=f"{form}{'' if granted is None else ', with noise'}{masked}",
        n=n_counts_of(study),
        n_most=granted,
        charge=words.get(COUNTS),
    )


def _whom(study: Study) -> str:
    withheld = "withheld patients"
    return f"who is trained on, and after the last round over {withheld}" if moves(study) else withheld


def _groups(study: Study) -> str:
    names = list(study.tables.names[1:])
    return f"; the same of each group ({'; '.join(names)}), all in one release" if names else ""


def _form(study: Study) -> str:
    what = {
        "none": "the model's weights after training here, as they are",
        "local": "the model's weights after private training here",
        "distributed": "one sum of clipped gradients with this site's share of the noise",
    }[study.privacy.mode]
    return f"{what}, masked: read only in the sum of all hospitals" if study.sums_are_secure else what


def _curve(study: Study, charges: Sequence[AnyCharge]) -> Iterator[Point]:
    """Yields the figure after the first round, in between, at the end, and with every spare attempt used up."""
    spec, rounds = study.privacy, study.federation.rounds
    if isinstance(spec, NoPrivacy):
        return
    accountant = PldAccountant()
    stops = sorted({1, rounds, *(max(1, round(share * rounds)) for share in CURVE)})
    for stop in stops:
        counts = 0 if n_counts_of(study) == 0 else _counts_by(study, stop)
        drawn = _drawn(charges, spec, updates=stop, counts=counts)
        after = f"round {stop} of {rounds}"
        figure = accountant.epsilon(drawn, spec.delta)
        yield Point(after=after, updates=stop, counts=counts, epsilon=figure)
    most = {charge.what: charge.steps for charge in charges}
    yield Point(
        after="everything that is reserved",
        updates=rounds + spec.spare_rounds,
        counts=most.get(COUNTS, 0),
        epsilon=accountant.epsilon(tuple(charges), spec.delta),
    )


def _counts_by(study: Study, stop: int) -> int:
    every, rounds = study.evaluation.every_rounds, study.federation.rounds
    return stop // every + (1 if stop == rounds and rounds % every else 0)


def _drawn(
    charges: Sequence[AnyCharge], spec: Private, *, updates: int, counts: int
) -> tuple[AnyCharge, ...]:
    """Returns the part of the charges that so many updates and counts draw."""
    in_all = {charge.what: charge.steps for charge in charges}
    per_round = spec.steps_in(1) // (1 + spec.spare_rounds)
    steps = {UPDATE: min(updates * per_round, in_all.get(UPDATE, 0)), COUNTS: counts}
    return tuple(replace(charge, steps=steps[charge.what]) for charge in charges if steps[charge.what])  # type: ignore[index]


def _standing(study: Study, charges: Sequence[AnyCharge], state: State, domain: str) -> Standing | None:
    spec = study.privacy
    if isinstance(spec, NoPrivacy):
        return None
    if domain not in state.domains:
        raise LedgerError(f"--domain: expected one of {', '.join(state.domains) or 'none'}; came {domain!r}.")
    room = room_in(state, domain)
    decision = decide(
        room.promised, charges, opened=room.opened, cap=room.cap, first=room.first, accountant=PldAccountant()
    )
    problems = misfits(spec, room.opened)
    if not decision.allowed:
        after = (
            "no finite figure" if math.isinf(decision.domain_epsilon) else f"{decision.domain_epsilon:.4f}"
        )
        problems.append(f"epsilon: {domain!r} would have promised {after} with it; its cap is {room.cap:g}.")
    if state.domains[domain].closed:
        problems.append(f"domain: {domain!r} is closed.")
    if not spec.seeded_noise and state.not_private(domain):
        problems.append(f"domain: {domain!r} had releases without secret noise; expected one that had none.")
    return Standing(
        domain=domain,
        cap=room.cap,
        delta=room.opened.delta,
        promised_before=room.promised_epsilon,
        promised_after=decision.domain_epsilon,
        problems=tuple(problems),
    )


def _refused(
    policy: Policy,
    study: Study,
    charges: Sequence[AnyCharge],
    epsilon: float | None,
    standing: Standing | None,
) -> Iterator[str]:
    """Yields what the policy has against the study, whoever signs; and what the domain's cap has."""
    request = request_of(study, standing.domain if standing else "")
    asked = Approval(
        kind="approval",
        study=request.study,
        repeat=0,
        domain=request.domain,
        purpose=request.purpose,
        purpose_reference=request.purpose_reference,
        mode=request.mode,
        noise=request.noise,
        delta=request.delta,
        sites_per_patient=request.sites_per_patient,
        charges=tuple(charges),
        decided_by="not_private",
        person="",
        public_key="",
        signature="",
        epsilon=epsilon,
        facts=request.facts,
    )
    yield from (line for line in refusals(policy, asked) if not line.startswith("person:"))
    if standing:
        yield from standing.problems
