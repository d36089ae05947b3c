"""A study of n sites that sum securely in memory, every coin of which is known.

    world = World(5)
    attempt = world.attempt(values=...)
    attempt.run(lost={2: "mask"})     # site 2 is silent from phase "mask" on
    attempt.resumed = True            # each phase of a site is answered by another object, from the last one's bytes

`attempt.until(phase)` stops before a phase's answers, with the coordinator's messages for it in `attempt.messages`:
from there a dishonest coordinator or peer is a few lines (`secagg_deviations.py`).
"""

import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sottovoce.common import keys
from sottovoce.common.keys import AgreementKey, SigningKey
from sottovoce.common.secagg import participant, session, steps, wire
from sottovoce.common.secagg.coordinator import Coordinator, SecureSum
from sottovoce.common.secagg.journal import PHASES, Mark
from sottovoce.common.secagg.participant import Participant
from sottovoce.common.secagg.session import Agreement, Member, Roster, Session, session_for

LENGTH = 5
BOUND = 1000


@functools.cache
def signing_key(name: str) -> SigningKey:
    """The same key for the same name."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


def coins_of(name: str) -> Callable[[int], bytes]:
    """A stream of bytes that a name fixes: block i is SHA-256 of the name and i."""
    left, block = b"", 0

    def draw(n_bytes: int) -> bytes:
        nonlocal left, block
        while len(left) < n_bytes:
            left += hashlib.sha256(f"{name} {block}".encode()).digest()
            block += 1
        taken, left = left[:n_bytes], left[n_bytes:]
        return taken

    return draw


class MemoryJournal:
    """Marks of runs, as a disk would keep them."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []

    def record(self, mark: Mark) -> bool:
        last = next((known for known in reversed(self.marks) if known.run == mark.run), None)
        if mark.after(last):
            self.marks.append(mark)
            return True
        return False


@dataclass
class World:
    """A study: its roster, everybody's keys, and what every site has agreed to."""

    n_sites: int
    n_min: int = 3
    length: int = LENGTH
    bound: int = BOUND
    ring_bits: int = 32
    name: str = "study"
    keys: list[SigningKey] = field(init=False)
    coordinator_key: SigningKey = field(init=False)
    journals: list[MemoryJournal] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = [signing_key(f"site {number}") for number in range(self.n_sites)]
        self.coordinator_key = signing_key("coordinator")
        self.journals = [MemoryJournal() for _ in self.keys]

    @functools.cached_property
    def roster(self) -> Roster:
        members = [
            Member(site=self.site(number), public_key=key.public_hex) for number, key in enumerate(self.keys)
        ]
        return Roster(coordinator=self.coordinator_key.public_hex, members=tuple(members))

    @functools.cached_property
    def agreement(self) -> Agreement:
        return Agreement(
            roster=self.roster,
            run=self.name,
            round=3,
            n_min=self.n_min,
            length=self.length,
            value_bound=self.bound,
            ring_bits=self.ring_bits,
            model_digest=hashlib.sha256(b"model").hexdigest(),
        )

    def site(self, number: int) -> str:
        return f"hospital-{number:02}"

    def session(self, attempt: int = 1) -> Session:
        return session_for(
            self.agreement, attempt=attempt, sites=[self.site(number) for number in range(self.n_sites)]
        )

    def participant(self, number: int, *, attempt: int = 1, coins: str | None = None) -> Participant:
        name = coins or f"coins of {number} in attempt {attempt}"
        return Participant(
            self.agreement,
            site=self.site(number),
            key=self.keys[number],
            journal=self.journals[number],
            coins=coins_of(name),
        )

    def values(self, seed: int = 0) -> list[np.ndarray[Any, Any]]:
        draw = np.random.default_rng(seed)
        return [
            draw.integers(-self.bound, self.bound + 1, self.length, dtype=np.int64)
            for _ in range(self.n_sites)
        ]

    def attempt(self, number: int = 1, values: Sequence[Any] | None = None) -> "Attempt":
        session = self.session(number)
        return Attempt(
            world=self,
            session=session,
            coordinator=Coordinator(session, key=self.coordinator_key),
            participants=[self.participant(site, attempt=number) for site in range(self.n_sites)],
            values=list(values if values is not None else self.values()),
        )


@dataclass
class Attempt:
    """One attempt as it runs. `log` holds every message as (phase, from, to, bytes)."""

    world: World
    session: Session
    coordinator: Coordinator
    participants: list[Participant]
    values: list[Any]
    messages: dict[int, bytes] = field(default_factory=dict)
    log: list[tuple[str, str, str, bytes]] = field(default_factory=list)
    resumed: bool = False

    def resume(self, number: int, state: bytes | None = None) -> None:
        """Puts another object in a site's place, from its state's bytes or others; its coins go on."""
        last, world = self.participants[number], self.world
        self.participants[number] = Participant.resume(
            world.agreement,
            site=world.site(number),
            key=world.keys[number],
            journal=world.journals[number],
            state=last.state_bytes() if state is None else state,
            coins=last._coins,
        )

    def answer(self, number: int, phase: str, message: bytes) -> bytes:
        """One site's answer to a message of a phase."""
        if self.resumed and not isinstance(self.participants[number]._state, Agreement):
            self.resume(number)
        step: Callable[..., bytes] = getattr(self.participants[number], phase)
        return step(message, self.values[number]) if phase == "mask" else step(message)

    def until(self, phase: str, lost: Mapping[int, str] | None = None) -> "Attempt":
        """Runs the phases before this one, all in order, and leaves its messages in `messages`."""
        if not self.messages:
            self._send(
                dict.fromkeys(map(self.world.site, range(self.world.n_sites)), self.coordinator.opening())
            )
        for now in PHASES[: PHASES.index(phase)] if phase in PHASES else PHASES:
            if now == self.coordinator.phase:
                self.phase(now, lost or {})
        return self

    def phase(self, now: str, lost: Mapping[int, str]) -> None:
        """Lets all answer who are not lost, and closes the phase."""
        for number, message in self.messages.items():
            if number in lost and PHASES.index(lost[number]) <= PHASES.index(now):
                continue
            reply = self.answer(number, now, message)
            self.give(number, now, reply)
        self._send(self.coordinator.advance())

    def give(self, number: int, phase: str, reply: bytes) -> None:
        """Hands the coordinator one site's answer."""
        self.log.append((phase, self.world.site(number), "coordinator", reply))
        self.coordinator.receive(self.world.site(number), reply)

    def run(self, lost: Mapping[int, str] | None = None) -> SecureSum:
        """Runs it whole, without the sites that are lost from some phase on."""
        self.until("sum", lost)
        return self.coordinator.finish()

    def _send(self, messages: Mapping[str, bytes]) -> None:
        self.log += [(self.coordinator.phase, "coordinator", site, data) for site, data in messages.items()]
        self.messages = {
            number: messages[self.world.site(number)]
            for number in range(self.world.n_sites)
            if self.world.site(number) in messages
        }


def plain_sum(values: Sequence[Any], numbers: Sequence[int]) -> list[int]:
    """The sum in Python's own integers."""
    return [sum(int(values[number][place]) for number in numbers) for place in range(len(values[0]))]


def survivors_of(lost: Mapping[int, str], n_sites: int, n_min: int = 3) -> tuple[int, ...] | None:
    """Who is in the sum when these sites are silent from some phase on; None where it must be abandoned."""
    left = _left(lost, n_sites, n_min)
    return left[PHASES.index("mask")] if len(left) == len(PHASES) else None


def patterns(n_sites: int, n_min: int = 3) -> Counter[tuple[tuple[int, str], ...]]:
    """Every pattern of loss, 6 ** n_sites of them, by what happens in it.

    Once an attempt is abandoned no message is sent, so who would have been lost later cannot matter: such patterns
    are one, told by the losses up to there. If the attempt went on where it must not, the one would show it.
    """
    found: Counter[tuple[tuple[int, str], ...]] = Counter()
    for phases in itertools.product((*PHASES, ""), repeat=n_sites):
        lost = {number: phase for number, phase in enumerate(phases) if phase}
        happened = PHASES[: len(_left(lost, n_sites, n_min)) + 1]
        found[tuple((number, phase) for number, phase in lost.items() if phase in happened)] += 1
    return found


def _left(lost: Mapping[int, str], n_sites: int, n_min: int) -> list[tuple[int, ...]]:
    """Who answered each phase that could be closed.

    Written from the rules alone: at least max(ceil(2n/3), 3, n_min) of adverts, dealings and vectors, and at
    least ceil(2n/3) of consents and reveals.
    """
    threshold = (2 * n_sites + 2) // 3
    least = {"consent": threshold, "reveal": threshold}
    left, closed = tuple(range(n_sites)), list[tuple[int, ...]]()
    for phase in PHASES:
        left = tuple(number for number in left if lost.get(number) != phase)
        if len(left) < least.get(phase, max(threshold, 3, n_min)):
            break
        closed.append(left)
    return closed


@contextmanager
def remembered_signatures() -> Iterator[None]:
    """Signatures, agreements and sessions of the same bytes, worked out once: most of a small attempt's time."""
    patch = pytest.MonkeyPatch()
    patch.setattr(wire, "verified", functools.lru_cache(1 << 18)(keys.verified))
    for cls, name in ((SigningKey, "sign"), (AgreementKey, "shared")):
        patch.setattr(cls, name, functools.lru_cache(1 << 18)(getattr(cls, name)))
    patch.setattr(steps, "AgreementKey", functools.lru_cache(1 << 10)(AgreementKey))
    patch.setattr(participant, "agreed_session", functools.lru_cache(1 << 10)(steps.agreed_session))
    patch.setattr(session, "decode_session", functools.lru_cache(1 << 10)(session.decode_session))
    try:
        yield
    finally:
        patch.undo()
