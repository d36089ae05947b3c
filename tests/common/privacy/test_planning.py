"""Claims of the planning: plain data, upper bounds, and the rounds that the hard stop would allow."""

import json
import math
from dataclasses import replace
from functools import cache, partial
from typing import Any

from sottovoce.common.ledger.entries import Charge
from sottovoce.common.privacy import of_study
from sottovoce.common.privacy.accountant import epsilon
from sottovoce.common.privacy.plan import cost, events
from sottovoce.common.privacy.planning import fresh_room, misfits, rounds_left
from sottovoce.common.privacy.planning_local import tables
from tests.fakes.ledgers import ACCOUNTANT, charge_of
from tests.fakes.privacy import a_distributed_study, a_spec

ROOM = fresh_room(a_spec(n_patients_public=2000), 3.0)


def cost_of(noise_multiplier: float) -> float:
    return epsilon(events(a_spec(noise_multiplier=noise_multiplier), 2), 1e-5)


SPEC = a_spec(noise_multiplier=16.0)  # narrow losses: quick


@cache
def a_plan() -> dict[str, Any]:
    return dict(tables(SPEC, 2, target_epsilon=0.2))


def test_the_tables_of_a_plan_are_plain_data_and_upper_bounds() -> None:
    spec, found = SPEC, a_plan()
    assert json.loads(json.dumps(found)) == found
    noise = found["noise"][0]["noise_multiplier"]
    assert cost_of(noise) <= 0.2 < cost_of(0.995 * noise)
    by_patients = [row["epsilon"] for row in found["patients"]]
    assert by_patients == sorted(by_patients, reverse=True)
    assert by_patients[2] == cost(spec, 2).epsilon == found["study"]["epsilon"]
    assert all(math.isfinite(row["epsilon"]) for row in found["deltas"])
    assert "other voices" in found["promise"]["not_covered"]
    assert found["study"]["steps"] == sum(event.steps for event in events(spec, 2))


def test_what_a_plan_says_in_both_modes_stands_under_the_same_keys() -> None:
    local, distributed = a_plan(), dict(of_study.tables(a_distributed_study()))
    assert list(distributed) == [*local, "sums"]
    of_one_site = {"rdp", "rdp_dropped_orders", "prv", "record_epsilon"}
    assert set(local["study"]) - of_one_site <= set(distributed["study"])
    assert set(local["promise"]) == set(distributed["promise"])
    for name in ("noise", "deltas", "patients"):
        assert set(local[name][0]) <= set(distributed[name][0])


def test_a_target_that_no_noise_reaches_is_an_answer() -> None:
    counts = a_spec(
        noise_multiplier=16.0, counts_noise_multiplier=16.0
    )  # one release of them costs more alone
    found = tables(counts, 1, n_counts=1, target_epsilon=0.05)
    noise = next(table for name, table in found if name == "noise")
    assert noise == [{"epsilon": 0.05, "noise_multiplier": None}]


def test_one_round_more_than_are_left_would_be_denied() -> None:
    def charges(rounds: int, more: int = 0) -> list[Charge]:
        return [charge_of(4 * (rounds + more))]

    for room in (ROOM, replace(ROOM, promised=(charge_of(6),), first=False)):
        rounds, decision = rounds_left(charges, room, ACCOUNTANT)
        assert rounds > 0
        assert decision.allowed
        assert decision.domain_epsilon <= room.cap
        none, denied = rounds_left(partial(charges, more=rounds), room, ACCOUNTANT)
        assert none == 0
        assert not denied.allowed


def test_what_was_promised_leaves_fewer_rounds_and_takes_the_filters_word() -> None:
    first, by_first = rounds_left(lambda n: [charge_of(4 * n)], ROOM, ACCOUNTANT)
    later = replace(ROOM, promised=(charge_of(6),), first=False)
    then, by_then = rounds_left(lambda n: [charge_of(4 * n)], later, ACCOUNTANT)
    assert (by_first.decided_by, by_then.decided_by) == ("pld", "rdp_filter")
    assert 0 < then < first


def test_a_study_that_a_domain_would_deny_whatever_it_costs_is_told_why() -> None:
    assert misfits(a_spec(n_patients_public=2000), ROOM.opened) == []
    found = misfits(a_spec(delta=9e-5, small_population=True), ROOM.opened)
    assert [line.split(":")[0] for line in found] == ["privacy.n_patients_public", "privacy.delta"]
