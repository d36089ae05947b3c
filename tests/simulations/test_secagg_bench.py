"""The bench of secure sums: what it counts it would notice, and what it tells of Flower's own SecAgg+ is so."""

import random
from typing import Any

import numpy as np
import pytest
from flwr.supercore.primitives.asymmetric import generate_key_pairs, private_key_to_bytes

from sottovoce.simulations.bench import flower_secagg as flower
from sottovoce.simulations.bench import secagg
from tests.fakes import secagg as fakes
from tests.fakes import secagg_deviations as deviations

VECTORS = list(np.random.default_rng(0).uniform(-1, 1, (5, 20)).astype(np.float32))


def apart(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max())


@pytest.mark.parametrize("lost", [{}, {2: flower.MASK}])
def test_an_honest_round_of_flowers_comes_to_the_mean_of_those_who_are_left(lost: dict[int, str]) -> None:
    played = flower.play(VECTORS, lost=lost)
    left = [vector for node, vector in enumerate(VECTORS, start=1) if node not in lost]
    assert played.mean is not None
    assert apart(played.mean, np.mean(left, axis=0)) <= flower.GRAIN
    assert (played.error, played.wire.errors) == ("", [])
    assert played.server_seconds > 0
    assert sorted(played.wire.seconds) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("stage", [flower.SETUP, flower.SHARE])
def test_a_site_lost_before_it_dealt_ends_a_round_of_flowers(stage: str) -> None:
    played = flower.play(VECTORS, lost={2: stage})
    assert played.mean is None
    assert len(played.wire.errors) == 4
    assert all(error.startswith("unmask: KeyError in secure_aggregation/") for error in played.wire.errors)


@pytest.mark.parametrize("name", flower.ATTACKS)
def test_a_dishonest_server_gets_one_sites_update_of_flowers(name: str) -> None:
    found = flower.ATTACKS[name](VECTORS)
    assert apart(found, VECTORS[0]) <= flower.GRAIN
    assert apart(found, VECTORS[1]) > 0.1


def test_masks_stay_on_without_the_secrets() -> None:
    # The twin that must fail: else whatever `_unmasked` is given would look like an attack that went through.
    another, _ = generate_key_pairs()
    found = flower._unmasked(flower.play(VECTORS).wire, bytes(32), private_key_to_bytes(another))
    assert apart(found, VECTORS[0]) > 0.1


def test_every_deviation_is_in_the_benchmarks_row_and_one_that_went_through_would_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def goes_through() -> deviations.Refusal:
        raise deviations.NotRefused

    chosen = deviations.DEVIATIONS[:3]
    monkeypatch.setattr(deviations, "DEVIATIONS", chosen)
    (row,) = secagg._deviations(3)
    assert (row.value, row.met) == (0.0, True)
    (too_few,) = secagg._deviations(25)
    assert too_few.met is False
    through = deviations.Deviation(name="through", by="peer", reason="form", accused="", play=goes_through)
    monkeypatch.setattr(deviations, "DEVIATIONS", (*chosen, through))
    (row,) = secagg._deviations(4)
    assert (row.value, row.met) == (1.0, False)
    assert row.note.endswith("; through")


def test_a_random_attempt_that_were_wrong_would_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = fakes.plain_sum
    wrong, sums, sizes = secagg._random_piece(range(6))
    assert (wrong, sums) == (0, 5)  # one of them is abandoned, as it must be
    assert all(3 <= size <= 50 for size in sizes)
    monkeypatch.setattr(fakes, "plain_sum", lambda *given: [each + 1 for each in honest(*given)])
    assert secagg._random_piece(range(1, 3))[0] == 2


def test_random_attempts_are_of_every_ring() -> None:
    drawn = [secagg._ring(random.Random(seed), 50) for seed in range(20)]
    assert {each["ring_bits"] for each in drawn} == {8, 16, 32}
    assert all(1 <= 50 * each["bound"] < 2 ** (each["ring_bits"] - 1) for each in drawn)
