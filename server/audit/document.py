"""What an audit finds in one ledger: plain facts, computed from its entries, without a word of layout.

Guarantees:
  - No recorded figure is shown without the one that is computed here.
  - `ok` needs both: every step of the verification, and every figure.
  - A damaged ledger gives the facts of the entries before the damage; those behind it are listed, and count for
    nothing. The figures of a ledger that did not verify are lower bounds, and `lower_bounds` says so.
  - No bytes of a ledger make this raise.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sottovoce.common.config import as_plain
from sottovoce.common.errors import PrivacyError
from sottovoce.common.ledger.entries import (
    AnyCharge,
    Approval,
    Burn,
    CapChange,
    Charge,
    Denial,
    DistributedCharge,
    DomainOpened,
    Entry,
    EntryError,
    Genesis,
    KeyRotation,
    Moved,
    PolicyVersion,
    Recovery,
    Reserve,
    Withdrawal,
    decode,
    split,
)
from sottovoce.common.ledger.reader import Reader, lines_of
from sottovoce.common.ledger.recompute import crowd, recompute
from sottovoce.common.ledger.rule import Accountant, merged
from sottovoce.common.ledger.show import charge_in_words, in_words
from sottovoce.common.ledger.state import State, drawn, policy_digest
from sottovoce.common.ledger.verify import verify
from sottovoce.common.privacy.budget import PldAccountant, replace_one_epsilon
from sottovoce.common.privacy_specs import FEW_PATIENTS, USUAL_DELTA
from sottovoce.server.audit.facts import (
    NOT_PRIVATE,
    SIMULATED,
    CapFrom,
    CapRaise,
    Compared,
    DomainFacts,
    Happening,
    InSites,
    LedgerFacts,
    Point,
    PolicyFacts,
    RoundRow,
    Row,
    StudyFacts,
    SumFacts,
)
from sottovoce.server.audit.sources import LedgerFiles, Seen

N_POINTS = 10  # of a curve; each is a composition of its own, some tenths of a second
NO_ANSWER = (PrivacyError, ArithmeticError, ValueError, MemoryError)  # an accountant that cannot say
FEW_SITES = 5  # of a sum
ALL_OTHERS = 10**6  # colluding sites: more than any sum has
MAX_UNJUDGED = 1000  # rows behind a damage; a hostile file may have any number of them


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """What the accountant had to be asked for."""

    domains: tuple[DomainFacts, ...] = ()
    studies: tuple[StudyFacts, ...] = ()
    compared: tuple[Compared, ...] = ()


def audit_ledger(
    files: LedgerFiles,
    *,
    accountant: Accountant | None = None,
    public_key: str | None = None,
    seen: Sequence[Seen] = (),
) -> LedgerFacts:
    """Judges one ledger and computes its figures again."""
    accountant = accountant or PldAccountant()
    kept = [*files.seen, *seen]
    verdict = verify(
        files.ledger,
        head=files.head,
        seen=[one.note for one in kept],
        public_key=public_key,
        policy=files.policy,
    ).naming([one.name for one in kept])
    lines = lines_of(files.ledger)
    entries, state = _entries(lines[: verdict.n_entries])
    figures, problem = _figures(entries, state, accountant)
    behind = _behind(lines[verdict.n_entries :], start=verdict.n_entries)
    policies = _policies(entries)
    different = [one for one in figures.compared if not one.same]
    return LedgerFacts(
        name=files.name,
        cell=files.cell,
        folder=files.folder,
        ok=verdict.ok and not different and problem is None and not files.problems,
        stamp=_worst_stamp(figures.domains) or _stamp_of_approvals(entries),
        site=state.site,
        instance=state.instance,
        first_key=entries[0].body.public_key if entries and isinstance(entries[0].body, Genesis) else "",
        public_key=state.public_key,
        root=verdict.root,
        n_entries=len(entries),
        n_releases=len(state.releases),
        n_unjudged=len(lines) - len(entries),
        first_time=entries[0].time if entries else "",
        last_time=entries[-1].time if entries else "",
        lower_bounds=not verdict.ok,
        verification=verdict.plain(),
        problems=files.problems,
        figures_problem=problem,
        caps_raised_after_spending=tuple(_raises(files, entries, accountant)),
        weak=_weak(figures.domains),
        domains=figures.domains,
        studies=figures.studies,
        compared=figures.compared,
        recomputed_by=accountant.facts_of(_everything(state)),
        purposes=tuple(sorted({study.purpose for study in figures.studies})),
        policies=policies,
        policy_in_force=_policy_text(entries),
        cap_changes=_happenings(entries, CapChange),
        withdrawals=_happenings(entries, Withdrawal),
        key_rotations=_happenings(entries, KeyRotation),
        moves=_happenings(entries, Moved),
        recoveries=_happenings(entries, Recovery),
        clock_jumps=_clock_jumps(entries),
        burns=_happenings(entries, Burn),
        denials=_happenings(entries, Denial),
        entries=(*(_row(entry) for entry in entries), *behind),
    )


def _entries(lines: Sequence[bytes]) -> tuple[list[Entry], State]:
    """Reads lines that `verify` has judged; their signatures need no second look."""
    reader = Reader()
    return [reader.take(line, check_signature=False) for line in lines], reader.state


def _behind(lines: Sequence[bytes], *, start: int) -> list[Row]:
    """Returns what stands behind a damage, as far as it can be read at all."""
    rows = []
    for index, line in enumerate(lines[:MAX_UNJUDGED], start=start):
        try:
            entry = decode(split(line)[0])
        except EntryError as error:
            what = f"{len(line):,} bytes that cannot be read: {error}"
            rows.append(Row(index=index, time="", kind="unreadable", what=what, judged=False))
        else:
            rows.append(replace(_row(entry), index=index, judged=False))
    return rows


def _row(entry: Entry) -> Row:
    words = in_words(entry.body)
    return Row(index=entry.index, time=entry.time, kind=entry.body.kind, what=words, judged=True)


def _figures(entries: Sequence[Entry], state: State, accountant: Accountant) -> tuple[_Figures, str | None]:
    """Asks the accountant; a question that it cannot answer is a reason to fail, and is told."""
    try:
        again = recompute(entries, accountant, n_prefixes=N_POINTS)
        found = _Figures(
            domains=tuple(
                _domain(entries, state, name, plain, accountant)
                for name, plain in zip(state.domains, again["domains"], strict=True)
            ),
            studies=tuple(_study(entries, state, plain, accountant) for plain in again["studies"]),
            compared=tuple(Compared(**figure) for figure in again["figures"]),
        )
    except NO_ANSWER as error:
        return _Figures(), f"The figures cannot be computed from these entries: {error}"
    return found, None


def _domain(
    entries: Sequence[Entry], state: State, name: str, plain: Mapping[str, Any], accountant: Accountant
) -> DomainFacts:
    domain, approvals = state.domains[name], _approvals(state, name)
    opened, bare = domain.opened, state.without_noise(name)
    promised, spent = state.promised(name), state.spent(name)
    usual = opened.delta > USUAL_DELTA and not bare
    return DomainFacts(
        domain=name,
        unit=opened.unit,
        adjacency=opened.adjacency,
        n_patients=opened.n_patients,
        delta=opened.delta,
        cap=domain.cap,
        cap_at_opening=opened.epsilon_cap,
        closed=domain.closed,
        withdrawals=domain.withdrawals,
        releases=_released(state, name),
        n_grants=len(domain.grants),
        decided_by=approvals[-1].decided_by if approvals else None,
        counts_against_cap=domain.promised_epsilon,
        spent=plain["epsilon_spent"],
        promised=plain["epsilon_promised"],
        spent_replace_one=None if bare else replace_one_epsilon(spent, opened.delta),
        spent_at_usual_delta=_epsilon(spent, USUAL_DELTA, accountant) if usual else None,
        promised_at_usual_delta=_epsilon(promised, USUAL_DELTA, accountant) if usual else None,
        in_sites=() if bare else _in_sites(state, name, accountant),
        curve=() if bare else _path(entries, name, accountant),
        caps=_caps(entries, name),
        modes=tuple(sorted({approval.mode for approval in approvals})),
        sums=None if bare else _sums(spent, promised, opened.delta, accountant),
        weak=_reasons(state, name),
        stamp=NOT_PRIVATE if bare else SIMULATED if state.not_private(name) else None,
    )


def _reasons(state: State, name: str) -> tuple[str, ...]:
    """Why the figures of a domain are printed with the word `weak`."""
    opened, approvals, reasons = state.domains[name].opened, _approvals(state, name), []
    if (n_patients := crowd(state, name)) < FEW_PATIENTS:
        reasons.append(f"at most {n_patients} patients, fewer than {FEW_PATIENTS:,}")
    sums = [charge for one in approvals for charge in one.charges if isinstance(charge, DistributedCharge)]
    if sums and (fewest := min(charge.n_min for charge in sums)) < FEW_SITES:
        reasons.append(f"sums over as few as {fewest} hospitals, fewer than {FEW_SITES}")
    if opened.delta > USUAL_DELTA:
        reasons.append(f"delta is {opened.delta:g}, above {USUAL_DELTA:g} (small population)")
    draws = [charge for one in approvals for charge in one.charges if isinstance(charge, Charge)]
    if any(charge.records_per_patient > 1 for charge in draws):
        reasons.append("recordings were drawn and clipped one by one, not patients")
    return tuple(reasons)


def _sums(
    spent: Sequence[AnyCharge], promised: Sequence[AnyCharge], delta: float, accountant: Accountant
) -> SumFacts | None:
    sums = [charge for charge in promised if isinstance(charge, DistributedCharge)]
    if not sums:
        return None
    return SumFacts(
        n_min=min(charge.n_min for charge in sums),
        n_colluding=min(charge.n_colluding for charge in sums),
        spent=_epsilon(spent, delta, accountant, n_colluding=ALL_OTHERS),
        promised=_epsilon(promised, delta, accountant, n_colluding=ALL_OTHERS),
    )


def _in_sites(state: State, name: str, accountant: Accountant) -> tuple[InSites, ...]:
    """Up to the number of sites that an approval or the policy in force allows a patient to be in."""
    delta = state.domains[name].opened.delta
    stated = [approval.sites_per_patient for approval in _approvals(state, name)]
    most = max([*stated, state.policy.max_sites_per_patient if state.policy else 1])
    several = {k: k for k in range(1, min(most, 5) + 1)} | {
        most: most
    }  # of many sites the first five and all
    return tuple(
        InSites(
            sites=k,
            spent=_epsilon(state.spent(name), delta, accountant, n_sites=k),
            promised=_epsilon(state.promised(name), delta, accountant, n_sites=k),
        )
        for k in several
    )


def _path(entries: Sequence[Entry], name: str, accountant: Accountant) -> tuple[Point, ...]:
    """The domain's spent epsilon after some of its releases, evenly spread, the first and the last among them."""
    state, moments = State(), list[tuple[int, tuple[AnyCharge, ...]]]()
    for entry in entries:
        state.apply(entry.index, entry.body)
        if isinstance(entry.body, Reserve) and _grant_domain(state, entry.body) == name:
            moments.append((entry.index, state.spent(name)))
    if not moments:
        return ()
    delta, count = state.domains[name].opened.delta, min(N_POINTS, len(moments))
    chosen = sorted({1, *(round((k + 1) * len(moments) / count) for k in range(count))})
    return tuple(
        Point(
            releases=number,
            entry=moments[number - 1][0],
            epsilon=_epsilon(moments[number - 1][1], delta, accountant),
        )
        for number in chosen
    )


def _caps(entries: Sequence[Entry], name: str) -> tuple[CapFrom, ...]:
    """The domain's cap at its opening and after each change, by how many releases there had been."""
    state, steps, n_releases = State(), list[CapFrom](), 0
    for entry in entries:
        state.apply(entry.index, entry.body)
        if isinstance(entry.body, Reserve) and _grant_domain(state, entry.body) == name:
            n_releases += 1
        elif isinstance(entry.body, DomainOpened) and entry.body.domain == name:
            steps.append(CapFrom(releases=0, cap=entry.body.epsilon_cap))
        elif isinstance(entry.body, CapChange) and entry.body.domain == name:
            steps.append(CapFrom(releases=n_releases, cap=entry.body.after))
    return tuple(steps)


def _study(
    entries: Sequence[Entry], state: State, plain: Mapping[str, Any], accountant: Accountant
) -> StudyFacts:
    grant = state.grants[plain["grant"]]
    approval = grant.approval
    releases = [one for one in state.releases.values() if one.reserve.grant == plain["grant"]]
    return StudyFacts(
        grant=plain["grant"],
        study=approval.study,
        repeat=approval.repeat,
        domain=approval.domain,
        purpose=approval.purpose,
        purpose_reference=approval.purpose_reference,
        mode=approval.mode,
        noise=approval.noise,
        person=approval.person,
        public_key=approval.public_key,
        time=entries[plain["grant"]].time,
        delta=approval.delta,
        decided_by=approval.decided_by,
        epsilon=plain["epsilon"],
        epsilon_recorded=approval.epsilon,
        epsilon_spent=plain["epsilon_spent"],
        in_sites=plain["epsilon_in_sites"],
        sums=_sums(tuple(drawn(grant)), approval.charges, approval.delta, accountant),
        by_colluding=plain["epsilon_by_colluding"],
        charges=tuple(map(charge_in_words, approval.charges)),
        drawn=dict(grant.drawn),
        releases=len(releases),
        committed=sum(one.released is not None for one in releases),
        burned=sum(not one.open and one.released is None for one in releases),
        open=sum(one.open for one in releases),
        closed=grant.closed,
        accountant=approval.accountant,
        facts=dict(approval.facts),
        rounds=_rounds(releases, plain["rounds"]),
    )


def _rounds(releases: Sequence[Any], computed: Sequence[Mapping[str, Any]]) -> tuple[RoundRow, ...]:
    """A row for each round; its epsilon is the one after its last release, where that was computed."""
    after = {point["releases"]: point["epsilon"] for point in computed}
    rows: dict[int, RoundRow] = {}
    for number, release in enumerate(releases, start=1):
        at = release.reserve.round
        old = rows.pop(
            at, RoundRow(round=at, releases=0, steps=0, committed=0, burned=0, open=0, epsilon_after=None)
        )
        rows[at] = RoundRow(
            round=at,
            releases=old.releases + 1,
            steps=old.steps + release.reserve.steps,
            committed=old.committed + (release.released is not None),
            burned=old.burned + (not release.open and release.released is None),
            open=old.open + release.open,
            epsilon_after=after.get(number),
        )
    return tuple(rows.values())


def _raises(files: LedgerFiles, entries: Sequence[Entry], accountant: Accountant) -> Iterator[CapRaise]:
    state = State()
    for entry in entries:
        body = entry.body
        if isinstance(body, CapChange) and body.after > body.before and _released(state, body.domain):
            yield CapRaise(
                ledger=files.folder or files.name,
                entry=entry.index,
                time=entry.time,
                domain=body.domain,
                before=body.before,
                after=body.after,
                person=body.person,
                reason=body.reason,
                spent=_spent_so_far(state, body.domain, accountant),
            )
        state.apply(entry.index, body)


def _spent_so_far(state: State, name: str, accountant: Accountant) -> float | None:
    """None where there is no figure: a raised cap is shown all the same."""
    if state.without_noise(name):
        return None
    try:
        return _epsilon(state.spent(name), state.domains[name].opened.delta, accountant)
    except NO_ANSWER:
        return None


def _released(state: State, name: str) -> int:
    """How many releases of a domain were reserved so far."""
    return sum(_grant_domain(state, one.reserve) == name for one in state.releases.values())


def _grant_domain(state: State, reserve: Reserve) -> str:
    return state.grants[reserve.grant].approval.domain


def _approvals(state: State, name: str) -> list[Approval]:
    return [state.grants[index].approval for index in state.domains[name].grants]


def _everything(state: State) -> list[AnyCharge]:
    return [charge for grant in state.grants.values() for charge in grant.approval.charges]


def _epsilon(
    charges: Sequence[AnyCharge],
    delta: float,
    accountant: Accountant,
    *,
    n_colluding: int | None = None,
    n_sites: int = 1,
) -> float:
    if not charges:
        return 0.0
    return accountant.epsilon(merged(charges), delta, n_colluding=n_colluding, n_sites=n_sites)


def _worst_stamp(domains: Sequence[DomainFacts]) -> str | None:
    stamps = {domain.stamp for domain in domains}
    return NOT_PRIVATE if NOT_PRIVATE in stamps else SIMULATED if SIMULATED in stamps else None


def _stamp_of_approvals(entries: Sequence[Entry]) -> str | None:
    """For a ledger whose figures cannot be computed."""
    approvals = [entry.body for entry in entries if isinstance(entry.body, Approval)]
    if any(approval.mode == "none" for approval in approvals):
        return NOT_PRIVATE
    return SIMULATED if any(approval.noise == "seeded" for approval in approvals) else None


def _weak(domains: Sequence[DomainFacts]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reason for domain in domains for reason in domain.weak))


def _policies(entries: Sequence[Entry]) -> tuple[PolicyFacts, ...]:
    return tuple(
        PolicyFacts(
            entry=entry.index,
            time=entry.time,
            version=entry.body.version,
            person=entry.body.person,
            reason=entry.body.reason,
            digest=policy_digest(entry.body.text),
        )
        for entry in entries
        if isinstance(entry.body, PolicyVersion)
    )


def _policy_text(entries: Sequence[Entry]) -> str | None:
    texts = [entry.body.text for entry in entries if isinstance(entry.body, PolicyVersion)]
    return texts[-1] if texts else None


def _happenings(entries: Sequence[Entry], kind: type) -> tuple[Happening, ...]:
    return tuple(
        Happening(entry=entry.index, time=entry.time, what=in_words(entry.body))
        for entry in entries
        if isinstance(entry.body, kind)
    )


def _clock_jumps(entries: Sequence[Entry]) -> tuple[Happening, ...]:
    return tuple(
        Happening(
            entry=entry.index,
            time=entry.time,
            what=f"the clock was {entry.clock_behind_seconds:.0f} s behind",
        )
        for entry in entries
        if entry.clock_behind_seconds is not None
    )


def plain(facts: Any) -> Any:
    """Returns facts as JSON can hold them: an infinite figure is the word `infinite`."""
    return _finite(as_plain(facts))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return "infinite" if value == float("inf") else value
