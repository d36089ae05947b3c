"""Mode `distributed`: each site adds a share of the noise, and only the sum of all sites is ever seen.

    at a site   clip -> integer grid -> sum -> its share of the noise -> SiteSum -> masks -> MaskedUpdate
    afterwards  the masked sums of the survivors add up (common/secagg) -> `decoded`, once -> PrivateUpdate

Guarantees, if the secure sum shows nothing but the total of at least `n_min` sites:
  - Whoever sees the total and holds everything of `n_colluding` sites meets noise of at least
    `noise_multiplier * clip_norm`: a share has the variance of the whole over n_min - n_colluding, rounded up.
  - What is decoded is the integer sum of all sites, noise and all, without any rounding before the last division.
  - The sum never wraps around: each site's numbers stay within its part of the ring of 2^32 (`largest_entry`), or
    it releases nothing. That happens with probability at most 2^-40 a step, in any site together (`overflow_prob`);
    constants for which it could be more are refused. Nothing is clamped.
  - Constants only: nothing here follows from who was drawn or how many there are.

It does not cover what a secure sum does not: a site that leaves its noise out, or says it has patients that it has
not. More than `n_colluding` sites meet less noise; `DistributedCost.by_colluding` says how little.

>>> mechanism = DistributedMechanism(
...     clip_norm=1.0, grid_step=2**-16, noise_multiplier=2.0, n_sites=10, n_min=8, n_colluding=2, cap=64,
...     n_parameters=60_000, expected_patients=40.0,
... )
>>> mechanism.share_variance, mechanism.overflow_prob < 2**-40
(Fraction(2932031007403, 1024), True)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy import distributed_accountant as accountant
from sottovoce.common.privacy.clip import clip, quantised_sum
from sottovoce.common.privacy.discrete import discrete_gaussians
from sottovoce.common.privacy.distributed_accountant import DistributedEvent
from sottovoce.common.privacy.source import Source
from sottovoce.common.privacy.stages import (
    MaskedUpdate,
    PatientGradients,
    PrivateUpdate,
    SiteSum,
)

LARGEST = 2**31 - 1  # of what all sites may add up to, in size
MOST_OVERFLOW = 2.0**-40  # a step's probability that any site's numbers leave its part of the ring
VARIANCE_PARTS = 1024  # a share's variance is a whole number of 1/1024 where that is fine enough

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class DistributedMechanism:
    """One step's public constants, for a federation of `n_sites` sites of which at least `n_min` must survive.

    `noise_multiplier` is of the noise that protects, not of what is added: with all sites present and honest there
    is more. `cap` bounds the patients of one site in one draw; `expected_patients` is the whole federation's.

    Raises:
        PrivacyError: not 1 <= n_colluding < n_min <= n_sites, or the ring or the sampler cannot carry the numbers.
    """

    clip_norm: float
    grid_step: float
    noise_multiplier: float
    n_sites: int
    n_min: int
    n_colluding: int
    cap: int
    n_parameters: int
    expected_patients: float
    seeded_noise: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.n_colluding < self.n_min <= self.n_sites:
            raise PrivacyError(
                f"Expected 1 <= n_colluding < n_min <= n_sites; came {self.n_colluding}, {self.n_min}, "
                f"{self.n_sites}."
            )
        sizes = (self.clip_norm, self.grid_step, self.noise_multiplier, self.expected_patients)
        if not all(0 < size < math.inf for size in sizes) or min(self.cap, self.n_parameters) < 1:
            raise PrivacyError(
                "Expected positive, finite norms, noise and divisors, and at least one patient and parameter."
            )
        if not self.overflow_prob <= MOST_OVERFLOW:
            raise PrivacyError(
                f"Expected sums that 32 bits hold but for a probability of 2^-40; clip_norm / grid_step = "
                f"{self.clip_norm / self.grid_step:g} is too fine for {self.n_sites} sites of {self.cap} patients. "
                "Take a coarser grid (`finest_grid` gives one), a smaller cap, or fewer parameters."
            )
        if self.share_variance < Fraction(1, 2):
            raise PrivacyError("Expected shares of noise of variance at least 1/2; take a finer grid.")

    @property
    def squared_norm(self) -> int:
        """The largest squared norm of one patient's vector, in grid steps: what `quantised_sum` checks."""
        return math.floor((Fraction(self.clip_norm) / Fraction(self.grid_step)) ** 2)

    @property
    def share_variance(self) -> Fraction:
        """The parameter of one site's discrete Gaussian, in squared grid steps."""
        deviation = Fraction(self.noise_multiplier) * Fraction(self.clip_norm) / Fraction(self.grid_step)
        exact = deviation**2 / (self.n_min - self.n_colluding)
        parts = VARIANCE_PARTS if exact < 2**40 else 1
        return Fraction(math.ceil(exact * parts), parts)

    @property
    def largest_entry(self) -> int:
        """The largest number, in size, that a site may add: all sites together then stay inside the ring."""
        return LARGEST // self.n_sites

    @property
    def overflow_prob(self) -> float:
        """The probability, at most, that any coordinate of any site's sum is larger than that.

        A patient's vector has no coordinate above the root of `squared_norm`; the rest is room for noise. Discrete
        Gaussians are sub-Gaussian with their own parameter (Canonne, Kamath, Steinke 2020, corollary 17).
        """
        room = self.largest_entry - self.cap * math.isqrt(self.squared_norm)
        if room <= 0:
            return 1.0
        exponent = -(room**2) / (2 * float(self.share_variance))
        return min(1.0, 2 * self.n_sites * self.n_parameters * math.exp(exponent))

    def event(self, *, sampling_prob: float, steps: int, n_patients: int) -> DistributedEvent:
        """Returns so many steps as the accountant's event; `n_patients` is the public bound for every site."""
        share = self.share_variance
        return DistributedEvent(
            squared_norm=self.squared_norm,
            variance_numerator=share.numerator,
            variance_denominator=share.denominator,
            n_min=self.n_min,
            n_colluding=self.n_colluding,
            n_parameters=self.n_parameters,
            sampling_prob=sampling_prob,
            steps=steps,
            cap=self.cap,
            n_patients=n_patients,
            overflow_prob=self.overflow_prob,
        )


def finest_grid(
    *,
    clip_norm: float,
    noise_multiplier: float,
    n_sites: int,
    n_min: int,
    n_colluding: int,
    cap: int,
    n_parameters: int,
) -> float:
    """Returns the finest grid step, a power-of-two part of the clipping norm, whose sums 32 bits hold.

    >>> finest_grid(
    ...     clip_norm=1.0, noise_multiplier=2.0, n_sites=10, n_min=8, n_colluding=2, cap=64, n_parameters=60_000
    ... ) == 2.0**-21
    True

    Raises:
        PrivacyError: no grid of at least 2^8 parts does.
    """
    for bits in range(26, 7, -1):
        try:
            DistributedMechanism(
                clip_norm=clip_norm,
                grid_step=clip_norm * 2.0**-bits,
                noise_multiplier=noise_multiplier,
                n_sites=n_sites,
                n_min=n_min,
                n_colluding=n_colluding,
                cap=cap,
                n_parameters=n_parameters,
                expected_patients=1.0,
            )
        except PrivacyError:
            continue
        return clip_norm * 2.0**-bits
    raise PrivacyError(
        "No grid of 2^8 to 2^26 parts of the clipping norm fits into 32 bits: take a smaller cap."
    )


def noise_for(
    target_epsilon: float,
    delta: float,
    mechanism: DistributedMechanism,
    *,
    sampling_prob: float,
    steps: int,
    n_patients: int,
) -> float:
    """Returns the smallest noise multiplier (to 0.1 %, rounded up) with which so many steps stay in target.

    Raises:
        PrivacyError: no noise that the mechanism's grid can carry does.
    """

    def within(noise_multiplier: float) -> bool:
        noisier = replace(mechanism, noise_multiplier=noise_multiplier)
        event = noisier.event(sampling_prob=sampling_prob, steps=steps, n_patients=n_patients)
        return accountant.epsilon([event], delta) <= target_epsilon

    return least_noise(within, mechanism.noise_multiplier)


def least_noise(within: Callable[[float], bool], start: float) -> float:
    """Returns the smallest noise multiplier (to 0.1 %, rounded up) that is `within` what is wanted.

    Raises:
        PrivacyError: what `within` raises where it can ask for no more noise.
    """
    low, high = start, start
    while within(low):
        low, high = low / 2, low
    while not within(high):
        low, high = high, high * 2
    while high > low * 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if within(middle) else (middle, high)
    return math.ceil(high * 1e4) / 1e4


def site_sum(gradients: PatientGradients, mechanism: DistributedMechanism, source: Source) -> SiteSum:
    """Clips, rounds, adds up, and adds this site's share of the noise: once for each step and attempt.

    Another attempt, with other survivors, needs another draw and another share: two sums of one share differ by
    what the survivors differ in, without noise.

    Raises:
        PrivacyError: more rows than the cap, another width, a source that is not the mechanism's, or (with probability
            below 2^-40) a number beyond this site's part of the ring.
    """
    _check_source(mechanism, source)
    n_rows, width = gradients.values.shape if gradients.values.ndim == 2 else (0, -1)
    if n_rows > mechanism.cap or width != mechanism.n_parameters:
        raise PrivacyError(
            f"Expected at most cap={mechanism.cap} rows of n_parameters={mechanism.n_parameters} gradients."
        )
    total = quantised_sum(clip(gradients, mechanism.clip_norm), mechanism.grid_step)
    values = total.values + discrete_gaussians(mechanism.share_variance, width, source)
    if np.abs(values).max() > mechanism.largest_entry:
        raise PrivacyError("This site's sum does not fit into its part of the ring; nothing was released.")
    return SiteSum(values=values, simulated=source.simulated)


def masked(total: SiteSum, mask: Callable[[Integers], bytes]) -> MaskedUpdate:
    """Puts the site's masks on: `mask` is the secure sum's own step, and what it returns is what is sent."""
    return MaskedUpdate(message=mask(total.values), simulated=total.simulated)


def decoded(total: Integers, mechanism: DistributedMechanism, *, n_summed: int) -> PrivateUpdate:
    """Returns what the unmasked sum of `n_summed` sites says: whole grid steps, divided by a public constant.

    Raises:
        PrivacyError: fewer sites than `n_min` or more than there are, a vector of another width or type, or numbers
            that so many sites cannot add up to.
    """
    if not mechanism.n_min <= n_summed <= mechanism.n_sites:
        raise PrivacyError(
            f"Expected the sum of n_min={mechanism.n_min} to {mechanism.n_sites} sites; came {n_summed}. "
            "Its noise would be less than was promised, and nothing of it may be used."
        )
    if total.dtype != np.int64 or total.shape != (mechanism.n_parameters,):
        raise PrivacyError(
            f"Expected {mechanism.n_parameters} whole numbers of 64 bits; came another vector."
        )
    if np.abs(total).max() > n_summed * mechanism.largest_entry:
        raise PrivacyError(
            "Expected a sum within its sites' parts of the ring; masks were not taken off rightly."
        )
    return PrivateUpdate(
        values=(total * (mechanism.grid_step / mechanism.expected_patients)).astype(np.float32),
        steps=1,
        simulated=mechanism.seeded_noise,
    )


@dataclass(frozen=True, kw_only=True)
class DistributedCost:
    """What a study costs each patient. `by_colluding[t]` is against t sites; the last is against all others.

    `by_sites[k - 1]` is for a patient who is in k sites, against the study's own number of colluding ones.
    `replace_one` is the other adjacency: a patient replaced by another.
    """

    epsilon: float
    delta: float
    replace_one: float
    by_colluding: tuple[float, ...]
    by_sites: tuple[float, ...]
    events: tuple[DistributedEvent, ...]

    @property
    def if_all_others_collude(self) -> float:
        """The figure where a site's own share is all that protects."""
        return self.by_colluding[-1]


def cost(
    events: Sequence[DistributedEvent], delta: float, *, max_sites_per_patient: int = 1
) -> DistributedCost:
    """Returns the study's figure, seen from every number of colluding sites and sites of one patient.

    Raises:
        PrivacyError: no event, or events of different federations.
    """
    federations = {(event.n_min, event.n_colluding) for event in events}
    if len(federations) != 1:
        raise PrivacyError(f"Expected events of one federation; came {len(federations)}.")
    ((n_min, _),) = federations
    by_sites = tuple(
        accountant.epsilon(events, delta, n_sites=k) for k in range(1, max_sites_per_patient + 1)
    )
    return DistributedCost(
        epsilon=by_sites[0],
        delta=delta,
        replace_one=accountant.replace_one(events, delta),
        by_colluding=tuple(accountant.epsilon(events, delta, n_colluding=t) for t in range(n_min)),
        by_sites=by_sites,
        events=tuple(events),
    )


def _check_source(mechanism: DistributedMechanism, source: Source) -> None:
    if source.simulated and not mechanism.seeded_noise:
        raise PrivacyError(
            "Expected a secret source; came a seeded one, and the study does not say seeded_noise = true."
        )
