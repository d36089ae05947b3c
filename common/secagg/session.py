"""What all parties to one attempt at one sum must agree on before a key is made for it.

The coordinator states a `Session`; a site compares it with what it knows by itself, its `Agreement`. The digest of
the session is in every signature and every derived key, so that nothing said in one attempt means anything in
another: another run, round, attempt, roster, cohort, threshold, ring, length, bound or model is another digest.

Guarantees:
  - One session has one encoding; `decode_session` refuses every other, and raises nothing but SecureSumError.
  - A session that `refuse_unless_agreed` lets pass has only members of the site's own roster, under their pinned
    keys; the threshold ceil(2n/3); at least max(threshold, 3, n_min) sites; and the site's own run, round, ring,
    length, bound, n_min and model.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal

from sottovoce.common.config import Interval, build, canonical
from sottovoce.common.errors import SecureSumError
from sottovoce.common.secagg.masks import WIDTHS, largest_sum

PROTOCOL = "sottovoce/secagg/1"
COORDINATOR = "coordinator"  # what complaints call it; no site may be called so
MIN_SITES, MAX_SITES = 3, 50
RING_BITS = 32  # of a study that does not say otherwise
MAX_SUM = largest_sum(RING_BITS)
MAX_LENGTH = 2**27
MAX_SESSION_BYTES = 16_384

SiteName = Annotated[str, Interval(1, 64)]
Run = Annotated[str, Interval(1, 120)]
Hex32 = Annotated[str, Interval(64, 64)]
Natural = Annotated[int, Interval(0, 10**9)]
Count = Annotated[int, Interval(1, 10**9)]
Sites = Annotated[int, Interval(1, MAX_SITES)]
Length = Annotated[int, Interval(1, MAX_LENGTH)]
Bound = Annotated[int, Interval(1, MAX_SUM)]


@dataclass(frozen=True, kw_only=True)
class Member:
    """A site and the Ed25519 key that it signs with."""

    site: SiteName
    public_key: Hex32


_TERMS = ("run", "round", "ring_bits", "length", "value_bound", "n_min")
Cohort = Annotated[tuple[Member, ...], Interval(1, MAX_SITES)]


@dataclass(frozen=True, kw_only=True)
class Roster:
    """Every site of a study and the coordinator, with pinned keys. It comes with the study, not over the wire."""

    coordinator: str
    members: tuple[Member, ...]

    def key_of(self, party: str) -> str | None:
        """Returns the pinned key of a site, or of "coordinator"; None for a stranger."""
        if party == COORDINATOR:
            return self.coordinator
        return next((member.public_key for member in self.members if member.site == party), None)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a site knows by itself of a sum it may take part in, before the coordinator says a word.

    `model_digest` is of the model that this site was given: sites that were given different models never
    agree on a session. `n_min` is the study's smallest cohort for which the noise was sized. `ring_bits` is 8, 16 or
    32: what an element takes on the wire; all sites' values together must stay in that ring.
    """

    roster: Roster
    run: str
    round: int
    n_min: int
    length: int
    value_bound: int
    model_digest: str
    ring_bits: int = RING_BITS


@dataclass(frozen=True, kw_only=True)
class Session:
    """One attempt at one sum, as the coordinator states it. Sites are numbered by their place in `cohort`."""

    protocol: Literal["sottovoce/secagg/1"]
    run: Run
    round: Natural
    attempt: Count
    coordinator: Hex32
    cohort: Cohort
    threshold: Sites
    n_min: Sites
    ring_bits: Annotated[int, Interval(1, 64)]
    length: Length
    value_bound: Bound
    model_digest: Hex32

    @property
    def n_sites(self) -> int:
        """Returns how many sites were invited."""
        return len(self.cohort)

    @property
    def vector_bytes(self) -> int:
        """Returns the size of a masked vector."""
        return self.length * self.ring_bits // 8

    @property
    def quorum(self) -> int:
        """Returns how many sites must be in the sum; with fewer the attempt is abandoned."""
        return max(self.threshold, MIN_SITES, self.n_min)

    @cached_property
    def encoded(self) -> bytes:
        """Returns the session's one encoding: canonical JSON."""
        return canonical(self).encode()

    @cached_property
    def digest(self) -> bytes:
        """Returns 32 bytes that bind all of it."""
        return hashlib.sha256(f"{PROTOCOL}/session\n".encode() + self.encoded).digest()

    def number_of(self, site: str) -> int | None:
        """Returns a site's number, or None for one that was not invited."""
        return next((number for number, member in enumerate(self.cohort) if member.site == site), None)


def threshold_of(n_sites: int) -> int:
    """Returns ceil(2n/3): floor(n/3) sites may be lost, and 2t > n + c for c < n/3 colluders."""
    return -(-2 * n_sites // 3)


def session_for(agreement: Agreement, *, attempt: int, sites: Sequence[str]) -> Session:
    """Returns the session of an attempt with these sites of the roster. Raises: SecureSumError."""
    chosen = [member for member in agreement.roster.members if member.site in sites]
    if len(chosen) != len(sites):
        raise SecureSumError("roster", "Expected different sites of the roster; came others.")
    session = Session(
        protocol="sottovoce/secagg/1",
        run=agreement.run,
        round=agreement.round,
        attempt=attempt,
        coordinator=agreement.roster.coordinator,
        cohort=tuple(sorted(chosen, key=lambda member: member.site)),
        threshold=threshold_of(len(chosen)),
        n_min=agreement.n_min,
        ring_bits=agreement.ring_bits,
        length=agreement.length,
        value_bound=agreement.value_bound,
        model_digest=agreement.model_digest,
    )
    refuse_unless_agreed(decode_session(session.encoded), agreement)  # what sites would refuse is not sent
    return session


@lru_cache(maxsize=16)  # each phase brings or resumes it anew; equal bytes are one frozen session
def decode_session(data: bytes) -> Session:
    """Returns the session whose canonical bytes these are. Raises: SecureSumError for all other bytes."""
    session: Session = build_strictly(Session, data, MAX_SESSION_BYTES)
    sites = [member.site for member in session.cohort]
    if sites != sorted(set(sites)) or COORDINATOR in sites:
        raise SecureSumError(
            "form", "Expected a cohort in the order of its sites' names, none of them twice."
        )
    return session


def build_strictly(cls: Any, data: bytes, max_bytes: int) -> Any:
    """Returns the `cls` whose canonical JSON these bytes are. Raises: SecureSumError ("form")."""
    expected = f"Expected the canonical JSON of a {cls.__name__.lower()} in at most {max_bytes} bytes"
    if len(data) > max_bytes:
        raise SecureSumError("form", f"{expected}; came {len(data)} bytes.")
    try:
        table = json.loads(data.decode("ascii"))
        built = build(cls, table, cls.__name__.lower(), [])
        if built is not None and _printable(table) and canonical(built).encode() == data:
            return built
    except (ValueError, RecursionError):
        pass
    raise SecureSumError("form", f"{expected}; came others.")


def refuse_unless_agreed(session: Session, agreement: Agreement) -> None:
    """Refuses a session that differs from what a site knows by itself. Raises: SecureSumError.

    1. The coordinator and every site of the cohort are in the roster, under their pinned keys.
    2. The model is the one that this site was given.
    3. Run, round, ring, length, bound and n_min are the site's own, and the sum of all cannot wrap.
    4. The threshold is ceil(2n/3).
    5. The cohort is not smaller than the quorum, so that no site is ever summed alone or with one other.
    """
    known = set(agreement.roster.members)
    if session.coordinator != agreement.roster.coordinator or not known.issuperset(session.cohort):
        raise SecureSumError("roster", "Expected sites and keys of the study's roster; came a stranger.")
    if session.model_digest != agreement.model_digest:
        raise SecureSumError("model", "Expected a sum for the model that this site was given; came another.")
    differ = any(getattr(session, term) != getattr(agreement, term) for term in _TERMS)
    if differ or not _stays_in_its_ring(session):
        raise SecureSumError(
            "terms",
            "Expected run, round, ring, length, bound and n_min as the study has them, and a ring of"
            f" {' or '.join(map(str, WIDTHS))} bits that the sum cannot leave; came others.",
        )
    if session.threshold != threshold_of(session.n_sites):
        raise SecureSumError(
            "threshold", f"Expected threshold={threshold_of(session.n_sites)}; came {session.threshold}."
        )
    if session.n_sites < session.quorum:
        raise SecureSumError(
            "cohort", f"Expected at least {session.quorum} sites; came {session.n_sites}. Invite more."
        )


def _stays_in_its_ring(session: Session) -> bool:
    bits = session.ring_bits
    return bits in WIDTHS and session.n_sites * session.value_bound <= largest_sum(bits)


def _printable(value: Any) -> bool:
    """No text of a record may steer the terminal that it is read in."""
    if isinstance(value, str):
        return value.isprintable()
    if isinstance(value, dict):
        return all(key.isprintable() and _printable(item) for key, item in value.items())
    return all(map(_printable, value)) if isinstance(value, list) else True
