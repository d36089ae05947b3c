"""Who is drawn: Poisson coins over units, a cap, and at most so many recordings of each.

Guarantees:
  - Each unit is drawn by its own coin with probability at most `sampling_prob`, and less by no more than 2^-64,
    whatever the number of units: nothing is derived from how many there are.
  - A draw of nobody is a valid draw.
  - A draw beyond `cap` keeps a random subset of that size, every subset alike (what the accountant takes it for).
  - Of each drawn patient at most `n_most` recordings are taken, every subset alike.
  - The withdrawn are never drawn. Their coins are tossed all the same, so that nobody else's change.

Coins have 64 bits of the release's secret source (Opacus compares 24-bit floats).

>>> from sottovoce.common.privacy.source import SecretSource
>>> draw_units(5, sampling_prob=1.0, cap=5, source=SecretSource()).tolist()
[0, 1, 2, 3, 4]
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy.source import Source

Indices = NDArray[np.int64]


def draw_units(
    n_units: int, *, sampling_prob: float, cap: int, source: Source, withdrawn: Collection[int] = ()
) -> Indices:
    """Tosses one coin for each unit; returns the drawn ones in order, at most `cap` of them."""
    if not 0.0 < sampling_prob <= 1.0 or cap < 1:
        raise PrivacyError(f"Expected sampling_prob={sampling_prob} in (0, 1] and cap={cap} at least 1.")
    # floor(q * 2^64) of the 2^64 words are heads; the product is exact, and q = 1 is everybody.
    heads = int(sampling_prob * 2**64)
    words = source.words(n_units)
    drawn = words < np.uint64(heads) if heads < 2**64 else np.ones(n_units, dtype=bool)
    drawn[list(withdrawn)] = False
    return _random_subset(np.flatnonzero(drawn), cap, source)


def choose_recordings(owners: Indices, units: Indices, *, n_most: int, source: Source) -> Indices:
    """Returns the positions in `owners` of at most `n_most` recordings of each unit in `units`, in order."""
    positions = np.flatnonzero(np.isin(owners, units))
    # By owner, and within an owner in random order: the first n_most of each run are the choice.
    order = positions[np.lexsort((source.words(len(positions)), owners[positions]))]
    return np.sort(order[_rank_in_run(owners[order]) < n_most])


def first_recordings(owners: Indices, *, n_most: int) -> Indices:
    """Returns the positions of the first `n_most` recordings of each owner: a fixed rule, without any coin."""
    order = np.argsort(owners, kind="stable")
    return np.sort(order[_rank_in_run(owners[order]) < n_most])


def _random_subset(items: Indices, size: int, source: Source) -> Indices:
    if len(items) <= size:
        return items
    return np.sort(items[np.argsort(source.words(len(items)), kind="stable")[:size]])


def _rank_in_run(ordered: Indices) -> Indices:
    """Returns 0, 1, 2, ... within each run of equal numbers."""
    if not len(ordered):
        return ordered
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(ordered)])
    return np.arange(len(ordered)) - np.repeat(starts, lengths)
