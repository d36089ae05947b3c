"""The parts together: what leaves, what it costs, and what is refused."""

import numpy as np
import pytest

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy.accountant import epsilon
from sottovoce.common.privacy.plan import after_steps, cost, draw, events, release, stamp
from sottovoce.common.privacy.source import SecretSource, SimulatedNoise_NotPrivate
from sottovoce.common.privacy.stages import PatientGradients, PrivateUpdate
from sottovoce.common.privacy_specs import NoPrivacy
from tests.fakes.privacy import a_spec, some_gradients


def quiet(**changes: object) -> object:
    """A spec whose noise is small against the clipping norm, so that the signal can be read."""
    return a_spec(noise_multiplier=0.05, expected_patients=10.0, **changes)


def seeded() -> SimulatedNoise_NotPrivate:
    return SimulatedNoise_NotPrivate(seed=0, site="site-1", round=0)


def test_the_signal_is_the_clipped_sum_over_the_public_constant() -> None:
    gradients = some_gradients(n_rows=8, width=2000, scale=3.0)
    norms = np.linalg.norm(gradients.values, axis=1, keepdims=True)
    expected = (gradients.values / norms).sum(axis=0) / 10.0
    update = release(gradients, quiet(), SecretSource())  # type: ignore[arg-type]
    error = update.values - expected
    assert np.sqrt((error**2).mean()) == pytest.approx(0.05 / 10.0, rel=0.1)
    assert update.steps == 1
    assert update.stamp == ""


def test_nobody_drawn_still_releases_noise() -> None:
    nobody = PatientGradients(values=np.zeros((0, 5000), dtype=np.float32))
    update = release(nobody, a_spec(), SecretSource())
    assert update.values.std() == pytest.approx(1 / 62.5, rel=0.1)


def test_two_releases_of_the_same_gradients_differ() -> None:
    one, other = (release(some_gradients(), a_spec(), SecretSource()).values for _ in range(2))
    assert (one != other).mean() > 0.9  # two honest numbers are the same once in four million


def test_more_rows_than_the_cap_are_refused() -> None:
    with pytest.raises(PrivacyError, match="at most cap=70 rows"):
        release(some_gradients(n_rows=71), a_spec(cap=70), SecretSource())


def test_a_seeded_source_needs_a_study_that_says_so() -> None:
    with pytest.raises(PrivacyError, match="seeded_noise"):
        release(some_gradients(), a_spec(), seeded())
    with pytest.raises(PrivacyError, match="seeded_noise"):
        draw(a_spec(), np.arange(5), 5, seeded())


def test_simulated_noise_is_reproducible_stamped_and_still_costed() -> None:
    spec = a_spec(seeded_noise=True)
    one, other = (release(some_gradients(), spec, seeded()) for _ in range(2))
    assert (one.values == other.values).all()
    assert one.stamp == "SIMULATED NOISE, NOT PRIVATE"
    sentence = cost(spec, 1).sentence()
    assert sentence.startswith("SIMULATED NOISE, NOT PRIVATE; this study would cost epsilon ")
    assert cost(a_spec(), 1).sentence() in sentence


def test_one_simulated_step_marks_the_whole_round() -> None:
    real = release(some_gradients(), a_spec(), SecretSource())
    fake = release(some_gradients(), a_spec(seeded_noise=True), seeded())
    assert after_steps(real.values, [real, fake]).simulated
    assert not after_steps(real.values, [real, real]).simulated


def test_no_stage_prints_its_numbers() -> None:
    update = PrivateUpdate(values=np.array([123.0], dtype=np.float32), steps=1, simulated=False)
    assert "123" not in repr(update)
    assert "12345" not in repr(draw(a_spec(), np.full(12345, 0), 1, SecretSource()))


# --- draws -------------------------------------------------------------------------------------------------------


def test_a_drawn_patient_is_one_row_of_at_most_k_recordings() -> None:
    owners = np.repeat(np.arange(40), 5)
    drawn = draw(
        a_spec(sampling_prob=0.5, expected_patients=20.0, utterances_per_patient=3),
        owners,
        40,
        SecretSource(),
    )
    assert np.bincount(drawn.rows).tolist() == [3] * drawn.n_rows
    assert len(set(zip(owners[drawn.recordings].tolist(), drawn.rows.tolist(), strict=True))) == drawn.n_rows


def test_in_unit_utterance_every_drawn_recording_is_a_row() -> None:
    owners = np.repeat(np.arange(40), 5)
    spec = a_spec(sampling_prob=0.5, unit="utterance", utterances_per_patient=3)
    drawn = draw(spec, owners, 40, SecretSource())
    assert drawn.rows.tolist() == list(range(len(drawn.recordings)))
    # The first three of each patient, and never the others.
    assert set((drawn.recordings % 5).tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("unit", ["patient", "utterance"])
def test_the_withdrawn_are_in_no_draw(unit: str) -> None:
    owners = np.repeat(np.arange(10), 3)
    spec = a_spec(sampling_prob=1.0, unit=unit, expected_patients=5.0)
    drawn = draw(spec, owners, 10, SecretSource(), withdrawn={4, 7})
    assert set(owners[drawn.recordings].tolist()) == set(range(10)) - {4, 7}


def test_a_site_with_more_patients_than_the_study_allows_cannot_take_part() -> None:
    with pytest.raises(PrivacyError, match="n_patients_public=1000 patients; this site has more") as caught:
        draw(a_spec(), np.arange(1001), 1001, SecretSource())
    assert "1001" not in str(caught.value)


# --- costs -------------------------------------------------------------------------------------------------------


def test_a_cost_says_everything_that_belongs_beside_the_figure() -> None:
    figures = cost(a_spec(noise_multiplier=2.0, max_sites_per_patient=2), 20)
    assert figures.epsilon == pytest.approx(2.556, abs=1e-3)
    assert figures.replace_one == pytest.approx(4.976, abs=1e-3)
    assert figures.prv is not None
    assert figures.prv[0] <= figures.epsilon <= figures.prv[1]
    assert figures.epsilon <= figures.rdp.epsilon
    assert figures.by_sites[0] == figures.epsilon < figures.by_sites[1]
    assert figures.record_epsilon is None
    assert figures.sentence() == "epsilon 2.56 at delta 1e-05 for each patient"
    assert "add or remove one patient" in figures.guarantee.adjacency


def test_a_study_without_a_finite_figure_gets_no_stamp_but_an_error() -> None:
    spec = a_spec(
        unit="utterance", utterances_per_patient=8, cap=500, noise_multiplier=0.05, steps_per_round=1
    )
    with pytest.raises(PrivacyError, match="no finite epsilon"):
        stamp(spec, 1)


def test_a_stamp_is_the_sentence_of_the_cost_and_is_rounded_up() -> None:
    spec = a_spec(noise_multiplier=2.3)
    assert stamp(spec, 20) == cost(spec, 20).sentence()
    figure = epsilon(events(spec, 20), spec.delta)
    printed = float(stamp(spec, 20).split()[1])
    assert printed - 0.01 < figure <= printed
    assert figure < printed - 0.005, "the nearest would be no upper bound: this case would show nothing else"
    assert stamp(NoPrivacy(mode="none"), 20) == "NOT PRIVATE"


def test_a_small_population_prints_weak_and_the_figure_at_the_usual_delta() -> None:
    spec = a_spec(
        n_patients_public=20, sampling_prob=0.5, expected_patients=10.0, delta=0.03, small_population=True,
        noise_multiplier=8.0,
    )  # fmt: skip
    figures = cost(spec, 5)
    assert figures.epsilon_at_usual_delta > 2 * figures.epsilon
    assert figures.epsilon_at_usual_delta == pytest.approx(2.294, abs=1e-3)
    assert "(epsilon 2.30 at 1e-05)" in figures.sentence()
    assert "weak: 20 patients at most" in figures.sentence()


def test_unit_utterance_is_charged_as_the_patient() -> None:
    spec = a_spec(unit="utterance", utterances_per_patient=4, noise_multiplier=2.0)
    figures = cost(spec, 2)
    assert figures.record_epsilon is not None
    assert figures.epsilon > 2 * figures.record_epsilon
    assert figures.epsilon == epsilon(events(spec, 2), spec.delta)
