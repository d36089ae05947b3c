"""Encodings add up to what the updates add up to; nothing leaves its ring; and each part of the way is needed."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays

from sottovoce.common import compression
from sottovoce.common.compression import Codec, FixedPoint, hartley
from sottovoce.common.errors import UpdateRefused
from sottovoce.common.secagg import masks
from sottovoce.common.streams import stream as stream_of
from tests.fakes.secagg import World, remembered_signatures

SIZE = 3000


def a_codec(**changes: Any) -> Codec:
    fields: dict[str, Any] = {"size": SIZE, "ring_bits": 8, "n_sites": 10, "norm": 1.0, "seed": 0, "round": 3}
    return Codec(**(fields | changes))


def updates(kind: str, n_sites: int, *, norm: float = 1.0, size: int = SIZE) -> np.ndarray[Any, Any]:
    """One row a site, each of this norm: all numbers alike, or one that holds everything, or something between."""
    draw = np.random.default_rng(n_sites)
    rows = draw.standard_normal((n_sites, size))
    match kind:
        case "spike":
            rows = np.zeros((n_sites, size))
            rows[:, 17] = 1.0
        case "constant":
            rows = np.ones((n_sites, size))
        case "heavy":
            rows = rows * np.exp(2 * draw.standard_normal((n_sites, size)))
        case "wave":
            rows = np.tile(np.cos(np.arange(size) * 2 * np.pi * 5 / size), (n_sites, 1))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    shortened: np.ndarray[Any, Any] = (rows * (norm / lengths)).astype(np.float32)
    return shortened


def error_of(codec: Codec, rows: np.ndarray[Any, Any]) -> float:
    """How far the decoded sum is from the sum."""
    total = np.sum([codec.encode(row, site=f"site-{site}") for site, row in enumerate(rows)], axis=0)
    return float(np.linalg.norm(codec.decode(total) - rows.sum(axis=0, dtype=np.float64)))


@pytest.mark.parametrize("kind", ["normal", "spike", "constant", "heavy", "wave"])
@pytest.mark.parametrize("n_sites", [3, 10, 50])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_sum_of_encodings_decodes_to_the_sum_of_updates(kind: str, n_sites: int, bits: int) -> None:
    codec = a_codec(ring_bits=bits, n_sites=n_sites)
    # 3,000 coordinates: the length of the error is within a few per cent of its mean, which is below error_norm.
    assert error_of(codec, updates(kind, n_sites)) < codec.error_norm * math.sqrt(n_sites)


@pytest.mark.parametrize("kind", ["spike", "heavy"])
def test_without_the_rotation_what_stands_out_is_lost(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "hartley", lambda vector: vector)
    codec = a_codec(ring_bits=16)
    assert error_of(codec, updates(kind, 10)) > 100 * codec.error_norm * math.sqrt(10)


def test_without_the_signs_a_wave_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Codec, "_signs", 1)
    codec = a_codec(ring_bits=16)
    assert error_of(codec, updates("wave", 10)) > 100 * codec.error_norm * math.sqrt(10)


def _mean_decoded(update: np.ndarray[Any, Any], n_rounds: int) -> np.ndarray[Any, Any]:
    codecs = [a_codec(size=len(update), round=number) for number in range(n_rounds)]
    mean: np.ndarray[Any, Any] = np.mean(
        [codec.decode(codec.encode(update, site="a")) for codec in codecs], axis=0
    )
    return mean


def _tossed(monkeypatch: pytest.MonkeyPatch, coin: float) -> None:
    """Every coin of the rounding falls alike."""
    whole, coins = stream_of, SimpleNamespace(random=lambda n: np.full(n, coin))

    def stream(seed: int, purpose: str, *keys: str | int) -> Any:
        return coins if "rounding" in keys else whole(seed, purpose, *keys)

    monkeypatch.setattr(compression, "stream", stream)


def test_rounding_has_mean_zero() -> None:
    # A hundredth of a step in each coordinate: what is rounded to nothing in one round is there on average.
    update = updates("normal", 1, size=400, norm=0.02)[0]
    n_rounds = 3000
    error = np.linalg.norm(_mean_decoded(update, n_rounds) - update)
    assert error < 1.1 * a_codec(size=400).error_norm / math.sqrt(n_rounds) < 0.3 * np.linalg.norm(update)


def test_rounding_to_the_nearest_level_would_lose_small_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    _tossed(monkeypatch, 0.5)
    update = updates("normal", 1, size=400, norm=0.02)[0]
    assert np.linalg.norm(_mean_decoded(update, 50) - update) > 0.9 * np.linalg.norm(update)


def test_an_encoding_follows_from_its_arguments_and_the_codec_alone() -> None:
    update = updates("normal", 1)[0]
    values = a_codec().encode(update, site="a")
    assert np.array_equal(values, a_codec().encode(update.copy(), site="a"))
    for codec, site in ((a_codec(), "b"), (a_codec(round=4), "a"), (a_codec(seed=1), "a")):
        assert not np.array_equal(values, codec.encode(update, site=site))
    # The same in every process, on every machine of this kind: a round that is done again is the same round.
    known = Codec(size=6, ring_bits=8, n_sites=3, norm=1.0, seed=7, round=1)
    assert known.encode(np.arange(6, dtype=np.float32) / 8, site="a").tolist() == [-7, 6, -12, -9, 7, 15]


FLOATS = some.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    update=arrays.arrays(np.float32, some.integers(1, 40), elements=FLOATS),
    bits=some.sampled_from([8, 16, 32]),
    n_sites=some.integers(1, 50),
    weight=some.floats(1e-6, 1.0),
)
@settings(max_examples=150, deadline=None)
def test_no_update_leaves_the_bound(
    update: np.ndarray[Any, Any], bits: int, n_sites: int, weight: float
) -> None:
    codec = a_codec(size=len(update), ring_bits=bits, n_sites=n_sites)
    values = codec.encode(update, site="a", weight=weight)
    assert values.dtype == np.int64
    assert values.shape == (codec.length,)
    assert int(np.abs(values).max()) <= codec.value_bound
    assert n_sites * codec.value_bound <= masks.largest_sum(bits)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_no_coin_carries_a_coordinate_beyond_the_bound(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The largest coin there is: added to the bound, which is how one may round, it would make one more of it.
    codec, update = a_codec(size=1, ring_bits=bits), np.ones(1, np.float32)
    largest_coin = float(np.nextafter(1.0, 0.0))
    _tossed(monkeypatch, largest_coin)
    assert codec.value_bound + largest_coin == codec.value_bound + 1
    monkeypatch.setitem(compression._REACH, bits, 0.5)
    assert abs(int(codec.encode(update, site="a")[0])) == codec.value_bound


def test_few_coordinates_of_the_longest_update_are_cut_off() -> None:
    size = 200_000
    update = updates("normal", 1, size=size)[0]
    for bits, most in ((8, 2e-4), (16, 2e-5)):
        codec = a_codec(size=size, ring_bits=bits, n_sites=3)
        turned = np.abs(hartley(update * codec._signs) / codec.step)
        assert np.mean(turned > codec.value_bound) < most
        # The twin: a reach of half as much would cut off hundreds of times more.
        assert np.mean(turned > codec.value_bound / 2) > 10 * most


@pytest.mark.parametrize("factor", [1.01, 30.0, 1e6])
def test_an_update_longer_than_the_norm_is_shortened_to_it(factor: float) -> None:
    codec, update = a_codec(ring_bits=16), updates("heavy", 1)[0]
    decoded = codec.decode(codec.encode(update * np.float32(factor), site="a"))
    assert np.linalg.norm(decoded - update) < 1.01 * codec.error_norm


def test_an_update_inside_the_norm_keeps_its_length() -> None:
    codec, update = a_codec(ring_bits=16), updates("heavy", 1, norm=0.3)[0]
    assert np.linalg.norm(codec.decode(codec.encode(update, site="a"))) == pytest.approx(0.3, rel=0.01)


@pytest.fixture
def _quick() -> Iterator[None]:
    with remembered_signatures():
        yield


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("n_sites", "lost"), [(3, {}), (4, {1: "mask"}), (10, {0: "mask", 4: "consent", 7: "deal"})]
)
def test_the_secure_sum_of_encodings_is_their_sum(bits: int, n_sites: int, lost: dict[int, str]) -> None:
    codec = a_codec(size=200, ring_bits=bits, n_sites=n_sites)
    rows = updates("heavy", n_sites, size=200)
    values = [codec.encode(row, site=f"hospital-{site:02}") for site, row in enumerate(rows)]
    world = World(n_sites, length=codec.length, bound=codec.value_bound, ring_bits=bits)
    found = world.attempt(values=values).run(lost)
    survivors = [int(site[-2:]) for site in found.survivors]
    assert np.array_equal(found.values, np.sum([values[site] for site in survivors], axis=0))
    mean = codec.decode(found.values, weight=len(survivors))
    error = np.linalg.norm(mean - rows[survivors].mean(axis=0))
    assert error < codec.error_norm / math.sqrt(len(survivors))


@pytest.mark.parametrize("bits", [8, 16])
def test_for_every_cohort_the_ring_holds_the_largest_sum_of_all(bits: int) -> None:
    for n_sites in range(3, 51):
        codec = a_codec(size=64, ring_bits=bits, n_sites=n_sites, norm=1.0)
        # All sites alike, and far beyond the norm: the sum is as large as it can be.
        spike = np.zeros(64, np.float32)
        spike[0] = 1e9
        encodings = [codec.encode(spike, site=str(site)) for site in range(n_sites)]
        total = masks.zeros(codec.length, bits=bits)
        for values in encodings:
            total += masks.wrap(values, length=codec.length, bound=codec.value_bound, bits=bits)
        assert np.array_equal(masks.unwrap(total), np.sum(encodings, axis=0))
        assert codec.value_bound >= 2


def test_a_weight_multiplies_before_the_rounding_and_the_mean_is_the_weighted_one() -> None:
    codec, rows, weights = a_codec(ring_bits=16, n_sites=3), updates("heavy", 3), (1.0, 0.5, 0.25)
    encodings = [codec.encode(rows[n], site=f"site-{n}", weight=weight) for n, weight in enumerate(weights)]
    total = np.sum(encodings, axis=0)
    expected = np.average(rows, axis=0, weights=weights)
    assert (
        np.linalg.norm(codec.decode(total, weight=1.75) - expected) < codec.error_norm * math.sqrt(3) / 1.75
    )


def test_a_weight_does_not_undo_the_shortening() -> None:
    codec, update = a_codec(ring_bits=16), updates("heavy", 1)[0]
    decoded = codec.decode(codec.encode(5 * update, site="a", weight=0.5))
    assert np.linalg.norm(decoded - update / 2) < 1.01 * codec.error_norm


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.0001, math.nan, math.inf])
@pytest.mark.parametrize("codec", [a_codec(), FixedPoint(length=SIZE, n_sites=3, largest=1.0)])
def test_a_weight_above_the_largest_site_s_is_refused(codec: Codec | FixedPoint, weight: float) -> None:
    with pytest.raises(UpdateRefused, match="weight"):
        codec.encode(updates("normal", 1)[0], site="a", weight=weight)


@pytest.mark.parametrize(
    "update",
    [
        np.zeros(SIZE + 1, np.float32),
        np.zeros((SIZE, 1), np.float32),
        np.zeros(SIZE, np.int64),
        np.full(SIZE, np.nan, np.float32),
        np.full(SIZE, -np.inf, np.float32),
        np.full(SIZE, 1e200),
    ],
    ids=["longer", "a-column", "integers", "nan", "infinite", "beyond-float32"],
)
@pytest.mark.parametrize("codec", [a_codec(), FixedPoint(length=SIZE, n_sites=3, largest=1.0)])
def test_what_is_no_update_is_refused(codec: Codec | FixedPoint, update: Any) -> None:
    with pytest.raises(UpdateRefused, match="Expected"):
        codec.encode(update, site="a")


def test_an_update_of_nothing_is_nothing() -> None:
    codec = a_codec()
    assert not codec.encode(np.zeros(SIZE, np.float32), site="a").any()


@pytest.mark.parametrize("codec", [a_codec(), FixedPoint(length=SIZE, n_sites=3, largest=1.0)])
def test_a_sum_of_another_length_or_type_is_not_decoded(codec: Codec | FixedPoint) -> None:
    totals: tuple[Any, ...] = (np.zeros(codec.length + 1, np.int64), np.zeros(codec.length))
    for total in totals:
        with pytest.raises(ValueError, match="a sum of"):
            codec.decode(total)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 0},
        {"ring_bits": 12},
        {"n_sites": 0},
        {"n_sites": 128},
        {"norm": 0.0},
        {"norm": math.inf},
        {"norm": math.nan},
    ],
)
def test_constants_that_nothing_can_be_encoded_with_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        a_codec(**changes)


def test_the_wire_is_at_most_three_per_cent_longer() -> None:
    for size in (*range(1, 6000), 999_983, 1_000_003, 13_137_823):
        assert size <= a_codec(size=size).length <= 1.03 * size


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 1001])
def test_the_transform_keeps_lengths_and_angles_and_undoes_itself(length: int) -> None:
    draw = np.random.default_rng(length)
    one, other = draw.standard_normal((2, length))
    assert hartley(one) @ hartley(other) == pytest.approx(one @ other, rel=1e-9, abs=1e-9)
    assert hartley(hartley(one)) == pytest.approx(one, rel=1e-9, abs=1e-9)
    angles = 2 * np.pi * np.outer(np.arange(length), np.arange(length)) / length
    assert hartley(one) == pytest.approx(
        (np.cos(angles) + np.sin(angles)) @ one / math.sqrt(length), abs=1e-9
    )


@given(
    update=arrays.arrays(np.float32, 5, elements=some.floats(-2.0, 2.0, width=32)),
    n_sites=some.integers(3, 50),
    weight=some.floats(0.01, 1.0),
)
@settings(max_examples=100, deadline=None)
def test_fixed_point_rounds_by_at_most_half_a_step_and_decodes_exactly(
    update: np.ndarray[Any, Any], n_sites: int, weight: float
) -> None:
    codec = FixedPoint(length=5, n_sites=n_sites, largest=2.0)
    values = codec.encode(update, site="a", weight=weight)
    assert int(np.abs(values).max()) <= codec.value_bound
    assert n_sites * codec.value_bound <= masks.largest_sum(32)
    assert np.array_equal(codec.decode(values), values * codec.step)
    assert np.abs(codec.decode(values) - weight * update.astype(np.float64)).max() <= codec.step * 0.5000001


def test_fixed_point_holds_the_largest_number_of_all_sites() -> None:
    for n_sites, largest in ((3, 16.0), (7, 0.3), (50, 1e-3)):
        codec = FixedPoint(length=2, n_sites=n_sites, largest=largest)
        values = codec.encode(np.array([largest, -largest]), site="a")
        assert values.tolist() == [codec.value_bound, -codec.value_bound]
        assert codec.decode(n_sites * values, weight=n_sites) == pytest.approx([largest, -largest], rel=1e-12)


def test_fixed_point_refuses_a_number_beyond_the_largest_and_tells_nothing_of_it() -> None:
    codec = FixedPoint(length=2, n_sites=3, largest=16.0)
    with pytest.raises(UpdateRefused, match=r"at most 16 in size.*federation\.largest_change") as refused:
        codec.encode(np.array([0.5, -16.25]), site="a")
    assert "16.25" not in str(refused.value)
    assert codec.encode(np.array([0.5, -16.0]), site="a").min() == -codec.value_bound
