"""The accounting traps of `docs/pitfalls.md`: for each, a claim that falls when somebody walks into it.

`python -m sottovoce.simulations.mutants` walks into every one of them, and these tests must fail.
"""

import ast
import inspect
import math
from pathlib import Path

import numpy as np
import pytest

from sottovoce.common.config import build
from sottovoce.common.privacy.accountant import epsilon, rdp_epsilon
from sottovoce.common.privacy.plan import after_steps, cost, draw, events, release
from sottovoce.common.privacy.source import SecretSource
from sottovoce.common.privacy_specs import problems
from sottovoce.common.study import Normalisation
from sottovoce.simulations.bench import second_accountant
from tests.fakes.privacy import a_spec, an_event, some_gradients

ROOT = Path(__file__).resolve().parents[3]
COARSE = 1e-3  # fine enough to tell a trap from the truth, and ten times faster


def test_t01_rounds_compose_in_one_account() -> None:
    (all_rounds,) = events(a_spec(), 20)
    assert all_rounds.steps == 20 * 16
    one_round = epsilon(events(a_spec(), 1), 1e-5, grid=COARSE)
    assert one_round == pytest.approx(2.25, abs=0.01)  # what an accountant for each round would report
    assert epsilon([all_rounds], 1e-5, grid=COARSE) == pytest.approx(7.63, abs=0.02)


def test_t02_events_compose_and_epsilons_are_not_added() -> None:
    rounds = [an_event(steps=16, noise_multiplier=1.0 + i / 1e6) for i in range(4)]
    joint = epsilon(rounds, 1e-5, grid=COARSE)
    assert joint < 0.6 * sum(epsilon([one], 1e-5, grid=COARSE) for one in rounds)
    assert joint == pytest.approx(
        epsilon([an_event(steps=64, noise_multiplier=1.0)], 1e-5, grid=COARSE), abs=1e-3
    )


def test_t03_draws_are_independent_coins_and_not_shuffled_batches() -> None:
    owners = np.arange(400)
    sizes = [draw(a_spec(sampling_prob=0.1), owners, 400, SecretSource()).n_rows for _ in range(300)]
    assert np.var(sizes) == pytest.approx(36, rel=9 * math.sqrt(2 / 300))  # of shuffled batches it is 0


def test_t04_the_divisor_does_not_depend_on_who_was_drawn() -> None:
    alone, crowd = some_gradients(n_rows=1, width=4000), some_gradients(n_rows=100, width=4000)
    spread = [
        release(rows, a_spec(noise_multiplier=50.0), SecretSource()).values.std() for rows in (alone, crowd)
    ]
    assert spread == pytest.approx([50.0 / 62.5] * 2, rel=0.1)


def test_t04_the_probability_does_not_depend_on_how_many_there_are() -> None:
    few = [draw(a_spec(), np.arange(10), 10, SecretSource()).n_rows for _ in range(2000)]
    assert np.mean(few) == pytest.approx(10 / 16, abs=7 * math.sqrt(10 / 16 / 2000))


def test_t05_adjacency_is_stated_and_both_are_printed() -> None:
    figures = cost(a_spec(noise_multiplier=4.0), 1)
    assert "add or remove one patient" in figures.guarantee.adjacency
    assert figures.replace_one > 1.7 * figures.epsilon


def test_t06_delta_cannot_be_picked_to_flatter() -> None:
    def wrong(**changes: object) -> list[str]:
        return problems(a_spec(**changes), rounds=20, n_sites=1)

    assert wrong(n_patients_public=200, delta=200**-1.1, sampling_prob=0.3)
    assert wrong(n_patients_public=200, delta=200**-1.1, sampling_prob=0.3, small_population=True)
    assert wrong(n_patients_public=200, delta=1e-4, sampling_prob=0.3)


def test_t09_no_statistic_of_the_corpus_normalises_it() -> None:
    found: list[str] = []
    build(Normalisation, {"scheme": "corpus"}, "normalisation", found)
    assert found == [
        "normalisation.scheme: expected one of constants, utterance, speaker, enrolment; came 'corpus'."
    ]


def test_t10_nobody_can_seed_the_noise_of_a_release() -> None:
    np.random.seed(0)
    one = SecretSource().words(100)
    np.random.seed(0)
    assert not np.isin(SecretSource().words(100), one).any()
    assert list(inspect.signature(SecretSource).parameters) == []


def test_t11_a_patient_with_many_recordings_is_drawn_no_more_often() -> None:
    owners = np.array([0] * 50 + [1])
    spec = a_spec(sampling_prob=0.2, utterances_per_patient=8)
    drawn = [set(owners[draw(spec, owners, 2, SecretSource()).recordings].tolist()) for _ in range(1500)]
    for patient in (0, 1):
        assert sum(patient in who for who in drawn) == pytest.approx(300, abs=8 * math.sqrt(240))


def test_t12_every_release_is_a_step_and_no_step_takes_more_than_the_cap() -> None:
    steps = [release(some_gradients(), a_spec(), SecretSource()) for _ in range(3)]
    assert after_steps(steps[0].values, steps).steps == 3
    with pytest.raises(Exception, match="at most cap="):
        release(some_gradients(n_rows=a_spec().draw_cap + 1), a_spec(), SecretSource())


@pytest.mark.parametrize("steps", [93, 99, 105])
def test_t14_step_counts_survive_because_they_are_never_divided(steps: int) -> None:
    assert int(1 / (1 / steps)) == steps - 1  # the trap
    assert events(a_spec(steps_per_round=steps), 1)[0].steps == steps


def test_t16_the_accountant_is_never_below_the_truth() -> None:
    groups = [(3.0, 0.05, 100), (6.0, 0.3, 20)]
    ours = epsilon([an_event(noise_multiplier=s, sampling_prob=q, steps=n) for s, q, n in groups], 1e-5)
    assert ours >= second_accountant.epsilon(groups, 1e-5) - 1e-7


def test_t16_nobody_asks_gdp() -> None:
    for folder in ("common", "client", "server", "simulations"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = [
                n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)
            ]
            names = {alias.name for node in nodes for alias in node.names}
            assert not {n for n in names if n == "GaussianAccountant" or n.endswith("gdp")}, path


def test_t17_dropped_rdp_orders_are_recorded() -> None:
    assert rdp_epsilon([an_event(noise_multiplier=1.0, sampling_prob=0.1)], 1e-5).dropped_orders


def test_t18_taking_part_in_fewer_rounds_amplifies_nothing() -> None:
    (event,) = events(a_spec(), 20)
    assert event.sampling_prob == a_spec().sampling_prob
    # Who takes part is visible to the server: neither the number of sites nor their cohort is an argument.
    assert list(inspect.signature(events).parameters) == ["spec", "rounds", "n_counts"]
