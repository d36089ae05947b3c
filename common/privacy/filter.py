"""The hard stop across studies: a Renyi filter over everything a domain has promised.

A later study's constants may be chosen after an earlier study's releases were seen. Composition theorems for
fixed constants (PLD among them) say nothing about that; a Renyi filter does (Feldman and Zrnic 2021, Lecuyer
2021): one order and one cap are fixed beforehand, and a charge is admitted only while the sum of all charges at
that order stays below the cap's budget there. That is what `filter_epsilon(..., order=...) <= cap` says.

The order is `fixed_order(cap, delta)` of the domain's OPENING: it depends on nothing that any release could have
moved. Taking at the end whichever order flatters is not covered: the end may choose among all of them, and the
union costs delta for each. Dividing delta by the number of orders would be sound too, and admits 0.25 to 0.79 of
the steps that hindsight's best order would (medians over noise 0.7 to 16, sampling 0.01 to 1, at caps 0.5 to 10);
the fixed order admits as many in the median, and far fewer only where noise is small and sampling sparse, whose
divergence explodes at high orders. A cap that moves later leaves the order alone: every value of the cap has then
a filter at one order, and a choice that follows the releases chooses among caps, each stated in the ledger, never
among orders.

Guarantees:
  - The order does not depend on a charge, nor on a cap that came after the first.
  - Never below the divergence that it bounds: integer orders only, where the Poisson-subsampled Gaussian has
    a closed form (Mironov, Talwar and Zhang 2019, section 3.3).
  - Truncated draws are bounded, never ignored: with `cap`, a record that is drawn into a full sample displaces
    another, so the sensitivity is twice as large with the probability of a full sample (joint convexity of
    exp((order - 1) * divergence) over the sample of the others).
  - Several records of a patient are the patient's: joint convexity once more, over how many are drawn.
  - More charges never give a smaller figure.

>>> draws = Draws(noise_multiplier=8.0, sampling_prob=1.0, steps=50, n_patients=1000)
>>> round(filter_epsilon([draws], 1e-5, order=fixed_order(4.0, 1e-5)), 2)
4.11
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

ORDERS: tuple[int, ...] = (*range(2, 65), *range(68, 129, 4), 160, 192, 256, 384, 512)


class Charged(Protocol):
    """What the filter needs to know of a charge."""

    @property
    def noise_multiplier(self) -> float: ...
    @property
    def sampling_prob(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def n_patients(self) -> int: ...
    @property
    def cap(self) -> int | None: ...
    @property
    def records_per_patient(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Draws:
    """`steps` draws of one Gaussian mechanism over Poisson-sampled records."""

    noise_multiplier: float
    sampling_prob: float
    steps: int
    n_patients: int
    cap: int | None = None
    records_per_patient: int = 1


@functools.lru_cache(maxsize=256)
def fixed_order(cap: float, delta: float) -> int:
    """Returns a domain's one order: where Gaussian steps, whose divergence grows with the order, reach furthest."""
    return max(ORDERS, key=lambda order: (cap - _price(order, delta)) / order)


def filter_epsilon(charges: Iterable[Charged], delta: float, *, order: int) -> float:
    """Returns the epsilon at `delta` that the sum of all charges stays within at one order, fixed beforehand."""
    total = math.fsum(charge.steps * _step(charge, order) for charge in charges)
    return max(0.0, total + _price(order, delta)) if total else 0.0


def _price(order: int, delta: float) -> float:
    # Canonne, Kamath and Steinke 2020, proposition 12
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def _step(charge: Charged, order: int) -> float:
    sizes = (charge.n_patients, charge.cap, charge.records_per_patient)
    return _one_step(charge.noise_multiplier, charge.sampling_prob, *sizes, order)


@functools.lru_cache(maxsize=4096)
def _one_step(
    noise_multiplier: float,
    sampling_prob: float,
    n_patients: int,
    cap: int | None,
    n_records: int,
    order: int,
) -> float:
    full = 0.0 if cap is None else full_draw_prob(n_patients, sampling_prob, cap, n_records)
    return _divergence(noise_multiplier, sampling_prob, order, n_records, full)


def _divergence(
    noise_multiplier: float, sampling_prob: float, order: int, n_records: int, full: float
) -> float:
    moment = _log_moment(noise_multiplier, sampling_prob, order, n_records)
    if full > 0.0:
        displaced = _log_moment(noise_multiplier / 2, sampling_prob, order, n_records)
        kept = math.log1p(-full) + moment if full < 1.0 else -math.inf
        moment = _log_sum([kept, math.log(full) + displaced])
    return moment / (order - 1)


def _log_moment(noise_multiplier: float, sampling_prob: float, order: int, n_records: int) -> float:
    """Bounds log E[(p/q)^order] for one draw, sensitivity 1 for each record."""
    precision = 1 / (2 * noise_multiplier**2)
    if n_records > 1:
        drawn = _log_binomial(n_records, sampling_prob)
        return _log_sum([weight + order * (order - 1) * c * c * precision for c, weight in enumerate(drawn)])
    drawn = _log_binomial(order, sampling_prob)
    return _log_sum([weight + k * (k - 1) * precision for k, weight in enumerate(drawn)])


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
        term = math.exp(_log_choose(others, k) + k * inside + (others - k) * outside)
        total += term
        if k > mean and term <= total * 1e-17:  # past the mode the terms fall faster than a geometric series
            break
        k += 1
    return min(1.0, total)


def _log_binomial(n: int, prob: float) -> list[float]:
    if prob == 1.0:
        return [-math.inf] * n + [0.0]
    inside, outside = math.log(prob), math.log1p(-prob)
    return [_log_choose(n, k) + k * inside + (n - k) * outside for k in range(n + 1)]


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_sum(terms: list[float]) -> float:
    largest = max(terms)
    if math.isinf(largest):
        return largest
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
