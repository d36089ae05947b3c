"""Public randomness: one independent stream for each (seed, purpose, key ...).

Only what is public may be drawn here: initialisation, folds, partitions, batch order and augmentation of
non-private training. Coins, noise, masks and keys of a production release never come from here: they have
their own source, without a seed argument (DESIGN section 6).

Guarantees:
  - The same arguments give the same stream in every process, on every machine, in any order of calls.
  - Different arguments give unrelated streams (Philox, keyed by SHA-256 of the arguments).
  - Streams are keyed by what they are for, never by an attempt: a resumed round draws the same numbers.

>>> stream(7, "folds", "site-1").integers(0, 100, 3).tolist()
[33, 4, 50]
"""

import hashlib

import numpy as np

Key = str | int


def derive(seed: int, purpose: str, *keys: Key) -> int:
    """Returns a 128-bit integer that stands for (seed, purpose, keys)."""
    # repr() keeps 1 and "1" apart, and the separator cannot occur inside a repr of str or int.
    text = "\x1f".join(["sottovoce/stream/1", repr(int(seed)), repr(purpose), *map(repr, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def stream(seed: int, purpose: str, *keys: Key) -> np.random.Generator:
    """Returns the generator of (seed, purpose, keys)."""
    return np.random.Generator(np.random.Philox(key=derive(seed, purpose, *keys)))


def torch_seed(seed: int, purpose: str, *keys: Key) -> int:
    """Returns a seed in [0, 2^63) for `torch.manual_seed`, of the same key space as `stream`."""
    return derive(seed, purpose, *keys) >> 65
