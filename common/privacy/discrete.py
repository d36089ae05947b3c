"""The discrete Gaussian, drawn exactly: whole numbers x with probability proportional to exp(-x^2 / (2 variance)).

Guarantees:
  - Every decision compares a uniform number with a rational one, in integers: no float takes part.
  - With one lane the draws, and the words they take, are those of the plain algorithm in fractions.
  - Each draw takes fresh words of the source, and its sign is as free as its size.
  - A variance that 64-bit integers cannot carry is refused.

Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), algorithms 1 to 3, in lanes: many candidates go through each
coin together, and those that lose are dropped. Two things differ, neither the distribution. The scale of the
Laplace proposal is a power of two near the deviation (the proof allows any), so that a uniform number below it is
some bits of a word. And a coin of probability p tosses the first 62 bits of its uniform number against two integers
around 2^62 p: only where those bits fall between them, once in some millions, exact fractions decide, with more
bits if they are needed. How long it takes depends on how many candidates lose: it is not constant in time.

>>> from sottovoce.common.privacy.source import SecretSource
>>> draws = discrete_gaussians(Fraction(25, 2), 10_000, SecretSource())
>>> bool(abs(draws.var() / 12.5 - 1) < 0.1)
True
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy.source import Source

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

BLOCK = 1 << 14  # lanes at a time: they and what is computed of them stay in the cache
MOST = 2**56  # of numerator and denominator: then every product below fits into 63 bits
BITS = 62  # of a uniform number that are looked at first
ONE = 1 << BITS
FAST_REACH = 16  # proposals beyond so many scales (one in ten million) are computed in fractions


def discrete_gaussians(variance: Fraction, n: int, source: Source) -> Integers:
    """Returns n independent discrete Gaussians of parameter `variance`, centred at zero.

    Raises:
        PrivacyError: the variance is below 1/2, or has a numerator or denominator above 2^56.
    """
    law = _law(Fraction(variance))
    found, missing = [np.empty(0, dtype=np.int64)], n
    while missing > 0:
        # About half of the candidates stay. What is too much is thrown away: nothing of it is used twice.
        values, stays = _candidates(law, min(BLOCK, 9 * missing // 4 + 4), source)
        found.append(values[stays][:missing])
        missing -= len(found[-1])
    return np.concatenate(found)


@dataclass(frozen=True, kw_only=True)
class _Law:
    """A variance of `num` / `den`, and the integers that bracket the last coin's exponent (see `_bracket`)."""

    num: int
    den: int
    log_scale: int
    shift: int
    bits: int
    divisor: tuple[int, int]

    @property
    def scale(self) -> int:
        return 1 << self.log_scale

    def exponent(self, size: int) -> Fraction:
        """(size - variance / scale)^2 / (2 variance), exactly."""
        gap = size * self.den * self.scale - self.num
        return Fraction(gap * gap, 2 * self.num * self.den * self.scale**2)


@lru_cache(maxsize=64)
def _law(variance: Fraction) -> _Law:
    num, den = variance.numerator, variance.denominator
    if not (den <= 2 * num and num <= MOST and den <= MOST):
        raise PrivacyError(
            f"Expected a variance of at least 1/2 with numerator and denominator up to 2^56; came {num}/{den}. "
            "Take another grid."
        )
    log_scale = 0
    while 2 * 4**log_scale * den < num:  # the scale is within a factor sqrt(2) of the deviation
        log_scale += 1
    # |size * den * scale - num| for sizes that are not left to fractions; `shift` cuts it to 31 bits.
    widest = max((FAST_REACH + 1) * den * 4**log_scale, num)
    shift = widest.bit_length() - 31
    whole = Fraction(2 * num * den * 4**log_scale) / Fraction(2) ** (2 * shift)
    bits = int(whole).bit_length() - 25
    divisor = whole / 2**bits  # of 24 to 25 bits: exponent * 2^bits = (gap / 2^shift)^2 / divisor
    return _Law(
        num=num,
        den=den,
        log_scale=log_scale,
        shift=shift,
        bits=bits,
        divisor=(int(divisor), int(divisor) + 1),
    )


def _candidates(law: _Law, n_lanes: int, source: Source) -> tuple[Integers, Mask]:
    """Runs algorithm 3 once in every lane; returns the values, and which of them stay."""
    first = source.words(n_lanes)
    negative = (first & np.uint64(1)).astype(bool)
    below = (first >> np.uint64(64 - law.log_scale)).view(np.int64) if law.log_scale else _zeros(n_lanes)
    stays = np.zeros(n_lanes, dtype=bool)
    # Algorithm 2: a discrete Laplace. Its remainder modulo the scale, its quotient, its sign.
    level = below << (BITS - law.log_scale)
    lanes = np.flatnonzero(
        _exp_coins(level, level, lambda lane: Fraction(int(below[lane]), law.scale), source)
    )
    sizes = below[lanes] + (_geometric(len(lanes), source) << law.log_scale)
    twice = (sizes == 0) & negative[lanes]  # there is one zero, not two
    lanes, sizes = lanes[~twice], sizes[~twice]
    # Algorithm 3: kept with probability exp(-exponent): one coin for each whole, and one for the fraction.
    wholes, low, high = _bracket(law, sizes)
    kept = np.flatnonzero(_all_heads(wholes, source))
    heads = _exp_coins(
        low[kept], high[kept], lambda i: law.exponent(int(sizes[kept[i]])) - int(wholes[kept[i]]), source
    )
    stays[lanes[kept[heads]]] = True
    values = _zeros(n_lanes)
    values[lanes] = np.where(negative[lanes], -sizes, sizes)
    return values, stays


def _bracket(law: _Law, sizes: Integers) -> tuple[Integers, Integers, Integers]:
    """Returns the whole part of each exponent, and integers around 2^62 times the rest.

    gap / 2^shift lies in [cut, cut + 1), where cut has at most 31 bits, so its square over a divisor that is
    rounded up (down) is a lower (upper) bound.
    """
    gaps = np.abs(sizes * (law.den << law.log_scale) - law.num)
    cut = gaps >> law.shift if law.shift >= 0 else gaps << -law.shift
    low = cut * cut // law.divisor[1]
    high = (cut + 1) * (cut + 1) // law.divisor[0] + 1
    wholes = low >> law.bits
    unsure = (high >> law.bits != wholes) | (sizes >= FAST_REACH << law.log_scale)
    mask, up = (1 << law.bits) - 1, BITS - law.bits
    low, high = (low & mask) << up, (high & mask) << up
    for lane in np.flatnonzero(unsure):
        exact = law.exponent(int(sizes[lane]))
        wholes[lane] = int(exact)
        low[lane] = int((exact - int(exact)) * ONE)
        high[lane] = low[lane] + 1
    return wholes, low, high


def _exp_coins(low: Integers, high: Integers, exact: Callable[[int], Fraction], source: Source) -> Mask:
    """Algorithm 1: a coin of probability exp(-g) in each lane, where low <= 2^62 g <= high and g <= 1.

    `exact(lane)` is g itself. The coins are of g, g/2, g/3, ... until one falls on tails; heads if its number is odd.
    """
    heads, lanes, k = np.empty(len(low), dtype=bool), np.arange(len(low)), 1
    while len(lanes):
        uniform = (source.words(len(lanes)) >> np.uint64(2)).view(np.int64)
        under = uniform < low // k
        open_ = (uniform <= (low if high is low else high) // k) & ~under
        if open_.any():
            for i in np.flatnonzero(open_):
                under[i] = _is_under(int(uniform[i]), exact(int(lanes[i])) / k, source)
        heads[lanes[~under]] = k % 2 == 1
        same = high is low
        lanes, low = lanes[under], low[under]
        high = low if same else high[under]
        k += 1
    return heads


def _inverse_e_coins(n: int, source: Source) -> Mask:
    """Algorithm 1 for g = 1, whose first coin needs no toss."""
    heads, lanes, k = np.empty(n, dtype=bool), np.arange(n), 2
    while len(lanes):
        uniform = (source.words(len(lanes)) >> np.uint64(2)).view(np.int64)
        under = uniform < ONE // k
        for i in np.flatnonzero(uniform == ONE // k):
            under[i] = _is_under(int(uniform[i]), Fraction(1, k), source)
        heads[lanes[~under]] = k % 2 == 1
        lanes = lanes[under]
        k += 1
    return heads


def _is_under(start: int, bound: Fraction, source: Source) -> bool:
    """Whether a uniform number that begins with these 62 bits is below `bound`; draws more of it while both may be."""
    n_bits = BITS
    while True:
        scaled = bound * 2**n_bits
        if start + 1 <= scaled:
            return True
        if start >= scaled:
            return False
        start, n_bits = start << 64 | int(source.words(1)[0]), n_bits + 64


def _geometric(n: int, source: Source) -> Integers:
    """Returns how often a coin of probability exp(-1) falls on heads before the first tails, in each lane."""
    counts, lanes = _zeros(n), np.arange(n)
    while len(lanes):
        lanes = lanes[_inverse_e_coins(len(lanes), source)]
        counts[lanes] += 1
    return counts


def _all_heads(wanted: Integers, source: Source) -> Mask:
    """Returns whether so many coins of probability exp(-1) all fall on heads, in each lane."""
    left, lanes = wanted.copy(), np.flatnonzero(wanted)
    good: Mask = wanted == 0
    while len(lanes):
        lanes = lanes[_inverse_e_coins(len(lanes), source)]
        left[lanes] -= 1
        good[lanes[left[lanes] == 0]] = True
        lanes = lanes[left[lanes] > 0]
    return good


def _zeros(n: int) -> Integers:
    return np.zeros(n, dtype=np.int64)
