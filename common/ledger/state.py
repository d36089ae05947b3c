"""What a ledger says at any point of its length: the fold of its entries, and what may come next.

The same rules hold before an entry is written and when an auditor reads it: an entry that the state refuses can
neither be appended nor pass `verify`.

Guarantees:
  - A release draws at most what its grant has left, from an open domain, with every withdrawal honoured.
  - A release id is used once; only an open reservation can be committed or burned.
  - An approval is within the policy in force, signed by a person whom that policy names, and under the cap.
  - A cap moves only to what the policy in force says.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from sottovoce.common.config import as_plain, canonical
from sottovoce.common.errors import PolicyError, PrivacyError
from sottovoce.common.keys import verified
from sottovoce.common.ledger.entries import (
    AnyCharge,
    Approval,
    Body,
    Burn,
    CapChange,
    Charge,
    Commit,
    Denial,
    DistributedCharge,
    DomainClosed,
    DomainOpened,
    Entry,
    Genesis,
    KeyRotation,
    Moved,
    PolicyVersion,
    Recovery,
    Reserve,
    StudyClosed,
    Withdrawal,
)
from sottovoce.common.ledger.rule import decider_of_first, merged, sum_of
from sottovoce.common.ledger.terms import Policy, delta_problem, policy_from, refusals


@dataclass
class Domain:
    """A domain's account so far."""

    opened: DomainOpened
    cap: float
    promised_epsilon: float = 0.0
    closed: bool = False
    withdrawals: int = 0
    grants: list[int] = field(default_factory=list)


@dataclass
class Grant:
    """An approval and what has been drawn from it, by the name of the charge."""

    approval: Approval
    drawn: dict[str, int] = field(default_factory=dict)
    open_releases: int = 0
    closed: bool = False


@dataclass
class Release:
    """A reservation and what became of it: `released` is the HMAC of a commit; None is open or burned."""

    reserve: Reserve
    open: bool = True
    released: str | None = None


@dataclass
class State:
    """A ledger's account after some entries. `problem` asks, `apply` moves on."""

    size: int = 0
    site: str = ""
    instance: str = ""
    public_key: str = ""
    digest_key_commitment: str = ""
    place: str = ""
    policy: Policy | None = None
    domains: dict[str, Domain] = field(default_factory=dict)
    grants: dict[int, Grant] = field(default_factory=dict)
    releases: dict[str, Release] = field(default_factory=dict)
    approvals_of: dict[str, int] = field(default_factory=dict)
    denied: set[Denial] = field(default_factory=set)

    def problem(self, body: Body) -> str | None:
        """Says why this entry may not come next; None if it may."""
        if (self.size == 0) != isinstance(body, Genesis):
            return "expected a genesis entry first, and once"
        match body:
            case Genesis():
                return _key_problem(body.public_key)
            case KeyRotation():
                return self._rotation_problem(body)
            case Moved():
                return "expected another place" if body.place == self.place else None
            case PolicyVersion():
                return self._policy_problem(body)
            case DomainOpened():
                return self._opening_problem(body)
            case CapChange():
                return self._cap_problem(body)
            case Approval():
                return self._approval_problem(body)
            case StudyClosed():
                return self._closing_problem(body)
            case DomainClosed() | Withdrawal():
                domain = self.domains.get(body.domain)
                if domain is None:
                    return f"the domain {body.domain!r} was never opened"
                return (
                    "the domain is closed already"
                    if isinstance(body, DomainClosed) and domain.closed
                    else None
                )
            case Reserve():
                return self._reserve_problem(body)
            case Commit() | Burn():
                release = self.releases.get(body.release)
                return None if release and release.open else "expected an open reservation of this release"
            case Recovery() | Denial():
                return None

    def apply(self, index: int, body: Body) -> None:
        """Moves on by one entry, which `problem` must have allowed."""
        self.size = index + 1
        match body:
            case Genesis():
                self.site, self.instance, self.place = body.site, body.instance, body.place
                self.public_key, self.digest_key_commitment = body.public_key, body.digest_key_commitment
            case KeyRotation():
                self.public_key = body.public_key
            case Moved():
                self.place = body.place
            case PolicyVersion():
                self.policy = policy_from(json.loads(body.text))
            case DomainOpened():
                self.domains[body.domain] = Domain(opened=body, cap=body.epsilon_cap)
            case DomainClosed():
                self.domains[body.domain].closed = True
            case CapChange():
                self.domains[body.domain].cap = body.after
            case Approval():
                self._apply_approval(index, body)
            case StudyClosed():
                self.grants[body.grant].closed = True
            case Withdrawal():
                self.domains[body.domain].withdrawals += 1
            case Reserve():
                self.releases[body.release] = Release(reserve=body)
                grant = self.grants[body.grant]
                grant.drawn[body.what] = grant.drawn.get(body.what, 0) + body.steps
                grant.open_releases += 1
            case Commit() | Burn():
                release = self.releases[body.release]
                release.open = False
                release.released = body.released if isinstance(body, Commit) else None
                self.grants[release.reserve.grant].open_releases -= 1
            case Denial():
                self.denied.add(body)
            case Recovery():
                pass

    def open_releases(self) -> list[str]:
        """Returns the reservations of which nothing is known to have come."""
        return [name for name, release in self.releases.items() if release.open]

    def promised(self, domain: str) -> tuple[AnyCharge, ...]:
        """Returns everything that counts against a domain's cap, merged."""
        grants = [self.grants[index] for index in self.domains[domain].grants]
        return merged(charge for grant in grants for charge in counted(grant))

    def spent(self, domain: str) -> tuple[AnyCharge, ...]:
        """Returns everything that was reserved for a release so far, merged."""
        grants = [self.grants[index] for index in self.domains[domain].grants]
        return merged(charge for grant in grants for charge in drawn(grant))

    def not_private(self, domain: str) -> bool:
        """Says whether something left this domain without secret noise, or was allowed to."""
        approvals = [self.grants[index].approval for index in self.domains[domain].grants]
        return any(approval.mode == "none" or approval.noise == "seeded" for approval in approvals)

    def without_noise(self, domain: str) -> bool:
        """Says whether something left this domain without any noise: no figure can then be given."""
        return any(self.grants[index].approval.mode == "none" for index in self.domains[domain].grants)

    def _apply_approval(self, index: int, body: Approval) -> None:
        domain = self.domains[body.domain]
        self.grants[index] = Grant(approval=body)
        self.approvals_of[body.study] = self.approvals_of.get(body.study, 0) + 1
        domain.grants.append(index)
        if body.domain_epsilon is not None:
            domain.promised_epsilon = body.domain_epsilon

    def _rotation_problem(self, body: KeyRotation) -> str | None:
        statement = rotation_statement(self.instance, self.public_key, body.public_key)
        if body.public_key == self.public_key:
            return "expected a new key"
        if not verified(body.public_key, _unhex(body.proof), statement):
            return "expected the new key's own signature over the rotation"
        return _key_problem(body.public_key)

    def _policy_problem(self, body: PolicyVersion) -> str | None:
        try:
            policy = policy_from(json.loads(body.text))
        except (PolicyError, ValueError, RecursionError):
            return "expected the canonical text of a policy"
        if canonical(policy) != body.text or (policy.version, policy.changed_by) != (
            body.version,
            body.person,
        ):
            return "expected the canonical text of a policy, with this version and person"
        if policy.site != self.site:
            return f"expected a policy of the site {self.site!r}; came one of {policy.site!r}"
        if self.policy and policy.version <= self.policy.version:
            return f"expected a version above {self.policy.version}; came {policy.version}"
        return None

    def _opening_problem(self, body: DomainOpened) -> str | None:
        terms = self.policy.domain(body.domain) if self.policy else None
        if body.domain in self.domains:
            return "this domain was opened before"
        wanted = terms and (terms.n_patients, terms.epsilon_cap, terms.delta, terms.small_population)
        if (body.n_patients, body.epsilon_cap, body.delta, body.small_population) != wanted:
            return "expected the domain's constants as the policy in force states them"
        if body.conceded_delta is not None and body.conceded_delta >= body.delta:
            return "expected a domain to keep less than its delta for what is conceded"
        return delta_problem(body.n_patients, body.delta, small_population=body.small_population)

    def _cap_problem(self, body: CapChange) -> str | None:
        domain = self.domains.get(body.domain)
        terms = self.policy.domain(body.domain) if self.policy else None
        if domain is None or terms is None or (body.before, body.after) != (domain.cap, terms.epsilon_cap):
            return "expected a change from the cap in force to the cap of the policy in force"
        return "expected another cap" if body.before == body.after else None

    def _approval_problem(self, body: Approval) -> str | None:
        domain = self.domains.get(body.domain)
        if self.policy is None or domain is None or domain.closed:
            return "expected an open domain and a policy"
        if problems := refusals(self.policy, body):
            return problems[0]
        if body.repeat != self.approvals_of.get(body.study, 0):
            return f"expected repeat={self.approvals_of.get(body.study, 0)}; came {body.repeat}: one signature, one run"
        if not verified(body.public_key, _unhex(body.signature), approval_statement(self.instance, body)):
            return "expected the named person's signature over this approval"
        return self._budget_problem(body, domain)

    def _budget_problem(self, body: Approval, domain: Domain) -> str | None:
        """`budget.py` computes the figures and `recompute` recomputes them; here they must agree with the rule."""
        if body.mode == "none":
            bare = (body.charges, body.decided_by, body.epsilon, body.domain_epsilon, body.accountant)
            return None if bare == ((), "not_private", None, None, None) else "mode 'none' has no figures"
        if body.epsilon is None or body.domain_epsilon is None or body.accountant is None or not body.charges:
            return "expected charges and their figures"
        if body.delta > domain.opened.delta:
            return f"expected a delta of at most the domain's {domain.opened.delta:g}; came {body.delta:g}"
        if len({charge.what for charge in body.charges}) < len(body.charges):
            return "expected charges of different names"
        if any(charge.n_patients != domain.opened.n_patients for charge in body.charges):
            return f"expected charges over the domain's n_patients={domain.opened.n_patients}"
        if problem := _mechanism_problem(body):
            return problem
        if body.noise == "secret" and self.not_private(body.domain):
            return "releases without secret noise were allowed in this domain; expected a domain without them"
        alone = None if domain.grants else decider_of_first(body.charges)
        if body.decided_by not in ("rdp_filter", alone):
            return "expected the filter to decide; for the first study of a domain alone PLD may, or RDP for sums"
        if body.domain_epsilon > domain.cap:
            return f"expected at most the cap {domain.cap:g}; came {body.domain_epsilon:.4f}"
        return self._cap_in_force_problem(domain)

    def _cap_in_force_problem(self, domain: Domain) -> str | None:
        """A crash between a new policy and its cap changes must not leave the old cap to be spent."""
        terms = self.policy.domain(domain.opened.domain) if self.policy else None
        if terms is None or terms.epsilon_cap != domain.cap:
            return "the policy in force states another cap for this domain; expected a cap change first"
        return None

    def _closing_problem(self, body: StudyClosed) -> str | None:
        grant = self.grants.get(body.grant)
        if grant is None or grant.closed:
            return "expected a grant that is open"
        return "a reservation of this grant is still open" if grant.open_releases else None

    def _reserve_problem(self, body: Reserve) -> str | None:
        grant = self.grants.get(body.grant)
        if grant is None or grant.closed:
            return "expected a grant that is open"
        approval, domain = grant.approval, self.domains[grant.approval.domain]
        if body.release in self.releases:
            return "this release id was used before; a new attempt needs a new one"
        if domain.closed:
            return f"the domain {approval.domain!r} is closed"
        if self.policy is None or approval.study not in self.policy.studies:
            return "the policy in force does not list this study any more"
        if not self.policy.allows_model(approval.facts):
            return "the policy in force does not allow this model any more"
        if body.withdrawals_honoured != domain.withdrawals:
            return f"expected {domain.withdrawals} withdrawals honoured; came {body.withdrawals_honoured}"
        if approval.mode == "none":
            return (
                None
                if self.policy.allow_non_private
                else "the policy in force allows nothing that is not private"
            )
        if domain.promised_epsilon > domain.cap:
            return f"the cap was lowered to {domain.cap:g}, below the promised {domain.promised_epsilon:.4f}"
        if problem := self._cap_in_force_problem(domain):
            return problem
        granted = next((charge.steps for charge in approval.charges if charge.what == body.what), 0)
        left = granted - grant.drawn.get(body.what, 0)
        return (
            None
            if body.steps <= left
            else f"expected at most the {left} steps that are left; came {body.steps}"
        )


def _mechanism_problem(body: Approval) -> str | None:
    """A mode's promise is its mechanism's: whose sums are seen, and whom they are safe from."""
    wanted = DistributedCharge if body.mode == "distributed" else Charge
    if not all(isinstance(charge, wanted) for charge in body.charges):
        return f"expected charges of mode {body.mode!r}"
    for charge in body.charges:
        if isinstance(charge, DistributedCharge):
            try:
                sum_of(charge)
            except PrivacyError:
                return "expected n_colluding below n_min, and shares of variance at least 1/2"
    return None


def drawn(grant: Grant) -> Iterator[AnyCharge]:
    """Yields what was reserved for releases of a grant; a burned reservation is spent like a committed one."""
    for charge in grant.approval.charges:
        steps = grant.drawn.get(charge.what, 0)
        if steps:
            yield replace(charge, steps=steps)


def counted(grant: Grant) -> Iterator[AnyCharge]:
    """Yields what counts against the cap: all of it, unless the study ended early under the filter (`rule.py`)."""
    whole = not grant.closed or grant.approval.decided_by != "rdp_filter"
    yield from grant.approval.charges if whole else drawn(grant)


def rotation_statement(instance: str, old: str, new: str) -> bytes:
    """Returns what a new key signs to show that it is held, for this ledger, after this old key."""
    return f"sottovoce/key-rotation/1\n{instance}\n{old}\n{new}\n".encode()


def approval_statement(instance: str, approval: Approval) -> bytes:
    """Returns what a named person signs: this ledger, this study, this run of it, these charges.

    The figures are not part of it: they follow from the charges, and are computed after the signature.
    """
    signed = (
        "study", "repeat", "domain", "purpose", "purpose_reference", "mode", "noise", "delta", "sites_per_patient",
        "charges", "person", "facts",
    )  # fmt: skip
    table = {name: value for name, value in as_plain(approval).items() if name in signed}
    text = json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return f"sottovoce/approval/1\n{instance}\n{text}\n".encode()


def fold(entries: Iterator[Entry] | list[Entry]) -> State:
    """Returns the state after entries that are known to be good."""
    state = State()
    for entry in entries:
        state.apply(entry.index, entry.body)
    return state


def policy_digest(text: str) -> str:
    """Returns the digest by which people quote a policy."""
    return hashlib.sha256(b"sottovoce/policy/1\n" + text.encode()).hexdigest()


def _key_problem(public_hex: str) -> str | None:
    hexadecimal = set(public_hex) <= set("0123456789abcdef")
    return None if hexadecimal else "expected a public key of 64 lower-case hexadecimal digits"


def _unhex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""  # no signature is empty, so this verifies nothing
