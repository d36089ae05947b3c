"""Where coins and noise come from: one secret generator for each release, or a seeded one that protects nobody.

Guarantees:
  - `SecretSource` takes no argument: its key comes from the operating system and is stored nowhere.
  - Two sources share nothing; a source that crosses a fork, a pickle or a copy refuses to go on.
  - `SimulatedNoise_NotPrivate` is keyed by (seed, site, round), never by an attempt, and whatever is made with
    it is marked `simulated`.

Coins as well as noise: coins drawn from a public seed void the amplification by sampling (a claimed 3.0 is 42).
The stream is AES-256-CTR. Its running time does not depend on what is drawn; nothing else here is claimed to be
constant in time.

>>> SecretSource().words(4).dtype
dtype('uint64')
"""

import os
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from sottovoce.common.errors import PrivacyError
from sottovoce.common.keys import keystream
from sottovoce.common.streams import stream

_forks = 0  # how many forks lie between the first process and this one


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


class Source(Protocol):
    """Uniform 64-bit words, each given out once."""

    @property
    def simulated(self) -> bool:
        """Whether somebody could draw the same words again."""

    def words(self, n: int) -> NDArray[np.uint64]:
        """Returns the next n words."""


class SecretSource:
    """The source of a real release. Make one for each release, and drop it."""

    simulated = False

    def __init__(self) -> None:
        self._next = keystream(os.urandom(32))
        self._made_at = _forks

    def words(self, n: int) -> NDArray[np.uint64]:
        """Returns the next n words. Raises: PrivacyError in a child of the process that made this source."""
        if self._made_at != _forks:
            raise PrivacyError("A secret source crossed a fork; parent and child would draw the same noise.")
        return np.frombuffer(self._next(8 * n), dtype="<u8").astype(np.uint64, copy=False)

    def __reduce_ex__(self, _: Any) -> NoReturn:
        raise PrivacyError(
            "A secret source is neither copied nor stored: two copies would draw the same noise."
        )


class SimulatedNoise_NotPrivate:
    """A source for simulation: the same words for the same (seed, site, round). It protects nobody."""

    simulated = True

    def __init__(self, *, seed: int, site: str, round: int) -> None:
        self._bits = stream(seed, "simulated-noise", site, round).bit_generator

    def words(self, n: int) -> NDArray[np.uint64]:
        """Returns the next n words."""
        words: NDArray[np.uint64] = self._bits.random_raw(n)
        return words
