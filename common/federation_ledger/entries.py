"""Every kind of line that a federation's ledger may hold, and its one encoding.

A line is `{"entry":ENTRY,"signature":HEX}` in canonical JSON and a newline. The coordinator's Ed25519 key signs
LABEL, a newline and ENTRY; every entry names the hash of the whole line before.

Guarantees:
  - One line has one encoding; `decode` refuses every other and raises nothing but LineRefused.
  - No entry has a field for anything but public facts: sites, keys, sessions, sets, signatures, digests, counts.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

from sottovoce.common.config import Interval, canonical
from sottovoce.common.errors import PrivacyError, SecureSumError
from sottovoce.common.keys import SigningKey, verified
from sottovoce.common.ledger.reader import LineRefused
from sottovoce.common.privacy.distributed_accountant import DistributedEvent
from sottovoce.common.secagg.complaint import MAX_COMPLAINT_BYTES, Phase
from sottovoce.common.secagg.session import MAX_SITES, Roster, Session, SiteName, build_strictly

LABEL = "sottovoce/federation-ledger/1"
MAX_COMPLAINTS = 64  # of one attempt; others are counted
MAX_COMPLAINTS_BYTES = 2**22  # of one attempt, all together
MAX_LINE_BYTES = 2**24
NO_PREVIOUS = "0" * 64

Digest = Annotated[str, Interval(64, 64)]
Name = Annotated[str, Interval(1, 120)]
Reason = Annotated[str, Interval(1, 300)]
Natural = Annotated[int, Interval(0, 10**9)]
Count = Annotated[int, Interval(1, 10**9)]
Bytes = Annotated[int, Interval(0, 2**50)]
Sites = Annotated[tuple[SiteName, ...], Interval(1, MAX_SITES)]
Consent = Annotated[str, Interval(2, 2048)]  # a site's signed message in hexadecimal
Complaints = Annotated[
    tuple[Annotated[str, Interval(1, MAX_COMPLAINT_BYTES)], ...], Interval(0, MAX_COMPLAINTS)
]


@dataclass(frozen=True, kw_only=True)
class Genesis:
    """The first entry: whose record this is, of which study, and every key that it believes.

    `simulated` says that the noise of the sums is drawn from a public seed, so that nothing in them is private.
    """

    kind: Literal["genesis"]
    name: Name
    instance: Annotated[str, Interval(32, 32)]
    study: Digest
    roster: Roster
    simulated: bool


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A torn line at the end was cut away. It had never been acknowledged, so nothing had been sent for it."""

    kind: Literal["recovery"]
    cut_bytes: Count
    cut_sha256: Digest


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An attempt is about to be opened. `what` is summed; `event` is what it costs every patient if it is spent."""

    kind: Literal["opened"]
    what: Name
    session: Session
    event: DistributedEvent | None = None


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The dealers are about to be asked for masked vectors: whatever happens next, the attempt is spent."""

    kind: Literal["spent"]
    session: Digest
    dealers: Sites


@dataclass(frozen=True, kw_only=True)
class Summed:
    """The sum exists. `consents` are the survivors' own signatures under who they are."""

    kind: Literal["summed"]
    session: Digest
    survivors: Sites
    consents: Annotated[tuple[Consent, ...], Interval(1, MAX_SITES)]
    sum_sha256: Digest
    n_bytes_up: Bytes
    n_bytes_down: Bytes
    complaints: Complaints
    complaints_left_out: Natural


@dataclass(frozen=True, kw_only=True)
class Abandoned:
    """Nothing came of the attempt; if it was spent it stays so."""

    kind: Literal["abandoned"]
    session: Digest
    phase: Phase
    reason: Reason
    complaints: Complaints
    complaints_left_out: Natural


@dataclass(frozen=True, kw_only=True)
class Lost:
    """The coordinator ended in mid-attempt, and says so at its next start; if it was spent it stays so."""

    kind: Literal["lost"]
    session: Digest


End = Summed | Abandoned | Lost
Body = Genesis | Recovery | Opened | Spent | Summed | Abandoned | Lost


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry with its place in the chain. `time` tells people, and decides nothing; it never goes back."""

    label: Literal["sottovoce/federation-ledger/1"]
    index: Natural
    previous: Digest
    time: Annotated[str, Interval(20, 20)]
    body: Body


@dataclass(frozen=True, kw_only=True)
class SignedEntry:
    """What a line holds."""

    entry: Entry
    signature: Annotated[str, Interval(128, 128)]

    def signed_by(self, public_hex: str) -> bool:
        """Says whether the signature is of this key, and written in the one way."""
        if not set(self.signature) <= set("0123456789abcdef"):  # upper case would be a second encoding of it
            return False
        return verified(public_hex, bytes.fromhex(self.signature), _statement(self.entry))


def encode(entry: Entry, key: SigningKey) -> bytes:
    """Returns the signed line of an entry, with its newline."""
    signature = key.sign(_statement(entry)).hex()
    return canonical(SignedEntry(entry=entry, signature=signature)).encode() + b"\n"


def decode(line: bytes) -> SignedEntry:
    """Returns what a line with its newline holds; its signature is not checked. Raises: LineRefused (step 1)."""
    if not line.endswith(b"\n"):
        raise LineRefused(1, "expected a line that ends in a newline; it was cut")
    try:
        signed: SignedEntry = build_strictly(SignedEntry, line[:-1], MAX_LINE_BYTES)
    except (SecureSumError, PrivacyError):  # the second: an event that no accountant takes
        raise LineRefused(1, "expected an entry in the one encoding of a federation's ledger") from None
    return signed


def line_hash(line: bytes) -> str:
    """Returns what the next entry names as the line before."""
    return hashlib.sha256(f"{LABEL}/line\n".encode() + line).hexdigest()


def _statement(entry: Entry) -> bytes:
    return f"{LABEL}\n{canonical(entry)}".encode()
