"""Holds a coordinator's record against a site's own ledger: neither can be trusted alone, and they must agree.

    problems = compare_with_site(report, entries)       # empty if they agree

A site reserves before it computes the vector that it masks, and it is asked for one only after the coordinator wrote
that the attempt is spent, with the site among the dealers. So for each sum (what, round, digest of the model):

 1. The roster is the one that the site's approver signed for: with it, every key here.
 2. The site's reservations are at most the attempts spent here with the site among the dealers: else the coordinator
    left out an attempt, or has another record.
 3. The attempts with the site among the survivors are at most the site's reservations: else the site released without
    its ledger. It signed for being a survivor. In modes `local` and `none`, where the same bytes may be sent again,
    one reservation is enough for all of them.

A dealer that is no survivor may have fallen silent before or after it reserved, so between the two nothing follows.
Both must be as new as each other: a release in between shows as the second.

Guarantees:
  - An attempt that the coordinator left out, and that the site reserved for, is named.
  - A sum that the site is in without a reservation is named.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sottovoce.common.federation_ledger.entries import Summed
from sottovoce.common.federation_ledger.reading import Report
from sottovoce.common.federation_ledger.rules import Attempt
from sottovoce.common.ledger.entries import Approval, Entry
from sottovoce.common.ledger.reading import LedgerFiles
from sottovoce.common.ledger.state import State, fold
from sottovoce.common.ledger.verify import entries_of, verify
from sottovoce.common.sums import roster_digest

_Key = tuple[str, int, str]  # what, round, digest of the model


def compare_with_site(report: Report, entries: Sequence[Entry]) -> tuple[str, ...]:
    """Returns what does not agree, one line each. `entries` are of a site's ledger that was verified."""
    state = fold(list(entries))
    site, approvals = state.site, _approvals(state, report)
    if not approvals:
        return (f"{site} has approved no study {report.study[:16]}…",)
    if any(approval.facts.get("roster") != roster_digest(report.roster) for approval in approvals):  # 1
        return (f"the approver of {site} signed for another roster than the one here, or for none",)
    reserved, asked, summed = _reserved(state, report), _asked(report, site), _summed(report, site)
    if all(approval.mode != "distributed" for approval in approvals):
        summed = Counter(summed.keys())
    return (
        *(  # 2
            f"{_in_words(key)}: {site} reserved {reserved[key]} times, and {asked[key]} spent attempts with it are "
            "recorded here: the coordinator left something out, or this record is older than the site's"
            for key in sorted(reserved - asked)
        ),
        *(  # 3
            f"{_in_words(key)}: {site} signed for {summed[key]} sums with its vector, and reserved {reserved[key]} "
            "times: it released without its ledger, or its ledger is older than this record"
            for key in sorted(summed - reserved)
        ),
    )


def compared_with(report: Report, files: LedgerFiles) -> dict[str, Any]:
    """Returns how a site's ledger agrees, as plain data. A ledger that does not verify agrees with nothing."""
    verdict = verify(files.ledger, head=files.head)
    if not verdict.ok:
        problem = (
            f"the site's own ledger is not valid ({verdict.findings[0].what}): see `sottovoce ledger verify`"
        )
        return {"site": verdict.site, "spent_here": 0, "reserved_there": 0, "problems": [problem]}
    entries = entries_of(files.ledger)
    reserved = _reserved(fold(entries), report)
    return {
        "site": verdict.site,
        "spent_here": _asked(report, verdict.site).total(),
        "reserved_there": reserved.total(),
        "problems": list(compare_with_site(report, entries)),
    }


def _approvals(state: State, report: Report) -> list[Approval]:
    approvals = (grant.approval for grant in state.grants.values())
    return [approval for approval in approvals if approval.study == report.study]


def _reserved(state: State, report: Report) -> Counter[_Key]:
    # A vector of one attempt is asked for once more where a site's process died at it: two reservations, both paid.
    asked = {
        (_attempt_of(one.reserve.release), one.reserve.what, one.reserve.round, one.reserve.model_in or "")
        for one in state.releases.values()
        if state.grants[one.reserve.grant].approval.study == report.study
    }
    return Counter((what, round, model) for _, what, round, model in asked)


def _attempt_of(release: str) -> str:
    """Returns a release's name without the number of its try, where it is of one attempt at a sum."""
    name, _, _ = release.rpartition(".")
    return name if ".sum-" in name else release


def _asked(report: Report, site: str) -> Counter[_Key]:
    return Counter(_key(attempt) for attempt in report.attempts if site in (attempt.dealers or ()))


def _summed(report: Report, site: str) -> Counter[_Key]:
    return Counter(
        _key(attempt)
        for attempt in report.attempts
        if isinstance(attempt.end, Summed) and site in attempt.end.survivors
    )


def _key(attempt: Attempt) -> _Key:
    return attempt.what, attempt.session.round, attempt.session.model_digest


def _in_words(key: _Key) -> str:
    what, round, model = key
    return f"{what} of round {round}, model {model[:12]}…"
