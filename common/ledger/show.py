"""A ledger as plain tables: what the command line prints and the report lays out.

Guarantees:
  - Every entry has a row; no row holds more than the entry does.
"""

from collections.abc import Sequence
from typing import Any

from sottovoce.common.config import as_plain
from sottovoce.common.ledger.entries import (
    AnyCharge,
    Approval,
    Body,
    Burn,
    CapChange,
    Commit,
    Denial,
    DistributedCharge,
    DomainClosed,
    DomainOpened,
    Entry,
    Genesis,
    KeyRotation,
    Moved,
    PolicyVersion,
    Recovery,
    Reserve,
    StudyClosed,
    Withdrawal,
)
from sottovoce.common.ledger.rule import sum_of
from sottovoce.common.ledger.state import State, fold


def show(entries: Sequence[Entry]) -> dict[str, Any]:
    """Returns the ledger's account: who, which policy, the domains, the studies, and a row for each entry."""
    state = fold(list(entries))
    return {
        "site": state.site,
        "instance": state.instance,
        "public_key": state.public_key,
        "policy_version": state.policy.version if state.policy else None,
        "domains": [_domain(state, name) for name in state.domains],
        "studies": [_study(state, index) for index in state.grants],
        "entries": [
            {"index": entry.index, "time": entry.time, "kind": entry.body.kind, "what": in_words(entry.body)}
            for entry in entries
        ],
    }


def in_words(body: Body) -> str:
    """Returns one line that says what an entry says."""
    match body:
        case Genesis():
            return f"the ledger of {body.site} begins, key {body.public_key[:16]}…"
        case KeyRotation():
            return f"new key {body.public_key[:16]}…, by {body.person}: {body.reason}"
        case Moved():
            return f"lives elsewhere now, says {body.person}: {body.reason}"
        case Recovery():
            return f"a torn record of {body.cut_bytes} bytes was cut away"
        case PolicyVersion():
            return f"policy version {body.version}, by {body.person}: {body.reason}"
        case DomainOpened():
            return (
                f"domain {body.domain} opens: at most {body.n_patients} patients, "
                f"epsilon {body.epsilon_cap:g} at delta {body.delta:g}"
            )
        case DomainClosed():
            return f"domain {body.domain} closes, by {body.person}: {body.reason}"
        case CapChange():
            return f"cap of {body.domain} from {body.before:g} to {body.after:g}, by {body.person}: {body.reason}"
        case Approval():
            return _approval_in_words(body)
        case StudyClosed():
            return f"grant {body.grant} ends: {body.reason}"
        case Withdrawal():
            return f"a patient of {body.domain} withdrew consent"
        case Reserve():
            return (
                f"release {body.release}: {body.steps} steps of {body.what} reserved from grant {body.grant}, "
                f"round {body.round}, attempt {body.attempt}"
            )
        case Commit():
            return f"release {body.release} committed"
        case Burn():
            return f"release {body.release} burned: {body.reason}"
        case Denial():
            return f"denied to {body.study[:16]}…: {body.reason}"


def charge_in_words(charge: AnyCharge) -> str:
    """Returns one line with every number of a charge; of a sum over sites, what an epsilon follows from."""
    cap = "" if charge.cap is None else f", at most {charge.cap} in a draw"
    if isinstance(charge, DistributedCharge):
        noise, sums = sum_of(charge).noise_multiplier(), "sum" if charge.steps == 1 else "sums"
        return (
            f"{charge.what}: {charge.steps} {sums} over at least {charge.n_min} sites, {charge.n_colluding} of which "
            f"may collude; noise of the others {noise:g}, sampling {charge.sampling_prob:g}{cap} of a site"
        )
    records = (
        "" if charge.records_per_patient == 1 else f", {charge.records_per_patient} records of a patient"
    )
    return (
        f"{charge.what}: {charge.steps} steps, noise {charge.noise_multiplier:g}, "
        f"sampling {charge.sampling_prob:g}{cap}{records}"
    )


def _sums(approval: Approval) -> dict[str, int] | None:
    """What the figure of secure sums rests on; None in other modes."""
    sums = [charge for charge in approval.charges if isinstance(charge, DistributedCharge)]
    if not sums:
        return None
    fewest, colluding = min(charge.n_min for charge in sums), min(charge.n_colluding for charge in sums)
    return {"n_min": fewest, "n_colluding": colluding}


def _approval_in_words(body: Approval) -> str:
    study = f"study {body.study[:16]}… for {body.purpose}, approved by {body.person}, domain {body.domain}"
    if body.mode == "none":
        return f"{study}: NOT PRIVATE"
    stamp = "" if body.noise == "secret" else " SIMULATED NOISE, NOT PRIVATE; it would cost"
    return f"{study}:{stamp} epsilon {body.epsilon:.4f} at delta {body.delta:g}"


def _domain(state: State, name: str) -> dict[str, Any]:
    domain = state.domains[name]
    return {
        "domain": name,
        "n_patients": domain.opened.n_patients,
        "cap": domain.cap,
        "delta": domain.opened.delta,
        "promised": domain.promised_epsilon,
        "not_private": state.not_private(name),
        "studies": len(domain.grants),
        "withdrawals": domain.withdrawals,
        "closed": domain.closed,
    }


def _study(state: State, index: int) -> dict[str, Any]:
    grant = state.grants[index]
    releases = [release for release in state.releases.values() if release.reserve.grant == index]
    return {
        "grant": index,
        "study": grant.approval.study,
        "domain": grant.approval.domain,
        "purpose": grant.approval.purpose,
        "mode": grant.approval.mode,
        "noise": grant.approval.noise,
        "decided_by": grant.approval.decided_by,
        "sums": _sums(grant.approval),
        "epsilon": grant.approval.epsilon,
        "delta": grant.approval.delta,
        "charges": [charge_in_words(charge) for charge in grant.approval.charges],
        "drawn": dict(grant.drawn),
        "committed": sum(release.released is not None for release in releases),
        "burned": sum(not release.open and release.released is None for release in releases),
        "open": sum(release.open for release in releases),
        "closed": grant.closed,
        "facts": as_plain(grant.approval.facts),
    }
