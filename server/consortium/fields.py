"""Checks of what a request's fields may hold, before anything is done with them."""

from sottovoce.common.secagg.session import MAX_SITES
from sottovoce.server.consortium.gate import expected

HEXADECIMAL = frozenset("0123456789abcdef")
MAX_PEM_CHARS = 16_384
MAX_PROOF = 64  # a tree of 2^32 leaves
MAX_SIZE = 10**12
MAX_KEPT = 4 * MAX_SITES


def digest(value: str, what: str) -> str:
    """Returns 64 hexadecimal digits: a digest or a public key."""
    if len(value) != 64 or not HEXADECIMAL.issuperset(value):
        raise expected(f"{what} of 64 hexadecimal digits", value, "")
    return value


def text(value: str, what: str, most: int, *, least: int = 1) -> str:
    """Returns a text that is not too long."""
    if not least <= len(value) <= most:
        raise expected(f"{what} of {least} to {most} characters", f"{len(value)} characters", "")
    return value


def count(value: int, what: str, most: int = MAX_SIZE) -> int:
    """Returns a number that is not negative and not absurd."""
    if not 0 <= value <= most:
        raise expected(f"{what} in [0, {most}]", value, "")
    return value


def signature(value: bytes) -> bytes:
    """Returns the 64 bytes of an Ed25519 signature."""
    if len(value) != 64:
        raise expected("a signature of 64 bytes", f"{len(value)} bytes", "")
    return value


def proof(hashes: list[bytes]) -> tuple[bytes, ...]:
    """Returns the hashes of a consistency proof."""
    if len(hashes) > MAX_PROOF or any(len(one) != 32 for one in hashes):
        raise expected(f"a proof of at most {MAX_PROOF} hashes of 32 bytes", f"{len(hashes)} hashes", "")
    return tuple(hashes)
