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
  - Secure sums count by their own bound (`distributed_accountant.divergence`), at the same order, and what they
    concede never exceeds the part of delta that was kept for it beforehand.

What secure sums concede. A draw beyond the cap, or a sum too large to be sent, is in no Renyi bound: its probability
is taken off delta. How much of it there will be is chosen study by study, so the order's argument comes once more:
who may trade it against divergence after having seen releases gets up to twice delta, since the two are weighed by
different laws. So both limits stand beforehand, apart: all that is ever conceded stays within `kept`, and every
charge, of whatever mode, is priced at delta - kept (Whitehouse, Ramdas, Rogers and Wu 2023 add the two alike). A
domain says at its opening what it keeps, a thousandth of delta; opened without, it has nothing to concede.

>>> draws = Draws(noise_multiplier=8.0, sampling_prob=1.0, steps=50, n_patients=1000)
>>> round(filter_epsilon([draws], 1e-5, order=fixed_order(4.0, 1e-5)), 2)
4.11
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from sottovoce.common.privacy.distributed_accountant import (
    ORDERS,
    DistributedEvent,
    conceded_delta,
    divergence,
)
from sottovoce.common.privacy.draws import full_draw_prob, log_choose

KEPT = 1e-3  # of a domain's delta, for what secure sums concede: some 10,000 steps at 2^-40, for a price below 1e-3


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


def filter_epsilon(
    charges: Sequence[Charged | DistributedEvent], delta: float, *, order: int, kept: float = 0.0
) -> float:
    """Returns the epsilon at `delta` that the sum of all charges stays within at one order, fixed beforehand.

    `kept` is the part of delta for what secure sums concede, fixed beforehand too; inf if they concede more.
    """
    sums = [charge for charge in charges if isinstance(charge, DistributedEvent)]
    if conceded_delta(sums) > kept:
        return math.inf
    total = math.fsum(charge.steps * _step(charge, order) for charge in charges)
    return max(0.0, total + _price(order, delta - kept)) if total else 0.0


def composed_epsilon(
    charges: Sequence[Charged | DistributedEvent], delta: float, *, n_sites: int = 1
) -> float:
    """Returns the epsilon at `delta` of all charges together, if their constants were fixed beforehand.

    The smallest over all orders. A full draw's probability is taken off delta, or it is in the divergence as in the
    filter, whichever is less. A patient in `n_sites` sites meets all of their draws, and is in each sum so often.
    """
    sums = [charge for charge in charges if isinstance(charge, DistributedEvent)]
    draws = [_times(charge, n_sites) for charge in charges if not isinstance(charge, DistributedEvent)]
    left = delta - conceded_delta(sums, n_sites=n_sites)
    full = math.fsum(draw.steps * _full(draw) for draw in draws)
    capless = [replace(draw, cap=None) for draw in draws]
    return min(_smallest(draws, sums, left, n_sites), _smallest(capless, sums, left - full, n_sites))


def _smallest(
    draws: Sequence[Charged], sums: Sequence[DistributedEvent], delta: float, n_sites: int
) -> float:
    if not sum(charge.steps for charge in draws) + sum(one.steps for one in sums):
        return 0.0
    if delta <= 0:
        return math.inf

    def spent(order: int) -> float:
        of_draws = math.fsum(draw.steps * _step(draw, order) for draw in draws)
        return of_draws + math.fsum(one.steps * divergence(one, order, n_sites=n_sites) for one in sums)

    return max(0.0, min(spent(order) + _price(order, delta) for order in ORDERS))


def _times(charge: Charged, n_sites: int) -> Draws:
    return Draws(
        noise_multiplier=charge.noise_multiplier,
        sampling_prob=charge.sampling_prob,
        steps=n_sites * charge.steps,
        n_patients=charge.n_patients,
        cap=charge.cap,
        records_per_patient=charge.records_per_patient,
    )


def _price(order: int, delta: float) -> float:
    # Canonne, Kamath and Steinke 2020, proposition 12
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def _step(charge: Charged | DistributedEvent, order: int) -> float:
    if isinstance(charge, DistributedEvent):
        return divergence(charge, order)
    full = _full(charge)
    return _one_step(charge.noise_multiplier, charge.sampling_prob, order, charge.records_per_patient, full)


def _full(charge: Charged) -> float:
    if charge.cap is None:
        return 0.0
    return _full_draw(charge.n_patients, charge.sampling_prob, charge.cap, charge.records_per_patient)


_full_draw = functools.lru_cache(maxsize=4096)(full_draw_prob)


@functools.lru_cache(maxsize=4096)
def _one_step(
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


def _log_binomial(n: int, prob: float) -> list[float]:
    if prob == 1.0:
        return [-math.inf] * n + [0.0]
    inside, outside = math.log(prob), math.log1p(-prob)
    return [log_choose(n, k) + k * inside + (n - k) * outside for k in range(n + 1)]


def _log_sum(terms: list[float]) -> float:
    largest = max(terms)
    if math.isinf(largest):
        return largest
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
