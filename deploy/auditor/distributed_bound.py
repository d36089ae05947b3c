"""What sums over sites give away of a patient: a Renyi bound, from the papers, in decimals of 40 digits.

`verify_ledger.py` loads this file, and needs it beside itself, where a ledger has charges of mode `distributed`. It
uses Python's standard library, and nothing of Sottovoce. Sums stand here as they stand in the papers, with binomials
in integers and powers in decimals: no logarithm of a sum is taken in parts, no series is cut off.

One step: each of at most n_patients patients of a site is drawn with probability q, at most `cap` of them; each gives
a vector of whole numbers of squared norm at most s; each site adds discrete Gaussian noise of variance v in every
coordinate, v >= 1/2. The total of at least n_min sites is seen, and n_colluding of them tell what noise they added.

  KLS   Kairouz, Liu, Steinke 2021, arXiv 2102.06387: theorem 1 (`tau`), proposition 14 (`unsampled`)
  ZW    Zhu and Wang 2019: the binomial sum of moments for a sampled mechanism (`sampled`); when a patient is added
        instead of removed it holds as well, since the noise is symmetric (Mironov, Talwar, Zhang 2019, theorem 5)
  CKS   Canonne, Kamath, Steinke 2020, proposition 12: from Renyi to epsilon (`epsilon`)
  A patient in k sites: joint convexity over how many of them draw the patient (`convex`), or every share in k parts
  and k steps, each against one part of every share (`split`). Both are bounds; the smaller is taken.
"""

import math
from decimal import Decimal, getcontext
from fractions import Fraction
from functools import cache

getcontext().prec = 40
getcontext().Emax = 10**12
getcontext().Emin = -(10**12)
PI = Decimal("3.14159265358979323846264338327950288419716939937510582")
ORDERS = [*range(2, 65), *range(68, 129, 4), 160, 192, 256, 384, 512]
SOME, MANY = 10, 5  # numbers of colluding sites, and of a patient's sites, that are printed one by one


def epsilon(charges, delta, *, n_colluding=None, n_sites=1, others=lambda order: 0.0):
    """The epsilon of all charges together; `others` is the divergence of everything else, at an order."""
    if not any(charge["steps"] for charge in charges):
        return 0.0
    left, found = dec(delta) - lost(charges, n_sites), []
    for a in ORDERS if left > 0 else []:
        spent = sum((one["steps"] * step(one, a, n_colluding, n_sites) for one in charges), dec(others(a)))
        found.append(spent + (1 - 1 / Decimal(a)).ln() - (left * a).ln() / (a - 1))
    return float(max(Decimal(0), min(found))) if found else math.inf


def lost(charges, n_sites=1):
    """What is taken off delta: draws that lose patients, and sums too large to be sent."""
    total = Decimal(0)
    for one in charges:
        full = crowded(one["n_patients"] - 1, Fraction(one["sampling_prob"]), one.get("cap"))
        total += one["steps"] * (n_sites * full + dec(one["overflow_prob"]))
    return total


def spent(charges, a, kept):
    """The divergence of all charges at an order, if what they concede is within what was kept for it."""
    if lost(charges) > kept * (1 + 1e-9):
        return math.inf
    return float(sum((charge["steps"] * step(charge, a) for charge in charges), Decimal(0)))


def beside(charges, delta, most_sites):
    """What else a reader should know of a study: lines of text."""
    n_others = min(charge["n_min"] for charge in charges) - 1
    for t in range(min(n_others, SOME)):
        yield f"epsilon {epsilon(charges, delta, n_colluding=t):.6f} if {t} other sites collude"
    yield f"epsilon {epsilon(charges, delta, n_colluding=n_others):.6f} if all other sites collude ({n_others})"
    for k in range(2, most_sites + 1) if most_sites <= MANY else (2, most_sites):
        yield f"epsilon {epsilon(charges, delta, n_sites=k):.6f} for a patient in {k} sites"


def step(charge, a, n_colluding=None, n_sites=1):
    """One step's divergence: the least over every number of shares that are left, since further ones only add noise."""
    honest = charge["n_min"] - (charge["n_colluding"] if n_colluding is None else n_colluding)
    v = Fraction(charge["variance_numerator"], charge["variance_denominator"])
    sizes = (charge["squared_norm"], charge["n_parameters"], Fraction(charge["sampling_prob"]))
    counts = range(1, honest + 1) if v < 100 * n_sites else [honest]  # of wider shares tau is below 1e-400
    if n_sites == 1:
        return min(sampled(v, n, *sizes, a) for n in counts)
    return min(way(v, n, *sizes, a, n_sites) for n in counts for way in (convex, split))


@cache
def sampled(v, n, s, width, q, a):  # ZW
    total = sum(odds * moment(v, n, s, width, k) for k, odds in enumerate(binomial(q, a)))
    return min(unsampled(v, n, s, width, a, 1), total.ln() / (a - 1))


@cache
def moment(v, n, s, width, k):
    return Decimal(1) if k < 2 else ((k - 1) * unsampled(v, n, s, width, k, 1)).exp()


def convex(v, n, s, width, q, a, n_sites):
    total = Decimal(0)
    for drawn, odds in enumerate(binomial(q, n_sites)):
        total += odds * ((a - 1) * unsampled(v, n, s, width, a, drawn)).exp()
    return total.ln() / (a - 1)


def split(v, n, s, width, q, a, n_sites):
    part = v / n_sites
    if 2 * part < 1:
        return Decimal("Infinity")
    apart = min(width, n_sites * s) * n * tau(part, n_sites) / 2  # a share is not quite the sum of its parts
    return n_sites * sampled(part, n, s, width, q, a) + apart * (2 * a - 1) / (a - 1)


@cache
def unsampled(v, n, s, width, a, times):  # KLS, for a patient who moves the sum by `times` norms
    places, extra = min(width, times * s), tau(v, n)  # whole numbers: so many places move, at most
    l2 = times * dec(s).sqrt() / dec(v * n).sqrt()
    l1 = min(dec(places).sqrt() * times * dec(s).sqrt(), dec(times * times * s)) / dec(v * n).sqrt()
    half = Decimal(a) / 2
    return min(
        half * l2 * l2 + extra * places,
        half * (l2 * l2 + 2 * l1 * extra + places * extra * extra),
        half * (l2 + dec(places).sqrt() * extra) ** 2,
    )


@cache
def tau(v, n):  # KLS: how far a sum of n discrete Gaussians is from one of them, at most
    return 10 * sum(((-2 * PI * PI * dec(v * k / (k + 1))).exp() for k in range(1, n)), Decimal(0))


@cache
def crowded(n, q, cap):
    """P(at least `cap` of n others are drawn)."""
    if cap is None or cap > n or q == 1:
        return Decimal(cap is not None and cap <= n)
    term, total, odds = dec(1 - q) ** n, Decimal(0), dec(q / (1 - q))
    for k in range(n + 1):
        if k >= cap:
            total += term
            if k > n * q and term < total / 10**30:
                break
        term *= odds * (n - k) / (k + 1)
    return total


@cache
def binomial(q, n):
    """P(k of n), for every k."""
    if q == 1:
        return [Decimal(0)] * n + [Decimal(1)]
    inside, outside = dec(q), dec(1 - q)
    return [math.comb(n, k) * inside**k * outside ** (n - k) for k in range(n + 1)]


def dec(number):
    exact = Fraction(number)
    return Decimal(exact.numerator) / Decimal(exact.denominator)
