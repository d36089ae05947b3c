"""Claims about charges of mode `distributed`: approved, spent and denied like the others, and never cheaper for it."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.client.site_ledger import charges_of, request_of
from sottovoce.common.config import canonical
from sottovoce.common.ledger.entries import (
    AnyCharge,
    DistributedCharge,
    Entry,
    EntryError,
    decode,
    encode,
)
from sottovoce.common.ledger.recompute import recompute
from sottovoce.common.ledger.rule import by_the_filter, decide, merged, order_of, sum_of
from sottovoce.common.ledger.show import show
from sottovoce.common.ledger.state import State
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE
from sottovoce.common.ledger.terms import DomainTerms
from sottovoce.common.ledger.verify import entries_of, verify
from sottovoce.common.privacy import distributed_accountant as sums
from sottovoce.common.privacy.budget import GUARD, Budget, Denied, Granted, Reserved, event_of
from sottovoce.common.privacy.distributed_accountant import ORDERS
from sottovoce.common.privacy.filter import KEPT, Draws, composed_epsilon, filter_epsilon, fixed_order
from sottovoce.common.privacy.of_study import distributed_events, stamp
from tests.fakes.faulty_disk import FaultyDisk, FaultyFolder
from tests.fakes.ledgers import ACCOUNTANT, DOMAIN, OTHER_STUDY, charge_of, hospital, reserve, sums_of
from tests.fakes.privacy import a_distributed_study

MODES = {"modes": ("local", "distributed")}
CHEAP, DEAR = sums_of(4), sums_of(400)


class Site:
    """A budget over a fresh disk, whose policy allows both private modes."""

    def __init__(self, **policy: Any) -> None:
        self.disk = FaultyDisk()
        self.ledger = hospital().create(
            FaultyFolder(self.disk), policy=hospital().policy(**{**MODES, **policy})
        )
        self.budget = Budget(self.ledger, ACCOUNTANT)

    def ask(self, *charges: AnyCharge, **changes: Any) -> Granted | Denied:
        mode = "distributed" if isinstance(charges[0], DistributedCharge) else "local"
        request = hospital().request(charges=charges, **{"mode": mode, **changes})
        return hospital().approve(self.budget, request)

    def granted(self, *charges: AnyCharge, **changes: Any) -> Granted:
        answer = self.ask(*charges, **changes)
        assert isinstance(answer, Granted), answer
        return answer

    @property
    def entries(self) -> list[Entry]:
        return entries_of(self.disk.names[LEDGER_FILE].data)

    @property
    def promised(self) -> float:
        opened = self.budget.state.domains[DOMAIN].opened
        return by_the_filter(self.budget.state.promised(DOMAIN), opened, order=order_of(opened))


def test_a_study_is_approved_reserved_committed_and_verified_like_any_other() -> None:
    site, counts = Site(), sums_of(1, 40.0, "evaluation_counts", sampling_prob=1.0, n_parameters=16)
    granted = site.granted(CHEAP, counts)
    assert granted.approval.epsilon == ACCOUNTANT.epsilon((CHEAP, counts), 1e-5)
    answer = reserve(site.budget, granted.grant, steps=1)
    assert answer == Reserved(release="r0", charge=replace(CHEAP, steps=1))
    note = site.budget.commit("r0", b"masked sum")
    reserve(site.budget, granted.grant, "r1", steps=3)
    site.budget.burn("r1", "the sum never came")
    assert isinstance(reserve(site.budget, granted.grant, "r2", steps=1), Denied)
    assert sum(charge.steps for charge in site.budget.state.spent(DOMAIN)) == 4
    head = site.disk.names[HEAD_FILE].data.decode()
    assert verify(site.disk.names[LEDGER_FILE].data, head=head, seen=[note]).ok
    found = recompute(site.entries, ACCOUNTANT)
    assert found["ok"], found["different"]
    assert show(site.entries)["studies"][0]["charges"][0].startswith(
        "update: 4 sums over at least 5 sites, 2 of which may collude; noise of the others 4,"
    )


def test_a_study_over_the_cap_is_denied_before_any_training() -> None:
    site = Site()
    answer = site.ask(DEAR)
    assert isinstance(answer, Denied)
    assert "the domain's cap 3" in answer.reason
    assert not site.budget.state.grants


def test_local_studies_and_sums_add_up_in_one_domain_by_the_filter() -> None:
    site = Site()
    kinds: list[AnyCharge] = [sums_of(16), charge_of(8, 4.0)]
    answers = [site.ask(kinds[k % 2]) for k in range(20)]
    granted = [answer for answer in answers if isinstance(answer, Granted)]
    assert 2 < len(granted) < 20
    assert {answer.approval.mode for answer in granted} == {"local", "distributed"}
    assert all(answer.approval.decided_by == "rdp_filter" for answer in granted)
    together = site.budget.state.promised(DOMAIN)
    opened = site.budget.state.domains[DOMAIN].opened
    over = by_the_filter(merged([*together, *kinds]), opened, order=order_of(opened))
    assert site.promised <= 3.0 < over
    assert recompute(site.entries, ACCOUNTANT)["ok"]


def test_the_smallest_order_decides_for_the_first_study_alone_and_nothing_is_given_back() -> None:
    site = Site(domains=(DomainTerms(name=DOMAIN, n_patients=2000, epsilon_cap=1.0, delta=1e-5),))
    opened = site.budget.state.domains[DOMAIN].opened
    between = next(
        charge
        for charge in (sums_of(steps, 1.0, sampling_prob=0.01) for steps in range(1, 200, 5))
        if by_the_filter([charge], opened, order=order_of(opened)) > 1.0 >= ACCOUNTANT.epsilon([charge], 1e-5)
    )
    granted = site.granted(between)
    assert granted.approval.decided_by == "rdp"
    assert granted.approval.domain_epsilon == ACCOUNTANT.epsilon(merged([between]), 1e-5)
    site.budget.close_study(granted.grant, "stopped early, nothing drawn")
    assert merged(site.budget.state.promised(DOMAIN)) == merged([between])
    assert isinstance(site.ask(sums_of(1), study=OTHER_STUDY), Denied)
    assert recompute(site.entries, ACCOUNTANT)["ok"]


def test_what_is_conceded_stays_within_what_the_domain_kept_when_it_opened() -> None:
    site = Site()
    site.granted(charge_of(1, 8.0))
    assert site.budget.state.domains[DOMAIN].opened.conceded_delta == 1e-5 * KEPT
    little, much = (sums_of(2, 40.0, overflow_prob=p) for p in (4e-9, 6e-9))
    answer = site.ask(much)
    assert isinstance(answer, Denied)
    assert "more than the domain keeps of its delta" in answer.reason
    site.granted(little)
    assert isinstance(site.ask(little, study=OTHER_STUDY), Denied), "it adds up over studies"


def test_a_domain_that_kept_nothing_concedes_nothing_but_to_its_first_study() -> None:
    site = Site()
    opened = replace(site.budget.state.domains[DOMAIN].opened, conceded_delta=None)
    asked = {"opened": opened, "cap": 3.0, "accountant": ACCOUNTANT}
    first = decide([], [CHEAP], first=True, **asked)  # type: ignore[arg-type]
    assert (first.allowed, first.decided_by) == (True, "rdp")
    later = decide([charge_of(1, 8.0)], [CHEAP], first=False, **asked)  # type: ignore[arg-type]
    assert (later.allowed, later.domain_epsilon) == (False, math.inf)
    exact = replace(CHEAP, overflow_prob=0.0)
    assert decide([charge_of(1, 8.0)], [exact], first=False, **asked).allowed  # type: ignore[arg-type]


def test_what_is_kept_is_paid_by_every_charge_and_not_by_sums_alone() -> None:
    """Else delta could be traded for divergence by whoever has seen releases."""
    draws = [Draws(noise_multiplier=4.0, sampling_prob=0.25, steps=20, n_patients=2000)]
    assert filter_epsilon(draws, 1e-5, order=8, kept=1e-6) == filter_epsilon(draws, 1e-5 - 1e-6, order=8)


@pytest.mark.parametrize(
    ("mode", "charge", "words"),
    [
        ("local", CHEAP, "mode 'local'"),
        ("distributed", charge_of(1, 8.0), "mode 'distributed'"),
    ],
)
def test_a_mode_whose_mechanism_is_another_is_refused(mode: str, charge: AnyCharge, words: str) -> None:
    answer = Site().ask(charge, mode=mode)
    assert isinstance(answer, Denied)
    assert f"expected charges of {words}" in answer.reason


@pytest.mark.parametrize(
    ("least", "n_min", "fits"), [(None, 3, True), (None, 2, False), (6, 5, False), (5, 5, True)]
)
def test_a_sum_over_fewer_hospitals_than_the_policy_accepts_is_refused(
    least: int | None, n_min: int, fits: bool
) -> None:
    answer = Site(min_sites=least).ask(sums_of(1, 8.0, n_min=n_min, n_colluding=1))
    assert isinstance(answer, Granted) == fits
    if isinstance(answer, Denied):
        assert f"n_min: expected sums over at least {least or 3} hospitals" in answer.reason


def test_a_policy_without_min_sites_has_the_text_it_always_had() -> None:
    assert "min_sites" not in canonical(hospital().policy())
    assert '"min_sites":4' in canonical(hospital().policy(min_sites=4))


@pytest.mark.parametrize(
    "numbers", [{"n_colluding": 5}, {"variance_numerator": 1, "variance_denominator": 3}]
)
def test_numbers_that_no_sum_can_have_are_refused_by_the_rules(numbers: dict[str, Any]) -> None:
    site = Site()
    approval = site.granted(CHEAP).approval
    state = State()
    for entry in site.entries[:3]:
        state.apply(entry.index, entry.body)
    assert state.problem(approval) is None
    impossible = replace(approval, charges=(replace(CHEAP, **numbers),))
    signature = hospital().approver.sign(site.budget.statement(impossible)).hex()
    problem = state.problem(replace(impossible, signature=signature))
    assert problem == "expected n_colluding below n_min, and shares of variance at least 1/2"


def test_pld_is_not_taken_for_the_decider_of_sums_nor_rdp_for_that_of_draws() -> None:
    cases: list[tuple[AnyCharge, Any]] = [(CHEAP, "pld"), (charge_of(1, 8.0), "rdp")]
    for charge, wrong in cases:
        site = Site()
        approval = replace(site.granted(charge).approval, decided_by=wrong)
        state = State()
        for entry in site.entries[:3]:
            state.apply(entry.index, entry.body)
        assert "expected the filter to decide" in str(state.problem(approval))


def test_a_charge_has_one_encoding_and_no_field_of_the_other_kind() -> None:
    site = Site()
    site.granted(CHEAP)
    entry = site.entries[-1]
    assert decode(encode(entry)) == entry
    table = json.loads(encode(entry))
    for changes in (
        {"noise_multiplier": 4.0},
        {"records_per_patient": 1},
        {"mechanism": "poisson_gaussian"},
        {"mechanism": ["poisson_discrete_gaussian_sum"]},
        {"squared_norm": 2.0**20},
        {"squared_norm": 2**52 + 1},
        {"squared_norm": True},
        {"overflow_prob": 0},
        {"overflow_prob": 1.5},
        {"n_min": 0},
        {"cap": None},
    ):
        charge = {**table["body"]["charges"][0], **changes}
        changed = {**table, "body": {**table["body"], "charges": [charge]}}
        with pytest.raises(EntryError):
            decode(json.dumps(changed, sort_keys=True, separators=(",", ":")).encode())
    for name in table["body"]["charges"][0]:
        left = {key: value for key, value in table["body"]["charges"][0].items() if key != name}
        changed = {**table, "body": {**table["body"], "charges": [left]}}
        with pytest.raises(EntryError):
            decode(json.dumps(changed, sort_keys=True, separators=(",", ":")).encode())


def test_a_studys_figure_is_that_of_its_stamp() -> None:
    study = a_distributed_study(counts_noise_multiplier=6.0)
    charges = charges_of(study)
    assert [charge.what for charge in charges] == ["update", "evaluation_counts"]
    events = distributed_events(study, study.privacy)  # type: ignore[arg-type]
    assert [asdict(sum_of(charge)) for charge in charges if isinstance(charge, DistributedCharge)] == [
        asdict(event) for event in events
    ]
    recorded = ACCOUNTANT.epsilon(charges, 1e-5)
    assert recorded == sums.epsilon(events, 1e-5) + GUARD
    assert f"epsilon {math.ceil(100 * (recorded - GUARD)) / 100:.2f} at delta 1e-05" in stamp(study)


def test_a_study_asks_in_its_own_mode_for_its_own_number_of_sites() -> None:
    request = request_of(a_distributed_study(max_sites_per_patient=2), DOMAIN)
    assert (request.mode, request.noise, request.sites_per_patient) == ("distributed", "secret", 2)
    assert request.charges == charges_of(a_distributed_study())
    assert canonical(request.charges[0]).startswith('{"cap":')


def test_beside_the_epsilon_stand_all_numbers_of_colluders_and_of_sites() -> None:
    site = Site(max_sites_per_patient=3)
    site.granted(CHEAP, sites_per_patient=3)
    (study,) = recompute(site.entries, ACCOUNTANT)["studies"]
    by_colluding, in_sites = study["epsilon_by_colluding"], study["epsilon_in_sites"]
    assert list(by_colluding) == ["0", "1", "2", "3", "4"]
    assert list(by_colluding.values()) == sorted(by_colluding.values())
    assert by_colluding["2"] == study["epsilon"] == in_sites["1"] < in_sites["2"] < in_sites["3"]
    assert by_colluding["4"] == sums.epsilon([sum_of(CHEAP)], 1e-5, n_colluding=4) + GUARD
    assert in_sites["3"] == sums.epsilon([sum_of(CHEAP)], 1e-5, n_sites=3) + GUARD


DRAWS = st.builds(
    charge_of,
    steps=st.integers(1, 40),
    noise_multiplier=st.sampled_from([1.0, 2.0, 5.0]),
    sampling_prob=st.sampled_from([0.05, 0.25, 1.0]),
    cap=st.sampled_from([None, 200, 600]),
)
SUMS = st.builds(
    sums_of,
    steps=st.integers(1, 40),
    noise_multiplier=st.sampled_from([1.0, 2.0, 5.0]),
    sampling_prob=st.sampled_from([0.05, 0.25, 1.0]),
    cap=st.sampled_from([None, 250, 1900]),
)
CHARGES = st.lists(st.one_of(DRAWS, SUMS), min_size=1, max_size=3)


def accountable(charges: Sequence[AnyCharge]) -> list[Any]:
    return [sum_of(one) if isinstance(one, DistributedCharge) else event_of(one) for one in charges]


@settings(max_examples=30, deadline=None)
@given(charges=CHARGES, more=st.one_of(DRAWS, SUMS), order=st.sampled_from([3, 8, 20]))
def test_more_charges_are_never_cheaper_and_no_charge_costs_more_alone(
    charges: list[AnyCharge], more: AnyCharge, order: int
) -> None:
    def by_filter(held: Sequence[AnyCharge]) -> float:
        return filter_epsilon(accountable(held), 1e-5, order=order, kept=1e-6)

    def composed(held: Sequence[AnyCharge]) -> float:
        return composed_epsilon(accountable(held), 1e-5)

    for figure in (by_filter, composed):
        together = figure([*charges, more])
        assert together >= figure(charges)
        assert together >= max(figure([one]) for one in (*charges, more))
        assert figure([*charges, more]) == pytest.approx(figure([more, *charges]))


@pytest.mark.parametrize("draws", [charge_of(40, 5.0), charge_of(1, 1.0, sampling_prob=1.0)])
@pytest.mark.parametrize("summed", [sums_of(1, 5.0, sampling_prob=0.05), sums_of(40, 2.0)])
def test_draws_and_sums_together_cost_at_least_what_either_costs_by_its_own_accountant(
    draws: AnyCharge, summed: AnyCharge
) -> None:
    together = ACCOUNTANT.epsilon([draws, summed], 1e-5)
    assert together >= ACCOUNTANT.epsilon([draws], 1e-5) - GUARD
    assert together >= ACCOUNTANT.epsilon([summed], 1e-5)


@settings(max_examples=20, deadline=None)
@given(charges=st.lists(SUMS, min_size=1, max_size=3), n_sites=st.sampled_from([1, 2]))
def test_sums_alone_are_composed_as_their_own_accountant_does(charges: list[AnyCharge], n_sites: int) -> None:
    events = accountable(charges)
    theirs = sums.epsilon(events, 1e-5, n_sites=n_sites)
    assert composed_epsilon(events, 1e-5, n_sites=n_sites) == pytest.approx(theirs, rel=1e-12)
    one_order = min(filter_epsilon(events, 1e-5, order=order, kept=1e-6) for order in ORDERS)
    if n_sites == 1 and sums.conceded_delta(events) <= 1e-6:
        assert one_order == pytest.approx(sums.epsilon(events, 1e-5), rel=0.02)
    assert fixed_order(3.0, 1e-5) in ORDERS
