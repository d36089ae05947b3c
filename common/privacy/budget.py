"""Check, reserve, spend: the only way by which anything computed from patients' data may leave a site.

    budget = Budget(ledger, accountant)                     # reservations that a crash left open are burned
    grant = budget.approve(draft, approver's signature)     # the hard stop: the whole study is reserved, or denied
    reserved = budget.reserve(...)                          # durable before any training step
    ... train ...
    note = budget.commit(reserved.release, released)        # durable before anything is sent; the note goes along

Guarantees:
  - What a domain has promised never exceeds its cap, by the rule of `ledger/rule.py`, asked in the site and
    before a training step; "no" is an answer (`Denied`), and it is in the ledger.
  - A reservation is spent from the moment it is durable. Nothing gives it back: not a failure, not a crash.
  - Only bytes that were committed may be sent again, and only the same bytes.
  - Two threads see one budget: every step is taken alone.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata

from sottovoce.common.errors import LedgerError
from sottovoce.common.keys import SigningKey, same_digest
from sottovoce.common.ledger.entries import (
    AccountedBy,
    AnyCharge,
    Approval,
    Burn,
    Charge,
    Commit,
    Denial,
    DistributedCharge,
    DomainClosed,
    Mode,
    Noise,
    Purpose,
    Reserve,
    StudyClosed,
    Withdrawal,
)
from sottovoce.common.ledger.rule import Accountant, Decision, decide, sum_of
from sottovoce.common.ledger.state import State, approval_statement
from sottovoce.common.ledger.store import Ledger
from sottovoce.common.ledger.terms import refusals
from sottovoce.common.privacy import accountant as pld
from sottovoce.common.privacy import distributed_accountant as sums
from sottovoce.common.privacy.accountant import GRID, Event
from sottovoce.common.privacy.distributed_accountant import DistributedEvent
from sottovoce.common.privacy.filter import composed_epsilon

_UNSIGNED = "0" * 128


GUARD = 1e-4  # added to every figure, see below


class PldAccountant:
    """The accountant that decides, over the ledger's plain numbers: PLD by dp-accounting where there is one.

    Secure sums have a Renyi bound instead, and with them whatever else is asked for together.

    The distributions are rounded upwards, their convolution by FFT is not: two grids differ by some 1e-6 either
    way. Far more than that is added, so that an auditor with a finer grid never finds more than was recorded. The
    Renyi bounds of two programs differ by 1e-14 of themselves; the same is added.
    """

    def facts_of(self, charges: Sequence[AnyCharge]) -> AccountedBy:
        """Which program this is, for such charges."""
        if any(isinstance(charge, DistributedCharge) for charge in charges):
            return AccountedBy(name="Renyi, whole orders", version=f"sottovoce {_version('sottovoce')}")
        return AccountedBy(name="dp-accounting PLD", version=_version("dp-accounting"), grid=GRID)

    def epsilon(
        self,
        charges: Sequence[AnyCharge],
        delta: float,
        *,
        n_colluding: int | None = None,
        n_sites: int = 1,
    ) -> float:
        """Returns an upper bound of the epsilon of all charges together."""
        draws = [event_of(charge) for charge in charges if isinstance(charge, Charge)]
        summed = [
            _against(sum_of(charge), n_colluding)
            for charge in charges
            if isinstance(charge, DistributedCharge)
        ]
        if not summed:
            found = pld.epsilon(pld.in_sites(draws, n_sites), delta)
        elif not draws:
            found = sums.epsilon(summed, delta, n_sites=n_sites)
        else:
            found = composed_epsilon([*draws, *summed], delta, n_sites=n_sites)
        return found + GUARD if found > 0.0 else 0.0


def replace_one_epsilon(charges: Sequence[AnyCharge], delta: float) -> float:
    """Returns the epsilon of the same charges if a patient is replaced by another instead of removed."""
    draws = [event_of(charge) for charge in charges if isinstance(charge, Charge)]
    summed = [sum_of(charge) for charge in charges if isinstance(charge, DistributedCharge)]
    if not summed:
        return pld.epsilon(draws, delta, adjacency="replace_one")
    if not draws:
        return sums.replace_one(summed, delta)
    return sums.removed_and_added(lambda share: composed_epsilon([*draws, *summed], share), delta)


def _against(event: DistributedEvent, n_colluding: int | None) -> DistributedEvent:
    """At most all other sites of a sum collude."""
    return event if n_colluding is None else replace(event, n_colluding=min(n_colluding, event.n_min - 1))


@cache
def _version(package: str) -> str:
    return metadata.version(package)  # it reads a file: milliseconds


def event_of(charge: Charge) -> Event:
    """Returns a ledger's charge as the accountant's event."""
    return Event(
        mechanism=charge.mechanism,
        noise_multiplier=charge.noise_multiplier,
        sampling_prob=charge.sampling_prob,
        steps=charge.steps,
        cap=charge.cap,
        n_patients=charge.n_patients,
        records_per_patient=charge.records_per_patient,
    )


@dataclass(frozen=True, kw_only=True)
class Request:
    """One run of one study that asks to spend. All public; `facts` explain it to an auditor."""

    study: str
    domain: str
    purpose: Purpose
    mode: Mode
    noise: Noise
    delta: float
    charges: Sequence[AnyCharge]
    sites_per_patient: int = 1
    purpose_reference: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Granted:
    """A study may spend what it asked for; reservations name `grant`."""

    grant: int
    approval: Approval


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """Training may begin."""

    release: str
    charge: AnyCharge | None  # None in mode `none`, where no figure exists


@dataclass(frozen=True, kw_only=True)
class Denied:
    """The site says no. Nothing was trained, nothing was spent."""

    reason: str


class Budget:
    """A site's budgets, over its open ledger."""

    def __init__(self, ledger: Ledger, accountant: Accountant) -> None:
        self._ledger, self._accountant = ledger, accountant
        self._turn = threading.Lock()
        for release in ledger.state.open_releases():
            ledger.append(Burn(kind="burn", release=release, reason="restart: nothing is known of it"))

    @property
    def state(self) -> State:
        """What the ledger says now."""
        return self._ledger.state

    def draft(self, request: Request, *, person: str, public_key: str) -> Approval:
        """Returns the approval that a person is asked to sign, with its figures. Writes nothing.

        Raises:
            LedgerError: the domain is not open.
        """
        with self._turn:
            return self._draft(request, person, public_key)[0]

    def approve(self, request: Request, *, person: str, public_key: str, signature: str) -> Granted | Denied:
        """Reserves a whole study, or denies it. `signature` is the person's, over `statement(draft)`."""
        with self._turn:
            unsigned, decision = self._draft(request, person, public_key)
            approval = replace(unsigned, signature=signature)
            if reason := self._reason_against(approval, decision):
                return self._deny(request, reason)
            entry = self._ledger.append(approval)
            return Granted(grant=entry.index, approval=approval)

    def statement(self, draft: Approval) -> bytes:
        """Returns the bytes that the named person signs."""
        return approval_statement(self.state.instance, draft)

    def approve_with(self, request: Request, *, person: str, key: SigningKey) -> Granted | Denied:
        """Drafts, signs with the person's key, and asks."""
        draft = self.draft(request, person=person, public_key=key.public_hex)
        signature = key.sign(self.statement(draft)).hex()
        return self.approve(request, person=person, public_key=key.public_hex, signature=signature)

    def reserve(
        self,
        *,
        release: str,
        grant: int,
        what: str,
        steps: int,
        round: int,
        attempt: int,
        manifest: bytes,
        withdrawals_honoured: int,
        model_in: str | None = None,
    ) -> Reserved | Denied:
        """Spends `steps` of a grant's charge, durably, for one release. `manifest` is hashed under the site's key."""
        body = Reserve(
            kind="reserve",
            release=release,
            grant=grant,
            what=what,
            steps=steps,
            round=round,
            attempt=attempt,
            withdrawals_honoured=withdrawals_honoured,
            manifest=self._ledger.digest_key.digest("manifest", manifest),
            model_in=model_in,
        )
        with self._turn:
            reason = self.state.problem(body)
            held = self.state.grants.get(grant)
            if reason is not None:
                # A coordinator may ask as often as it likes: the same answer is one entry, or it fills the ledger.
                return self._deny(held.approval if held else None, reason, once=True)
            self._ledger.append(body)
            return Reserved(release=release, charge=_charge(held.approval, what, steps) if held else None)

    def commit(self, release: str, released: bytes) -> str:
        """Records that these bytes are the release, durably; they may be sent now, with the note that is returned.

        Raises:
            LedgerError: there is no open reservation, or the disk failed; then nothing may be sent.
        """
        with self._turn:
            self._ledger.append(
                Commit(kind="commit", release=release, released=self._released(release, released))
            )
            return self._ledger.checkpoint()

    def burn(self, release: str, reason: str) -> None:
        """Records that nothing will come of a reservation. It stays spent."""
        with self._turn:
            self._ledger.append(Burn(kind="burn", release=release, reason=reason))

    def may_resend(self, release: str, released: bytes) -> bool:
        """Says whether these are the bytes of a committed release: they are out already, and cost nothing more."""
        with self._turn:
            found = self.state.releases.get(release)
            if found is None or found.released is None:
                return False
            return same_digest(found.released, self._released(release, released))

    def withdraw(self, domain: str) -> int:
        """Records a withdrawal of consent, never whose; returns how many a sampler must have applied from now on."""
        with self._turn:
            self._ledger.append(Withdrawal(kind="withdrawal", domain=domain))
            return self.state.domains[domain].withdrawals

    def close_study(self, grant: int, reason: str) -> None:
        """Ends a grant; what it has not drawn goes back to the domain where the rule allows."""
        with self._turn:
            self._ledger.append(StudyClosed(kind="study_closed", grant=grant, reason=reason))

    def close_domain(self, domain: str, *, person: str, reason: str) -> None:
        """Ends a domain: nothing more is released of its patients."""
        with self._turn:
            self._ledger.append(
                DomainClosed(kind="domain_closed", domain=domain, person=person, reason=reason)
            )

    def _draft(self, request: Request, person: str, public_key: str) -> tuple[Approval, Decision | None]:
        domain = self.state.domains.get(request.domain)
        if domain is None:
            raise LedgerError(
                f"Expected an open domain; {request.domain!r} is none. Write it into the site's policy."
            )
        bare = Approval(
            kind="approval",
            study=request.study,
            repeat=self.state.approvals_of.get(request.study, 0),
            domain=request.domain,
            purpose=request.purpose,
            purpose_reference=request.purpose_reference,
            mode=request.mode,
            noise=request.noise,
            delta=request.delta,
            sites_per_patient=request.sites_per_patient,
            charges=tuple(request.charges),
            decided_by="not_private",
            person=person,
            public_key=public_key,
            signature=_UNSIGNED,
            facts=request.facts,
        )
        if request.mode == "none":
            return bare, None
        decision = decide(
            self.state.promised(request.domain),
            request.charges,
            opened=domain.opened,
            cap=domain.cap,
            first=not domain.grants,
            accountant=self._accountant,
        )
        figures = replace(
            bare,
            decided_by=decision.decided_by,
            epsilon=self._accountant.epsilon(tuple(request.charges), request.delta),
            domain_epsilon=decision.domain_epsilon,
            accountant=self._accountant.facts_of(request.charges),
        )
        return figures, decision

    def _reason_against(self, approval: Approval, decision: Decision | None) -> str | None:
        problems = refusals(self.state.policy, approval) if self.state.policy else ["expected a policy first"]
        if decision and not decision.allowed and math.isinf(decision.domain_epsilon):
            problems.append(
                "epsilon: there is no finite figure of everything promised with this study: what its secure sums "
                "concede is more than the domain keeps of its delta. Expected a larger cap on the draw, fewer rounds, "
                "or a domain that was opened by a newer version."
            )
        elif decision and not decision.allowed:
            cap = self.state.domains[approval.domain].cap
            problems.append(
                f"epsilon: everything promised with this study is {decision.domain_epsilon:.4f} by "
                f"{decision.decided_by}; expected at most the domain's cap {cap:g}."
            )
        return " ".join(problems) or self.state.problem(approval)

    def _deny(self, asked: Request | Approval | None, reason: str, *, once: bool = False) -> Denied:
        if asked is not None and asked.domain in self.state.domains:
            denial = Denial(kind="denial", study=asked.study, domain=asked.domain, reason=reason[:300])
            if not (once and denial in self.state.denied):
                self._ledger.append(denial)
        return Denied(reason=reason)

    def _released(self, release: str, released: bytes) -> str:
        return self._ledger.digest_key.digest("released", release.encode() + b"\n" + released)


def _charge(approval: Approval, what: str, steps: int) -> AnyCharge | None:
    found = next((charge for charge in approval.charges if charge.what == what), None)
    return replace(found, steps=steps) if found else None
