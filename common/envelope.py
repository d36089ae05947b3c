"""Signed envelopes: what travels between a site and the coordinator, whatever carries it.

    envelope = seal(key, run=digest, round=3, phase="train", sender=COORDINATOR, recipient="hospital-a",
                    sequence=sequence.next(), body=body, not_after=time.time() + 60)
    header = opened(envelope, public_key=pinned, sender=COORDINATOR, recipient="hospital-a", phase="train", now=now)
    replays.accept(pinned, header.sequence)

An envelope is three byte strings: a header in canonical JSON, an Ed25519 signature over a label and the header, and
a body whose SHA-256 is in the header. A reply carries the SHA-256 of the question's header: it answers nothing else.

Checked in this order, and refused with one word:

| word        | what was expected                                                                |
|-------------|----------------------------------------------------------------------------------|
| `frame`     | these three and nothing beside them (`common/sealing.py`)                        |
| `size`      | header, signature and body within their bounds                                   |
| `signature` | a signature over the header by the key that the receiver pinned                  |
| `header`    | canonical JSON of exactly the fields of `Header`, each in its range              |
| `sender`    | the sender that the key belongs to                                               |
| `recipient` | this receiver                                                                    |
| `phase`     | the kind of message that the transport says it is                                |
| `answers`   | the digest of the question that was asked; in a question none                    |
| `expired`   | a time not yet over, and at most 13 hours ahead                                  |
| `body`      | the body that the header has the digest of                                       |
| `replay`    | a sequence number above all that came before (`Replays.accept`)                  |
| `content`   | a body of records (`common/records.py`); the first that is parsed of it          |

Guarantees:
  - Nothing of an envelope is parsed before its signature was verified, and nothing of the body here at all.
  - Whatever bytes come, what is raised is an EnvelopeRefused; its text holds nothing of the body.
  - A sequence never gives a number twice, and a number that was accepted is never accepted again: not after a
    `kill -9`, and not by another process. A file of either that is damaged is an error, never a new beginning.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from sottovoce.common.config import Interval, build, canonical
from sottovoce.common.errors import DeploymentError, EnvelopeRefused
from sottovoce.common.files import lock_file, write_whole
from sottovoce.common.keys import SigningKey, verified

COORDINATOR = "coordinator"  # its name in every envelope; no site may be called so
LABEL = b"sottovoce/envelope/1\n"

MAX_HEADER_BYTES = 2048
SIGNATURE_BYTES = 64
MAX_BODY_BYTES = 2_000_000_000
MAX_AHEAD_SECONDS = 13 * 3600  # Flower keeps a message for 12 hours unless it is told otherwise
MAX_SEQUENCE = 2**63 - 1
MAX_MARKS_BYTES = 1_000_000

Reason = Literal[
    "frame",
    "size",
    "signature",
    "header",
    "sender",
    "recipient",
    "phase",
    "answers",
    "expired",
    "body",
    "replay",
    "content",
]
REASONS: tuple[Reason, ...] = get_args(Reason)

_PHASE = re.compile(r"(train|evaluate|query)(\.[a-z_]{1,40})?")
_HEX = re.compile(r"[0-9a-f]{64}")

Digest = Annotated[str, Interval(64, 64)]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is signed. `run` is a study's digest, `not_after` unix seconds; a question `answers` nothing.

    `recipient` is empty in a question after names, which goes to whoever is there.
    """

    format: Literal[1] = 1
    run: Digest
    round: Annotated[int, Interval(0, 1_000_000_000)]
    phase: Annotated[str, Interval(1, 60)]
    sender: Annotated[str, Interval(1, 120)]
    recipient: Annotated[str, Interval(0, 120)]
    sequence: Annotated[int, Interval(0, MAX_SEQUENCE)]
    answers: Annotated[str, Interval(0, 64)] = ""
    body_sha256: Digest
    not_after: Annotated[int, Interval(0, 2**53)]


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Three byte strings, as they came or as they go."""

    header: bytes
    signature: bytes
    body: bytes


def seal(
    key: SigningKey,
    *,
    run: str,
    round: int,
    phase: str,
    sender: str,
    recipient: str,
    sequence: int,
    body: bytes,
    not_after: float,
    answers: str = "",
) -> Envelope:
    """Signs a body for one receiver and one purpose. `not_after` is rounded up to whole seconds.

    Raises:
        EnvelopeRefused: what it was told makes no header that a receiver would take.
    """
    header = Header(
        run=run,
        round=round,
        phase=phase,
        sender=sender,
        recipient=recipient,
        sequence=sequence,
        answers=answers,
        body_sha256=hashlib.sha256(body).hexdigest(),
        not_after=int(-(-not_after // 1)),
    )
    data = canonical(header).encode("ascii")
    if len(data) > MAX_HEADER_BYTES or len(body) > MAX_BODY_BYTES:
        raise _refused("size")
    _parsed(data)
    return Envelope(header=data, signature=key.sign(LABEL + data), body=body)


def opened(
    envelope: Envelope,
    *,
    public_key: str,
    sender: str,
    recipient: str,
    phase: str,
    now: float,
    answers: str = "",
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Header:
    """Returns the header of an envelope that is what the receiver expects. Its body may be parsed now.

    The caller asks `Replays.accept` next, or has another reason why a second time does no harm.

    Raises:
        EnvelopeRefused: it is anything else.
    """
    if not signed_by(envelope, public_key, max_body_bytes=max_body_bytes):
        raise _refused("signature")
    header = _parsed(envelope.header)
    for found, expected, reason in (
        (header.sender, sender, "sender"),
        (header.recipient, recipient, "recipient"),
        (header.phase, phase, "phase"),
        (header.answers, answers, "answers"),
    ):
        if found != expected:
            raise _refused(reason)
    if not now <= header.not_after <= now + MAX_AHEAD_SECONDS:
        raise _refused("expired")
    if hashlib.sha256(envelope.body).hexdigest() != header.body_sha256:
        raise _refused("body")
    return header


def signed_by(envelope: Envelope, public_key: str, *, max_body_bytes: int = MAX_BODY_BYTES) -> bool:
    """Says whether a key signed the header; parses nothing of it. Raises: EnvelopeRefused for sizes out of bounds."""
    if (
        not 0 < len(envelope.header) <= MAX_HEADER_BYTES
        or len(envelope.signature) != SIGNATURE_BYTES
        or len(envelope.body) > max_body_bytes
    ):
        raise _refused("size")
    return verified(public_key, envelope.signature, LABEL + envelope.header)


def signed_header(envelope: Envelope, public_key: str) -> Header | None:
    """Returns the header that a key signed, for a line of a log; None where it did not, or it is none."""
    try:
        return _parsed(envelope.header) if signed_by(envelope, public_key) else None
    except EnvelopeRefused:
        return None


def header_digest(envelope: Envelope) -> str:
    """Returns what a reply to this envelope `answers`."""
    return hashlib.sha256(envelope.header).hexdigest()


def _parsed(data: bytes) -> Header:
    """Returns the header whose canonical bytes these are. Raises: EnvelopeRefused for all other bytes."""
    problems: list[str] = []
    try:
        header = build(Header, json.loads(data.decode("ascii")), "", problems)
    except (ValueError, RecursionError):
        header = None
    if header is None or not _is_sound(header) or canonical(header).encode("ascii") != data:
        raise _refused("header")
    return header


def _is_sound(header: Header) -> bool:
    """What lengths and ranges do not say."""
    return bool(
        _HEX.fullmatch(header.run)
        and _HEX.fullmatch(header.body_sha256)
        and (not header.answers or _HEX.fullmatch(header.answers))
        and _PHASE.fullmatch(header.phase)
        and header.sender.isprintable()
        and header.recipient.isprintable()
    )


_TEXTS: Mapping[str, str] = {
    "size": "Expected an envelope within its bounds; this one has another size.",
    "signature": "Expected the signature of the key that was pinned; this one does not fit.",
    "header": "Expected a header in canonical form with exactly the known fields; came another.",
    "sender": "Expected the name that belongs to the key; came another sender.",
    "recipient": "Expected an envelope for this receiver; this one is for another.",
    "phase": "Expected the kind of message that the transport says; the envelope is of another.",
    "answers": "Expected an answer to the question that was asked; this one answers another.",
    "expired": "Expected an envelope in its time; this one is over, or far ahead. Are both clocks right?",
    "body": "Expected the body that was signed for; came another.",
    "replay": "Expected an envelope that is newer than the last; this one is not.",
}


def _refused(reason: str) -> EnvelopeRefused:
    return EnvelopeRefused(reason, _TEXTS[reason])


# --- numbers that only ascend, on disk ------------------------------------------------------------------


class Sequence:
    """The numbers of one sender's envelopes, in a file of their own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def next(self) -> int:
        """Returns a number above all before it, once it is on disk. Raises: DeploymentError."""
        with _marks(self._path) as (marks, write):
            last = marks.get("sequence", -1)
            number = max(last + 1, time.time_ns() // 1000)  # of a lost file the clock knows more than nothing
            write({"sequence": number})
            return number


class Replays:
    """The last number accepted of each sender's key, in a file of their own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def accept(self, sender_key: str, sequence: int) -> None:
        """Marks a number as come, on disk, before it returns.

        Raises:
            EnvelopeRefused: this number, or one above it, came before.
            DeploymentError: the file is damaged, or cannot be written; nothing may be opened then.
        """
        with _marks(self._path) as (marks, write):
            if sequence <= marks.get(sender_key, -1):
                raise _refused("replay")
            write({**marks, sender_key: sequence})


@contextmanager
def _marks(path: Path) -> Iterator[tuple[dict[str, int], Callable[[Mapping[str, int]], None]]]:
    """Opens a file of numbers under its lock: what is in it, and how to write it anew."""
    try:
        with lock_file(path.with_name(path.name + ".lock"), wait=True):
            yield _read_marks(path), lambda marks: _write_marks(path, marks)
    except OSError as error:
        raise DeploymentError(
            f"{path.name}: cannot be kept ({error.strerror}). Nothing was opened."
        ) from None


def _write_marks(path: Path, marks: Mapping[str, int]) -> None:
    data = json.dumps(marks, sort_keys=True).encode()
    write_whole(path, hashlib.sha256(data).hexdigest().encode() + b"\n" + data + b"\n", mode=0o600)


def _read_marks(path: Path) -> dict[str, int]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MARKS_BYTES + 1)
    except FileNotFoundError:
        return {}
    digest, _, data = text.partition(b"\n")
    try:
        if hashlib.sha256(data.removesuffix(b"\n")).hexdigest().encode() != digest:
            raise ValueError
        marks = json.loads(data)
        if not isinstance(marks, dict) or not all(type(number) is int for number in marks.values()):
            raise ValueError
    except ValueError:
        raise DeploymentError(
            f"{path.name} is damaged: it says which messages came before, and nothing is opened without it. Remove it "
            f"once nothing has been received for {MAX_AHEAD_SECONDS // 3600} hours: all older messages are over then."
        ) from None
    return marks
