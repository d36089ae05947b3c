"""What a domain has promised, and the rule that decides whether one more study fits under its cap.

A study's constants are fixed and its charges are reserved whole when it is approved, so the hard stop is asked
once for each study, before its first training step; rounds then draw from what was reserved.

 1. Everything that the domain has promised, together with the new study, by the Renyi filter at the domain's
    delta and at the order that its opening fixed: at most the cap -> allowed, by `rdp_filter`.
 2. Else, where the new study is the first that this domain ever approved, the same by PLD: at most the cap ->
    allowed, by `pld`. PLD is tighter, and valid because nothing was seen when the constants were chosen. A sum over
    sites has no PLD that we know of: where one is among the charges, the smallest Renyi bound of any order decides,
    and the study is allowed by `rdp`.
 3. Else denied.

A study that ends early gives back what it has not drawn, but not one that was allowed by rule 2: the filter never
covered it, so the domain goes on as if all of it had been spent.

A cap that moves does not move the order (`privacy/filter.py` has the reason).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from sottovoce.common.ledger.entries import (
    AccountedBy,
    AnyCharge,
    Charge,
    DistributedCharge,
    DomainOpened,
)
from sottovoce.common.privacy.distributed_accountant import DistributedEvent
from sottovoce.common.privacy.filter import filter_epsilon, fixed_order


class Accountant(Protocol):
    """PLD, and a Renyi bound where there are secure sums: pessimistic, deterministic."""

    def facts_of(self, charges: Sequence[AnyCharge]) -> AccountedBy:
        """Which program this is, for such charges."""

    def epsilon(
        self,
        charges: Sequence[AnyCharge],
        delta: float,
        *,
        n_colluding: int | None = None,
        n_sites: int = 1,
    ) -> float:
        """Returns an upper bound of the epsilon of all charges together.

        `n_colluding` asks for another number of colluding sites than a secure sum's own, all others at most;
        `n_sites` is how many sites the patient is in.
        """


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the rule says: the figure that decided, and by which part of the rule."""

    allowed: bool
    decided_by: Literal["pld", "rdp", "rdp_filter"]
    domain_epsilon: float


def decide(
    promised: Sequence[AnyCharge],
    charges: Sequence[AnyCharge],
    *,
    opened: DomainOpened,
    cap: float,
    first: bool,
    accountant: Accountant,
) -> Decision:
    """Asks whether `charges` fit under the cap in force beside what was promised before."""
    together = merged([*promised, *charges])
    by_filter = by_the_filter(together, opened, order=order_of(opened))
    if by_filter <= cap or not first:
        return Decision(allowed=by_filter <= cap, decided_by="rdp_filter", domain_epsilon=by_filter)
    figure = accountant.epsilon(together, opened.delta)
    return Decision(allowed=figure <= cap, decided_by=decider_of_first(charges), domain_epsilon=figure)


def decider_of_first(charges: Sequence[AnyCharge]) -> Literal["pld", "rdp"]:
    """Returns whose word rule 2 takes for a first study."""
    return "rdp" if any(isinstance(charge, DistributedCharge) for charge in charges) else "pld"


def order_of(opened: DomainOpened) -> int:
    """Returns the filter's order in a domain: fixed for good by what the domain was opened with."""
    return fixed_order(opened.epsilon_cap, opened.delta)


def by_the_filter(charges: Sequence[AnyCharge], opened: DomainOpened, *, order: int) -> float:
    """Returns what the filter says of everything that a domain has promised; inf where too much would be conceded."""
    accountable = [sum_of(charge) if isinstance(charge, DistributedCharge) else charge for charge in charges]
    return filter_epsilon(accountable, opened.delta, order=order, kept=opened.conceded_delta or 0.0)


def sum_of(charge: DistributedCharge) -> DistributedEvent:
    """Returns a ledger's charge as the accountant's event. Raises: PrivacyError where its numbers are impossible."""
    return DistributedEvent(
        mechanism=charge.mechanism,
        squared_norm=charge.squared_norm,
        variance_numerator=charge.variance_numerator,
        variance_denominator=charge.variance_denominator,
        n_min=charge.n_min,
        n_colluding=charge.n_colluding,
        n_parameters=charge.n_parameters,
        sampling_prob=charge.sampling_prob,
        steps=charge.steps,
        cap=charge.cap,
        n_patients=charge.n_patients,
        overflow_prob=charge.overflow_prob,
    )


def merged(charges: Iterable[AnyCharge]) -> tuple[AnyCharge, ...]:
    """Returns the charges with equal mechanisms added up, in one order whatever order they came in."""
    steps: dict[AnyCharge, int] = {}
    for charge in charges:
        mechanism = replace(charge, what="all", steps=1)
        steps[mechanism] = steps.get(mechanism, 0) + charge.steps
    ordered = sorted(steps, key=_order)
    return tuple(replace(mechanism, steps=steps[mechanism]) for mechanism in ordered)


def _order(charge: AnyCharge) -> tuple[float, ...]:
    if isinstance(charge, Charge):
        sizes = (charge.n_patients, charge.cap or 0, charge.records_per_patient)
        return (0, charge.noise_multiplier, charge.sampling_prob, *sizes)
    shares = (charge.variance_numerator, charge.variance_denominator, charge.n_min, charge.n_colluding)
    sizes = (charge.n_parameters, charge.n_patients, charge.cap or 0)
    return (1, charge.squared_norm, *shares, charge.sampling_prob, *sizes, charge.overflow_prob)
