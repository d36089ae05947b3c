"""Shares of noise add up to what was promised, integers add up to the integer sum, and nothing wraps unseen."""

import math
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy import distributed
from sottovoce.common.privacy import distributed_accountant as accountant
from sottovoce.common.privacy.clip import clip, quantised_sum
from sottovoce.common.privacy.discrete import discrete_gaussians
from sottovoce.common.privacy.distributed import (
    MOST_OVERFLOW,
    DistributedMechanism,
    cost,
    decoded,
    finest_grid,
    masked,
    noise_for,
    site_sum,
)
from sottovoce.common.privacy.source import SecretSource, SimulatedNoise_NotPrivate
from sottovoce.common.privacy.stages import PatientGradients, SiteSum
from sottovoce.common.secagg import masks
from tests.fakes.exact_distributed import shares as law_of_shares
from tests.fakes.privacy import some_gradients
from tests.fakes.secagg import World

WIDTH = 20_000


def a_mechanism(**changes: Any) -> DistributedMechanism:
    """Ten sites, of which eight must survive and two may collude."""
    fields: dict[str, Any] = {
        "clip_norm": 1.0,
        "grid_step": 2.0**-16,
        "noise_multiplier": 2.0,
        "n_sites": 10,
        "n_min": 8,
        "n_colluding": 2,
        "cap": 64,
        "n_parameters": WIDTH,
        "expected_patients": 40.0,
    }
    return DistributedMechanism(**(fields | changes))


def nobody(mechanism: DistributedMechanism) -> PatientGradients:
    return PatientGradients(values=np.zeros((0, mechanism.n_parameters), dtype=np.float32))


def seeded(site: int) -> SimulatedNoise_NotPrivate:
    return SimulatedNoise_NotPrivate(seed=0, site=f"site-{site}", round=0)


def added(sums: list[SiteSum], mechanism: DistributedMechanism) -> np.ndarray:
    """What the secure sum returns, in its own ring."""
    width, total = mechanism.n_parameters, np.zeros(mechanism.n_parameters, dtype=np.uint32)
    for one in sums:
        total += masks.wrap(one.values, length=width, bound=mechanism.largest_entry)
    return masks.unwrap(total)


def test_honest_survivors_shares_have_the_promised_deviation_without_the_colluders() -> None:
    mechanism = a_mechanism()
    honest = [site_sum(nobody(mechanism), mechanism, SecretSource()) for _ in range(8 - 2)]
    noise = added(honest, mechanism) * mechanism.grid_step
    # 20,000 numbers: the deviation is known to 0.5 %; a share of a tenth would be 23 % too small.
    assert noise.std() == pytest.approx(2.0, rel=0.035)


@pytest.mark.parametrize("n_counted", [5, 8, 10])
def test_another_number_of_shares_is_noticed(n_counted: int) -> None:
    mechanism = a_mechanism()
    wrong = [site_sum(nobody(mechanism), mechanism, SecretSource()) for _ in range(n_counted)]
    assert added(wrong, mechanism).std() * mechanism.grid_step != pytest.approx(2.0, rel=0.035)


@given(
    noise=some.floats(0.05, 50),
    clip_norm=some.floats(1e-3, 1e3),
    bits=some.floats(8, 17),
    n_min=some.integers(2, 12),
)
@settings(max_examples=60, deadline=None)
def test_the_least_shares_never_have_less_than_the_promised_variance(
    noise: float, clip_norm: float, bits: float, n_min: int
) -> None:
    grid = clip_norm * 2.0**-bits
    mechanism = a_mechanism(
        noise_multiplier=noise,
        clip_norm=clip_norm,
        grid_step=grid,
        n_sites=12,
        n_min=n_min,
        n_colluding=1,
        cap=100,
    )
    promised = (Fraction(noise) * Fraction(clip_norm) / Fraction(grid)) ** 2
    together = (n_min - 1) * mechanism.share_variance
    assert promised <= together <= promised * Fraction(1001, 1000) + Fraction(n_min, 1024)
    event = mechanism.event(sampling_prob=0.1, steps=1, n_patients=1000)
    assert event.noise_multiplier() >= noise * (1 - 1e-12)
    assert event.squared_norm <= (Fraction(clip_norm) / Fraction(grid)) ** 2


def test_what_is_decoded_is_the_integer_sum_with_its_noise() -> None:
    mechanism = a_mechanism(seeded_noise=True, n_parameters=500, clip_norm=0.7, grid_step=0.7 * 2.0**-16)
    rows = [
        some_gradients(n_rows, 500, scale=0.05, seed=n_rows) for n_rows in range(9)
    ]  # one site drew nobody
    sums = [site_sum(row, mechanism, seeded(site)) for site, row in enumerate(rows)]
    plain = np.sum([quantised_sum(clip(row, 0.7), mechanism.grid_step).values for row in rows], axis=0)
    noise = np.sum(
        [discrete_gaussians(mechanism.share_variance, 500, seeded(site)) for site in range(9)], axis=0
    )
    update = decoded(added(sums, mechanism), mechanism, n_summed=9)
    expected = (plain + noise) * (mechanism.grid_step / 40.0)
    assert (update.values == expected.astype(np.float32)).all()
    assert (plain + noise).min() < 0 < (plain + noise).max()
    assert update.simulated
    assert update.steps == 1


def test_the_secure_sum_of_survivors_is_decoded_to_their_integer_sum() -> None:
    mechanism = a_mechanism(seeded_noise=True, n_parameters=40, n_sites=5, n_min=4, n_colluding=1)
    sums = [site_sum(some_gradients(3, 40, seed=site), mechanism, seeded(site)) for site in range(5)]
    world = World(n_sites=5, n_min=mechanism.n_min, length=40, bound=mechanism.largest_entry)
    attempt = world.attempt(values=[one.values for one in sums])
    attempt.until("mask")
    sent = masked(sums[0], lambda values: attempt.participants[0].mask(attempt.messages[0], values))
    assert sums[0].values.astype("<i4").tobytes() not in sent.message
    found = world.attempt(2, values=[one.values for one in sums]).run({3: "mask"})
    survivors = np.sum([one.values for site, one in enumerate(sums) if site != 3], axis=0)
    update = decoded(found.values, mechanism, n_summed=len(found.survivors))
    assert (update.values == (survivors * (mechanism.grid_step / 40.0)).astype(np.float32)).all()


def test_a_patients_vector_is_inside_the_ball_that_the_event_states() -> None:
    mechanism = a_mechanism(seeded_noise=True)
    one = site_sum(some_gradients(1, WIDTH, scale=9.0), mechanism, seeded(0)).values.astype(object)
    without = site_sum(nobody(mechanism), mechanism, seeded(0)).values.astype(object)
    moved = one - without
    assert 0 < int((moved**2).sum()) <= mechanism.event(sampling_prob=1.0, steps=1, n_patients=9).squared_norm


def test_a_sum_too_large_for_its_part_of_the_ring_is_rarer_than_stated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "MOST_OVERFLOW", 1.0)
    for largest in (60, 80, 100):
        monkeypatch.setattr(distributed, "LARGEST", largest)
        mechanism = a_mechanism(
            grid_step=0.25, noise_multiplier=1.5, n_sites=3, n_min=3, n_colluding=1, cap=2, n_parameters=1
        )
        assert mechanism.largest_entry == largest // 3
        room = largest // 3 - 2 * 4  # two patients with all of their norm in one coordinate
        tail = 2 * law_of_shares(float(mechanism.share_variance), 1, 110)[110 + room + 1 :].sum()
        assert 0 < 1 - (1 - tail) ** 3 <= mechanism.overflow_prob <= 1


def test_a_grid_that_could_overflow_is_refused_and_the_finest_that_cannot_is_found() -> None:
    sizes: dict[str, Any] = {
        "clip_norm": 0.3,
        "noise_multiplier": 2.0,
        "n_sites": 10,
        "n_min": 8,
        "n_colluding": 2,
    }
    sizes |= {"cap": 141, "n_parameters": 1_000_000}
    grid = finest_grid(**sizes)
    fits = a_mechanism(**sizes, grid_step=grid)
    assert fits.overflow_prob <= MOST_OVERFLOW
    assert fits.event(sampling_prob=1.0, steps=1, n_patients=10).overflow_prob == fits.overflow_prob
    with pytest.raises(PrivacyError, match="coarser grid"):
        a_mechanism(**sizes, grid_step=grid / 2)
    with pytest.raises(PrivacyError, match="smaller cap"):
        finest_grid(**(sizes | {"cap": 10**7}))


def test_a_site_whose_own_sum_does_not_fit_releases_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism = a_mechanism()
    monkeypatch.setattr(distributed, "LARGEST", 1000)
    with pytest.raises(PrivacyError, match="does not fit"):
        distributed.site_sum(nobody(mechanism), mechanism, SecretSource())


def test_all_sites_at_their_largest_do_not_wrap() -> None:
    for n_sites in (8, 10, 11):
        mechanism = a_mechanism(n_sites=n_sites, n_parameters=3)
        largest = mechanism.largest_entry
        ends = SiteSum(values=np.array([largest, -largest, 0]), simulated=False)
        assert added([ends] * n_sites, mechanism).tolist() == [n_sites * largest, -n_sites * largest, 0]
        assert n_sites * (largest + 1) > 2**31 - 1


def test_nothing_is_released_from_what_the_mechanism_was_not_priced_for() -> None:
    mechanism = a_mechanism(cap=2, n_parameters=50)
    for wrong in (some_gradients(3, 50), some_gradients(2, 49)):
        with pytest.raises(PrivacyError, match="rows"):
            site_sum(wrong, mechanism, SecretSource())
    with pytest.raises(PrivacyError, match="secret source"):
        site_sum(some_gradients(2, 50), mechanism, seeded(0))


def test_the_constants_follow_from_no_data() -> None:
    mechanism = a_mechanism(cap=8, n_parameters=50)
    before = (asdict(mechanism), mechanism.share_variance, mechanism.overflow_prob)
    for n_rows in (0, 1, 8):
        assert len(site_sum(some_gradients(n_rows, 50), mechanism, SecretSource()).values) == 50
    assert (asdict(mechanism), mechanism.share_variance, mechanism.overflow_prob) == before


def test_two_attempts_share_no_noise() -> None:
    mechanism = a_mechanism()
    one, other = (
        site_sum(nobody(mechanism), mechanism, SecretSource()).values.astype(float) for _ in range(2)
    )
    assert abs(np.corrcoef(one, other)[0, 1]) < 7 / math.sqrt(WIDTH)


def test_a_sum_of_too_few_sites_is_not_decoded() -> None:
    mechanism = a_mechanism(n_parameters=4)
    total = np.zeros(4, dtype=np.int64)
    for n_summed in (7, 11):
        with pytest.raises(PrivacyError, match="n_min"):
            decoded(total, mechanism, n_summed=n_summed)
    others: list[Any] = [np.zeros(3, dtype=np.int64), np.zeros(4, dtype=np.uint32)]
    for wrong in others:
        with pytest.raises(PrivacyError, match="64 bits"):
            decoded(wrong, mechanism, n_summed=8)
    with pytest.raises(PrivacyError, match="masks"):
        decoded(total + 8 * mechanism.largest_entry + 1, mechanism, n_summed=8)
    assert decoded(total + 8 * mechanism.largest_entry, mechanism, n_summed=8).values.min() > 0


def test_what_goes_out_is_what_the_masks_made_of_the_whole_sum() -> None:
    total = SiteSum(values=np.arange(5), simulated=True)
    sent = masked(total, lambda values: (values + 3).astype("<u4").tobytes())
    assert sent.simulated
    assert np.frombuffer(sent.message, "<u4").tolist() == [3, 4, 5, 6, 7]
    assert "3" not in repr(sent)


def test_a_cost_says_what_fewer_and_more_honest_sites_mean() -> None:
    event = a_mechanism().event(sampling_prob=1 / 16, steps=100, n_patients=500)
    found = cost([event], 1e-5, max_sites_per_patient=3)
    assert found.epsilon == found.by_colluding[2] == found.by_sites[0] == accountant.epsilon([event], 1e-5)
    assert found.epsilon < found.replace_one == accountant.replace_one([event], 1e-5)
    assert len(found.by_colluding) == 8
    assert list(found.by_colluding) == sorted(found.by_colluding)
    assert found.if_all_others_collude == accountant.epsilon([event], 1e-5, n_colluding=7) > 2 * found.epsilon
    assert list(found.by_sites) == sorted(found.by_sites)
    assert found.by_sites[2] == accountant.epsilon([event], 1e-5, n_sites=3)
    with pytest.raises(PrivacyError, match="one federation"):
        cost([event, a_mechanism(n_min=9).event(sampling_prob=1.0, steps=1, n_patients=5)], 1e-5)


def test_the_noise_for_a_target_is_the_least_that_keeps_it() -> None:
    asked: dict[str, Any] = {"sampling_prob": 1 / 16, "steps": 320, "n_patients": 1000}
    mechanism = a_mechanism(cap=141)
    noise = noise_for(3.0, 1e-5, mechanism, **asked)
    for factor, kept in ((1.0, True), (0.998, False)):
        event = replace(mechanism, noise_multiplier=noise * factor).event(**asked)
        assert (accountant.epsilon([event], 1e-5) <= 3.0) is kept
    with pytest.raises(PrivacyError, match="grid"):
        noise_for(1e-9, 1e-5, mechanism, **asked)


@pytest.mark.parametrize(
    "changes",
    [{"n_colluding": 0}, {"n_colluding": 8}, {"n_min": 11}, {"noise_multiplier": 0.0}, {"clip_norm": math.nan},
     {"cap": 0}, {"n_parameters": 0}, {"expected_patients": 0.0}, {"grid_step": 0.5, "noise_multiplier": 0.2}],
)  # fmt: skip
def test_constants_that_no_guarantee_covers_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError, match="Expected"):
        a_mechanism(**changes)
