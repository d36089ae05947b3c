"""What a study may promise: constants with rules, found before anything runs."""

from dataclasses import dataclass

import pytest
from scipy.stats import binom

from sottovoce.common.config import build
from sottovoce.common.privacy_specs import (
    LocalPrivacy,
    NoPrivacy,
    PrivacySpec,
    largest_delta,
    problems,
    weaknesses,
)
from tests.fakes.privacy import a_spec


def wrong(**changes: object) -> list[str]:
    return problems(a_spec(**changes), rounds=20, n_sites=3)


def test_a_sound_study_has_no_problem() -> None:
    assert wrong() == []
    assert problems(NoPrivacy(mode="none"), rounds=20, n_sites=3) == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"delta": 1e-3}, "privacy.delta"),
        ({"delta": 1e-3, "small_population": True}, "privacy.delta"),
        ({"n_patients_public": 100_000}, "privacy.delta"),
        ({"cap": 60}, "privacy.cap"),
        ({"cap": 1001}, "privacy.cap"),
        ({"expected_patients": 1001.0}, "privacy.expected_patients"),
        ({"grid": 0.1}, "privacy.grid"),
        ({"grid": 1e-9}, "privacy.grid"),
        ({"steps_per_round": 100_000, "sampling_prob": 0.5, "expected_patients": 500.0}, None),
        ({"max_sites_per_patient": 4}, "privacy.max_sites_per_patient"),
    ],
)
def test_every_problem_names_its_key(changes: dict[str, object], key: str | None) -> None:
    found = wrong(**changes)
    assert [text.split(":")[0] for text in found][:1] == ([] if key is None else [key])


def test_delta_stays_below_the_rule_of_the_population_even_for_small_ones() -> None:
    assert largest_delta(20) == pytest.approx(0.0371, abs=1e-4)
    small = {
        "n_patients_public": 20,
        "expected_patients": 10.0,
        "sampling_prob": 0.5,
        "small_population": True,
    }
    assert wrong(**small, delta=0.03) == []
    assert "n_patients_public^-1.1" in wrong(**small, delta=0.04)[0]


def test_a_large_delta_has_to_be_owned_up_to() -> None:
    (problem,) = wrong(n_patients_public=200, sampling_prob=0.3, delta=1e-4)
    assert "small_population = true" in problem


def test_what_is_weak_says_why() -> None:
    assert weaknesses(a_spec()) == ()
    reasons = weaknesses(
        a_spec(
            n_patients_public=20, expected_patients=10.0, delta=0.03, small_population=True, unit="utterance"
        )
    )
    assert [
        word in reason for word, reason in zip(("20 patients", "0.03", "recordings"), reasons, strict=True)
    ]
    assert "fewer than 1,000" in reasons[0]


def test_the_default_cap_holds_what_its_formula_says() -> None:
    for n, q in ((20, 0.5), (1000, 1 / 16), (1_000_000, 1e-4), (50, 1.0), (300, 1e-6)):
        spec = a_spec(n_patients_public=n, sampling_prob=q, expected_patients=1.0)
        assert spec.draw_cap <= n
        assert binom.sf(spec.draw_cap, n, q) <= 1e-15


@dataclass(frozen=True, kw_only=True)
class Table:
    privacy: PrivacySpec


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"mode": "none"}, []),
        ({"mode": "none", "delta": 1e-5}, ["privacy.delta: unknown key; expected one of mode."]),
        ({"mode": "gauss"}, ["privacy.mode: expected one of none, local, distributed; came 'gauss'."]),
        ({}, ["privacy.mode: expected one of none, local, distributed; came nothing."]),
        ("none", ["privacy.mode: expected one of none, local, distributed; came 'none'."]),
    ],
)
def test_a_study_says_its_mode_and_only_the_keys_of_that_mode(table: object, expected: list[str]) -> None:
    found: list[str] = []
    build(Table, {"privacy": table}, "", found)
    assert found == expected


def test_step_counts_are_integers_in_the_study() -> None:
    # int(1 / (1 / n)) is n - 1 for 153 of the first 3,000 n: no count is ever computed from a rate.
    found: list[str] = []
    table = {
        "mode": "local", "clip_norm": 1.0, "noise_multiplier": 1.0, "sampling_prob": 0.1, "n_patients_public": 1000,
        "expected_patients": 100.0, "steps_per_round": 16.0, "delta": 1e-5,
    }  # fmt: skip
    assert build(LocalPrivacy, table, "privacy", found) is None
    assert found == ["privacy.steps_per_round: expected an integer in [1, 100000]; came 16.0."]
