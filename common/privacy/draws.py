"""How likely a draw is to be full around one patient: what a cap on draws costs, in both private modes.

Guarantees:
  - Never below the truth, for every number of patients up to `n_patients`.
"""

import math


def full_draw_prob(n_patients: int, sampling_prob: float, cap: int, n_records: int = 1) -> float:
    """Bounds P(the others leave less room than one patient needs); it grows with n, so an upper bound of n is safe."""
    others, room = (n_patients - 1) * n_records, cap - n_records
    if room >= others:
        return 0.0
    if room < 0 or sampling_prob == 1.0:
        return 1.0
    inside, outside = math.log(sampling_prob), math.log1p(-sampling_prob)
    mean = others * sampling_prob
    total, k = 0.0, room + 1
    while k <= others:
        term = math.exp(log_choose(others, k) + k * inside + (others - k) * outside)
        total += term
        if k > mean and term <= total * 1e-17:  # past the mode the terms fall faster than a geometric series
            break
        k += 1
    return min(1.0, total)


def log_choose(n: int, k: int) -> float:
    """Returns the logarithm of a binomial coefficient."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
