"""What a domain has promised, and the rule that decides whether one more study fits under its cap.

A study's constants are fixed and its charges are reserved whole when it is approved, so the hard stop is asked
once for each study, before its first training step; rounds then draw from what was reserved.

 1. Everything that the domain has promised, together with the new study, by the Renyi filter at the domain's
    delta and at the order that its opening fixed: at most the cap -> allowed, by `rdp_filter`.
 2. Else, where the new study is the first that this domain ever approved, the same by PLD: at most the cap ->
    allowed, by `pld`. PLD is tighter, and valid because nothing was seen when the constants were chosen.
 3. Else denied.

A study that ends early gives back what it has not drawn, but not one that was allowed by rule 2: the filter never
covered it, so the domain goes on as if all of it had been spent.

A cap that moves does not move the order (`privacy/filter.py` has the reason).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from sottovoce.common.ledger.entries import AccountedBy, Charge, DomainOpened
from sottovoce.common.privacy.filter import filter_epsilon, fixed_order


class Accountant(Protocol):
    """PLD: pessimistic, deterministic."""

    @property
    def facts(self) -> AccountedBy:
        """Which program this is."""

    def epsilon(self, charges: Sequence[Charge], delta: float) -> float:
        """Returns an upper bound of the epsilon of all charges together."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the rule says: the figure that decided, and by which part of the rule."""

    allowed: bool
    decided_by: Literal["pld", "rdp_filter"]
    domain_epsilon: float


def decide(
    promised: Sequence[Charge],
    charges: Sequence[Charge],
    *,
    opened: DomainOpened,
    cap: float,
    first: bool,
    accountant: Accountant,
) -> Decision:
    """Asks whether `charges` fit under the cap in force beside what was promised before."""
    together = merged([*promised, *charges])
    by_filter = filter_epsilon(together, opened.delta, order=order_of(opened))
    if by_filter <= cap or not first:
        return Decision(allowed=by_filter <= cap, decided_by="rdp_filter", domain_epsilon=by_filter)
    by_pld = accountant.epsilon(together, opened.delta)
    return Decision(allowed=by_pld <= cap, decided_by="pld", domain_epsilon=by_pld)


def order_of(opened: DomainOpened) -> int:
    """Returns the filter's order in a domain: fixed for good by what the domain was opened with."""
    return fixed_order(opened.epsilon_cap, opened.delta)


def merged(charges: Iterable[Charge]) -> tuple[Charge, ...]:
    """Returns the charges with equal mechanisms added up, in one order whatever order they came in."""
    steps: dict[Charge, int] = {}
    for charge in charges:
        mechanism = replace(charge, what="all", steps=1)
        steps[mechanism] = steps.get(mechanism, 0) + charge.steps
    ordered = sorted(steps, key=_order)
    return tuple(replace(mechanism, steps=steps[mechanism]) for mechanism in ordered)


def _order(charge: Charge) -> tuple[float, ...]:
    sizes = (charge.n_patients, charge.cap or 0, charge.records_per_patient)
    return (charge.noise_multiplier, charge.sampling_prob, *sizes)
