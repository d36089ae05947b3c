"""Claims of the planning in mode `distributed`: who colludes decides, and every figure is an upper bound."""

import io
import json
import math
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
from rich.console import Console

from sottovoce.common.ledger.rule import Decision
from sottovoce.common.privacy.distributed_accountant import epsilon
from sottovoce.common.privacy.of_study import distributed_events, stamp, tables
from sottovoce.common.privacy.planning_distributed import colluders_withstood, quorum
from sottovoce.common.privacy.terminal import plan_lines
from sottovoce.common.privacy_specs import DistributedPrivacy
from sottovoce.common.secagg.session import threshold_of
from sottovoce.common.study import Study
from tests.fakes.privacy import a_distributed_study

STUDY = a_distributed_study(max_sites_per_patient=2, counts_noise_multiplier=20.0)
PLAN = dict(tables(STUDY))


def spec_of(study: Study) -> DistributedPrivacy:
    assert isinstance(study.privacy, DistributedPrivacy)
    return study.privacy


def cost_of(study: Study, **privacy: Any) -> float:
    spec = replace(spec_of(study), **privacy)
    return epsilon(distributed_events(study, spec), spec.delta)


def test_the_tables_are_plain_data_with_the_stamps_own_figures() -> None:
    assert json.loads(json.dumps(PLAN)) == PLAN
    study = PLAN["study"]
    assert study["sentence"] == stamp(STUDY)
    assert study["epsilon"] == cost_of(STUDY)
    assert study["steps"] == 20
    (counts,) = study["evaluation_counts"]
    assert counts["steps"] == 1
    assert counts["noise_multiplier"] == pytest.approx(20.0, rel=1e-3)


def test_the_more_collude_the_more_it_costs_and_all_others_leave_one_share() -> None:
    study = PLAN["study"]
    by_colluding = study["by_colluding"]
    assert len(by_colluding) == 8
    assert by_colluding == sorted(by_colluding)
    assert by_colluding[2] == study["epsilon"] < study["if_all_others_collude"] == by_colluding[7]


def test_the_noise_for_a_target_pays_for_counts_first_and_is_the_least() -> None:
    (row,) = dict(tables(STUDY, target_epsilon=2.0))["noise"]
    noise = row["noise_multiplier"]
    assert cost_of(STUDY, noise_multiplier=noise) <= 2.0
    assert cost_of(STUDY, noise_multiplier=0.995 * noise) > 2.0
    assert cost_of(STUDY, noise_multiplier=noise, counts_noise_multiplier=None) < 1.999


def test_a_target_below_what_counts_cost_alone_is_an_answer() -> None:
    assert dict(tables(STUDY, target_epsilon=0.01))["noise"] == [{"epsilon": 0.01, "noise_multiplier": None}]


def test_spare_attempts_are_priced_for_sums_of_gradients_and_of_counts() -> None:
    study = dict(tables(a_distributed_study(spare_rounds=3, counts_noise_multiplier=20.0)))["study"]
    assert study["steps"] == 20 + 3
    assert [counts["steps"] for counts in study["evaluation_counts"]] == [1 + 3]
    assert study["epsilon"] > PLAN["study"]["epsilon"]


def test_delta_follows_from_the_patients_of_all_sites() -> None:
    rows = PLAN["patients"]
    assert [row["n_patients_everywhere"] for row in rows] == [500, 1000, 2000, 4000, 8000]
    assert rows[2]["epsilon"] == PLAN["study"]["epsilon"]
    assert all(row["delta"] < row["n_patients_everywhere"] ** -1.1 for row in rows)
    deltas = [row["delta"] for row in PLAN["deltas"]]
    assert deltas[0] == 1e-4  # 2,000^-1.1 is 2.3e-4, a single site's 200^-1.1 would be 2.9e-3
    assert [row["epsilon"] for row in PLAN["deltas"]] == sorted(row["epsilon"] for row in PLAN["deltas"])


def test_more_patients_than_32_bits_hold_are_an_answer() -> None:
    crowded = a_distributed_study(n_patients_public=835_000, cap=835_000, delta=1e-9, grid=2.0**-8)
    rows = dict(tables(crowded))["patients"]
    assert rows[0]["epsilon"] is not None
    assert rows[-1]["epsilon"] is None


@pytest.mark.parametrize("row", PLAN["sums"], ids=lambda row: f"{row['n_min']}-{row['n_colluding']}")
def test_other_numbers_of_sites_cost_what_a_study_with_the_same_shares_costs(row: dict[str, Any]) -> None:
    share = 6.0 / math.sqrt(8 - 2)
    honest = row["n_min"] - row["n_colluding"]
    assert row["noise_added"] == pytest.approx(6.0 * math.sqrt(10 / honest))
    other = {"n_min": row["n_min"], "n_colluding": row["n_colluding"]}
    counts = 20.0 / math.sqrt(8 - 2) * math.sqrt(honest)
    same_shares = cost_of(
        STUDY, noise_multiplier=share * math.sqrt(honest), counts_noise_multiplier=counts, **other
    )
    assert row["epsilon_as_it_is"] == pytest.approx(same_shares, rel=1e-4)
    assert row["this_study"] == (other == {"n_min": 8, "n_colluding": 2})


def test_the_studys_own_numbers_are_among_the_others() -> None:
    (own,) = (row for row in PLAN["sums"] if row["this_study"])
    assert own["epsilon_as_it_is"] == PLAN["study"]["epsilon"]
    assert own["noise_added"] == PLAN["study"]["noise_added"]


@pytest.mark.parametrize("n_sites", range(3, 51))
def test_colluders_that_are_withstood_cannot_sign_for_two_sets_of_survivors(n_sites: int) -> None:
    for n_min in {3, quorum(n_sites, 1), n_sites}:
        withstood = colluders_withstood(n_sites, n_min)
        broken = {n for n in range(n_min, n_sites + 1) if is_unmasked(n, n_min, withstood + 1)}
        assert not any(is_unmasked(n, n_min, withstood) for n in range(n_min, n_sites + 1))
        assert broken or withstood == n_sites - 1


def is_unmasked(n_invited: int, n_min: int, n_colluding: int) -> bool:
    """Two sets of survivors, each signed by enough: every honest site signs one of them, the others both."""
    threshold = threshold_of(n_invited)
    assert quorum(n_invited, n_min) == max(threshold, 3, n_min)
    two_sets = quorum(n_invited, n_min) < n_invited
    return two_sets and 2 * (threshold - n_colluding) <= n_invited - n_colluding


def test_colluders_beyond_what_masks_withstand_are_pointed_out() -> None:
    warned = "can unmask one hospital"
    bold = a_distributed_study(n_colluding=4)
    assert not any(warned in str(line) for line in plan_lines("study", PLAN["study"]))
    assert any(warned in str(line) for line in plan_lines("study", dict(tables(bold))["study"]))


def test_an_infinite_figure_is_planned_and_not_refused() -> None:
    hopeless = a_distributed_study(sampling_prob=0.5, cap=100, delta=1e-9)
    study = dict(tables(hopeless))["study"]
    assert math.isinf(study["epsilon"])
    assert "epsilon inf" in study["sentence"]


@pytest.mark.parametrize("decided_by", get_args(get_type_hints(Decision)["decided_by"]))
def test_rounds_left_say_which_part_of_the_rule_decided(decided_by: str) -> None:
    found = {"rounds": 7, "cap": 3.0, "delta": 1e-5, "decided_by": decided_by, "domain": None, "misfits": []}
    (said,) = plan_lines("rounds_left", found)
    assert "rounds left: 7 under the cap 3 at delta 1e-05, decided by " in str(said)


def test_the_figure_if_all_others_collude_comes_first_of_the_other_sides() -> None:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        for line in plan_lines("study", PLAN["study"]):
            console.print(line)
    said = captured.get()
    places = [
        said.index(words) for words in ("this decides", "if all others collude", "if none collude", "if 1 ")
    ]
    assert places == sorted(places)
