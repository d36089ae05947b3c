r"""Bytes on the wire: one signed envelope around every message, and the few bodies that go into it.

    envelope  = label | session 32 | sender u16 | length u32 | body | signature 64
    label     = "sottovoce/secagg/1/" kind "\n"
    signature = Ed25519 of the sender over: label | session | sender | SHA-256(body)

All numbers are little-endian; a sender is its number in the cohort, 0xffff is the coordinator.

Guarantees:
  - One message has one encoding: every decoder refuses missing and trailing bytes, unordered and repeated numbers.
  - A message of one kind, session or sender is never taken for another's.
  - No decoder raises anything but SecureSumError, whatever the bytes; none reserves memory by a stated length.
  - A message longer than the longest of its kind is refused before it is hashed.
"""

import functools
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sottovoce.common.errors import SecureSumError
from sottovoce.common.keys import SigningKey, verified
from sottovoce.common.secagg.session import COORDINATOR, MAX_SESSION_BYTES, MAX_SITES, PROTOCOL, Session
from sottovoce.common.secagg.shamir import SHARE_BYTES

COORDINATOR_NUMBER = 0xFFFF
DIGEST_BYTES = KEY_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16
CIPHER_BYTES = 2 * SHARE_BYTES + TAG_BYTES
MAX_SMALL_BODY_BYTES = 65_536  # of every kind but a masked vector
_HEADER = struct.Struct("<32sHI")


class Kind(StrEnum):
    """What a message is; part of its label."""

    OPENING = "opening"
    ADVERT = "advert"
    ADVERTS = "adverts"
    SEALED = "sealed"
    DEALING = "dealing"
    DEALINGS = "dealings"
    MASKED = "masked"
    SURVIVORS = "survivors"
    CONSENT = "consent"
    CONSENTS = "consents"
    REVEAL = "reveal"


@functools.cache
def label(name: str) -> bytes:
    """Returns the first line of everything that is signed, hashed or derived here."""
    return f"{PROTOCOL}/{name}\n".encode()


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """A message whose form was checked and whose signature was not."""

    kind: Kind
    session: bytes
    sender: int
    body: bytes
    signature: bytes

    def signed_by(self, public_hex: str) -> bool:
        """Says whether the signature is of this key."""
        return verified(
            public_hex, self.signature, _statement(self.kind, self.session, self.sender, self.body)
        )


def seal(kind: Kind, session: bytes, sender: int, body: bytes, key: SigningKey) -> bytes:
    """Returns a signed message."""
    signature = key.sign(_statement(kind, session, sender, body))
    return b"".join([label(kind), _HEADER.pack(session, sender, len(body)), body, signature])


def message_bytes(kind: Kind, body_bytes: int) -> int:
    """Returns the length of a signed message whose body has so many bytes."""
    return len(label(kind)) + _HEADER.size + body_bytes + SIGNATURE_BYTES


def parse(data: bytes, kind: Kind, *, vector_bytes: int = 0) -> Envelope:
    """Returns a message of a kind. `vector_bytes` is the session's. Raises: SecureSumError ("form")."""
    head = label(kind)
    start = len(head) + _HEADER.size
    if len(data) > start + _longest(kind, vector_bytes) + SIGNATURE_BYTES:
        raise _form(f"a message of kind {kind} of at most {_longest(kind, vector_bytes)} bytes")
    if len(data) < start + SIGNATURE_BYTES or not data.startswith(head):
        raise _form(f"a message of kind {kind}")
    session, sender, n_bytes = _HEADER.unpack_from(data, len(head))
    if len(data) != start + n_bytes + SIGNATURE_BYTES:
        raise _form(f"a message of kind {kind} whose length is the stated one")
    body, signature = data[start : start + n_bytes], data[start + n_bytes :]
    return Envelope(kind=kind, session=session, sender=sender, body=body, signature=signature)


def open_message(data: bytes, kind: Kind, *, session: Session, sender: int) -> bytes:
    """Returns the body of a message that this sender signed in this session.

    1. Its form is that of its kind.
    2. It is of this session.
    3. It is of this sender, whose pinned key signed it.

    Raises:
        SecureSumError: "form", "session" or "signature".
    """
    envelope = parse(data, kind, vector_bytes=session.vector_bytes)
    if envelope.session != session.digest:
        raise SecureSumError(
            "session", f"Expected a message of kind {kind} of this session; came one of another."
        )
    key = session.coordinator if sender == COORDINATOR_NUMBER else session.cohort[sender].public_key
    if envelope.sender != sender or not envelope.signed_by(key):
        raise SecureSumError(
            "signature", f"Expected a message of kind {kind} signed by its sender; came another."
        )
    return envelope.body


def sender_of(data: bytes, kind: Kind, *, session: Session) -> int:
    """Returns which site of the cohort a message says it is of. Raises: SecureSumError ("form")."""
    sender = parse(data, kind, vector_bytes=session.vector_bytes).sender
    if sender >= session.n_sites:
        raise _form("a message of a site of the cohort")
    return sender


def party(session: Session, sender: int) -> str:
    """Returns the name of a sender: a site's, or "coordinator"."""
    return COORDINATOR if sender == COORDINATOR_NUMBER else session.cohort[sender].site


@dataclass(frozen=True, kw_only=True)
class Advert:
    """A site's keys of one attempt, and the commitment to its self-mask seed."""

    share_key: bytes
    mask_key: bytes
    seed_commitment: bytes

    def encode(self) -> bytes:
        """Returns the body."""
        return self.share_key + self.mask_key + self.seed_commitment


def decode_advert(body: bytes) -> Advert:
    """Returns the advert of a body. Raises: SecureSumError ("form")."""
    reader = Reader(body)
    share_key, mask_key, commitment = (reader.take(32) for _ in range(3))
    reader.end()
    return Advert(share_key=share_key, mask_key=mask_key, seed_commitment=commitment)


@dataclass(frozen=True, kw_only=True)
class SealedShares:
    """One dealer's two shares for one recipient, sealed, with a commitment to each.

    The view is told so that a coordinator that shows different adverts to different sites is not taken for a
    dealer that lies.
    """

    recipient: int
    view: bytes
    mask_commitment: bytes
    self_commitment: bytes
    cipher: bytes

    def encode(self) -> bytes:
        """Returns the body."""
        head = struct.pack("<H", self.recipient) + self.view
        return head + self.mask_commitment + self.self_commitment + self.cipher


def decode_sealed(body: bytes) -> SealedShares:
    """Returns the sealed shares of a body. Raises: SecureSumError ("form")."""
    reader = Reader(body)
    recipient = reader.number()
    view, mask, own = (reader.take(DIGEST_BYTES) for _ in range(3))
    cipher = reader.take(CIPHER_BYTES)
    reader.end()
    return SealedShares(
        recipient=recipient, view=view, mask_commitment=mask, self_commitment=own, cipher=cipher
    )


@dataclass(frozen=True, kw_only=True)
class Consent:
    """What a site signs before it reveals anything: whose keys it saw, who dealt, who is in the sum."""

    view: bytes
    dealers: tuple[int, ...]
    survivors: tuple[int, ...]

    def encode(self) -> bytes:
        """Returns the body."""
        return self.view + encode_numbers(self.dealers) + encode_numbers(self.survivors)


def decode_consent(body: bytes) -> Consent:
    """Returns the consent of a body. Raises: SecureSumError ("form")."""
    reader = Reader(body)
    view, dealers, survivors = reader.take(DIGEST_BYTES), reader.numbers(), reader.numbers()
    reader.end()
    return Consent(view=view, dealers=dealers, survivors=survivors)


@dataclass(frozen=True, kw_only=True)
class Reveal:
    """One share of each dealer's secrets: of a survivor's self-mask seed, of a lost one's mask key."""

    self_shares: tuple[tuple[int, bytes], ...]
    mask_shares: tuple[tuple[int, bytes], ...]

    def encode(self) -> bytes:
        """Returns the body."""
        return _encode_shares(self.self_shares) + _encode_shares(self.mask_shares)


def decode_reveal(body: bytes) -> Reveal:
    """Returns the reveal of a body. Raises: SecureSumError ("form")."""
    reader = Reader(body)
    own, mask = reader.shares(), reader.shares()
    reader.end()
    return Reveal(self_shares=own, mask_shares=mask)


def encode_numbers(numbers: Sequence[int]) -> bytes:
    """Returns a count and that many numbers."""
    return struct.pack(f"<H{len(numbers)}H", len(numbers), *numbers)


def decode_numbers(body: bytes) -> tuple[int, ...]:
    """Returns ascending numbers. Raises: SecureSumError ("form")."""
    reader = Reader(body)
    numbers = reader.numbers()
    reader.end()
    return numbers


def encode_messages(messages: Sequence[bytes]) -> bytes:
    """Returns a count and that many messages, each after its length."""
    parts = [struct.pack("<H", len(messages))]
    for message in messages:
        parts += [struct.pack("<I", len(message)), message]
    return b"".join(parts)


def decode_messages(body: bytes) -> tuple[bytes, ...]:
    """Returns the messages of a body. Raises: SecureSumError ("form")."""
    reader = Reader(body)
    count = reader.number()
    if count > MAX_SITES:
        raise _form(f"at most {MAX_SITES} messages")
    messages = tuple(reader.take(reader.long_number()) for _ in range(count))
    reader.end()
    return messages


class Reader:
    """Takes bytes off a body from the left; whatever is missing, left over or out of order is refused."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at = body, 0

    def take(self, n_bytes: int) -> bytes:
        """Returns the next bytes."""
        piece = self._body[self._at : self._at + n_bytes]
        if len(piece) != n_bytes:
            raise _form("a body of the full length")
        self._at += n_bytes
        return piece

    def number(self) -> int:
        """Returns a number of two bytes."""
        return int.from_bytes(self.take(2), "little")

    def long_number(self) -> int:
        """Returns a number of four bytes."""
        return int.from_bytes(self.take(4), "little")

    def numbers(self) -> tuple[int, ...]:
        """Returns a count's ascending numbers."""
        return _ascending(tuple(self.number() for _ in range(self.number())))

    def shares(self) -> tuple[tuple[int, bytes], ...]:
        """Returns a count's shares, each with its owner, in ascending order."""
        shares = tuple((self.number(), self.take(SHARE_BYTES)) for _ in range(self.number()))
        _ascending(tuple(owner for owner, _ in shares))
        return shares

    def end(self) -> None:
        """Refuses bytes that are left."""
        if self._at != len(self._body):
            raise _form("a body without trailing bytes")


def _ascending(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if list(numbers) != sorted(set(numbers)):
        raise _form("numbers in ascending order, none of them twice")
    return numbers


def _encode_shares(shares: Sequence[tuple[int, bytes]]) -> bytes:
    return struct.pack("<H", len(shares)) + b"".join(
        struct.pack("<H", owner) + share for owner, share in shares
    )


def _statement(kind: Kind, session: bytes, sender: int, body: bytes) -> bytes:
    return label(kind) + session + struct.pack("<H", sender) + hashlib.sha256(body).digest()


def _longest(kind: Kind, vector_bytes: int) -> int:
    match kind:
        case Kind.MASKED:
            return vector_bytes
        case Kind.OPENING:
            return MAX_SESSION_BYTES
        case _:
            return MAX_SMALL_BODY_BYTES


def _form(expected: str) -> SecureSumError:
    return SecureSumError("form", f"Expected {expected}; came other bytes.")
