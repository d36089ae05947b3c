"""Shamir's secret sharing of 32-byte secrets over the smallest prime above 2^256.

Guarantees:
  - Any `threshold` of the shares give the secret back, bit for bit.
  - Fewer tell nothing of it: for every secret there is exactly one polynomial through them.
  - A combination that is no 32-byte secret is None, never a truncated one.

>>> shares = split(bytes(range(32)), threshold=2, n_shares=3, coins=lambda n_bytes: b"c" * n_bytes)
>>> combine({number: shares[number] for number in (0, 2)}) == bytes(range(32))
True
"""

from collections.abc import Callable, Mapping

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
COIN_BYTES = 48  # for one coefficient: 48 bytes modulo the prime are within 2^-127 of uniform

Coins = Callable[[int], bytes]


def split(secret: bytes, *, threshold: int, n_shares: int, coins: Coins) -> tuple[bytes, ...]:
    """Returns `n_shares` shares; share i is the polynomial's value at i + 1."""
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= n_shares:
        raise ValueError(f"Expected {SECRET_BYTES} bytes and 1 <= {threshold=} <= {n_shares=}.")
    drawn = (int.from_bytes(coins(COIN_BYTES), "little") % PRIME for _ in range(threshold - 1))
    coefficients = [int.from_bytes(secret, "little"), *drawn]
    return tuple(_value(coefficients, x).to_bytes(SHARE_BYTES, "little") for x in range(1, n_shares + 1))


def combine(shares: Mapping[int, bytes]) -> bytes | None:
    """Returns the secret of these shares (by their number from 0), or None if they are of no 32-byte secret.

    It takes all shares that it is given: hand it exactly a threshold of them.
    """
    total = 0
    for number, share in shares.items():
        weight, below, x = 1, 1, number + 1
        for other in shares:
            if other != number:
                weight = weight * (other + 1) % PRIME
                below = below * (other + 1 - x) % PRIME
        total += int.from_bytes(share, "little") * weight * pow(below, -1, PRIME)
    secret = total % PRIME
    return secret.to_bytes(SECRET_BYTES, "little") if secret < 2**256 else None


def _value(coefficients: list[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value
