"""A complaint: a party's signed record of what it refused, of whom, and why, for whoever judges it later.

Guarantees:
  - `read_complaint` returns a complaint only if a party of the roster signed it; all other bytes are refused.
  - One complaint has one encoding.
  - It holds no secret: evidence is a message that was on the wire, never a share in clear nor a vector.
  - `proves` is True only if the evidence is, whole, a message that the accused signed.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from sottovoce.common.config import Interval, canonical
from sottovoce.common.errors import SecureSumError
from sottovoce.common.keys import SigningKey, verified
from sottovoce.common.secagg.session import (
    Hex32,
    Natural,
    Roster,
    Run,
    SiteName,
    build_strictly,
)
from sottovoce.common.secagg.wire import Kind, label, parse

MAX_EVIDENCE_BYTES = 65_536  # of the message itself; a longer one stands in by its digest
MAX_COMPLAINT_BYTES = 2 * MAX_EVIDENCE_BYTES + 4096

Reason = Literal[
    "form",  # bytes that are not the one encoding of the expected message, or too many of them
    "session",  # a message of another attempt, round, run, cohort or model
    "signature",  # not signed by its sender's pinned key
    "phase",  # out of order, twice, or already answered before a restart
    "roster",  # a site, or a key, that is not in the roster
    "model",  # a sum for another model than this site was given
    "terms",  # another run, round, ring, length, bound or n_min
    "threshold",  # not ceil(2n/3)
    "cohort",  # fewer sites than the quorum
    "keys",  # adverts left out, repeated, changed, or of no use as keys
    "share",  # a share that cannot be opened, or is not the one its dealer committed to
    "survivors",  # a set that is no subset of the dealers, or without this site
    "consent",  # signatures over another set, or fewer than the threshold
    "reveal",  # other shares than the survivor set demands
    "input",  # this site's own vector: type, shape or size
    "sum",  # masks that did not cancel
    "abandoned",  # fewer answers than the attempt needs
]
REASONS: tuple[Reason, ...] = get_args(Reason)
Phase = Literal["advert", "deal", "mask", "consent", "reveal", "sum"]


@dataclass(frozen=True, kw_only=True)
class Complaint:
    """What was refused. `session` is 64 zeros, and `attempt` 0, where no session had been agreed on yet.

    `accused` is "" where nobody can be named. `evidence` is hexadecimal, and empty where it would be too long or
    hold shares; `evidence_sha256` is of the whole message.
    """

    protocol: Literal["sottovoce/secagg/1/complaint"]
    run: Run
    round: Natural
    attempt: Natural
    session: Hex32
    phase: Phase
    accuser: SiteName
    accused: Annotated[str, Interval(0, 64)]
    reason: Reason
    evidence_bytes: Annotated[int, Interval(0, 2**40)]
    evidence_sha256: Hex32
    evidence: Annotated[str, Interval(0, 2 * MAX_EVIDENCE_BYTES)]


@dataclass(frozen=True, kw_only=True)
class SignedComplaint:
    """A complaint and its accuser's signature, in hexadecimal."""

    complaint: Complaint
    signature: Annotated[str, Interval(128, 128)]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in which sum a party stands; what a complaint says besides the fault."""

    run: str
    round: int
    attempt: int
    session: str
    phase: Phase


def sign_complaint(
    error: SecureSumError, place: Place, *, accuser: str, key: SigningKey, show_evidence: bool = True
) -> bytes:
    """Returns the signed record of an error."""
    shown = show_evidence and len(error.evidence) <= MAX_EVIDENCE_BYTES
    complaint = Complaint(
        protocol="sottovoce/secagg/1/complaint",
        run=place.run,
        round=place.round,
        attempt=place.attempt,
        session=place.session,
        phase=place.phase,
        accuser=accuser,
        accused=error.accused,
        reason=next(reason for reason in REASONS if reason == error.reason),
        evidence_bytes=len(error.evidence),
        evidence_sha256=hashlib.sha256(error.evidence).hexdigest(),
        evidence=error.evidence.hex() if shown else "",
    )
    signature = key.sign(_statement(complaint)).hex()
    return canonical(SignedComplaint(complaint=complaint, signature=signature)).encode()


def read_complaint(data: bytes, roster: Roster) -> Complaint:
    """Returns a complaint that its accuser signed.

    1. The bytes are the one encoding of a signed complaint.
    2. The accuser is of the roster, and its pinned key signed.
    3. Evidence that is there is the message whose digest is stated.

    Raises:
        SecureSumError: "form" or "signature".
    """
    signed: SignedComplaint = build_strictly(SignedComplaint, data, MAX_COMPLAINT_BYTES)
    complaint, key = signed.complaint, roster.key_of(signed.complaint.accuser)
    if key is None or not verified(key, _raw(signed.signature), _statement(complaint)):
        raise SecureSumError(
            "signature", "Expected a complaint signed by a party of the roster; came another."
        )
    evidence = _raw(complaint.evidence)
    if complaint.evidence and complaint.evidence_sha256 != hashlib.sha256(evidence).hexdigest():
        raise SecureSumError("form", "Expected the evidence whose digest is stated; came another.")
    return complaint


def proves(complaint: Complaint, roster: Roster) -> bool:
    """Says whether the evidence is, whole, a message of this protocol that the accused signed.

    Where it is not, the complaint is its accuser's word.
    """
    key, evidence = roster.key_of(complaint.accused), _raw(complaint.evidence)
    for kind in Kind:
        try:
            envelope = parse(evidence, kind, vector_bytes=MAX_EVIDENCE_BYTES)
        except SecureSumError:
            continue
        return key is not None and envelope.signed_by(key)
    return False


def _statement(complaint: Complaint) -> bytes:
    return label("complaint") + canonical(complaint).encode()


def _raw(digits: str) -> bytes:
    if not set(digits) <= set("0123456789abcdef") or len(digits) % 2:
        raise SecureSumError("form", "Expected lower-case hexadecimal digits; came other text.")
    return bytes.fromhex(digits)
