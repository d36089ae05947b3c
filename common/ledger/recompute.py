"""Computes every figure of a ledger again, from its entries alone.

Guarantees:
  - No recorded figure is used; each is compared with the one computed here and reported where they differ.
  - Decisions are taken again in their order: a study that should have been denied is a problem, with its entry.
  - A burned or unfinished reservation counts like a committed one.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sottovoce.common.ledger.entries import AnyCharge, Approval, DistributedCharge, Entry, Reserve
from sottovoce.common.ledger.rule import Accountant, by_the_filter, decide, merged, order_of
from sottovoce.common.ledger.state import Domain, Grant, State, drawn

TOLERANCE = 1e-6  # the same program gives the same figure; another program is `verify_ledger.py`


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of an approval: as it was recorded, and as it is computed again."""

    entry: int
    what: str
    recorded: float | None
    recomputed: float
    same: bool


def recompute(entries: Sequence[Entry], accountant: Accountant, *, n_prefixes: int = 5) -> dict[str, Any]:
    """Returns epsilon per study, per domain and after some of the rounds, and what differs from the record.

    `n_prefixes` rounds of each study, evenly spread and the last among them, get a figure of their own.
    """
    state, figures = State(), list[Figure]()
    for entry in entries:
        if isinstance(entry.body, Approval) and entry.body.mode != "none":
            figures += _decide_again(state, entry.index, entry.body, accountant)
        state.apply(entry.index, entry.body)
    rounds = _rounds(entries)
    return {
        "site": state.site,
        "n_entries": state.size,
        "studies": [
            _study(index, grant, rounds.get(index, []), accountant, n_prefixes)
            for index, grant in state.grants.items()
        ],
        "domains": [_domain(state, name, domain, accountant) for name, domain in state.domains.items()],
        "figures": [vars(figure) for figure in figures],
        "different": [vars(figure) for figure in figures if not figure.same],
        "ok": all(figure.same for figure in figures),
    }


def _decide_again(state: State, index: int, approval: Approval, accountant: Accountant) -> Iterable[Figure]:
    domain = state.domains[approval.domain]
    decision = decide(
        state.promised(approval.domain),
        approval.charges,
        opened=domain.opened,
        cap=domain.cap,
        first=not domain.grants,
        accountant=accountant,
    )
    figures = (
        ("epsilon", approval.epsilon, accountant.epsilon(approval.charges, approval.delta)),
        ("domain_epsilon", approval.domain_epsilon, decision.domain_epsilon),
    )
    for what, recorded, recomputed in figures:
        same = recorded is not None and math.isclose(recorded, recomputed, abs_tol=TOLERANCE)
        yield Figure(entry=index, what=what, recorded=recorded, recomputed=recomputed, same=same)
    if not decision.allowed:
        what = f"this study should have been denied: the cap was {domain.cap:g}"
        recorded, recomputed = approval.domain_epsilon, decision.domain_epsilon
        yield Figure(entry=index, what=what, recorded=recorded, recomputed=recomputed, same=False)


def _study(
    index: int, grant: Grant, rounds: list[Reserve], accountant: Accountant, n_prefixes: int
) -> dict[str, Any]:
    approval = grant.approval
    private = approval.mode != "none"
    spent = tuple(drawn(grant))
    return {
        "grant": index,
        "study": approval.study,
        "domain": approval.domain,
        "mode": approval.mode,
        "noise": approval.noise,
        "unit": "patient",
        "adjacency": "add_or_remove_one",
        "delta": approval.delta,
        "epsilon_recorded": approval.epsilon,
        "epsilon": accountant.epsilon(approval.charges, approval.delta) if private else None,
        "epsilon_spent": _epsilon(spent, approval.delta, accountant) if private else None,
        "epsilon_in_sites": _in_sites(approval, accountant) if private else {},
        "epsilon_by_colluding": _by_colluding(approval, accountant),
        "releases": len(rounds),
        "closed": grant.closed,
        "rounds": _prefixes(approval, rounds, accountant, n_prefixes) if private else [],
    }


def _domain(state: State, name: str, domain: Domain, accountant: Accountant) -> dict[str, Any]:
    delta, promised, spent = domain.opened.delta, state.promised(name), state.spent(name)
    by_filter = by_the_filter(promised, domain.opened, order=order_of(domain.opened))
    bare = state.without_noise(name)  # something left without any noise: there is no figure
    return {
        "domain": name,
        "n_patients": domain.opened.n_patients,
        "weak": crowd(state, name) < 1000 or domain.opened.small_population,
        "not_private": state.not_private(name),
        "delta": delta,
        "cap": domain.cap,
        "epsilon_promised": None if bare else _epsilon(promised, delta, accountant),
        "epsilon_promised_by_filter": None if bare else by_filter,
        "decided_by": state.grants[domain.grants[-1]].approval.decided_by if domain.grants else None,
        "epsilon_spent": None if bare else _epsilon(spent, delta, accountant),
        "withdrawals": domain.withdrawals,
        "closed": domain.closed,
    }


def crowd(state: State, name: str) -> int:
    """Returns among how many patients one hides, at most: in sums alone, those of all hospitals that a sum needs."""
    domain = state.domains[name]
    charges = [charge for index in domain.grants for charge in state.grants[index].approval.charges]
    fewest = [charge.n_min for charge in charges if isinstance(charge, DistributedCharge)]
    return domain.opened.n_patients * (min(fewest) if fewest and len(fewest) == len(charges) else 1)


def _prefixes(
    approval: Approval, rounds: list[Reserve], accountant: Accountant, n_prefixes: int
) -> list[dict[str, Any]]:
    """After each of some releases: what a patient had given away by then in this study."""
    count = min(n_prefixes, len(rounds))
    chosen = {round((k + 1) * len(rounds) / count) for k in range(count)} if count else set()
    steps: dict[str, int] = {}
    rows = []
    for number, reserve in enumerate(rounds, start=1):
        steps[reserve.what] = steps.get(reserve.what, 0) + reserve.steps
        if number in chosen:
            so_far = [
                replace(charge, steps=steps[charge.what])
                for charge in approval.charges
                if charge.what in steps
            ]
            epsilon = _epsilon(so_far, approval.delta, accountant)
            rows.append({"releases": number, "round": reserve.round, "epsilon": epsilon})
    return rows


def _in_sites(approval: Approval, accountant: Accountant) -> dict[str, float]:
    """A patient who is in k sites of this study meets all of their releases, or is in each sum k times."""
    charges = merged(approval.charges)
    return {
        str(k): accountant.epsilon(charges, approval.delta, n_sites=k)
        for k in range(1, approval.sites_per_patient + 1)
    }


def _by_colluding(approval: Approval, accountant: Accountant) -> dict[str, float]:
    """What secure sums are worth against 0, 1, ... and in the end all other sites of the fewest that a sum may have."""
    charges = merged(approval.charges)
    fewest = [charge.n_min for charge in charges if isinstance(charge, DistributedCharge)]
    return {
        str(t): accountant.epsilon(charges, approval.delta, n_colluding=t)
        for t in range(min(fewest, default=0))
    }


def _rounds(entries: Sequence[Entry]) -> dict[int, list[Reserve]]:
    rounds: dict[int, list[Reserve]] = {}
    for entry in entries:
        if isinstance(entry.body, Reserve):
            rounds.setdefault(entry.body.grant, []).append(entry.body)
    return rounds


def _epsilon(charges: Sequence[AnyCharge], delta: float, accountant: Accountant) -> float:
    return accountant.epsilon(merged(charges), delta) if charges else 0.0
