"""A second opinion on epsilon: Opacus' PRV accountant (Gopi, Lee and Wutschitz 2021) as a bracket.

It decides nothing. Where PLD lies outside the bracket, one of two independent programs is wrong.

>>> from sottovoce.common.privacy.accountant import Event
>>> event = Event(noise_multiplier=2.0, sampling_prob=1 / 16, steps=320, cap=None, n_patients=1000)
>>> lower, upper = bracket([event], 1e-5)
>>> lower < 2.56 < upper < lower + 0.025
True
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np

from sottovoce.common.privacy.accountant import Event, conceded_delta, merged

ERROR = 0.01  # of epsilon, either way; the cost grows as its inverse


def bracket(events: Sequence[Event], delta: float) -> tuple[float, float] | None:
    """Returns (lower, upper) for the epsilon of all events, or None where the PRV accountant has no answer.

    It has none for several records of a patient, nor where truncated draws were not conceded, nor where its
    discretisation fails, which is said by its own errors and happens far from any useful epsilon.
    """
    parts = merged(events)
    left = delta - conceded_delta(parts)
    if left <= 0.9 * delta or any(event.records_per_patient > 1 for event in parts):
        return None
    if not parts:
        return 0.0, 0.0
    lower = _bracket(parts, delta)
    upper = lower if left == delta else _bracket(parts, left)
    return None if lower is None or upper is None else (max(0.0, lower[0]), upper[1])


def _bracket(events: Sequence[Event], delta: float) -> tuple[float, float] | None:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(e.noise_multiplier, e.sampling_prob, e.steps) for e in events]
    delta_error = delta / 1000
    # Opacus takes log(1 - q) at q = 1, and exp of the far ends of its domain.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            distribution = accountant._get_dprv(eps_error=ERROR, delta_error=delta_error)
            lower, _, upper = distribution.compute_epsilon(delta, delta_error, ERROR)
        except (RuntimeError, ValueError, OverflowError):
            return None
    return (float(lower), float(upper)) if math.isfinite(lower) and math.isfinite(upper) else None
