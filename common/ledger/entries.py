"""Every kind of entry that a ledger may hold, and its one encoding in bytes.

A line of the ledger is `{"entry":ENTRY,"signature":HEX}` and a newline. ENTRY is canonical JSON (sorted keys,
no spaces, ASCII, floats by repr, absent fields left out); the signature is over the checkpoint that ends
with this entry (`checkpoint.py`), so that every line is a signed statement about all lines before it.

Guarantees:
  - One entry has one encoding; `decode` refuses every other, with an unknown or missing field, a wrong type,
    a number out of range, a repeated key, a NaN or a character that cannot be printed.
  - `decode` never raises anything but EntryError, whatever the bytes.
  - No entry has a field for a path, a patient, or a digest of private bytes that is not under the site's key.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from sottovoce.common.config import Interval, build, canonical

LABEL = "sottovoce/ledger/1"
MAX_LINE_BYTES = 131_072  # a policy version is the longest entry; then an approval of many groups
SIGNATURE_HEX_CHARS = 128
NO_PREVIOUS = "0" * 64

_HEAD = b'{"entry":'
_MIDDLE = b',"signature":"'
_END = b'"}\n'

Hex32 = Annotated[str, Interval(32, 32)]
Digest = Annotated[str, Interval(64, 64)]
Signature = Annotated[str, Interval(SIGNATURE_HEX_CHARS, SIGNATURE_HEX_CHARS)]
Name = Annotated[str, Interval(1, 120)]
Reason = Annotated[str, Interval(1, 300)]
Natural = Annotated[int, Interval(0, 10**9)]
Count = Annotated[int, Interval(1, 10**9)]
Positive = Annotated[float, Interval(0.0, 1e6, low_open=True)]
NoiseMultiplier = Annotated[float, Interval(0.05, 1e5)]  # what the accountant can take
Probability = Annotated[float, Interval(1e-9, 1.0)]
Delta = Annotated[float, Interval(1e-10, 1.0, high_open=True)]
Noise = Literal["secret", "seeded"]
Mode = Literal["local", "distributed", "none"]
Purpose = Literal["research", "medical", "safety", "workplace", "education"]


class EntryError(ValueError):
    """Bytes that are no entry. The message says what was expected."""


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one kind of private number costs: `steps` draws of one mechanism.

    `what` names the number ("update", "evaluation_counts", ...). `cap` is the largest number of records in a
    draw (truncated Poisson); `records_per_patient` is 1 where the record is the patient. A count that is not
    sampled has `sampling_prob` 1. The numbers mean what they mean in `common/privacy/accountant.py`.
    """

    mechanism: Literal["poisson_gaussian"]
    what: Name
    noise_multiplier: NoiseMultiplier
    sampling_prob: Probability
    steps: Annotated[int, Interval(1, 10_000_000)]
    n_patients: Annotated[int, Interval(1, 10_000_000)]
    cap: Count | None = None
    records_per_patient: Annotated[int, Interval(1, 128)] = 1


@dataclass(frozen=True, kw_only=True)
class DistributedCharge:
    """What one kind of private number costs in mode `distributed`: `steps` sums over sites with shares of noise.

    Whole grid steps; the numbers mean what they mean in `common/privacy/distributed_accountant.py`. `cap` and
    `n_patients` are this site's, and the same at every other.
    """

    mechanism: Literal["poisson_discrete_gaussian_sum"]
    what: Name
    squared_norm: Annotated[int, Interval(1, 2**52)]
    variance_numerator: Annotated[int, Interval(1, 2**56)]
    variance_denominator: Annotated[int, Interval(1, 2**56)]
    n_min: Annotated[int, Interval(1, 1000)]
    n_colluding: Annotated[int, Interval(0, 999)]
    n_parameters: Annotated[int, Interval(1, 2**40)]
    sampling_prob: Probability
    steps: Annotated[int, Interval(1, 10_000_000)]
    n_patients: Annotated[int, Interval(1, 10_000_000)]
    overflow_prob: Annotated[float, Interval(0.0, 1.0)]
    cap: Annotated[int, Interval(1, 10_000_000)] | None = None


AnyCharge = Charge | DistributedCharge  # told apart by `mechanism`, their first field


@dataclass(frozen=True, kw_only=True)
class AccountedBy:
    """Which program computed the figures of an entry; `grid` is of privacy loss, where it has one."""

    name: Name
    version: Name
    grid: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class Genesis:
    """The first entry: whose ledger this is, where it lives, and which keys it believes."""

    kind: Literal["genesis"]
    site: Name
    instance: Hex32
    public_key: Digest
    digest_key_commitment: Digest
    place: Digest
    software: Name


@dataclass(frozen=True, kw_only=True)
class KeyRotation:
    """A new signing key. The line is signed by the old key; `proof` is the new key's own signature."""

    kind: Literal["key_rotation"]
    public_key: Digest
    proof: Signature
    person: Name
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Moved:
    """The ledger lives elsewhere now (restored, or moved to another machine); a named person says so."""

    kind: Literal["moved"]
    place: Digest
    person: Name
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A torn record at the end was cut away. It had never been acknowledged, so nothing was done with it."""

    kind: Literal["recovery"]
    cut_bytes: Count


@dataclass(frozen=True, kw_only=True)
class PolicyVersion:
    """The site's policy from here on. `text` is its canonical JSON, so that the ledger alone can be judged."""

    kind: Literal["policy"]
    version: Count
    text: Annotated[str, Interval(2, 60_000)]
    person: Name
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class DomainOpened:
    """A closed enrolment period of patients gets its budget. All fields are public constants.

    `conceded_delta` is the part of `delta` that the filter keeps for draws and sums that secure sums concede
    (`privacy/filter.py`); a domain without it has nothing to concede.
    """

    kind: Literal["domain_opened"]
    domain: Name
    n_patients: Count
    unit: Literal["patient"]
    adjacency: Literal["add_or_remove_one"]
    epsilon_cap: Positive
    delta: Delta
    small_population: bool
    conceded_delta: Annotated[float, Interval(0.0, 1.0, low_open=True, high_open=True)] | None = None


@dataclass(frozen=True, kw_only=True)
class DomainClosed:
    """Nothing more is released of this domain."""

    kind: Literal["domain_closed"]
    domain: Name
    person: Name
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class CapChange:
    """A domain's cap moves. One that is raised after spending is shown first in every audit."""

    kind: Literal["cap_change"]
    domain: Name
    before: Positive
    after: Positive
    person: Name
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Approval:
    """A named person lets one run of one study spend; its charges are reserved whole.

    The entry's index is the grant that reservations draw from. `epsilon` is the study's own figure at `delta`, by
    PLD or, where there are secure sums, by a Renyi bound; `domain_epsilon` is the figure that decided, over
    everything the domain has promised, at the domain's delta, by the rule `decided_by` (`rule.py` states the rules).
    """

    kind: Literal["approval"]
    study: Digest
    repeat: Natural
    domain: Name
    purpose: Purpose
    mode: Mode
    noise: Noise
    delta: Delta
    sites_per_patient: Count
    charges: Annotated[tuple[AnyCharge, ...], Interval(0, 20)]
    decided_by: Literal["pld", "rdp", "rdp_filter", "not_private"]
    person: Name
    public_key: Digest
    signature: Signature
    purpose_reference: Reason | None = None
    epsilon: Annotated[float, Interval(0.0)] | None = None
    domain_epsilon: Annotated[float, Interval(0.0)] | None = None
    accountant: AccountedBy | None = None
    facts: Annotated[Mapping[str, Reason], Interval(0, 40)] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudyClosed:
    """A grant ends early; what it has not drawn goes back to the domain where the rule allows."""

    kind: Literal["study_closed"]
    grant: Natural
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Withdrawal:
    """A patient withdrew consent. That it happened; never whose it was."""

    kind: Literal["withdrawal"]
    domain: Name


@dataclass(frozen=True, kw_only=True)
class Reserve:
    """`steps` of the grant's charge `what` are spent from here on, whatever happens next.

    `manifest` is an HMAC; `withdrawals_honoured` says how many withdrawals the sampler has already applied.
    """

    kind: Literal["reserve"]
    release: Name
    grant: Natural
    what: Name
    steps: Count
    round: Natural
    attempt: Natural
    withdrawals_honoured: Natural
    manifest: Digest
    model_in: Digest | None = None


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The release exists; `released` is the HMAC of its bytes. The same bytes may be sent again."""

    kind: Literal["commit"]
    release: Name
    released: Digest


@dataclass(frozen=True, kw_only=True)
class Burn:
    """Nothing came of a reservation, and it stays spent."""

    kind: Literal["burn"]
    release: Name
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Denial:
    """The site said no before any training step."""

    kind: Literal["denial"]
    study: Digest
    domain: Name
    reason: Reason


Body = (
    Genesis
    | KeyRotation
    | Moved
    | Recovery
    | PolicyVersion
    | DomainOpened
    | DomainClosed
    | CapChange
    | Approval
    | StudyClosed
    | Withdrawal
    | Reserve
    | Commit
    | Burn
    | Denial
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry with its place in the chain.

    `previous` is the hash of the entry before. `time` tells people, and decides nothing: where the clock has
    jumped back, it repeats the last entry's time and `clock_behind_seconds` says by how much.
    """

    label: Literal["sottovoce/ledger/1"]
    index: Natural
    previous: Digest
    time: Annotated[str, Interval(20, 20)]
    body: Body
    clock_behind_seconds: Annotated[float, Interval(0.0, low_open=True)] | None = None


def encode(entry: Entry) -> bytes:
    """Returns the canonical bytes of an entry: the leaf of the Merkle tree. Raises: EntryError."""
    data = canonical(entry).encode("ascii")
    if len(data) + len(_HEAD + _MIDDLE + _END) + SIGNATURE_HEX_CHARS > MAX_LINE_BYTES:
        raise EntryError(f"Expected an entry below {MAX_LINE_BYTES} bytes; came {len(data)}.")
    return data


def decode(data: bytes) -> Entry:
    """Returns the entry whose canonical bytes these are. Raises: EntryError for all other bytes."""
    try:
        table = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError):
        raise EntryError("expected JSON in ASCII") from None
    if not _printable(table):
        raise EntryError("expected printable characters only")
    problems: list[str] = []
    entry = build(Entry, table, "entry", problems)
    if entry is None:
        raise EntryError(problems[0].rstrip("."))
    if encode(entry) != data:
        raise EntryError("expected the canonical encoding: sorted keys, no spaces, no repeated key")
    return entry


def join(leaf: bytes, signature: bytes) -> bytes:
    """Returns the line of an entry's bytes and its signature."""
    return _HEAD + leaf + _MIDDLE + signature.hex().encode() + _END


def split(line: bytes) -> tuple[bytes, bytes]:
    """Returns an entry's bytes and its signature, from a line with its newline. Raises: EntryError."""
    if len(line) > MAX_LINE_BYTES:
        raise EntryError(f"expected a line of at most {MAX_LINE_BYTES} bytes")
    cut = len(line) - len(_END) - SIGNATURE_HEX_CHARS
    leaf, middle = line[len(_HEAD) : cut - len(_MIDDLE)], line[cut - len(_MIDDLE) : cut]
    digits = line[cut : cut + SIGNATURE_HEX_CHARS]
    if cut <= 0 or not line.startswith(_HEAD) or middle != _MIDDLE or not line.endswith(_END):
        raise EntryError('expected a line of the form {"entry":…,"signature":"…"}')
    if not set(digits) <= set(b"0123456789abcdef"):  # upper case would be a second encoding of one signature
        raise EntryError("expected a signature of 128 lower-case hexadecimal digits")
    return leaf, bytes.fromhex(digits.decode())


def _printable(value: Any) -> bool:
    """No text of a ledger may steer the terminal that an auditor reads it in."""
    if isinstance(value, str):
        return value.isprintable()
    if isinstance(value, dict):
        return all(key.isprintable() and _printable(item) for key, item in value.items())
    return all(map(_printable, value)) if isinstance(value, list) else True
