"""A second accountant of mode `distributed`, from the papers, in decimals of 40 digits. It imports nothing of ours.

Sums are formed as they stand in the papers, with binomials in integers and powers in decimals; no logarithm of a
sum, no library. Kairouz, Liu, Steinke 2021 (theorem 1, proposition 14), Zhu and Wang 2019, Canonne, Kamath,
Steinke 2020 (proposition 12).
"""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal, getcontext
from fractions import Fraction
from functools import cache
from typing import Any

getcontext().prec = 40
getcontext().Emax = 10**12
getcontext().Emin = -(10**12)
PI = Decimal("3.14159265358979323846264338327950288419716939937510582")
ORDERS = [*range(2, 65), *range(68, 129, 4), 160, 192, 256, 384, 512]


def epsilon(
    events: Sequence[Mapping[str, Any]], delta: float, *, n_colluding: int | None = None, n_sites: int = 1
) -> float:
    """The figure of all events together; their keys are the ledger's."""
    events = [event for event in events if event["steps"]]
    if not events:
        return 0.0
    left = dec(delta) - sum(event["steps"] * lost(event, n_sites) for event in events)
    if left <= 0:
        return math.inf
    best = Decimal("Infinity")
    for order in ORDERS:
        spent = sum(event["steps"] * step(event, order, n_colluding, n_sites) for event in events)
        price = (1 - 1 / Decimal(order)).ln() - (left * order).ln() / (order - 1)
        best = min(best, spent + price)
    return float(max(Decimal(0), best))


def step(event: Mapping[str, Any], order: int, n_colluding: int | None, n_sites: int) -> Decimal:
    """One step's divergence: against every number of shares that are left, since further ones only add noise."""
    honest = event["n_min"] - (event["n_colluding"] if n_colluding is None else n_colluding)
    share = Fraction(event["variance_numerator"], event["variance_denominator"])
    norm, width, q = event["squared_norm"], event["n_parameters"], Fraction(event["sampling_prob"])
    counts = range(1, honest + 1) if share < 100 * n_sites else [honest]
    if n_sites == 1:
        return min(sampled(share, n, norm, width, q, order) for n in counts)
    return min(
        min(convex(share, n, norm, width, q, order, n_sites), split(share, n, norm, width, q, order, n_sites))
        for n in counts
    )


@cache
def sampled(share: Fraction, n: int, norm: int, width: int, q: Fraction, order: int) -> Decimal:
    whole = unsampled(share, n, norm, width, order, 1)
    inside, outside, total = powers(q), powers(1 - q), Decimal(0)
    for k in range(order + 1):
        total += math.comb(order, k) * inside[k] * outside[order - k] * moment(share, n, norm, width, k)
    return min(whole, total.ln() / (order - 1))


@cache
def moment(share: Fraction, n: int, norm: int, width: int, k: int) -> Decimal:
    return Decimal(1) if k < 2 else ((k - 1) * unsampled(share, n, norm, width, k, 1)).exp()


def convex(share: Fraction, n: int, norm: int, width: int, q: Fraction, order: int, n_sites: int) -> Decimal:
    inside, outside, total = powers(q), powers(1 - q), Decimal(0)
    for c in range(n_sites + 1):
        whole = ((order - 1) * unsampled(share, n, norm, width, order, c)).exp()
        total += math.comb(n_sites, c) * inside[c] * outside[n_sites - c] * whole
    return total.ln() / (order - 1)


def split(share: Fraction, n: int, norm: int, width: int, q: Fraction, order: int, n_sites: int) -> Decimal:
    part = share / n_sites
    if 2 * part < 1:
        return Decimal("Infinity")
    apart = min(width, n_sites * norm) * n * tau(part, n_sites) / 2
    return n_sites * sampled(part, n, norm, width, q, order) + apart * (2 * order - 1) / (order - 1)


@cache
def unsampled(share: Fraction, n: int, norm: int, width: int, order: int, times: int) -> Decimal:
    moved, extra = min(width, times * norm), tau(share, n)
    l2 = times * dec(norm).sqrt() / dec(share * n).sqrt()
    l1 = min(dec(moved).sqrt() * times * dec(norm).sqrt(), dec(times * times * norm)) / dec(share * n).sqrt()
    half = Decimal(order) / 2
    return min(
        half * l2 * l2 + extra * moved,
        half * (l2 * l2 + 2 * l1 * extra + moved * extra * extra),
        half * (l2 + dec(moved).sqrt() * extra) ** 2,
    )


@cache
def tau(share: Fraction, n: int) -> Decimal:
    return 10 * sum(((-2 * PI * PI * dec(share * k / (k + 1))).exp() for k in range(1, n)), Decimal(0))


def lost(event: Mapping[str, Any], n_sites: int) -> Decimal:
    others, room, q = event["n_patients"] - 1, event["cap"], Fraction(event["sampling_prob"])
    too_many = Decimal(0)
    if room is not None and room - 1 < others:
        inside, outside = powers(q), powers(1 - q)
        terms = (math.comb(others, k) * inside[k] * outside[others - k] for k in range(room, others + 1))
        too_many = sum(terms, Decimal(0))
    return n_sites * too_many + dec(event["overflow_prob"])


@cache
def powers(base: Fraction) -> list[Decimal]:
    """base^0, base^1, ... as far as the largest order, or the most patients that anybody asks for here."""
    found, factor = [Decimal(1)], dec(base)
    for _ in range(1000):
        found.append(found[-1] * factor)
    return found


def dec(number: float | Fraction) -> Decimal:
    exact = Fraction(number)
    return Decimal(exact.numerator) / Decimal(exact.denominator)
