"""What a site agrees to: the terms of its policy, and the one rule that judges an approval by them.

The policy file is read in `client/policy.py`; its canonical text stands in the ledger, so that the site
before it trains and the auditor years later ask the same question of the same terms.

Guarantees:
  - `refusals` names every term that an approval breaks; an empty list is an agreement.
  - Mode `none` and seeded noise are refused unless `allow_non_private` says otherwise.
  - A sum over fewer hospitals than `min_sites` is refused.
  - A model of a kind that is not among `models` is refused, and one of no stated kind too; without a list, any is
    allowed. Of a fusion every branch must be on the list.
  - The purposes workplace and education are refused unless the study names a medical or a safety reference
    (EU AI Act, article 5(1)(f)), whatever the list of purposes says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from sottovoce.common.config import Interval, as_plain, build
from sottovoce.common.errors import PolicyError
from sottovoce.common.ledger.entries import (
    Approval,
    Count,
    Delta,
    Digest,
    DistributedCharge,
    Mode,
    Name,
    Positive,
    Purpose,
    Reason,
)
from sottovoce.common.model_specs import Kind

BANNED_PURPOSES = ("workplace", "education")
REFERENCES = ("medical:", "safety:")
MAX_DELTA = 1e-5
MIN_SITES = 3  # of a sum: with two, each knows the other's part
MODEL = "model"  # the signed fact of an approval that states the model's kinds, with a space between two


@dataclass(frozen=True, kw_only=True)
class Approver:
    """A named person who may let a study spend, and the public key that proves it was this person."""

    name: Name
    public_key: Digest


@dataclass(frozen=True, kw_only=True)
class DomainTerms:
    """The budget of one closed enrolment period. `n_patients` is a public upper bound, never a count."""

    name: Name
    n_patients: Count
    epsilon_cap: Positive
    delta: Delta
    small_population: bool = False


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One version of a site's policy.

    `min_sites` is the smallest number of hospitals that a sum may be over in mode `distributed` (`n_min`); 3 where
    the policy says nothing. `models` are the kinds of model that may be trained here; any, where it says nothing.
    Both are None then, so that the canonical text of an older policy stays what it was.
    """

    format: Literal[1]
    site: Name
    version: Count
    changed_by: Name
    reason: Reason
    purposes: tuple[Purpose, ...]
    studies: Annotated[tuple[Digest, ...], Interval(0, 200)]
    max_epsilon_per_study: Positive
    domains: Annotated[tuple[DomainTerms, ...], Interval(0, 50)]
    approvers: Annotated[tuple[Approver, ...], Interval(0, 50)] = ()
    modes: tuple[Mode, ...] = ("local",)
    max_sites_per_patient: Annotated[int, Interval(1, 100)] = 1
    allow_non_private: bool = False
    min_sites: Annotated[int, Interval(3, 50)] | None = None
    models: Annotated[tuple[Kind, ...], Interval(0, 20)] | None = None

    @property
    def least_n_min(self) -> int:
        """The smallest `n_min` that this site accepts."""
        return MIN_SITES if self.min_sites is None else self.min_sites

    def domain(self, name: str) -> DomainTerms | None:
        """Returns the terms of a domain, if the policy has it."""
        return next((terms for terms in self.domains if terms.name == name), None)

    def allows_model(self, facts: Mapping[str, str]) -> bool:
        """Says whether the kinds that an approval's signed facts state are all on the list, if there is one."""
        kinds = facts.get(MODEL, "").split()
        return self.models is None or (bool(kinds) and set(kinds) <= set(self.models))


def policy_from(table: object) -> Policy:
    """Builds a policy from a plain table. Raises: PolicyError with every problem."""
    problems: list[str] = []
    policy = build(Policy, table, "", problems)
    if policy is not None:
        problems += _combinations(policy)
    if policy is None or problems:
        raise PolicyError("\n  ".join([f"The policy has {len(problems)} problem(s):", *problems]))
    return policy


def refusals(policy: Policy, approval: Approval) -> list[str]:
    """Returns every reason for which this policy does not allow the approval."""
    return [
        *_study_refusals(policy, approval),
        *_purpose_refusals(policy, approval),
        *_privacy_refusals(policy, approval),
    ]


def purpose_problem(purpose: str, reference: str | None) -> str | None:
    """Says why a purpose cannot be had without a reference; None where it can."""
    if purpose not in BANNED_PURPOSES or (reference or "").startswith(REFERENCES):
        return None
    return (
        f"purpose: {purpose!r} is prohibited for emotion recognition except for medical or safety reasons (EU AI Act "
        "art. 5(1)(f)); expected purpose_reference = 'medical: …' or 'safety: …'."
    )


def delta_problem(n_patients: int, delta: float, *, small_population: bool) -> str | None:
    """Says why a delta is too large for so many patients; None where it is not."""
    bound = n_patients**-1.1
    if delta >= bound:
        return f"delta: expected below 1/n_patients^1.1 = {bound:.3g}; came {delta:g}."
    if delta > MAX_DELTA and not small_population:
        return f"delta: expected at most {MAX_DELTA:g} unless small_population = true; came {delta:g}."
    return None


def _study_refusals(policy: Policy, approval: Approval) -> list[str]:
    problems = []
    if approval.study not in policy.studies:
        problems.append(f"study: {approval.study[:16]}… is not among the studies that the policy lists.")
    if Approver(name=approval.person, public_key=approval.public_key) not in policy.approvers:
        problems.append(f"person: {approval.person!r} with this key is not among the policy's approvers.")
    if approval.sites_per_patient > policy.max_sites_per_patient:
        problems.append(
            f"sites_per_patient: expected at most {policy.max_sites_per_patient}; came {approval.sites_per_patient}."
        )
    if not policy.allows_model(approval.facts):
        allowed = ", ".join(policy.models or ()) or "none"
        problems.append(f"model: expected one of {allowed}; came {approval.facts.get(MODEL, 'no kind')!r}.")
    return problems


def _purpose_refusals(policy: Policy, approval: Approval) -> list[str]:
    problem = purpose_problem(approval.purpose, approval.purpose_reference)
    problems = [problem] if problem else []
    if approval.purpose not in policy.purposes:
        allowed = ", ".join(policy.purposes) or "none"
        problems.append(f"purpose: expected one of {allowed}; came {approval.purpose!r}.")
    return problems


def _privacy_refusals(policy: Policy, approval: Approval) -> list[str]:
    problems = []
    if approval.mode not in policy.modes:
        problems.append(f"mode: expected one of {', '.join(policy.modes)}; came {approval.mode!r}.")
    if not policy.allow_non_private and (approval.mode == "none" or approval.noise == "seeded"):
        what = "mode 'none'" if approval.mode == "none" else "seeded noise"
        problems.append(f"mode: {what} is not private; expected a policy with allow_non_private = true.")
    fewest = [charge.n_min for charge in approval.charges if isinstance(charge, DistributedCharge)]
    if fewest and min(fewest) < policy.least_n_min:
        problems.append(
            f"n_min: expected sums over at least {policy.least_n_min} hospitals (min_sites); came {min(fewest)}."
        )
    if approval.epsilon is not None and approval.epsilon > policy.max_epsilon_per_study:
        problems.append(
            f"epsilon: expected at most {policy.max_epsilon_per_study:g} for a study; came {approval.epsilon:.4f}."
        )
    return problems


def _combinations(policy: Policy) -> list[str]:
    problems = []
    for key, names in (
        ("domains", [terms.name for terms in policy.domains]),
        ("approvers", [approver.name for approver in policy.approvers]),
        ("studies", list(policy.studies)),
        ("models", [str(kind) for kind in policy.models or ()]),
    ):
        problems += [
            f"{key}: {name!r} is there twice." for name in sorted({n for n in names if names.count(n) > 1})
        ]
    for index, terms in enumerate(policy.domains):
        problem = delta_problem(terms.n_patients, terms.delta, small_population=terms.small_population)
        if problem:
            problems.append(f"domains[{index}].{problem}")
    problems += _unprintable(as_plain(policy))
    return problems


def _unprintable(value: object, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [p for key, item in value.items() for p in _unprintable(item, f"{path}.{key}".lstrip("."))]
    if isinstance(value, list):
        return [p for index, item in enumerate(value) for p in _unprintable(item, f"{path}[{index}]")]
    if isinstance(value, str) and not value.isprintable():
        return [f"{path}: expected printable characters on one line."]
    return []
