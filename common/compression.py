"""Changes of weights as whole numbers that add up: in 8 or 16 bits by a public random rotation, in 32 as they are.

    codec = Codec(size=136, ring_bits=8, n_sites=10, norm=1.0, seed=0, round=3)
    values = codec.encode(update, site="hospital-00", weight=0.5)      # int64, codec.length of them
    mean = codec.decode(total, weight=sum_of_the_survivors_weights)    # float64, codec.size of them

`Codec` and `FixedPoint` have the same two methods, and the three fields that a secure sum asks for: `length`,
`value_bound`, `ring_bits`. All that happens is linear but the rounding, so a secure sum of encodings decodes to the
sum of the updates, within what rounding takes.

How `Codec` does it: one shared step must fit every coordinate of every site, so the update is turned first, by random
signs and Hartley's transform (the Fourier transform of real vectors, its own inverse), after which no coordinate
stands out, whatever stood out before. Hadamard's transform would do too, but has only powers of two: up to twice the
bytes, or blocks, in one of which all of an update may stand. The signs, and the coins of the rounding, are public:
what is encoded is private already (mode `local`) or is not said to be (mode `none`). DO NOT encode anything else.

Guarantees:
  - `encode` follows from its arguments and the codec's fields alone, and never leaves `value_bound`: the sum of all
    sites stays in the ring.
  - An update longer than `norm` is shortened to it and never refused for its length.
  - The rounding has mean zero over the coins. Decoded, one site's is at most `error_norm` long in root mean square
    (of n sites' sum: sqrt(n) times that), besides coordinates that saturate: for an update of the full norm
    about 6 of 100,000 at 8 bits, one of a million at 16, and fewer the shorter it is.
  - The length on the wire is at most 3 % above the update's.
  - `FixedPoint` rounds each number by at most half a step, decodes exactly, and refuses what is too large.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import UpdateRefused
from sottovoce.common.secagg.masks import WIDTHS, largest_sum
from sottovoce.common.streams import stream

Update = npt.NDArray[np.floating[Any]]
Values = npt.NDArray[np.int64]

# How many standard deviations of a coordinate of the longest update the levels reach. A wider reach makes steps
# coarser, a narrower one cuts more off: with 8 bits rounding is the larger loss, with 16 the cutting.
_REACH = {8: 4.0, 16: 5.0, 32: 6.0}
# Lengths of these factors are transformed fast: a prime of a million takes ten times as long. Short ones need not be.
_SMALL_PRIMES = (2, 3, 5, 7, 11)
_SHORT = 1024
_LARGEST_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How updates of `size` numbers, at most `norm` long, become integers of a narrow ring, in one round.

    `n_sites` is the cohort: all of them together must stay in the ring. Every field is public.
    """

    size: int
    ring_bits: int
    n_sites: int
    norm: float
    seed: int
    round: int

    def __post_init__(self) -> None:
        _refuse_unless_possible(self.size, self.ring_bits, self.n_sites)
        if not 0 < self.norm < math.inf:
            raise ValueError(f"Expected a norm above 0; came {self.norm}.")

    @cached_property
    def length(self) -> int:
        """Returns how many integers are on the wire: the next length that is transformed fast."""
        length = self.size
        while length > _SHORT and not _is_smooth(length):
            length += 1
        return length

    @property
    def value_bound(self) -> int:
        """Returns the largest size of one site's integers."""
        return largest_sum(self.ring_bits) // self.n_sites

    @property
    def step(self) -> float:
        """Returns what one unit of the integers stands for."""
        return _REACH[self.ring_bits] * self.norm / math.sqrt(self.length) / self.value_bound

    @property
    def error_norm(self) -> float:
        """Returns the root mean square length, at most, of one site's rounding: half a step in every coordinate."""
        return self.step * math.sqrt(self.length) / 2

    def encode(self, update: Update, *, site: str, weight: float = 1.0) -> Values:
        """Returns an update, times its site's public weight, as integers.

        Raises:
            UpdateRefused: it is not `size` finite numbers, or the weight is not in (0, 1].
        """
        turned = np.zeros(self.length)
        turned[: self.size] = _checked(update, self.size, weight)
        length = math.sqrt(float(np.sum(np.square(turned))))
        turned *= self._signs * (weight * min(1.0, self.norm / length) / self.step if length else 1.0)
        levels = np.clip(hartley(turned), -self.value_bound, self.value_bound)
        coins = stream(self.seed, "compression", "rounding", site, self.round).random(self.length)
        below = np.floor(levels)
        return (below + (coins < levels - below)).astype(np.int64)

    def decode(self, total: Values, *, weight: float = 1.0) -> npt.NDArray[np.float64]:
        """Returns the sum of updates whose encodings add up to `total`, over `weight`.

        With the sum of the weights that were encoded, that is their weighted mean.
        """
        turned = hartley(_numbers(total, self.length) * self.step)
        return (turned * self._signs)[: self.size] / weight

    @property
    def _signs(self) -> npt.NDArray[np.int8]:
        bits = stream(self.seed, "compression", "signs", self.round).bytes(-(-self.length // 8))
        ones = np.unpackbits(np.frombuffer(bits, np.uint8))[: self.length]
        return 1 - 2 * ones.astype(np.int8)


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """How updates of `length` numbers, each at most `largest` in size, become integers of the 32-bit ring.

    >>> codec = FixedPoint(length=2, n_sites=3, largest=1.0)
    >>> codec.decode(3 * codec.encode(np.array([1.0, -0.25]), site="a")).round(6).tolist()
    [3.0, -0.75]
    """

    length: int
    n_sites: int
    largest: float
    ring_bits: int = 32

    def __post_init__(self) -> None:
        _refuse_unless_possible(self.length, self.ring_bits, self.n_sites)
        if not 0 < self.largest < math.inf:
            raise ValueError(f"Expected a largest number above 0; came {self.largest}.")

    @property
    def size(self) -> int:
        """Returns how many numbers an update has: as many as are on the wire."""
        return self.length

    @property
    def value_bound(self) -> int:
        """Returns the largest size of one site's integers."""
        return largest_sum(self.ring_bits) // self.n_sites

    @property
    def step(self) -> float:
        """Returns what one unit of the integers stands for."""
        return self.largest / self.value_bound

    def encode(self, update: Update, *, site: str, weight: float = 1.0) -> Values:
        """Returns an update, times its site's public weight, as integers. No coins are tossed for `site`.

        Raises:
            UpdateRefused: it is not `length` finite numbers of at most `largest`, or the weight is not in (0, 1].
        """
        numbers = _checked(update, self.length, weight)
        if np.abs(numbers).max() > self.largest:
            raise UpdateRefused(
                f"Expected changes of weights of at most {self.largest:g} in size; came a larger one. Train with a "
                "smaller learning rate, or raise federation.largest_change in the study."
            )
        # Why no clip: levels are below 2^31, so the product's last digit carries none of them to the next.
        return np.rint(numbers * (weight / self.step)).astype(np.int64)

    def decode(self, total: Values, *, weight: float = 1.0) -> npt.NDArray[np.float64]:
        """Returns the sum of updates whose encodings add up to `total`, over `weight`."""
        return _numbers(total, self.length) * (self.step / weight)


def hartley(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns Hartley's transform of a real vector: lengths and angles stay, and twice is the identity.

    No entry of its matrix is above sqrt(2 / n) in size: with random signs before it, no coordinate of the result has a
    variance above 2 / n of the squared length, and all together 1 / n on average.

    >>> hartley(np.array([2.0, 0.0, 0.0, 0.0])).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    spectrum = np.fft.rfft(vector, norm="ortho")
    first = spectrum.real - spectrum.imag
    # The spectrum of real numbers is told by its first half; the other half has the opposite imaginary parts.
    rest = (spectrum.real + spectrum.imag)[1 : len(vector) - len(first) + 1]
    return np.concatenate((first, rest[::-1]))


def _is_smooth(number: int) -> bool:
    for prime in _SMALL_PRIMES:
        while number % prime == 0:
            number //= prime
    return number == 1


def _checked(update: Update, size: int, weight: float) -> npt.NDArray[np.float64]:
    if not 0 < weight <= 1:
        raise UpdateRefused(f"Expected a public weight in (0, 1], the largest site's being 1; came {weight}.")
    if update.shape != (size,) or not np.issubdtype(update.dtype, np.floating):
        raise UpdateRefused(
            f"Expected an update of {size} numbers in one row; came shape {update.shape}, type {update.dtype}."
        )
    numbers = update.astype(np.float64)
    if not np.abs(numbers).max() <= _LARGEST_FLOAT:  # nor is any comparison with NaN true
        raise UpdateRefused(
            "Expected finite changes of weights, in 32-bit floats; came another. Train with a smaller learning rate."
        )
    return numbers


def _numbers(total: Values, length: int) -> npt.NDArray[np.float64]:
    if total.shape != (length,) or not np.issubdtype(total.dtype, np.integer):
        raise ValueError(
            f"Expected a sum of {length} integers; came shape {total.shape}, type {total.dtype}."
        )
    return total.astype(np.float64)


def _refuse_unless_possible(size: int, ring_bits: int, n_sites: int) -> None:
    if size < 1 or ring_bits not in WIDTHS or not 1 <= n_sites <= largest_sum(ring_bits):
        raise ValueError(
            f"Expected size >= 1, ring_bits of {', '.join(map(str, WIDTHS))} and n_sites for whom the ring has a level "
            f"each; came {size=}, {ring_bits=}, {n_sites=}."
        )
