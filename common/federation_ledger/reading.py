"""Judges a federation's ledger from its bytes alone, and adds up what it says.

    report = read_federation(path.read_bytes(), coordinator_key=KEY)
    report.by_colluding(1e-5)       # epsilon of all spent attempts, against 0, 1, ... colluding sites

The steps are those of `rules.py`. They show that nothing in the record was changed, and that a threshold of sites
signed for every sum in it. Not that nothing is missing: lines at the end may have been taken away (`Report.head`, if
somebody kept an earlier one, tells), and a coordinator may keep two records (`compare.py` tells).

Guarantees:
  - `read_federation` raises nothing but LedgerError, whatever the bytes; it names the entry and the step.
  - Any change of any byte is found, and so is a line left out, put in or moved, except at the very end.
  - An attempt that is spent counts, whether a sum came of it or not.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sottovoce.common.config import as_plain
from sottovoce.common.errors import LedgerError
from sottovoce.common.federation_ledger.entries import Abandoned, Lost, Summed
from sottovoce.common.federation_ledger.rules import STEPS, Attempt, Federation
from sottovoce.common.ledger.reader import LineRefused, lines_of
from sottovoce.common.ledger.reading import MAX_LEDGER_BYTES
from sottovoce.common.privacy import distributed_accountant as accountant
from sottovoce.common.privacy.distributed_accountant import DistributedEvent
from sottovoce.common.secagg.complaint import proves
from sottovoce.common.secagg.session import Roster

MOST_NAMED = (
    1000  # of attempts' numbers at one round: a record with an attempt 10^9 is no reason to count so far
)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How many attempts there were at sums of one kind, and what became of them; bytes are of those with a sum."""

    attempts: int = 0
    spent: int = 0
    summed: int = 0
    abandoned: int = 0
    lost: int = 0
    under_way: int = 0
    n_bytes_up: int = 0
    n_bytes_down: int = 0

    def plus(self, attempt: Attempt) -> "Figures":
        """Returns the figures with one attempt more."""
        end = attempt.end
        return Figures(
            attempts=self.attempts + 1,
            spent=self.spent + attempt.spent,
            summed=self.summed + isinstance(end, Summed),
            abandoned=self.abandoned + isinstance(end, Abandoned),
            lost=self.lost + isinstance(end, Lost),
            under_way=self.under_way + (end is None),
            n_bytes_up=self.n_bytes_up + (end.n_bytes_up if isinstance(end, Summed) else 0),
            n_bytes_down=self.n_bytes_down + (end.n_bytes_down if isinstance(end, Summed) else 0),
        )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A signed complaint: of whom, against whom, why.

    `signed_by_accused`: the message is no invention of the accuser. It is no proof of guilt: a sound message can be
    complained of too.
    """

    run: str
    round: int
    attempt: int
    accuser: str
    accused: str
    reason: str
    signed_by_accused: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a ledger that verifies says.

    `pinned` is False where the coordinator's key was taken from the ledger itself. `head` is the last line's hash.
    """

    name: str
    study: str
    instance: str
    simulated: bool
    roster: Roster
    pinned: bool
    n_entries: int
    head: str
    last_time: str
    n_recoveries: int
    attempts: tuple[Attempt, ...]
    figures: dict[str, Figures]
    complaints: tuple[Judged, ...]
    complaints_left_out: int

    def events(self) -> tuple[DistributedEvent, ...]:
        """Returns what all spent attempts cost together, equal steps as one event."""
        steps = Counter(attempt.event for attempt in self.attempts if attempt.spent and attempt.event)
        return tuple(replace(event, steps=count) for event, count in steps.items())

    def epsilon(self, delta: float, *, n_colluding: int | None = None) -> float:
        """Returns the epsilon of all spent attempts: against the study's own number of colluding sites, or others."""
        return accountant.epsilon(self.events(), delta, n_colluding=n_colluding)

    def by_colluding(self, delta: float) -> tuple[float, ...]:
        """Returns that epsilon against 0, 1, ... colluding sites, up to all others of the smallest sum."""
        n_min = min((event.n_min for event in self.events()), default=0)
        return tuple(self.epsilon(delta, n_colluding=n_colluding) for n_colluding in range(n_min))

    def left_out(self) -> tuple[tuple[str, int, int], ...]:
        """Returns (run, round, attempt) of numbers that were passed over: nothing wrong, and worth a question."""
        seen = {(*attempt.place, attempt.session.attempt) for attempt in self.attempts}
        most: dict[tuple[str, int], int] = {}
        for run, round, number in seen:
            most[run, round] = max(number, most.get((run, round), 0))
        return tuple(
            (run, round, number)
            for (run, round), last in sorted(most.items())
            for number in range(1, min(last, MOST_NAMED))
            if (run, round, number) not in seen
        )

    def plain(self, delta: float) -> dict[str, Any]:
        """Returns the report as plain data."""
        return {
            "name": self.name,
            "study": self.study,
            "instance": self.instance,
            "simulated": self.simulated,
            "coordinator": self.roster.coordinator,
            "pinned": self.pinned,
            "sites": [member.site for member in self.roster.members],
            "entries": self.n_entries,
            "head": self.head,
            "last_time": self.last_time,
            "recoveries": self.n_recoveries,
            "figures": {what: as_plain(figures) for what, figures in self.figures.items()},
            "delta": delta,
            "epsilon": self.epsilon(delta) if self.events() else None,
            "epsilon_by_colluding": list(self.by_colluding(delta)),
            "numbers_passed_over": [list(place) for place in self.left_out()],
            "complaints": as_plain(self.complaints),
            "complaints_left_out": self.complaints_left_out,
        }


def read_file(path: Path) -> bytes:
    """Returns a ledger's bytes. Raises: LedgerError for what cannot be read, or is too long for one."""
    try:
        if path.stat().st_size > MAX_LEDGER_BYTES:
            raise LedgerError(f"{path}: expected at most {MAX_LEDGER_BYTES:,} bytes; this is no such file.")
        return path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror}).") from None


def read_federation(data: bytes, *, coordinator_key: str | None) -> Report:
    """Verifies a ledger by the steps of `rules.py` and returns what it says.

    `coordinator_key` is the key as it reached the reader otherwise; with None the ledger's own first entry is
    believed, and only changes by others are found.

    Raises:
        LedgerError: a line cannot be believed, or there is none.
    """
    said = Federation(coordinator_key=coordinator_key)
    for number, line in enumerate(lines_of(data)):
        try:
            said.take(line)
        except LineRefused as refusal:
            step = STEPS[refusal.step]
            raise LedgerError(
                f"Entry {number} cannot be believed, by step {refusal.step} ({step}): {refusal}."
            ) from None
    if said.genesis is None:
        raise LedgerError("Expected a federation's ledger; the file is empty.")
    return _report(said)


def _report(said: Federation) -> Report:
    genesis = said.genesis
    if genesis is None:
        raise LedgerError("Expected a federation's ledger; the file is empty.")
    attempts = tuple(said.attempts.values())
    figures: dict[str, Figures] = {}
    for attempt in attempts:
        figures[attempt.what] = figures.get(attempt.what, Figures()).plus(attempt)
    ends = [attempt.end for attempt in attempts if isinstance(attempt.end, Summed | Abandoned)]
    return Report(
        name=genesis.name,
        study=genesis.study,
        instance=genesis.instance,
        simulated=genesis.simulated,
        roster=genesis.roster,
        pinned=said.coordinator_key is not None,
        n_entries=said.size,
        head=said.previous,
        last_time=said.last_time,
        n_recoveries=len(said.recoveries),
        attempts=attempts,
        figures=figures,
        complaints=tuple(_judged(said)),
        complaints_left_out=sum(end.complaints_left_out for end in ends),
    )


def _judged(said: Federation) -> Iterator[Judged]:
    for attempt in said.attempts.values():
        if not isinstance(attempt.end, Summed | Abandoned):
            continue
        for text in attempt.end.complaints:
            complaint = said.complaint(attempt.session, text)
            yield Judged(
                run=attempt.session.run,
                round=attempt.session.round,
                attempt=attempt.session.attempt,
                accuser=complaint.accuser,
                accused=complaint.accused,
                reason=complaint.reason,
                signed_by_accused=proves(complaint, said.roster),
            )
