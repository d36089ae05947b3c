"""What right guesses prove: a lower bound on epsilon from one run (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846).

Each of m canaries is put in or left out by a fair coin. The auditor guesses r of the coins and is right v times.
If the mechanism is (epsilon, delta)-DP, add or remove one, then by their theorem 5.2, with
q = e^epsilon / (1 + e^epsilon),

    P(right >= v)  <=  P(W >= v) + 2 m delta max_i P(v - i <= W < v) / i,      W ~ Binomial(r, q), 1 <= i <= v.

Guarantees:
  - `lower_bound` is the smallest epsilon that the guesses do not reject: whatever is true, it is above the true
    epsilon in at most a share `error` of audits.
  - More right guesses never prove less; the bound is 0 where they prove nothing.
  - The figure is that of the theorem, delta included: no approximation of the binomial is made.

| guesses                  | bound                                            |
|--------------------------|--------------------------------------------------|
| none                     | 0                                                |
| half of them right       | 0                                                |
| all r right, delta = 0   | log(x / (1 - x)) with x = error^(1 / r)          |

>>> round(lower_bound(Guesses(n_canaries=100, n_made=100, n_right=100), delta=0.0, error=0.05), 3)
3.493
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import SottovoceError

LARGEST = 30.0  # epsilon; beyond, no number of canaries that a machine holds can tell it from infinity
STEP = 0.05  # the p-value need not rise everywhere where delta is large: epsilons are tried from 0 upwards


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """So many of `n_canaries` coins were guessed, so many of those right."""

    n_canaries: int
    n_made: int
    n_right: int

    def __post_init__(self) -> None:
        if not 0 <= self.n_right <= self.n_made <= self.n_canaries:
            raise SottovoceError(
                "Expected no more right guesses than guesses, and no more guesses than canaries; "
                f"came {self.n_right}, {self.n_made}, {self.n_canaries}."
            )


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Returns the most that a mechanism of (epsilon, delta) can be right that often, as a probability."""
    below = _masses(guesses.n_made, epsilon)[: guesses.n_right]
    # sums[i - 1] = P(v - i <= W < v)
    sums = np.cumsum(below[::-1])
    tail = max(0.0, 1.0 - math.fsum(below)) if guesses.n_right else 1.0
    if guesses.n_right > guesses.n_made / 2:  # the upper tail is the small one: add it up itself
        tail = math.fsum(_masses(guesses.n_made, epsilon)[guesses.n_right :])
    steepest = float((sums / np.arange(1, len(sums) + 1)).max()) if len(sums) else 0.0
    return min(1.0, tail + 2.0 * guesses.n_canaries * delta * steepest)


@functools.lru_cache(maxsize=4096)
def lower_bound(guesses: Guesses, *, delta: float, error: float) -> float:
    """Returns the largest epsilon such that this and every smaller one is rejected at `error`."""
    low = 0.0
    while low < LARGEST and p_value(guesses, low, delta) < error:
        low += STEP
    if low == 0.0 or low >= LARGEST:
        return low
    low, high = low - STEP, low
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(guesses, middle, delta) < error else (low, middle)
    return low


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an audit proves. `largest` is what it would have proved, had every guess been right."""

    lower_bound: float
    largest: float
    guesses: tuple[Guesses, ...]
    delta: float
    error: float


def judge(
    scores: npt.NDArray[np.float64],
    present: npt.NDArray[np.bool_],
    *,
    shares: Sequence[float],
    delta: float,
    error: float = 0.05,
) -> Verdict:
    """Guesses, for each share, that so much of the canaries is in (highest scores) or out (lowest), half and half.

    The shares are fixed before anybody looks; each is judged at error / len(shares), so that the best of them counts.
    """
    order = np.argsort(scores, kind="stable")
    made = []
    for share in shares:
        half = int(len(scores) * share / 2)
        right = int((~present[order[:half]]).sum() + present[order[len(order) - half :]].sum())
        made.append(Guesses(n_canaries=len(scores), n_made=2 * half, n_right=right))
    each = error / len(shares)
    perfect = [Guesses(n_canaries=g.n_canaries, n_made=g.n_made, n_right=g.n_made) for g in made]
    return Verdict(
        lower_bound=max(lower_bound(one, delta=delta, error=each) for one in made),
        largest=max(lower_bound(one, delta=delta, error=each) for one in perfect),
        guesses=tuple(made),
        delta=delta,
        error=error,
    )


@functools.lru_cache(maxsize=64)
def _log_choices(n: int) -> npt.NDArray[np.float64]:
    logs = np.array([math.lgamma(k + 1.0) for k in range(n + 1)])
    choices: npt.NDArray[np.float64] = logs[n] - logs - logs[::-1]
    return choices


def _masses(n: int, epsilon: float) -> npt.NDArray[np.float64]:
    """Returns P(W = 0), ..., P(W = n) for W ~ Binomial(n, e^epsilon / (1 + e^epsilon))."""
    k = np.arange(n + 1)
    masses: npt.NDArray[np.float64] = np.exp(
        _log_choices(n)
        - k * math.log1p(math.exp(-epsilon))
        - (n - k) * (epsilon + math.log1p(math.exp(-epsilon)))
    )
    return masses
