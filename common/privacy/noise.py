"""Noise: a rounded Gaussian, added to an integer sum exactly.

Guarantees:
  - Noise is an integer for each coordinate, of deviation `noise_multiplier * clip_norm` in the sum's own unit.
  - The addition is exact: no float ever holds sum plus noise (precision attacks, arXiv 2207.13793, need one).
  - Every coordinate of every release takes fresh words of the source.

A rounded Gaussian added to an integer is the rounding of a Gaussian added to it: post-processing of the Gaussian
mechanism, so its accounting applies as it is. Normals come by Box and Muller from 63-bit uniforms. What is left
of the ideal: tails end at 9.4 deviations (mass 2^-64 a coordinate), and a normal has 53 bits.

>>> from sottovoce.common.privacy.source import SecretSource
>>> bool(abs(standard_normals(SecretSource(), 10_000).std() - 1) < 0.05)
True
"""

import math

import numpy as np
from numpy.typing import NDArray

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy.source import Source
from sottovoce.common.privacy.stages import NoisySum, QuantisedSum

BLOCK = 1 << 14
LARGEST_DEVIATION = 2.0**48  # in grid steps: 9.4 deviations and any sum stay far inside 64 bits
# sin(pi/4 t) = t * (s0 + s1 t^2 + ...) for |t| <= 1, to 1e-17 by Taylor; libm's own is ten times slower.
_SINE = [(-1) ** k * (math.pi / 4) ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(9)]


def add_noise(total: QuantisedSum, noise_multiplier: float, source: Source) -> NoisySum:
    """Adds Gaussian noise of deviation `noise_multiplier * clip_norm`, rounded to the grid, to every coordinate."""
    deviation = noise_multiplier * total.clip_norm / total.grid_step
    if not 1.0 <= deviation <= LARGEST_DEVIATION:
        raise PrivacyError(f"Expected noise of 1 to 2^48 grid steps; came {deviation:g}. Take another grid.")
    noise = np.rint(standard_normals(source, len(total.values)) * deviation).astype(np.int64)
    return NoisySum(
        values=total.values + noise,
        noise_multiplier=noise_multiplier,
        grid_step=total.grid_step,
        simulated=source.simulated,
    )


def standard_normals(source: Source, n: int) -> NDArray[np.float64]:
    """Returns n independent standard normals."""
    normals = np.empty(n + n % 2)
    for start in range(0, len(normals), BLOCK):
        block = normals[start : start + BLOCK]
        _box_muller(source.words(len(block)), block)
    return normals[:n]


def _box_muller(words: NDArray[np.uint64], out: NDArray[np.float64]) -> None:
    """Fills `out` (of even length) from as many words: half are radii, half are angles."""
    half = len(out) // 2
    # Signed words: numpy converts them ten times faster than unsigned ones.
    bits = words.view(np.int64)
    radius = (bits[:half] & np.int64(2**63 - 1)).astype(np.float64)
    radius += 0.5
    radius *= 2.0**-63  # in (0, 1]: the largest word rounds to 1, whose radius is 0
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    # An angle of [-pi/4, pi/4) by 53 bits; two more bits turn it into one of the whole circle.
    angle_bits = bits[half:]
    angle = (angle_bits >> 10).astype(np.float64)
    angle *= 2.0**-53
    sine, square = np.full(half, _SINE[-1]), angle * angle
    for coefficient in reversed(_SINE[:-1]):
        sine *= square
        sine += coefficient
    sine *= angle
    cosine = 1.0 - sine
    cosine *= 1.0 + sine
    np.sqrt(cosine, out=cosine)
    sine *= radius
    cosine *= radius
    one, other = cosine.view(np.int64), sine.view(np.int64)
    one ^= angle_bits << 63  # the cosine's sign, by the lowest bit
    swapped = (one ^ other) & (angle_bits << 62 >> 63)  # all bits or none, by the second lowest
    out[:half] = (one ^ swapped).view(np.float64)
    out[half:] = (other ^ swapped).view(np.float64)
