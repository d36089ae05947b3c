"""The ring of integers modulo 2^32, and masks in it from AES-256-CTR.

A mask is the keystream of one 32-byte key from a zero nonce, read as little-endian 32-bit words. A key makes one
mask, ever: it is derived for one pair (or one site) and one attempt.

Guarantees:
  - `unwrap` of the ring sum of wrapped vectors is their integer sum, exactly, while it is below 2^31 in size.
  - `wrap` refuses what is no integer, is not one-dimensional of the stated length, or exceeds the stated bound.
  - Adding a mask and subtracting it is the identity, whatever the length.

>>> total = wrap(np.array([-5, 7]), length=2, bound=10)
>>> add_mask(total, bytes(32), sign=1)
>>> add_mask(total, bytes(32), sign=-1)
>>> unwrap(total).tolist()
[-5, 7]
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import SecureSumError
from sottovoce.common.keys import keystream

Ring = npt.NDArray[np.uint32]
WORDS = np.dtype("<u4")
WORD_BYTES = 4
_BLOCK_WORDS = (
    16_384  # 64 KiB stay in a core's nearest cache between cipher and addition: twice as fast as 256
)


def wrap(values: npt.NDArray[np.integer], *, length: int, bound: int) -> Ring:
    """Returns integers as elements of the ring. Raises: SecureSumError ("input")."""
    if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.integer):
        raise SecureSumError("input", "Expected an array of integers to be summed; came another type.")
    if values.shape != (length,):
        raise SecureSumError("input", f"Expected a vector of shape ({length},); came {values.shape}.")
    # As Python integers: in the array's own type the negation of the smallest one would wrap.
    if int(values.max()) > bound or int(values.min()) < -bound:
        raise SecureSumError("input", f"Expected integers of at most {bound} in size; came a larger one.")
    return values.astype(np.int32).view(np.uint32)


def unwrap(total: Ring) -> npt.NDArray[np.int64]:
    """Returns the integers in [-2^31, 2^31) that these elements stand for."""
    return total.view(np.int32).astype(np.int64)


def add_mask(total: Ring, key: bytes, *, sign: Literal[1, -1]) -> None:
    """Adds the mask of `key` to `total`, or subtracts it, in place."""
    stream = keystream(key)
    change = np.add if sign == 1 else np.subtract
    for start in range(0, len(total), _BLOCK_WORDS):
        block = total[start : start + _BLOCK_WORDS]
        change(block, np.frombuffer(stream(WORD_BYTES * len(block)), WORDS), out=block)


def pair_sign(me: int, peer: int) -> Literal[1, -1]:
    """Returns the sign with which site `me` takes the mask that it shares with `peer`."""
    return 1 if me < peer else -1


def to_wire(total: Ring) -> bytes:
    """Returns the elements as little-endian words."""
    return total.astype(WORDS, copy=False).tobytes()


def from_wire(data: bytes) -> Ring:
    """Returns the elements of little-endian words, as a view that must not be written to."""
    return np.frombuffer(data, WORDS)
