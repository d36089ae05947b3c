"""What a patient has given away: events in, epsilon out. The one door to dp-accounting.

An `Event` is a fact for the ledger: public numbers only. Privacy composes over events, never over epsilons:
every figure here is computed from all events at once.

Guarantees:
  - `epsilon` is an upper bound: privacy loss distributions (PLD), rounded pessimistically, composed by FFT.
  - It holds for every number of patients up to `n_patients`, whatever the true one is.
  - It does not depend on the order of events, and equal events are merged: 1,000 rounds cost one convolution.
  - A gradient that reaches a patient through several records is accounted as the patient's, not the record's.
  - RDP is shown beside it, with the orders that the library had to drop. GDP under-reports and is not here.

Truncation. A draw larger than `cap` loses patients at random. Given that at least `cap` others were drawn
(probability p, the same with and without the patient) one patient can displace another, which costs more.
  - steps * p <= delta / 10,000: those draws are conceded whole, and epsilon is taken at delta - steps * p.
  - otherwise each step is a mixture: with probability p a replacement (sensitivity 2), else plain Poisson.
    The patient's probability in the first part is bounded by q, which holds for every population; the
    library's own event computes it from the population's size, and is too low by any factor when that size is
    only an upper bound (`tests/common/privacy/test_accountant.py` has the case: 0.43 printed, 5.70 spent).

>>> event = Event(noise_multiplier=2.0, sampling_prob=1 / 16, steps=320, cap=None, n_patients=1000)
>>> round(epsilon([event], 1e-5), 2)
2.56
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from scipy.special import bdtrc, logsumexp

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy.mixture import Mixture

GRID = 1e-4  # of privacy loss; the verifier's is ten times finer
SMALLEST_DELTA = 1e-10  # below, the error of the FFT is no longer far away
CONCEDED = 1e-4  # the share of delta that truncated draws may take before they are accounted one by one
MAX_CELLS = 1 << 24  # a composed distribution beyond this gets a coarser grid (still an upper bound)

Adjacency = Literal["add_or_remove_one", "replace_one"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Some steps of one mechanism with equal parameters: all of it public.

    One step: each of the patients' records is drawn with `sampling_prob` (Poisson), at most `cap` of them are
    kept (at random), each record's contribution has norm at most C, and Gaussian noise of deviation
    `noise_multiplier` * C is added to the sum. `records_per_patient` is 1 where the record is the patient.
    """

    mechanism: Literal["poisson_gaussian"] = "poisson_gaussian"
    noise_multiplier: float
    sampling_prob: float
    steps: int
    cap: int | None
    n_patients: int
    records_per_patient: int = 1

    def __post_init__(self) -> None:
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise PrivacyError(f"Expected {name}={value} in [{low}, {high}].")
        if self.mechanism != "poisson_gaussian":
            raise PrivacyError(f"Expected mechanism='poisson_gaussian'; came {self.mechanism!r}.")


_LIMITS: tuple[tuple[str, float, float], ...] = (
    ("noise_multiplier", 0.05, 1e5),
    ("sampling_prob", 1e-9, 1.0),
    ("steps", 0, 10_000_000),
    ("cap", 1, 10_000_000),
    ("n_patients", 1, 10_000_000),
    ("records_per_patient", 1, 128),
)


@dataclass(frozen=True, kw_only=True)
class Rdp:
    """An RDP figure. `dropped_orders` are those whose series did not converge; they were not used."""

    epsilon: float
    order: float
    dropped_orders: tuple[float, ...]


def merged(events: Sequence[Event]) -> tuple[Event, ...]:
    """Returns the events sorted, with equal parameters added up and empty ones left out."""
    steps: dict[Event, int] = {}
    for event in events:
        key = replace(event, steps=0)
        steps[key] = steps.get(key, 0) + event.steps
    return tuple(sorted((replace(key, steps=n) for key, n in steps.items() if n), key=_order))


def epsilon(
    events: Sequence[Event], delta: float, *, grid: float = GRID, adjacency: Adjacency = "add_or_remove_one"
) -> float:
    """Returns an epsilon such that all events together are (epsilon, delta)-private for every patient.

    | events                                   | result                                |
    |------------------------------------------|---------------------------------------|
    | none, or no steps                        | 0.0                                   |
    | truncation alone takes more than delta   | the mixture's; inf if records > 1     |

    Raises:
        PrivacyError: delta is not in [1e-10, 1).
    """
    if not SMALLEST_DELTA <= delta < 1:
        raise PrivacyError(f"Expected delta={delta} in [{SMALLEST_DELTA}, 1).")
    return _epsilon(merged(events), delta, grid, adjacency)


def curve(
    events: Sequence[Event], deltas: Sequence[float], *, adjacency: Adjacency = "add_or_remove_one"
) -> list[tuple[float, float]]:
    """Returns (delta, epsilon) for each delta: one guarantee seen from several sides."""
    return [(delta, epsilon(events, delta, adjacency=adjacency)) for delta in deltas]


def per_record(events: Sequence[Event]) -> tuple[Event, ...]:
    """Returns the events as a single record's: what utterance-level accounting would print for a patient."""
    return tuple(replace(event, records_per_patient=1, n_patients=_records(event)) for event in events)


def in_sites(events: Sequence[Event], n_sites: int) -> tuple[Event, ...]:
    """Returns what a patient spends who is in `n_sites` sites with these events each."""
    return tuple(replace(event, steps=event.steps * n_sites) for event in merged(events))


def rdp_epsilon(events: Sequence[Event], delta: float) -> Rdp:
    """Returns the RDP upper bound, its order, and the orders that were dropped."""
    orders = _rdp_orders()
    left = delta - conceded_delta(events)
    curve_of_orders, dropped = np.zeros(len(orders)), set[float]()
    for event in merged(events):
        values, lost = _rdp(replace(event, steps=1), orders)
        curve_of_orders += event.steps * np.array(values)
        dropped.update(lost)
    if left <= 0:
        return Rdp(epsilon=math.inf, order=math.nan, dropped_orders=tuple(sorted(dropped)))
    found = [_from_rdp(order, rho, left) for order, rho in zip(orders, curve_of_orders, strict=True)]
    best = int(np.argmin(found))
    return Rdp(
        epsilon=max(0.0, float(found[best])), order=orders[best], dropped_orders=tuple(sorted(dropped))
    )


def conceded_delta(events: Sequence[Event]) -> float:
    """Returns the probability, at most, that any draw of these events had to be truncated around one patient."""
    return math.fsum(event.steps * _truncation(event) for event in events)


def noise_for(target_epsilon: float, delta: float, event: Event, *, spent: Sequence[Event] = ()) -> float:
    """Returns the smallest noise multiplier (to 0.1 %, rounded up) that keeps `spent` plus the event in target.

    Raises:
        PrivacyError: no noise multiplier up to 100,000 does; name what was asked.
    """

    def figure(exponent: int, grid: float = 5 * GRID) -> float:
        return epsilon([*spent, replace(event, noise_multiplier=1.001**exponent)], delta, grid=grid)

    def within(exponent: int, grid: float = 5 * GRID) -> bool:
        return figure(exponent, grid) <= target_epsilon

    # Multiples of 0.1 %, as exponents of 1.001; a coarse grid finds the place, the fine one has the last word.
    low, high = math.ceil(math.log(0.05) / math.log(1.001)), math.floor(math.log(1e5) / math.log(1.001))
    reachable = within(high)  # asked first: the search would ask it last
    first = None
    if reachable:
        first = _first(low, high, within, guess=_near(figure, target_epsilon, low, high), width=2)
    while first is not None and not within(first, GRID):
        first = first + 1 if first < high else None
    if first is None:
        raise PrivacyError(
            f"No noise reaches epsilon={target_epsilon} at delta={delta}: take fewer rounds, a smaller "
            "sampling_prob, or a larger target."
        )
    return math.ceil(1.001**first * 1e4) / 1e4


def _near(figure: Callable[[int], float], target: float, low: int, high: int) -> int:
    """Returns an exponent whose figure is about the target: epsilon falls nearly as a power of the noise."""
    x0, x1, y0, slope = 0, 0, 0.0, -1.2e-3
    for _ in range(4):
        value = figure(x1)
        if not 0.0 < value < math.inf:
            break
        y1 = math.log(value / target)
        if x1 != x0:
            slope = min((y1 - y0) / (x1 - x0), -1e-4)
        x0, y0 = x1, y1
        x1 = min(max(x1 - round(y1 / slope), low), high)
        if x1 == x0:
            break
    return x1


def _first(low: int, high: int, holds: Callable[[int], bool], *, guess: int, width: int = 16) -> int | None:
    """Returns the smallest integer in [low, high] where a monotone claim holds, or None; gallops from `guess`."""
    inside = min(max(guess, low), high)
    if holds(inside):
        above = inside
        while above > low and holds(max(low, above - width)):
            above, width = max(low, above - width), 2 * width
        below = max(low - 1, above - width)
    else:
        below = inside
        while not holds(min(high, below + width)):
            below, width = min(high, below + width), 2 * width
            if below == high:
                return None
        above = min(high, below + width)
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (below, middle) if holds(middle) else (middle, above)
    return above


def _order(event: Event) -> tuple[float, ...]:
    cap = -1 if event.cap is None else event.cap
    return (
        event.noise_multiplier,
        event.sampling_prob,
        event.n_patients,
        event.records_per_patient,
        cap,
        event.steps,
    )


def _records(event: Event) -> int:
    return event.n_patients * event.records_per_patient


def _truncation(event: Event) -> float:
    """Returns P(others drawn > cap - m): only then can a patient with m records meet a truncated draw."""
    if event.cap is None:
        return 0.0
    others, room = _records(event) - event.records_per_patient, event.cap - event.records_per_patient
    if room >= others:
        return 0.0
    return 1.0 if room < 0 or event.sampling_prob == 1.0 else float(bdtrc(room, others, event.sampling_prob))


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[Event, ...], delta: float, grid: float, adjacency: Adjacency) -> float:
    if not events:
        return 0.0
    conceded = conceded_delta(events)
    mixes = conceded > CONCEDED * delta and all(event.records_per_patient == 1 for event in events)
    left = delta if mixes else delta - conceded
    if left <= 0:
        return math.inf
    pld = _composed(events, _grid(events, grid), adjacency, mixes)
    if adjacency == "replace_one" and any(event.records_per_patient > 1 for event in events):
        return _replace_group(pld, left)
    return max(0.0, float(pld.get_epsilon_for_delta(left)))


def _replace_group(pld: Any, delta: float) -> float:
    """Replacing is removing, then adding: (e, d) twice is (2 e, d + exp(e) d). No tighter bound is known to us."""
    one = 0.0
    for _ in range(200):
        share = delta / (1 + math.exp(one))
        if share < SMALLEST_DELTA / 1e3:  # the convolution's own error would decide
            return math.inf
        needed = float(pld.get_epsilon_for_delta(share))
        if needed <= one:
            return 2 * one
        one = needed + 1e-4
    return math.inf


def _grid(events: tuple[Event, ...], grid: float) -> float:
    """Returns the grid, finer for very many steps (the error grows as steps * grid^2), coarser for very wide losses."""
    steps = sum(event.steps for event in events)
    finest = min(grid, math.sqrt(2e-3 / steps)) if grid <= GRID else grid
    width = math.sqrt(math.fsum(event.steps * _width(event) ** 2 for event in events))
    return max(finest, width / MAX_CELLS)


def _width(event: Event) -> float:
    """Bounds the span of one step's privacy loss where it has any mass worth counting."""
    reach = event.records_per_patient / event.noise_multiplier
    return 2 * reach * 10 + reach**2


@lru_cache(maxsize=4)
def _composed(events: tuple[Event, ...], grid: float, adjacency: Adjacency, mixes: bool) -> Any:
    whole = None
    for event in events:
        part = _step(replace(event, steps=1), grid, adjacency, mixes).self_compose(event.steps)
        whole = part if whole is None else whole.compose(part)
    return whole


@lru_cache(maxsize=8)
def _step(event: Event, grid: float, adjacency: Adjacency, mixes: bool) -> Any:
    """Returns the privacy loss distribution of one step."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as pld

    if event.records_per_patient > 1:
        return _records_step(event, grid)

    def gaussian(deviation: float, probability: float, relation: Any) -> Any:
        return pld.from_gaussian_mechanism(
            standard_deviation=deviation,
            sampling_prob=probability,
            value_discretization_interval=grid,
            neighboring_relation=relation,
        )

    replaces = NeighboringRelation.REPLACE_ONE
    relation = replaces if adjacency == "replace_one" else NeighboringRelation.ADD_OR_REMOVE_ONE
    plain = gaussian(event.noise_multiplier, event.sampling_prob, relation)
    truncation = _truncation(event) if mixes else 0.0
    if truncation == 0.0 or event.cap is None:
        return plain
    displaced = gaussian(event.noise_multiplier / 2, event.sampling_prob, replaces)
    return displaced.compute_mixture(plain, truncation)


def _records_step(event: Event, grid: float) -> Any:
    """Returns one step for a patient with several records; the library's own takes five minutes for 32."""
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld import privacy_loss_distribution as pld

    def pmf(cells: np.ndarray, deltas: np.ndarray) -> Any:
        first, last = int(cells[0]), int(cells[-1])
        return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(grid, first, last, deltas)

    mixture = Mixture(event.noise_multiplier, event.sampling_prob, event.records_per_patient)
    removed = mixture.cells(grid)
    added = -removed[::-1]
    return pld.PrivacyLossDistribution(
        pmf(removed, mixture.delta_of_removal(removed * grid)),
        pmf(added, mixture.delta_of_adding(added * grid)),
    )


_DEFAULT_ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024)


def _rdp_orders() -> tuple[float, ...]:
    return tuple(float(order) for order in _DEFAULT_ORDERS)


def _from_rdp(order: float, rho: float, delta: float) -> float:
    """Canonne, Kamath, Steinke 2020, Proposition 12."""
    return rho + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


@lru_cache(maxsize=512)
def _rdp(event: Event, orders: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns one step's RDP at each order, inf where there is none, and the orders that were dropped."""
    if event.records_per_patient > 1:
        return tuple(_records_rdp(event, order) for order in orders), ()
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    with _dropped_orders() as dropped:
        accountant = RdpAccountant(orders)
        accountant.compose(
            PoissonSampledDpEvent(event.sampling_prob, GaussianDpEvent(event.noise_multiplier))
        )
    # The library gives no public view of its curve; the field's name is pinned with the version.
    values = tuple(float(value) for value in accountant._rdp)
    silent = {order for order, value in zip(orders, values, strict=True) if not math.isfinite(value)}
    return values, tuple(sorted(silent | set(dropped)))


def _records_rdp(event: Event, order: float) -> float:
    """An upper bound by joint convexity over how many records are drawn: loose, and valid in both directions."""
    m, q = event.records_per_patient, event.sampling_prob
    exponents = [order * (order - 1) * c * c / (2 * event.noise_multiplier**2) for c in range(m + 1)]
    weights = Mixture(event.noise_multiplier, q, m).log_weights
    return float(logsumexp(weights + np.array(exponents))) / (order - 1)


@contextmanager
def _dropped_orders() -> Iterator[list[float]]:
    """Collects the orders that dp-accounting drops; it only logs them (`... failed to converge ... alpha=`)."""
    dropped: list[float] = []

    def collect(record: logging.LogRecord) -> bool:
        if "failed to converge" not in str(record.msg) or not isinstance(record.args, tuple):
            return True
        dropped.append(float(str(record.args[-1])))
        return False

    logger = logging.getLogger("absl")
    logger.addFilter(collect)
    try:
        yield dropped
    finally:
        logger.removeFilter(collect)
