"""What a patient gives away in mode `distributed`: a Renyi upper bound for a sum of discrete Gaussians.

One step: each patient of a site is drawn with `sampling_prob` (at most `cap` of them), its clipped gradient is a
vector of whole numbers whose squared norm is at most `squared_norm`, and every site adds a share of noise, a
discrete Gaussian of parameter `variance_numerator / variance_denominator` in each coordinate. The sum of all sites
is seen, and colluding sites take their own shares off: what protects is at least n_min - n_colluding shares.

Guarantees:
  - `epsilon` is an upper bound, for every number of patients up to `n_patients` and any number of survivors from
    `n_min` on, whoever the `n_colluding` are: shares beyond those that are counted only add noise. Where the bound
    is met with equality (one share), the rounding of floats may bring it below, by less than 1e-10 of itself.
  - A sum of discrete Gaussians is never taken for one: tau and its dimension are in every figure.
  - More steps, more colluding sites, or more sites of one patient never give a smaller figure.
  - Draws beyond the cap and sums too large to be sent are conceded: their probability is taken off delta.

The bound, at integer orders (docs/decisions/distributed.md has the reasons):
  1. `tau`, the largest log ratio of the sum's law and one discrete Gaussian's: Kairouz, Liu and Steinke 2021
     (arXiv 2102.06387), theorem 1; nothing for a single share. It needs shares of variance at least 1/2.
  2. The divergence without sampling: their proposition 14, whose dimension is the number of coordinates that one
     patient can move (whole numbers: at most `squared_norm`).
  3. With sampling, the binomial sum of Zhu and Wang 2019. It is an identity when a patient is removed, for any
     noise; when one is added it holds as well, since the noise is symmetric (Mironov, Talwar, Zhang 2019, theorem 5).
  4. A patient in k sites is there 0 to k times, with binomial weights: the smaller of joint convexity over these
     sensitivities, and k steps, each against a k-th of every share.
  5. Renyi to epsilon: Canonne, Kamath and Steinke 2020, proposition 12.

>>> event = DistributedEvent(
...     squared_norm=2**20, variance_numerator=2**19, variance_denominator=1, n_min=10, n_colluding=2,
...     n_parameters=60_000, sampling_prob=1 / 16, steps=320, cap=None, n_patients=1000,
... )
>>> event.noise_multiplier(), round(epsilon([event], 1e-5), 2)
(2.0, 2.81)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy.draws import full_draw_prob

ORDERS: tuple[int, ...] = (*range(2, 65), *range(68, 129, 4), 160, 192, 256, 384, 512)


@dataclass(frozen=True, kw_only=True)
class DistributedEvent:
    """Some steps with equal parameters, all of it public, in whole grid steps.

    `n_colluding` is how many sites the study's own figure is against. `overflow_prob` is the probability, at most,
    that a step's sum is too large to be sent. Everything per site (`cap`, `n_patients`) is the same at all sites.
    """

    mechanism: Literal["poisson_discrete_gaussian_sum"] = "poisson_discrete_gaussian_sum"
    squared_norm: int
    variance_numerator: int
    variance_denominator: int
    n_min: int
    n_colluding: int
    n_parameters: int
    sampling_prob: float
    steps: int
    cap: int | None
    n_patients: int
    overflow_prob: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise PrivacyError(f"Expected {name}={value} in [{low}, {high}].")
        if self.mechanism != "poisson_discrete_gaussian_sum":
            raise PrivacyError(
                f"Expected mechanism='poisson_discrete_gaussian_sum'; came {self.mechanism!r}."
            )
        if self.n_colluding >= self.n_min:
            raise PrivacyError(f"Expected n_colluding={self.n_colluding} below n_min={self.n_min}.")
        if self.variance_denominator > 2 * self.variance_numerator:
            raise PrivacyError("Expected shares of variance at least 1/2; take a finer grid.")

    def noise_multiplier(self, n_colluding: int | None = None) -> float:
        """Returns the deviation of what protects, in clipping norms: the study's own, or against others."""
        variance = self.n_honest(n_colluding) * self.variance_numerator / self.variance_denominator
        return math.sqrt(variance / self.squared_norm)

    def n_honest(self, n_colluding: int | None = None) -> int:
        """Returns how many shares nobody takes off, at least."""
        return self.n_min - (self.n_colluding if n_colluding is None else n_colluding)


_LIMITS: tuple[tuple[str, float, float], ...] = (
    ("squared_norm", 1, 2**52),
    ("variance_numerator", 1, 2**56),
    ("variance_denominator", 1, 2**56),
    ("n_min", 1, 10_000),
    ("n_colluding", 0, 10_000),
    ("n_parameters", 1, 2**40),
    ("sampling_prob", 1e-9, 1.0),
    ("steps", 0, 10_000_000),
    ("cap", 1, 10_000_000),
    ("n_patients", 1, 10_000_000),
    ("overflow_prob", 0.0, 1.0),
)


def epsilon(
    events: Sequence[DistributedEvent], delta: float, *, n_colluding: int | None = None, n_sites: int = 1
) -> float:
    """Returns an epsilon such that all events together are (epsilon, delta)-private for every patient.

    `n_colluding` asks for another number of colluding sites than the events'; n_min - 1 is all others. `n_sites` is
    how many honest sites the patient is in.

    | events                              | result |
    |-------------------------------------|--------|
    | none, or no steps                   | 0.0    |
    | what is conceded is more than delta | inf    |

    Raises:
        PrivacyError: delta is not in (0, 1), or so many sites cannot collude.
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"Expected delta={delta} in (0, 1).")
    charged = [event for event in events if event.steps]
    if not charged:
        return 0.0
    left = delta - conceded_delta(charged, n_sites=n_sites)
    if left <= 0:
        return math.inf

    def spent(order: int) -> float:
        return math.fsum(
            event.steps * divergence(event, order, n_colluding=n_colluding, n_sites=n_sites)
            for event in charged
        )

    return _smallest(spent, left)


def replace_one(events: Sequence[DistributedEvent], delta: float) -> float:
    """Returns the epsilon at `delta` if a patient is replaced by another instead of removed, in one site.

    The smaller of removing and then adding ((e, d) twice is (2 e, d + exp(e) d)), and of joint convexity: with the
    sampling probability both are drawn, and the sum moves by two clipping norms. No tighter bound is known to us.
    """
    return min(removed_and_added(lambda share: epsilon(events, share), delta), _moved_by_two(events, delta))


def divergence(
    event: DistributedEvent, order: int, *, n_colluding: int | None = None, n_sites: int = 1
) -> float:
    """Returns the Renyi divergence of one step at an integer order, at most: add or remove a patient."""
    if order != int(order) or order < 2:
        raise PrivacyError(f"Expected an integer order of at least 2; came {order}.")
    honest = event.n_honest(n_colluding)
    if honest < 1:
        raise PrivacyError(f"Expected n_colluding={n_colluding} below n_min={event.n_min}.")
    # Fewer shares than there are is a bound too, and a smaller one where tau decides: the others only add noise.
    fewer = 1 if tau(_share(event) / n_sites, honest * n_sites) > 0 else honest
    one = replace(event, steps=0)
    return min(_against(one, n_shares, order, n_sites) for n_shares in range(fewer, honest + 1))


@lru_cache(maxsize=4096)
def tau(variance: float, n_shares: int) -> float:
    """Bounds twice the log ratio between a sum of shares and one discrete Gaussian of the same variance.

    >>> tau(100.0, 1), tau(0.5, 2) > 0.07
    (0.0, True)
    """
    exponents = (-2 * math.pi**2 * variance * k / (k + 1) for k in range(1, n_shares))
    return 10 * math.fsum(math.exp(exponent) for exponent in exponents)


def _share(event: DistributedEvent) -> float:
    return event.variance_numerator / event.variance_denominator


def conceded_delta(events: Sequence[DistributedEvent], *, n_sites: int = 1) -> float:
    """Returns the probability, at most, that a draw was truncated around the patient, or that a sum overflowed."""
    return math.fsum(event.steps * (n_sites * _truncation(event) + event.overflow_prob) for event in events)


def _smallest(spent: Callable[[int], float], delta: float) -> float:
    """Turns a divergence at every order into epsilon: Canonne, Kamath and Steinke 2020, proposition 12."""
    return max(
        0.0,
        min(
            spent(order) + math.log1p(-1 / order) - math.log(delta * order) / (order - 1) for order in ORDERS
        ),
    )


def removed_and_added(epsilon_at: Callable[[float], float], delta: float) -> float:
    """Returns what replacing costs by removing and then adding, from what either costs at any delta."""
    one = 0.0
    for _ in range(200):
        share = delta / (1 + math.exp(min(one, 700.0)))
        needed = epsilon_at(share) if share > 0 else math.inf
        if needed <= one or math.isinf(needed):
            return 2 * needed
        one = needed + 1e-4
    return math.inf


def _moved_by_two(events: Sequence[DistributedEvent], delta: float) -> float:
    charged = [event for event in events if event.steps]
    left = delta - conceded_delta(charged, n_sites=2)  # either patient's draw may have been truncated
    if left <= 0 or not charged:
        return math.inf if charged else 0.0

    def spent(order: int) -> float:
        return math.fsum(event.steps * _replaced(replace(event, steps=0), order) for event in charged)

    return _smallest(spent, left)


def _replaced(event: DistributedEvent, order: int) -> float:
    q = event.sampling_prob
    fewer = 1 if tau(_share(event), event.n_honest()) > 0 else event.n_honest()
    whole = min(_whole(event, _share(event), n, order, 2) for n in range(fewer, event.n_honest() + 1))
    outside = math.log1p(-q) if q < 1 else -math.inf
    return _log_sum([outside, math.log(q) + (order - 1) * whole]) / (order - 1)


def _truncation(event: DistributedEvent) -> float:
    if event.cap is None:
        return 0.0
    return full_draw_prob(event.n_patients, event.sampling_prob, event.cap)


def _against(event: DistributedEvent, n_shares: int, order: int, n_sites: int) -> float:
    share = _share(event)
    if n_sites == 1:
        return _sampled(event, share, n_shares, order)
    return min(
        _convex(event, share, n_shares, order, n_sites), _split(event, share, n_shares, order, n_sites)
    )


@lru_cache(maxsize=65536)
def _sampled(event: DistributedEvent, share: float, n_shares: int, order: int) -> float:
    """Bounds one step's divergence for a patient who is drawn in one site, against shares of variance `share`."""
    q, whole = event.sampling_prob, _whole(event, share, n_shares, order, 1)
    if q == 1.0:
        return whole
    inside, outside = math.log(q), math.log1p(-q)
    terms = [(order - 1) * outside + math.log1p(q * (order - 1))]
    for k in range(2, order + 1):
        weight = _log_choose(order, k) + k * inside + (order - k) * outside
        terms.append(weight + (k - 1) * _whole(event, share, n_shares, k, 1))
    return min(whole, _log_sum(terms) / (order - 1))


def _convex(event: DistributedEvent, share: float, n_shares: int, order: int, n_sites: int) -> float:
    """Bounds it for a patient in several sites, by joint convexity over how many of them draw the patient."""
    q, terms = event.sampling_prob, list[float]()
    for drawn in range(n_sites + 1):
        if q == 1.0 and drawn < n_sites:
            continue
        weight = _log_choose(n_sites, drawn) + drawn * math.log(q)
        weight += (n_sites - drawn) * math.log1p(-q) if drawn < n_sites else 0.0
        terms.append(weight + (order - 1) * _whole(event, share, n_shares, order, drawn))
    return _log_sum(terms) / (order - 1)


def _split(event: DistributedEvent, share: float, n_shares: int, order: int, n_sites: int) -> float:
    """Bounds the same as so many steps, each of one site, that have a part of every share to themselves.

    Their sum is what is seen, so seeing them apart says more. A share is not the sum of its parts: in every
    coordinate the log ratio of the two is at most half of a tau, which is paid for in each coordinate that moves.
    """
    part = share / n_sites
    if part < 0.5:
        return math.inf
    moved = min(event.n_parameters, n_sites * event.squared_norm)
    apart = moved * n_shares * tau(part, n_sites) / 2
    return n_sites * _sampled(event, part, n_shares, order) + (2 * order - 1) / (order - 1) * apart


@lru_cache(maxsize=65536)
def _whole(event: DistributedEvent, share: float, n_shares: int, order: int, n_times: int) -> float:
    """Kairouz, Liu and Steinke 2021, proposition 14: the divergence without sampling, sensitivity n_times * C."""
    norm = n_times * math.sqrt(event.squared_norm)
    # Whole numbers: a vector of squared norm s moves at most s coordinates. So do the sums of n_times of them.
    moved = min(event.n_parameters, n_times * event.squared_norm)
    l2 = norm / math.sqrt(n_shares * share)
    l1 = l2 * min(math.sqrt(moved), norm)
    extra = tau(share, n_shares)
    return min(
        order / 2 * l2**2 + extra * moved,
        order / 2 * (l2**2 + 2 * l1 * extra + extra**2 * moved),
        order / 2 * (l2 + math.sqrt(moved) * extra) ** 2,
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_sum(terms: Sequence[float]) -> float:
    largest = max(terms)
    if math.isinf(largest):
        return largest
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
