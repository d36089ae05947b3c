"""Claims of privacy/budget.py: no release over the cap, no spend forgotten, and "no" is an answer."""

import threading
from dataclasses import replace
from typing import Any, cast

import pytest

from sottovoce.client.policy import adopt
from sottovoce.common.errors import LedgerError
from sottovoce.common.keys import SigningKey
from sottovoce.common.ledger.entries import Denial
from sottovoce.common.ledger.rule import Decision, decide, merged
from sottovoce.common.ledger.store import LEDGER_FILE, Ledger
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.privacy import budget
from sottovoce.common.privacy.budget import Budget, Denied, Granted, Reserved
from sottovoce.common.privacy.distributed_accountant import ORDERS
from sottovoce.common.privacy.filter import KEPT, filter_epsilon, fixed_order
from tests.fakes import ledger_schedules
from tests.fakes.faulty_disk import FaultyDisk, FaultyFolder
from tests.fakes.ledger_schedules import Broken, run_schedule
from tests.fakes.ledgers import ACCOUNTANT, DOMAIN, OTHER_STUDY, PERSON, charge_of, hospital, reserve

CHEAP, DEAR = charge_of(4), charge_of(64)


class Site:
    """A budget over a fresh disk, that can be restarted."""

    def __init__(self, **policy: Any) -> None:
        self.disk = FaultyDisk()
        self.ledger = hospital().create(FaultyFolder(self.disk), policy=hospital().policy(**policy))
        self.budget = Budget(self.ledger, ACCOUNTANT)

    def restart(self) -> None:
        self.ledger.close()
        self.ledger = hospital().open(FaultyFolder(self.disk))
        self.budget = Budget(self.ledger, ACCOUNTANT)

    def approve(self, **changes: Any) -> Granted | Denied:
        return hospital().approve(self.budget, hospital().request(**changes))

    def grant(self, **changes: Any) -> int:
        answer = self.approve(**changes)
        assert isinstance(answer, Granted), answer
        return answer.grant

    def last(self) -> Any:
        return entries_of(self.disk.names[LEDGER_FILE].data)[-1].body


def test_a_study_over_the_cap_is_denied_before_any_training_and_the_ledger_says_so() -> None:
    site = Site()
    answer = site.approve(charges=[DEAR])
    assert isinstance(answer, Denied)
    assert "the domain's cap 3" in answer.reason
    assert isinstance(site.last(), Denial)
    assert not site.budget.state.grants


def test_studies_add_up_in_their_domain_by_the_filter() -> None:
    site = Site()
    charges = [replace(CHEAP, noise_multiplier=4.0)]
    answers = [site.approve(charges=charges) for _ in range(30)]
    granted = [answer for answer in answers if isinstance(answer, Granted)]
    assert 1 < len(granted) < 30
    together = merged(site.budget.state.promised(DOMAIN))
    assert by_filter(together) <= 3.0 < by_filter([*together, *charges])
    assert all(answer.approval.decided_by == "rdp_filter" for answer in granted)


def test_pld_decides_for_the_first_study_alone_and_never_gives_back() -> None:
    site = Site()
    between = next(
        charge
        for charge in (charge_of(steps) for steps in range(4, 64))
        if by_filter([charge]) > 3.0 >= ACCOUNTANT.epsilon([charge], 1e-5)
    )
    answer = site.approve(charges=[between])
    assert isinstance(answer, Granted)
    assert answer.approval.decided_by == "pld"
    site.budget.close_study(answer.grant, "stopped early, nothing drawn")
    assert merged(site.budget.state.promised(DOMAIN)) == merged([between])
    assert isinstance(site.approve(study=OTHER_STUDY, charges=[CHEAP]), Denied)


def test_the_order_is_the_openings_and_not_the_one_that_flatters_at_the_end() -> None:
    site = Site()
    site.grant(charges=[charge_of(1, 4.0)])
    sparse = charge_of(50, 0.8, sampling_prob=0.01)
    together = [*site.budget.state.promised(DOMAIN), sparse]
    flattered = min(filter_epsilon(cast(Any, together), 1e-5, order=order) for order in ORDERS)
    assert flattered <= 3.0 < by_filter(together)
    assert isinstance(site.approve(study=OTHER_STUDY, charges=[sparse]), Denied)


def test_a_cap_that_moves_does_not_move_the_order() -> None:
    site = Site()
    site.grant(charges=[charge_of(1, 4.0)])
    raised = replace(hospital().policy().domains[0], epsilon_cap=8.0)
    adopt(hospital().policy(version=2, domains=(raised,), max_epsilon_per_study=8.0), site.ledger)
    answer = site.approve(study=OTHER_STUDY, charges=[CHEAP])
    assert isinstance(answer, Granted)
    together = site.budget.state.promised(DOMAIN)
    assert answer.approval.domain_epsilon == by_filter(together)
    assert answer.approval.domain_epsilon != by_filter(together, opening_cap=8.0)


def by_filter(charges: Any, opening_cap: float = 3.0) -> float:
    return filter_epsilon(charges, 1e-5, order=fixed_order(opening_cap, 1e-5), kept=1e-5 * KEPT)


def test_a_study_that_ends_early_gives_back_what_it_has_not_drawn() -> None:
    site = Site()
    grant = site.grant(charges=[CHEAP])
    reserve(site.budget, grant, steps=1)
    site.budget.burn("r0", "failed")
    site.budget.close_study(grant, "enough")
    (left,) = site.budget.state.promised(DOMAIN)
    assert left.steps == 1
    assert isinstance(reserve(site.budget, grant, "r1"), Denied)


def test_rounds_draw_from_the_grant_and_not_beyond() -> None:
    site = Site()
    grant = site.grant(charges=[CHEAP])
    for number in range(2):
        assert isinstance(reserve(site.budget, grant, f"r{number}"), Reserved)
        site.budget.commit(f"r{number}", b"x")
    answer = reserve(site.budget, grant, "r2")
    assert answer == Denied(reason="expected at most the 0 steps that are left; came 2")
    assert isinstance(reserve(site.budget, grant, "r3", what="another number"), Denied)


def test_every_other_private_number_is_charged_too() -> None:
    site = Site()
    counts = charge_of(2, 40.0, "evaluation_counts", sampling_prob=1.0)
    grant = site.grant(charges=[CHEAP, counts])
    answer = reserve(site.budget, grant, "counts/0", what="evaluation_counts", steps=1)
    assert isinstance(answer, Reserved)
    assert answer.charge == replace(counts, steps=1)
    assert site.budget.state.spent(DOMAIN) == merged([replace(counts, steps=1)])


def test_a_reservation_without_commit_is_burned_at_restart_and_stays_spent() -> None:
    site = Site()
    grant = site.grant(charges=[CHEAP])
    reserve(site.budget, grant)
    site.restart()
    assert site.budget.state.spent(DOMAIN)[0].steps == 2
    assert not site.budget.state.open_releases()
    with pytest.raises(LedgerError, match="open reservation"):
        site.budget.commit("r0", b"late")
    assert isinstance(reserve(site.budget, grant, "r0"), Denied), "a new attempt needs a new release id"


def test_the_same_bytes_may_be_sent_again_and_no_others() -> None:
    site = Site()
    grant = site.grant(charges=[CHEAP])
    reserve(site.budget, grant)
    assert not site.budget.may_resend("r0", b"update")
    site.budget.commit("r0", b"update")
    for _ in range(2):
        assert site.budget.may_resend("r0", b"update")
        assert not site.budget.may_resend("r0", b"updatf")
        assert not site.budget.may_resend("r1", b"update")
        site.restart()
    with pytest.raises(LedgerError):
        site.budget.commit("r0", b"another")


def test_a_withdrawn_patient_has_left_sampling_before_the_next_reservation() -> None:
    site = Site()
    grant = site.grant(charges=[CHEAP])
    assert site.budget.withdraw(DOMAIN) == 1
    answer = reserve(site.budget, grant, withdrawals_honoured=0)
    assert answer == Denied(reason="expected 1 withdrawals honoured; came 0")
    assert isinstance(reserve(site.budget, grant, "r1", withdrawals_honoured=1), Reserved)


def test_an_approval_needs_the_named_persons_signature_for_this_ledger_and_this_run() -> None:
    site, at = Site(), hospital()
    request = at.request(charges=[CHEAP])
    draft = site.budget.draft(request, person=PERSON, public_key=at.approver.public_hex)
    good = at.approver.sign(site.budget.statement(draft)).hex()
    stranger = SigningKey.generate()
    answers = [
        site.budget.approve(request, person=PERSON, public_key=at.approver.public_hex, signature="0" * 128),
        site.budget.approve_with(request, person=PERSON, key=stranger),
        site.budget.approve(
            replace(request, delta=1e-6), person=PERSON, public_key=at.approver.public_hex, signature=good
        ),
    ]
    assert all(isinstance(answer, Denied) for answer in answers)
    approve = {"person": PERSON, "public_key": at.approver.public_hex, "signature": good}
    assert isinstance(site.budget.approve(request, **approve), Granted)
    assert isinstance(site.budget.approve(request, **approve), Denied), "one signature, one run"
    other = Site()
    assert isinstance(other.budget.approve(request, **approve), Denied), "signed for another ledger"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"study": "ef" * 32}, "not among the studies"),
        ({"purpose": "research"}, "purpose"),
        ({"purpose": "workplace"}, "art. 5"),
        ({"purpose": "education", "purpose_reference": "we would like to"}, "art. 5"),
        ({"mode": "none", "charges": ()}, "not private"),
        ({"noise": "seeded"}, "seeded noise"),
        ({"mode": "distributed"}, "mode"),
        ({"sites_per_patient": 2}, "sites_per_patient"),
        ({"delta": 1e-4}, "delta"),
    ],
)
def test_what_the_policy_does_not_allow_is_denied(changes: dict[str, Any], words: str) -> None:
    site, at = Site(), hospital()
    request = replace(at.request(charges=[CHEAP]), **changes)
    answer = site.budget.approve_with(request, person=PERSON, key=at.approver)
    assert isinstance(answer, Denied)
    assert words in answer.reason


def test_a_workplace_study_with_a_safety_reference_can_be_allowed() -> None:
    site = Site(purposes=("workplace",))
    assert isinstance(
        site.approve(charges=[CHEAP], purpose="workplace", purpose_reference="safety: ISO 45001, case 7"),
        Granted,
    )


def test_what_is_not_private_is_marked_and_ends_a_domain_for_private_studies() -> None:
    site = Site(allow_non_private=True, modes=("local", "none"))
    request = replace(hospital().request(), mode="none", charges=())
    answer = hospital().approve(site.budget, request)
    assert isinstance(answer, Granted)
    assert answer.approval.epsilon is None
    reserved = reserve(site.budget, answer.grant)
    assert reserved == Reserved(release="r0", charge=None)
    assert site.budget.state.not_private(DOMAIN)
    denied = site.approve(charges=[CHEAP])
    assert isinstance(denied, Denied)
    assert "without secret noise" in denied.reason
    assert isinstance(site.approve(charges=[CHEAP], noise="seeded"), Granted)


def test_a_lowered_cap_stops_the_next_reservation() -> None:
    site, at = Site(), hospital()
    grant = site.grant(charges=[CHEAP])
    terms = replace(at.policy().domains[0], epsilon_cap=0.5)
    adopt(at.policy(version=2, domains=(terms,)), site.ledger)
    answer = reserve(site.budget, grant)
    assert isinstance(answer, Denied)
    assert "cap was lowered" in answer.reason


def test_a_study_that_the_policy_drops_stops_at_once() -> None:
    site, at = Site(), hospital()
    grant = site.grant(charges=[CHEAP])
    adopt(at.policy(version=2, studies=()), site.ledger)
    assert isinstance(reserve(site.budget, grant), Denied)


def test_a_closed_domain_releases_nothing() -> None:
    site = Site()
    grant = site.grant(charges=[CHEAP])
    site.budget.close_domain(DOMAIN, person=PERSON, reason="enrolment ended")
    assert isinstance(reserve(site.budget, grant), Denied)
    assert isinstance(site.approve(charges=[CHEAP]), Denied)


def test_threads_never_draw_more_than_was_granted() -> None:
    site = Site()
    grant = site.grant(charges=[charge_of(6)])
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda k=k: answers.append(reserve(site.budget, grant, f"r{k}")))
        for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(answer, Reserved) for answer in answers) == 3
    assert site.budget.state.spent(DOMAIN)[0].steps == 6


def test_the_rule_counts_steps_of_equal_mechanisms_together() -> None:
    assert merged([charge_of(2), charge_of(4, what="other"), charge_of(1, 3.0)]) == merged(
        [charge_of(1, 3.0), charge_of(6)]
    )
    opened = Site().budget.state.domains[DOMAIN].opened
    decision = decide([], [CHEAP], opened=opened, cap=3.0, first=True, accountant=ACCOUNTANT)
    assert decision.allowed


@pytest.mark.parametrize("seed", range(40))
def test_no_release_over_the_cap_and_no_spend_forgotten_in_random_schedules(seed: int) -> None:
    """10^5 of them in `simulations/bench/ledger.py`."""
    run_schedule(seed)


def test_a_ledger_that_acknowledges_before_it_is_durable_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Ledger._make_durable

    def lazy(self: Ledger, line: bytes, head: Any) -> None:
        self._file.sync = lambda: None  # type: ignore[union-attr,method-assign]
        real(self, line, head)

    monkeypatch.setattr(Ledger, "_make_durable", lazy)
    assert _n_broken() > 0


def test_a_budget_that_never_says_no_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    always = Decision(allowed=True, decided_by="rdp_filter", domain_epsilon=0.0)
    monkeypatch.setattr(budget, "decide", lambda *promised, **how: always)
    assert _n_broken() > 0


def test_a_ledger_that_forgets_burned_reservations_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sottovoce.common.ledger.entries import Burn
    from sottovoce.common.ledger.state import State

    real = State.apply

    def forgetful(self: State, index: int, body: Any) -> None:
        real(self, index, body)
        if isinstance(body, Burn):
            reserve = self.releases[body.release].reserve
            self.grants[reserve.grant].drawn[reserve.what] -= reserve.steps

    monkeypatch.setattr(State, "apply", forgetful)
    assert _n_broken() > 0


def _n_broken() -> int:
    """How many of a few schedules notice. A defect may also show as a ledger that refuses to open."""
    broken = 0
    for seed in range(60):
        try:
            run_schedule(seed)
        except (Broken, LedgerError):
            broken += 1
            if broken == 2:
                break
    ledger_schedules._START.clear()
    return broken
