"""Canonne, Kamath and Steinke's algorithms, one draw at a time, in fractions: slow, and hard to get wrong.

Uniform numbers are drawn as far as a decision needs them: 62 bits of a word first, then whole words.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sottovoce.common.privacy.source import Source

Words = Callable[[], int]


def candidate(variance: Fraction, log_scale: int, words: Words) -> int | None:
    """Algorithm 3 for one candidate, with a Laplace of scale 2^log_scale; None if it is rejected."""
    proposed = laplace(log_scale, words)
    if proposed is None:
        return None
    exponent = (abs(proposed) - variance / 2**log_scale) ** 2 / (2 * variance)
    for _ in range(int(exponent)):
        if not exp_coin(Fraction(1), words):
            return None
    return proposed if exp_coin(exponent - int(exponent), words) else None


def laplace(log_scale: int, words: Words) -> int | None:
    """Algorithm 2 for one candidate."""
    first = words()
    below, negative = (first >> (64 - log_scale) if log_scale else 0), bool(first & 1)
    if not exp_coin(Fraction(below, 2**log_scale), words):
        return None
    whole = 0
    while exp_coin(Fraction(1), words):
        whole += 1
    size = below + (whole << log_scale)
    if negative and size == 0:
        return None
    return -size if negative else size


def exp_coin(exponent: Fraction, words: Words) -> bool:
    """Algorithm 1: heads with probability exp(-exponent), at most 1."""
    k = 1
    while coin(exponent / k, words):
        k += 1
    return k % 2 == 1


def coin(probability: Fraction, words: Words) -> bool:
    """Heads with that probability; one that is certain takes no word."""
    if probability == 1:
        return True
    start, n_bits = words() >> 2, 62
    while True:
        if start + 1 <= probability * 2**n_bits:
            return True
        if start >= probability * 2**n_bits:
            return False
        start, n_bits = start << 64 | words(), n_bits + 64


class Recorded:
    """A source that gives one word at a time, of a list it was given, and counts."""

    simulated = True

    def __init__(self, given: Sequence[int]) -> None:
        self._given = given
        self.n_taken = 0

    def words(self, n: int) -> NDArray[np.uint64]:
        taken = self._given[self.n_taken : self.n_taken + n]
        assert len(taken) == n, "the list of words is too short for this test"
        self.n_taken += n
        return np.array(taken, dtype=np.uint64)

    def one(self) -> int:
        return int(self.words(1)[0])


_: type[Source] = Recorded
