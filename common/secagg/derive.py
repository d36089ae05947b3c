"""How keys of one attempt come from what two sites, or one site alone, know. Nothing but HKDF-SHA256 and SHA-256.

Every key is derived with the session's digest as salt and, as info, a label of its use, the digest of the adverts
that were seen (the view), and the two sites' numbers. So a key of one run, round, attempt, roster, model, view,
pair, direction or use is no key of any other.

Guarantees:
  - Both sites of a pair derive the same mask key; a share key differs by direction.
  - A commitment opens to one value, and shows nothing of it: what is committed to has 256 bits of chance.
"""

import hashlib
import struct
from collections.abc import Sequence

from sottovoce.common.keys import derived_key
from sottovoce.common.secagg.session import Session
from sottovoce.common.secagg.wire import encode_messages, label


def view_of(session: Session, adverts: Sequence[bytes]) -> bytes:
    """Returns the digest of the adverts that took part, in the order of their sites' numbers."""
    return hashlib.sha256(label("view") + session.digest + encode_messages(adverts)).digest()


def share_key(session: Session, view: bytes, shared: bytes, dealer: int, recipient: int) -> bytes:
    """Returns the key that seals one dealer's shares for one recipient."""
    return _derived("share-key", session, view, shared, dealer, recipient)


def pair_mask_key(session: Session, view: bytes, shared: bytes, one: int, other: int) -> bytes:
    """Returns the key of the mask between two sites."""
    return _derived("pair-mask", session, view, shared, min(one, other), max(one, other))


def self_mask_key(session: Session, view: bytes, seed: bytes, site: int) -> bytes:
    """Returns the key of a site's own mask."""
    return _derived("self-mask", session, view, seed, site, site)


def seed_commitment(session: Session, site: int, seed: bytes) -> bytes:
    """Returns what a site publishes of its self-mask seed."""
    return hashlib.sha256(label("seed") + session.digest + struct.pack("<H", site) + seed).digest()


def share_commitment(
    session: Session, use: str, view: bytes, dealer: int, recipient: int, share: bytes
) -> bytes:
    """Returns what a dealer publishes of one share; `use` is "mask-share" or "self-share"."""
    place = view + struct.pack("<HH", dealer, recipient)
    return hashlib.sha256(label(use) + session.digest + place + share).digest()


def share_context(session: Session, view: bytes, dealer: int, recipient: int) -> bytes:
    """Returns what sealed shares are bound to besides their key."""
    return label("sealed-shares") + session.digest + view + struct.pack("<HH", dealer, recipient)


def _derived(use: str, session: Session, view: bytes, secret: bytes, one: int, other: int) -> bytes:
    return derived_key(secret, salt=session.digest, info=label(use) + view + struct.pack("<HH", one, other))
