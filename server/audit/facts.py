"""The facts of one ledger as frozen data: what audit.json holds and the page shows. No behaviour, no layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sottovoce.common.ledger.entries import AccountedBy

NOT_PRIVATE = "NOT PRIVATE"
SIMULATED = "SIMULATED NOISE, NOT PRIVATE"


@dataclass(frozen=True, kw_only=True)
class Point:
    """After so many releases: the spent epsilon."""

    releases: int
    entry: int
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class CapFrom:
    """The cap after so many releases, until the next such."""

    releases: int
    cap: float


@dataclass(frozen=True, kw_only=True)
class InSites:
    """What a patient has given away, and may have to, who is in so many sites that all do what this one did."""

    sites: int
    spent: float
    promised: float


@dataclass(frozen=True, kw_only=True)
class SumFacts:
    """What figures of secure sums rest on: over how many hospitals the least of them was, and how many may collude.

    `promised` and `spent` are the figures if all other hospitals of a sum collude.
    """

    n_min: int
    n_colluding: int
    spent: float
    promised: float


@dataclass(frozen=True, kw_only=True)
class DomainFacts:
    """One enrolment period's account. Figures are None where something left without any noise.

    `counts_against_cap` is the figure of the rule that decided last; `promised` is everything approved, by PLD or,
    where there are secure sums, by a Renyi bound.
    """

    domain: str
    unit: str
    adjacency: str
    n_patients: int
    delta: float
    cap: float
    cap_at_opening: float
    closed: bool
    withdrawals: int
    releases: int
    n_grants: int
    decided_by: str | None
    counts_against_cap: float
    spent: float | None
    promised: float | None
    spent_replace_one: float | None
    spent_at_usual_delta: float | None
    promised_at_usual_delta: float | None
    in_sites: tuple[InSites, ...]
    curve: tuple[Point, ...]
    caps: tuple[CapFrom, ...]
    modes: tuple[str, ...]
    sums: SumFacts | None
    weak: tuple[str, ...]
    stamp: str | None


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """What one round of a study released; `epsilon_after` where it was computed."""

    round: int
    releases: int
    steps: int
    committed: int
    burned: int
    open: int
    epsilon_after: float | None


@dataclass(frozen=True, kw_only=True)
class StudyFacts:
    """One approval of one study, with its own figures at its own delta."""

    grant: int
    study: str
    repeat: int
    domain: str
    purpose: str
    purpose_reference: str | None
    mode: str
    noise: str
    person: str
    public_key: str
    time: str
    delta: float
    decided_by: str
    epsilon: float | None
    epsilon_recorded: float | None
    epsilon_spent: float | None
    in_sites: Mapping[str, float]
    sums: SumFacts | None
    by_colluding: Mapping[str, float]
    charges: tuple[str, ...]
    drawn: Mapping[str, int]
    releases: int
    committed: int
    burned: int
    open: int
    closed: bool
    accountant: AccountedBy | None
    facts: Mapping[str, str]
    rounds: tuple[RoundRow, ...]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A figure as recorded and as computed here."""

    entry: int
    what: str
    recorded: float | None
    recomputed: float
    same: bool


@dataclass(frozen=True, kw_only=True)
class CapRaise:
    """A cap that was raised although something had been spent under the old one."""

    ledger: str
    entry: int
    time: str
    domain: str
    before: float
    after: float
    person: str
    reason: str
    spent: float | None


@dataclass(frozen=True, kw_only=True)
class Happening:
    """One entry, in words."""

    entry: int
    time: str
    what: str


@dataclass(frozen=True, kw_only=True)
class PolicyFacts:
    """One version of the site's policy."""

    entry: int
    time: str
    version: int
    person: str
    reason: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the ledger. `judged` is False behind a damage: it is shown, and nothing rests on it."""

    index: int
    time: str
    kind: str
    what: str
    judged: bool


@dataclass(frozen=True, kw_only=True)
class LedgerFacts:
    """Everything that the page says about one ledger."""

    name: str
    cell: str | None
    folder: str | None
    ok: bool
    stamp: str | None
    site: str
    instance: str
    first_key: str
    public_key: str
    root: str
    n_entries: int
    n_releases: int
    n_unjudged: int
    first_time: str
    last_time: str
    lower_bounds: bool
    verification: Mapping[str, Any]
    problems: tuple[str, ...]
    figures_problem: str | None
    caps_raised_after_spending: tuple[CapRaise, ...]
    weak: tuple[str, ...]
    domains: tuple[DomainFacts, ...]
    studies: tuple[StudyFacts, ...]
    compared: tuple[Compared, ...]
    recomputed_by: AccountedBy
    purposes: tuple[str, ...]
    policies: tuple[PolicyFacts, ...]
    policy_in_force: str | None
    cap_changes: tuple[Happening, ...]
    withdrawals: tuple[Happening, ...]
    key_rotations: tuple[Happening, ...]
    moves: tuple[Happening, ...]
    recoveries: tuple[Happening, ...]
    clock_jumps: tuple[Happening, ...]
    burns: tuple[Happening, ...]
    denials: tuple[Happening, ...]
    entries: tuple[Row, ...]
