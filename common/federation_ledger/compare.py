"""Holds a coordinator's record against a site's own ledger: neither can be trusted alone, and they must agree.

    problems = compare_with_site(report, entries)       # of mode distributed; empty if they agree

A site reserves before it computes the vector that it masks, and it is asked for one only after the coordinator wrote
that the attempt is spent, with the site among the dealers. So for each sum (what, round, digest of the model):

 1. the site's reservations are at most the attempts spent here with the site among the dealers: else the coordinator
    left out an attempt, or has another record;
 2. the attempts with the site among the survivors are at most the site's reservations: else the site released without
    its ledger. It signed for being a survivor.

A dealer that is no survivor may have fallen silent before or after it reserved, so between the two nothing follows.
Both ledgers must be as new as each other: a release in between shows as the first.

Guarantees:
  - An attempt that the coordinator left out, and that the site reserved for, is named.
  - A sum that the site is in without a reservation is named.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sottovoce.common.federation_ledger.entries import Summed
from sottovoce.common.federation_ledger.reading import Report
from sottovoce.common.ledger.entries import Entry
from sottovoce.common.ledger.reading import LedgerFiles
from sottovoce.common.ledger.state import State, fold
from sottovoce.common.ledger.verify import entries_of, verify

_Key = tuple[str, int, str]  # what, round, digest of the model


def compare_with_site(report: Report, entries: Sequence[Entry]) -> tuple[str, ...]:
    """Returns what does not agree, one line each. `entries` are of a site's ledger that was verified."""
    state = fold(list(entries))
    if report.roster.key_of(state.site) is None:
        return (f"{state.site} is no site of this federation's roster",)
    approved = any(_of_study(state, grant, report) for grant in state.grants)
    if not approved:
        return (f"{state.site} has approved no study {report.study[:16]}… of mode distributed",)
    reserved, asked, summed = (
        _reserved(state, report),
        _asked(report, state.site),
        _summed(report, state.site),
    )
    return (
        *(
            f"{_in_words(key)}: {state.site} reserved {reserved[key]} times, and {asked[key]} spent attempts with it "
            "are recorded here: the coordinator left something out, or this record is older than the site's"
            for key in sorted(reserved - asked)
        ),
        *(
            f"{_in_words(key)}: {state.site} signed for {summed[key]} sums with its vector, and reserved "
            f"{reserved[key]} times: it released without its ledger, or its ledger is older than this record"
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


def _reserved(state: State, report: Report) -> Counter[_Key]:
    reserves = (release.reserve for release in state.releases.values())
    return Counter(
        (one.what, one.round, one.model_in or "") for one in reserves if _of_study(state, one.grant, report)
    )


def _asked(report: Report, site: str) -> Counter[_Key]:
    return Counter(
        (one.what, one.session.round, one.session.model_digest)
        for one in report.attempts
        if one.event and site in (one.dealers or ())
    )


def _summed(report: Report, site: str) -> Counter[_Key]:
    return Counter(
        (one.what, one.session.round, one.session.model_digest)
        for one in report.attempts
        if one.event and isinstance(one.end, Summed) and site in one.end.survivors
    )


def _of_study(state: State, grant: int, report: Report) -> bool:
    approval = state.grants[grant].approval
    return approval.study == report.study and approval.mode == "distributed"


def _in_words(key: _Key) -> str:
    what, round, model = key
    return f"{what} of round {round}, model {model[:12]}…"
