"""What a federation's ledger says at any point, and which line may come next: the same for writer and reader.

Each line is judged in this order:

 1. Form: a line of the one encoding (`entries.py`).
 2. Chain: the next index, naming the hash of the line before; a time that is not before the last one.
 3. Signature: of the coordinator of the roster, whose key is the one that the reader was given.
 4. Session: its sites and keys are the roster's, its threshold ceil(2n/3), at least a quorum of sites invited, a ring
    that the sum cannot leave (`refuse_unless_agreed`); its cost is one step, for its own n_min and length.
 5. Order: a genesis first; attempts of one (run, round) ascend, each after the last one's end; an attempt is opened,
    spent, ended, each once, and one with a cost has no sum before it is spent.
 6. Consents: at least a threshold, of different survivors, each signed with the survivor's pinned key in this session,
    all of them under exactly this survivor set, which is a quorum of the dealers.
 7. Complaints: each signed by a party of the roster, of this session or of none yet.

Guarantees:
  - A line that one of these refuses is never taken; a reader stays where it was.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from sottovoce.common.errors import SecureSumError
from sottovoce.common.federation_ledger.entries import (
    NO_PREVIOUS,
    Abandoned,
    Body,
    End,
    Entry,
    Genesis,
    Lost,
    Opened,
    Recovery,
    Spent,
    Summed,
    decode,
    line_hash,
)
from sottovoce.common.ledger.reader import TIME_FORMAT, LineRefused
from sottovoce.common.privacy.distributed_accountant import DistributedEvent
from sottovoce.common.secagg.complaint import Complaint, read_complaint
from sottovoce.common.secagg.session import (
    COORDINATOR,
    Agreement,
    Roster,
    Session,
    decode_session,
    refuse_unless_agreed,
)
from sottovoce.common.secagg.wire import Kind, decode_consent, open_message, sender_of

NO_SESSION = "0" * 64  # what a complaint names before a session is agreed on
STEPS = {
    1: "form: every line in the one encoding",
    2: "chain: every entry names the line before",
    3: "signatures: the coordinator signed every entry",
    4: "sessions: sites and keys of the roster, threshold, quorum",
    5: "order: no attempt twice, each opened, spent, ended in turn",
    6: "consents: a threshold of survivors signed every survivor set",
    7: "complaints: each signed by a party of the roster",
}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An attempt as far as the ledger tells. `dealers` are None until it is spent, `end` until it has ended."""

    session: Session
    what: str
    event: DistributedEvent | None
    dealers: tuple[str, ...] | None = None
    end: End | None = None

    @property
    def spent(self) -> bool:
        """Says whether vectors were asked for: then its event, if it has one, counts against every patient."""
        return self.dealers is not None

    @property
    def place(self) -> tuple[str, int]:
        """Returns the run and the round."""
        return self.session.run, self.session.round


@dataclass
class Federation:
    """A ledger up to some line."""

    coordinator_key: str | None = None  # None: believe the first entry's
    genesis: Genesis | None = None
    size: int = 0
    previous: str = NO_PREVIOUS
    last_time: str = ""
    attempts: dict[str, Attempt] = field(default_factory=dict)  # by the session's digest
    last_at: dict[tuple[str, int], Attempt] = field(default_factory=dict)
    recoveries: list[Recovery] = field(default_factory=list)

    def take(self, line: bytes) -> Entry:
        """Moves on by one line. Raises: LineRefused, and stays where it was."""
        signed = decode(line)  # 1
        entry = signed.entry
        self._check_chain(entry)  # 2
        key = self.coordinator_key or self._roster(entry.body).coordinator
        if not signed.signed_by(key):  # 3
            raise LineRefused(3, "expected the signature of the coordinator's key")
        self.check(entry.body)  # 4 to 7
        self.accept(entry, line)
        return entry

    def accept(self, entry: Entry, line: bytes) -> None:
        """Moves on by a line that is known to be good."""
        self._apply(entry.body)
        self.size, self.previous, self.last_time = entry.index + 1, line_hash(line), entry.time

    def check(self, body: Body) -> None:
        """Refuses an entry that may not come next. Raises: LineRefused."""
        if (self.size == 0) != isinstance(body, Genesis):
            raise LineRefused(5, "expected a genesis entry first, and once")
        match body:
            case Genesis():
                self._check_genesis(body)
            case Recovery():
                pass
            case Opened():
                self._check_opened(body)
            case Spent():
                self._check_spent(body)
            case Summed():
                self._check_summed(body)
            case Abandoned():
                self._check_complaints(self._under_way(body.session), body.complaints)
            case Lost():
                self._under_way(body.session)

    def complaint(self, session: Session, text: str) -> Complaint:
        """Returns a complaint of this session. Raises: LineRefused (step 7) for any other."""
        try:
            complaint = read_complaint(text.encode(), self.roster)
        except SecureSumError as error:
            raise LineRefused(7, f"a complaint: {error}") from None
        if complaint.session not in (session.digest.hex(), NO_SESSION):
            raise LineRefused(7, "expected complaints of this session; came one of another")
        return complaint

    @property
    def roster(self) -> Roster:
        """Returns who takes part. Raises: LineRefused before the first entry."""
        if self.genesis is None:
            raise LineRefused(5, "expected a genesis entry first")
        return self.genesis.roster

    def without_end(self) -> list[Attempt]:
        """Returns the attempts of which nothing is known to have come."""
        return [attempt for attempt in self.last_at.values() if attempt.end is None]

    def _roster(self, body: Body) -> Roster:
        return body.roster if isinstance(body, Genesis) else self.roster

    def _check_chain(self, entry: Entry) -> None:
        if entry.index != self.size or entry.previous != self.previous:
            raise LineRefused(2, "expected the hash of the line before; one was changed, left out or put in")
        try:
            written = datetime.datetime.strptime(entry.time, TIME_FORMAT).strftime(TIME_FORMAT)
        except ValueError:
            written = ""
        if written != entry.time or entry.time < self.last_time:
            raise LineRefused(2, "expected a time like 2026-01-31T12:00:00Z, not before the last one")

    def _check_genesis(self, body: Genesis) -> None:
        sites = [member.site for member in body.roster.members]
        keys = [body.roster.coordinator, *(member.public_key for member in body.roster.members)]
        if self.coordinator_key not in (None, body.roster.coordinator):
            raise LineRefused(3, "expected the coordinator's key that was given; came a roster with another")
        if len(set(sites)) != len(sites) or COORDINATOR in sites:
            raise LineRefused(4, "expected a roster of different sites, none called coordinator")
        if len(set(keys)) != len(keys) or not all(map(_is_key, keys)):
            raise LineRefused(4, "expected a different key of 64 hexadecimal digits for each party")

    def _check_opened(self, body: Opened) -> None:
        session, event, last = (
            body.session,
            body.event,
            self.last_at.get((body.session.run, body.session.round)),
        )
        same = {item.name: getattr(session, item.name) for item in fields(Agreement) if item.name != "roster"}
        try:
            decode_session(session.encoded)
            refuse_unless_agreed(session, Agreement(roster=self.roster, **same))
        except SecureSumError as error:
            raise LineRefused(4, f"a session that no site would take part in: {error}") from None
        own = (1, session.n_min, session.length)
        if event is not None and (event.steps, event.n_min, event.n_parameters) != own:
            raise LineRefused(4, "expected the cost of one step, for the session's own n_min and length")
        if event is not None and event.cap is None:  # every study has one, and a line has no room for none
            raise LineRefused(4, "expected a cost with a cap on draws")
        if last is not None and session.attempt <= last.session.attempt:
            raise LineRefused(5, f"expected an attempt after {last.session.attempt}; came {session.attempt}")
        if last is not None and last.end is None:
            raise LineRefused(5, f"expected attempt {last.session.attempt} of this round to have ended")

    def _check_spent(self, body: Spent) -> None:
        attempt = self._under_way(body.session)
        if attempt.spent:
            raise LineRefused(5, "expected an attempt that is not spent yet")
        if len(_numbers(attempt.session, body.dealers)) < attempt.session.quorum:
            raise LineRefused(5, f"expected at least {attempt.session.quorum} dealers")

    def _check_summed(self, body: Summed) -> None:
        attempt = self._under_way(body.session)
        if attempt.event is not None and not attempt.spent:
            raise LineRefused(5, "expected an attempt with a cost to be spent before there is a sum")
        _check_consents(attempt, body)
        self._check_complaints(attempt, body.complaints)

    def _check_complaints(self, attempt: Attempt, complaints: Sequence[str]) -> None:
        for text in complaints:
            self.complaint(attempt.session, text)

    def _under_way(self, session: str) -> Attempt:
        attempt = self.attempts.get(session)
        if attempt is None or attempt.end is not None:
            raise LineRefused(5, "expected an attempt that was opened and has not ended")
        return attempt

    def _apply(self, body: Body) -> None:
        match body:
            case Genesis():
                self.genesis = body
            case Recovery():
                self.recoveries.append(body)
            case Opened():
                self._keep(Attempt(session=body.session, what=body.what, event=body.event))
            case Spent():
                self._keep(replace(self.attempts[body.session], dealers=body.dealers))
            case Summed() | Abandoned() | Lost():
                self._keep(replace(self.attempts[body.session], end=body))

    def _keep(self, attempt: Attempt) -> None:
        self.attempts[attempt.session.digest.hex()] = self.last_at[attempt.place] = attempt


def _check_consents(attempt: Attempt, body: Summed) -> None:
    session, survivors = attempt.session, _numbers(attempt.session, body.survivors)
    if len(survivors) < session.quorum:
        raise LineRefused(6, f"expected at least {session.quorum} survivors")
    senders, bodies = list[int](), set[bytes]()
    try:
        for message in map(bytes.fromhex, body.consents):
            senders.append(sender_of(message, Kind.CONSENT, session=session))
            bodies.add(open_message(message, Kind.CONSENT, session=session, sender=senders[-1]))
        consents = [decode_consent(signed) for signed in bodies]
    except (SecureSumError, ValueError) as error:
        raise LineRefused(6, f"a consent: {error}") from None
    if senders != sorted(set(senders)) or not set(senders) <= set(survivors):
        raise LineRefused(6, "expected consents of different survivors, in their order")
    if len(senders) < session.threshold:
        raise LineRefused(6, f"expected at least {session.threshold} consents; came {len(senders)}")
    dealers = None if attempt.dealers is None else _numbers(session, attempt.dealers)
    for consent in consents:  # whose bodies are one, or they would not all be under one set
        if len(consents) > 1 or consent.survivors != survivors:
            raise LineRefused(6, "expected consents under exactly this survivor set; came another")
        if not set(survivors) <= set(consent.dealers) or dealers not in (None, consent.dealers):
            raise LineRefused(6, "expected survivors among the dealers, who are those that were asked")


def _numbers(session: Session, sites: Sequence[str]) -> tuple[int, ...]:
    """Returns the numbers of sites in a session, which must be in its order."""
    found = [number for number in map(session.number_of, sites) if number is not None]
    if len(found) != len(sites) or found != sorted(set(found)):
        raise LineRefused(5, "expected sites of the cohort in its order, none of them twice")
    return tuple(found)


def _is_key(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
