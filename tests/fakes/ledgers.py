"""A small hospital: its keys, its policy, an approver, a ledger, and an accountant that remembers."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sottovoce.client.policy import adopt
from sottovoce.common.keys import DigestKey, SigningKey
from sottovoce.common.ledger.entries import AccountedBy, AnyCharge, Charge, DistributedCharge
from sottovoce.common.ledger.files import Folder
from sottovoce.common.ledger.store import Ledger, Move
from sottovoce.common.ledger.terms import Approver, DomainTerms, Policy
from sottovoce.common.privacy.budget import Budget, Denied, Granted, PldAccountant, Request
from tests.fakes.faulty_disk import FaultyDisk, FaultyFolder

SITE, DOMAIN, PERSON = "hospital-a", "intake-2026", "Ada Example"
STUDY, OTHER_STUDY = "ab" * 32, "cd" * 32
N_PATIENTS = 2000
START = 1_800_000_000.0  # a fixed clock: ledgers of a test have the same bytes every time but for their keys


class RememberingAccountant:
    """The production accountant, asked once for each question."""

    def __init__(self) -> None:
        self._accountant = PldAccountant()
        self._ask = cache(self._accountant.epsilon)

    def facts_of(self, charges: Sequence[AnyCharge]) -> AccountedBy:
        return self._accountant.facts_of(charges)

    def epsilon(
        self,
        charges: Sequence[AnyCharge],
        delta: float,
        *,
        n_colluding: int | None = None,
        n_sites: int = 1,
    ) -> float:
        return self._ask(tuple(charges), delta, n_colluding=n_colluding, n_sites=n_sites)


ACCOUNTANT = RememberingAccountant()


def charge_of(steps: int = 8, noise_multiplier: float = 2.0, what: str = "update", **more: Any) -> Charge:
    numbers: dict[str, Any] = {"sampling_prob": 0.25, "n_patients": N_PATIENTS, **more}
    return Charge(
        what=what, mechanism="poisson_gaussian", noise_multiplier=noise_multiplier, steps=steps, **numbers
    )


def sums_of(
    steps: int = 20, noise_multiplier: float = 4.0, what: str = "update", **more: Any
) -> DistributedCharge:
    """Sums over at least 5 sites of which 2 collude; a clipping norm is 2^10 grid steps."""
    numbers: dict[str, Any] = {
        "squared_norm": 2**20,
        "variance_numerator": math.ceil(noise_multiplier**2 * 2**20 / 3),
        "variance_denominator": 1,
        "n_min": 5,
        "n_colluding": 2,
        "n_parameters": 1000,
        "sampling_prob": 0.25,
        "n_patients": N_PATIENTS,
        "overflow_prob": 1e-12,
        **more,
    }
    return DistributedCharge(what=what, mechanism="poisson_discrete_gaussian_sum", steps=steps, **numbers)


@dataclass(frozen=True)
class Hospital:
    """Who is there. Keys are made once for a test session: they are what takes the time."""

    key: SigningKey
    next_key: SigningKey
    digest_key: DigestKey
    approver: SigningKey

    def policy(self, **changes: Any) -> Policy:
        terms = DomainTerms(name=DOMAIN, n_patients=N_PATIENTS, epsilon_cap=3.0, delta=1e-5)
        policy = Policy(
            format=1,
            site=SITE,
            version=1,
            changed_by=PERSON,
            reason="first policy",
            purposes=("medical",),
            studies=(STUDY, OTHER_STUDY),
            max_epsilon_per_study=3.0,
            domains=(terms,),
            approvers=(Approver(name=PERSON, public_key=self.approver.public_hex),),
        )
        return replace(policy, **changes)

    def create(
        self, folder: Folder, *, policy: Policy | None = None, clock: Callable[[], float] | None = None
    ) -> Ledger:
        ledger = Ledger.create(
            folder, site=SITE, key=self.key, digest_key=self.digest_key, clock=clock or (lambda: START)
        )
        adopt(policy or self.policy(), ledger)
        return ledger

    def open(self, folder: Folder, *, seen: Sequence[str] = (), move: Move | None = None) -> Ledger:
        keys = [self.key, self.next_key]
        return Ledger.open(folder, keys, self.digest_key, clock=lambda: START, seen=seen, move=move)

    def request(self, *, study: str = STUDY, charges: Sequence[AnyCharge] = (), **changes: Any) -> Request:
        request = Request(
            study=study,
            domain=DOMAIN,
            purpose="medical",
            mode="local",
            noise="secret",
            delta=1e-5,
            charges=tuple(charges) or (charge_of(),),
        )
        return replace(request, **changes)

    def approve(self, budget: Budget, request: Request | None = None) -> Granted | Denied:
        return budget.approve_with(request or self.request(), person=PERSON, key=self.approver)


@cache
def hospital() -> Hospital:
    return Hospital(SigningKey.generate(), SigningKey.generate(), DigestKey.generate(), SigningKey.generate())


def reserve(budget: Budget, grant: int, release: str = "r0", **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "release": release,
        "grant": grant,
        "what": "update",
        "steps": 2,
        "round": 0,
        "attempt": 0,
        "manifest": b"patients",
        "withdrawals_honoured": 0,
        **changes,
    }
    return budget.reserve(**arguments)


def lived_in(disk: FaultyDisk | None = None, *, rounds: int = 3) -> FaultyDisk:
    """Returns a disk with a ledger that has seen a study, a burn, a withdrawal, a raised cap and a new key."""
    at = hospital()
    disk = disk or FaultyDisk(draw=random.Random(1))
    with at.create(FaultyFolder(disk)) as ledger:
        budget = Budget(ledger, ACCOUNTANT)
        granted = at.approve(budget)
        assert isinstance(granted, Granted), granted
        for number in range(rounds):
            reserve(budget, granted.grant, f"run/{number}", round=number)
            if number == 1:
                budget.burn(f"run/{number}", "training failed")
            else:
                budget.commit(f"run/{number}", b"update %d" % number)
        budget.withdraw(DOMAIN)
        ledger.rotate(at.next_key, person=PERSON, reason="yearly")
        terms = replace(at.policy().domains[0], epsilon_cap=4.0)
        adopt(at.policy(version=2, reason="more rounds", domains=(terms,)), ledger)
        reserve(budget, granted.grant, "run/last", round=rounds, withdrawals_honoured=1)
        budget.commit("run/last", b"update last")
    return disk


def lived_with_sums(disk: FaultyDisk | None = None) -> FaultyDisk:
    """Returns a disk with a ledger of a study of mode `distributed`, one sum of which never came, then a local one."""
    at = hospital()
    disk = disk or FaultyDisk(draw=random.Random(1))
    policy = at.policy(modes=("local", "distributed"), max_sites_per_patient=2, min_sites=4)
    with at.create(FaultyFolder(disk), policy=policy) as ledger:
        budget = Budget(ledger, ACCOUNTANT)
        counts = sums_of(1, 40.0, "evaluation_counts", sampling_prob=1.0, n_parameters=16)
        asked = at.request(mode="distributed", charges=[sums_of(12, cap=700), counts], sites_per_patient=2)
        granted = at.approve(budget, asked)
        assert isinstance(granted, Granted), granted
        for number in range(3):
            reserve(budget, granted.grant, f"sum/{number}", steps=1, round=number)
            if number == 1:
                budget.burn(f"sum/{number}", "the sum never came")
            else:
                budget.commit(f"sum/{number}", b"masked %d" % number)
        later = at.approve(budget, at.request(study=OTHER_STUDY, charges=[charge_of(4, 4.0)]))
        assert isinstance(later, Granted), later
        reserve(budget, later.grant, "run/0")
        budget.commit("run/0", b"update")
    return disk
