"""Features equal librosa's where it has them, and are right where it has not."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sottovoce.common import features as extractor
from sottovoce.common import features_temporal
from sottovoce.common.audio import Waveform
from sottovoce.common.feature_specs import (
    Chroma,
    Energy,
    FeatureSpec,
    FeatureStream,
    Formants,
    Frames,
    LogMel,
    Lpc,
    Lpcc,
    Mfcc,
    Pitch,
    SpectralShape,
    Stft,
    ZeroCrossings,
)
from sottovoce.common.features import extract, librosa_reference, width

pytestmark = pytest.mark.usefixtures("compiled_librosa")

RATE = 16_000
FRAMES = Frames()
PITCH = Pitch(kind="pitch")
LIBROSA_HAS: tuple[FeatureSpec, ...] = (
    Stft(kind="stft"),
    LogMel(kind="log_mel"),
    LogMel(kind="log_mel", n_mels=40, low_hz=60.0, high_hz=7600.0),
    Mfcc(kind="mfcc"),
    Mfcc(kind="mfcc", n_mfcc=13, n_mels=26, deltas=2),
    Lpc(kind="lpc"),
    Lpc(kind="lpc", order=20),
    Energy(kind="energy"),
    ZeroCrossings(kind="zero_crossings"),
    Chroma(kind="chroma"),
    Chroma(kind="chroma", n_chroma=24),
    SpectralShape(kind="spectral_shape"),
)
LIBROSA_HAS_NOT: tuple[FeatureSpec, ...] = (Lpcc(kind="lpcc"), Formants(kind="formants"))
EVERY = (*LIBROSA_HAS, PITCH, *LIBROSA_HAS_NOT)


def speech_like(seconds: float, seed: int, rate: int = RATE) -> Waveform:
    """Pulses of a gliding pitch through three resonances, with pauses, over faint noise."""
    random = np.random.default_rng(seed)
    n_samples = round(seconds * rate)
    times = np.arange(n_samples) / rate
    f0 = 140 * 2 ** (0.5 * np.sin(2 * np.pi * random.uniform(0.3, 1.5) * times + random.uniform(0, 6)))
    phase = np.cumsum(f0) / rate
    source = np.diff(np.floor(phase), prepend=0.0) + 0.02 * random.normal(size=n_samples)
    for hertz in random.uniform([400, 1000, 2200], [900, 1900, 3200]):
        source = resonate(source, hertz, 80.0, rate)
    loud = np.sin(2 * np.pi * 2 * times) > -0.5
    samples = 0.3 * source / np.abs(source).max() * loud + 1e-4 * random.normal(size=n_samples)
    return Waveform(samples=samples.astype(np.float32), sample_rate_hz=rate)


def resonate(source: np.ndarray, hertz: float, bandwidth: float, rate: int) -> np.ndarray:
    from scipy.signal import lfilter

    radius = np.exp(-np.pi * bandwidth / rate)
    predictor = [1, -2 * radius * np.cos(2 * np.pi * hertz / rate), radius**2]
    return np.asarray(lfilter([1 - radius], predictor, source))


def noise(seconds: float, seed: int, rate: int = RATE) -> Waveform:
    samples = 0.1 * np.random.default_rng(seed).normal(size=round(seconds * rate))
    return Waveform(samples=samples.astype(np.float32), sample_rate_hz=rate)


def of_samples(samples: np.ndarray, rate: int = RATE) -> Waveform:
    return Waveform(samples=samples.astype(np.float32), sample_rate_hz=rate)


def columns(waveform: Waveform, part: FeatureSpec, frames: Frames = FRAMES) -> np.ndarray:
    return extract([waveform], [FeatureStream(name="x", parts=(part,))], frames)[0]["x"]


def assert_equals_librosa(waveform: Waveform, parts: Sequence[FeatureSpec], frames: Frames) -> None:
    for part, expected in zip(parts, librosa_reference(waveform, parts, frames), strict=True):
        ours = columns(waveform, part, frames)
        assert ours.dtype == np.float32
        assert (
            ours.shape == expected.shape == (1 + len(waveform.samples) // round(RATE * 0.01), ours.shape[1])
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4, err_msg=f"{part}", strict=False)


# Equal to librosa


@pytest.mark.parametrize("part", LIBROSA_HAS, ids=repr)
@pytest.mark.parametrize("kind", [speech_like, noise])
def test_a_feature_equals_librosas(part: FeatureSpec, kind: type) -> None:
    assert_equals_librosa(kind(1.5, seed=3), [part], FRAMES)


@pytest.mark.parametrize(
    "frames",
    [
        Frames(window_seconds=0.032, hop_seconds=0.01, fft_size=512),
        Frames(window_seconds=0.02, hop_seconds=0.01, fft_size=1024),
        Frames(window_seconds=0.064, hop_seconds=0.01, fft_size=4096),
    ],
    ids=repr,
)
def test_features_equal_librosas_on_other_frames(frames: Frames) -> None:
    assert_equals_librosa(speech_like(1.0, seed=5), LIBROSA_HAS, frames)


def test_features_equal_librosas_at_8_khz() -> None:
    waveform = speech_like(1.0, seed=6, rate=8000)
    frames = Frames(window_seconds=0.032, fft_size=256)
    parts = [part for part in LIBROSA_HAS if not isinstance(part, LogMel)]
    for part, expected in zip(parts, librosa_reference(waveform, parts, frames), strict=True):
        np.testing.assert_allclose(
            columns(waveform, part, frames), expected, rtol=1e-4, atol=1e-4, err_msg=f"{part}"
        )


@pytest.mark.parametrize("kind", [speech_like, noise])
def test_features_equal_librosas_usual_float32_too(kind: type) -> None:
    waveform = kind(1.5, seed=3)
    parts = [
        part for part in LIBROSA_HAS if not isinstance(part, Lpc)
    ]  # Burg's method in float32 is too coarse
    for part, expected in zip(
        parts, librosa_reference(waveform, parts, FRAMES, double=False, by_hand=False), strict=True
    ):
        np.testing.assert_allclose(columns(waveform, part), expected, rtol=1e-4, atol=1e-4, err_msg=f"{part}")


def test_a_window_longer_than_the_transform_is_refused() -> None:
    frames = Frames(window_seconds=0.064, fft_size=512)
    with pytest.raises(ValueError, match="at most fft_size=512 samples; came 1024"):
        columns(noise(0.1, 0), LogMel(kind="log_mel"), frames)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10**6),
    n_samples=st.integers(1440, 12_000),
    level=st.floats(1e-3, 1.0),
    tilt=st.floats(-0.95, 0.95),
)
def test_features_of_any_coloured_noise_equal_librosas(
    seed: int, n_samples: int, level: float, tilt: float
) -> None:
    white = np.random.default_rng(seed).normal(size=n_samples)
    coloured = white.copy()
    coloured[1:] += tilt * white[:-1]
    assert_equals_librosa(of_samples(0.2 * level * coloured), LIBROSA_HAS, FRAMES)


@pytest.mark.parametrize("seed", range(6))
def test_pitch_equals_librosas_wherever_there_is_one(seed: int) -> None:
    waveform = speech_like(3.0, seed)
    ours = columns(waveform, PITCH)
    [expected] = librosa_reference(waveform, [PITCH], FRAMES)
    voiced = ours[:, 1] > 0.3
    assert voiced.mean() > 0.4
    np.testing.assert_allclose(ours[voiced, 0], expected[voiced, 0], rtol=1e-4)
    # Where there is none, the least of many equal values is a matter of the last digit.
    assert np.mean(np.abs(ours[:, 0] - expected[:, 0]) > 1e-4) < 0.01


@pytest.mark.parametrize("rate_and_window", [(16_000, 0.064), (16_000, 0.05), (8_000, 0.064)])
def test_pitch_equals_librosas_in_other_windows(rate_and_window: tuple[int, float]) -> None:
    rate, window = rate_and_window
    part = Pitch(kind="pitch", low_hz=80.0, high_hz=400.0, window_seconds=window)
    waveform = speech_like(2.0, 1, rate)
    ours = columns(waveform, part)
    [expected] = librosa_reference(waveform, [part], FRAMES)
    voiced = ours[:, 1] > 0.3
    np.testing.assert_allclose(ours[voiced, 0], expected[voiced, 0], rtol=1e-4)


def test_librosa_from_samples_gives_what_librosa_by_hand_gives() -> None:
    waveform = speech_like(0.5, 1)
    by_hand, from_samples = (
        librosa_reference(waveform, LIBROSA_HAS, FRAMES, by_hand=by_hand) for by_hand in (True, False)
    )
    for first, second in zip(by_hand, from_samples, strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_feature_that_librosa_has_not_is_refused_as_reference() -> None:
    for part in LIBROSA_HAS_NOT:
        with pytest.raises(ValueError, match="librosa has"):
            librosa_reference(noise(0.1, 0), [part], FRAMES)


# Right where librosa has nothing


def test_pitch_finds_a_known_frequency_and_periodicity_tells_noise_from_voice() -> None:
    for hertz in (80.0, 150.0, 330.0):
        pulses = np.diff(np.floor(np.arange(RATE) * hertz / RATE), prepend=0.0)
        found = columns(of_samples(resonate(pulses, 600.0, 100.0, RATE)), PITCH)[10:-10]
        np.testing.assert_allclose(np.exp(found[:, 0]), hertz, rtol=0.02)
        assert found[:, 1].min() > 0.7
    assert columns(noise(1.0, 0), PITCH)[10:-10, 1].max() < 0.4


def test_silence_has_no_periodicity() -> None:
    found = columns(of_samples(np.zeros(RATE)), PITCH)
    assert not found[:, 1].any()
    np.testing.assert_allclose(found[:, 0], np.log(500), rtol=1e-6)


def test_formants_are_the_resonances_of_a_vowel() -> None:
    pulses = np.diff(np.floor(np.arange(RATE) * 120 / RATE), prepend=0.0)
    vowel = pulses + 1e-4 * np.random.default_rng(0).normal(size=RATE)
    for hertz in (700.0, 1220.0, 2600.0):
        vowel = resonate(vowel, hertz, 70.0, RATE)
    frames = Frames(window_seconds=0.032)
    found = np.median(columns(of_samples(vowel), Formants(kind="formants", order=12), frames)[10:-10], axis=0)
    np.testing.assert_allclose(found, [0.700, 1.220, 2.600], rtol=0.1)


def test_formants_are_the_roots_of_the_predictor() -> None:
    frames = noise(0.2, 3).samples[: 5 * 400].reshape(5, 400).astype(np.float64)
    found = features_temporal.formants(frames, RATE, order=10, n_formants=3)
    for row, frame in zip(found, frames, strict=True):
        emphasised = frame - 0.97 * np.concatenate([[0.0], frame[:-1]])
        predictor = features_temporal.lpc((emphasised * np.hamming(400))[None], 10)[0]
        roots = np.roots([1.0, *predictor])
        hertz = np.angle(roots) * RATE / (2 * np.pi)
        kept = (roots.imag > 0) & (hertz > 90) & (-np.log(np.abs(roots)) * RATE / np.pi < 500)
        expected = np.sort(hertz[kept])[:3] / 1000
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=1e-6)
        assert not row[len(expected) :].any()


def test_lpcc_is_the_cepstrum_of_the_predictor() -> None:
    coefficients = features_temporal.lpc(noise(0.1, 4).samples[None, :800].astype(np.float64), 12)
    response = np.fft.fft([1.0, *coefficients[0]], 1 << 16)
    cepstrum = np.fft.ifft(-np.log(np.abs(response))).real * 2  # minimum phase: twice the even part
    np.testing.assert_allclose(features_temporal.lpcc(coefficients, 20)[0], cepstrum[1:21], atol=1e-6)


def test_lpc_of_a_predictable_process_is_its_recipe() -> None:
    from scipy.signal import lfilter

    process = lfilter([1], [1, -1.6, 0.8], np.random.default_rng(0).normal(size=20_000))
    np.testing.assert_allclose(features_temporal.lpc(process[None], 2)[0], [-1.6, 0.8], atol=0.02)


# Whatever comes


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(5000),
        np.ones(5000),
        np.full(5000, 1e-7),
        np.tile([1.0, -1.0], 2500),
        np.eye(1, 5000, 2500)[0],
        np.sin(np.arange(5000) * 0.3),
        np.full(5000, 16.0),
        np.zeros(1),
        np.ones(1),
        np.ones(159),
        np.random.default_rng(0).normal(size=700),
    ],
    ids=str,
)
@pytest.mark.parametrize("pooling", ["none", "statistics"])
def test_features_are_finite_whatever_comes(
    samples: np.ndarray, pooling: Literal["none", "statistics"]
) -> None:
    waveform = of_samples(samples)
    for part in EVERY:
        stream = FeatureStream(name="x", parts=(part,), pooling=pooling)
        assert np.isfinite(extract([waveform], [stream], FRAMES)[0]["x"]).all(), part


def test_features_do_not_depend_on_the_batch() -> None:
    streams = [FeatureStream(name=str(place), parts=(part,)) for place, part in enumerate(EVERY)]
    waveforms = [speech_like(0.7, 1), noise(3.1, 2), of_samples(np.ones(1)), speech_like(1.3, 3)]
    together = extract(waveforms, streams, FRAMES)
    backwards = extract(waveforms[::-1], streams, FRAMES)[::-1]
    for waveform, first, second in zip(waveforms, together, backwards, strict=True):
        alone = extract([waveform], streams, FRAMES)[0]
        for name in alone:
            np.testing.assert_array_equal(first[name], alone[name])
            np.testing.assert_array_equal(second[name], alone[name])


def test_many_recordings_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = FeatureStream(name="x", parts=(LogMel(kind="log_mel"),))
    waveforms = [noise(0.5, seed) for seed in range(7)]
    whole = extract(waveforms, [stream], FRAMES)
    monkeypatch.setattr(extractor, "BATCH_FRAMES", 100)
    for first, second in zip(whole, extract(waveforms, [stream], FRAMES), strict=True):
        np.testing.assert_array_equal(first["x"], second["x"])


def test_a_stream_is_its_parts_side_by_side() -> None:
    waveform = speech_like(0.5, 2)
    parts = (Energy(kind="energy"), LogMel(kind="log_mel"), PITCH)
    found = extract([waveform], [FeatureStream(name="x", parts=parts)], FRAMES)[0]["x"]
    np.testing.assert_array_equal(found, np.concatenate([columns(waveform, part) for part in parts], axis=1))


@pytest.mark.parametrize("part", EVERY, ids=repr)
@pytest.mark.parametrize("rate", [8000, 16_000])
def test_width_is_how_wide_a_stream_is(part: FeatureSpec, rate: int) -> None:
    parts = (part, Energy(kind="energy"))
    for stream in (
        FeatureStream(name="x", parts=parts),
        FeatureStream(name="x", parts=parts, pooling="statistics"),
    ):
        found = extract([noise(0.3, 0, rate)], [stream], FRAMES)[0]["x"]
        assert found.shape[-1] == width(stream, FRAMES, rate)


def test_statistics_are_mean_deviation_and_percentiles() -> None:
    waveform = speech_like(1.0, 4)
    parts = (Mfcc(kind="mfcc", n_mfcc=5), Energy(kind="energy"))
    pooled = extract([waveform], [FeatureStream(name="x", parts=parts, pooling="statistics")], FRAMES)[0]["x"]
    rows = np.concatenate([columns(waveform, part) for part in parts], axis=1).astype(np.float64)
    expected = [rows.mean(axis=0), rows.std(axis=0), *np.percentile(rows, [20, 80], axis=0)]
    np.testing.assert_allclose(pooled, np.concatenate(expected), rtol=1e-5, atol=1e-5)


def test_pitch_is_summed_up_over_voiced_frames_only() -> None:
    waveform = speech_like(2.0, 4)
    stream = FeatureStream(name="x", parts=(PITCH,), pooling="statistics")
    pooled = extract([waveform], [stream], FRAMES)[0]["x"]
    rows = columns(waveform, PITCH)
    voiced = rows[rows[:, 1] >= extractor.VOICED_PERIODICITY, 0]
    assert 0 < len(voiced) < len(rows)
    np.testing.assert_allclose(pooled[::2], _four(voiced), rtol=1e-5)
    np.testing.assert_allclose(pooled[1::2], _four(rows[:, 1]), rtol=1e-5)


def test_without_a_voiced_frame_all_frames_count() -> None:
    waveform = noise(1.0, 4)
    stream = FeatureStream(name="x", parts=(PITCH,), pooling="statistics")
    pooled = extract([waveform], [stream], FRAMES)[0]["x"]
    np.testing.assert_allclose(pooled[::2], _four(columns(waveform, PITCH)[:, 0]), rtol=1e-5)


def test_formants_are_summed_up_where_they_were_found() -> None:
    waveform = speech_like(2.0, 5)
    part = Formants(kind="formants")
    pooled = extract([waveform], [FeatureStream(name="x", parts=(part,), pooling="statistics")], FRAMES)
    for place, column in enumerate(columns(waveform, part).T):
        np.testing.assert_allclose(pooled[0]["x"][place::3], _four(column[column > 0]), rtol=1e-5)


def _four(values: np.ndarray) -> list[float]:
    values = values.astype(np.float64)
    return [values.mean(), values.std(), *np.percentile(values, [20, 80])]


def test_a_louder_recording_differs_by_a_constant_only() -> None:
    # Nothing is scaled by the loudest frame: twice the amplitude is ln 4 more power, everywhere.
    waveform = noise(1.0, 6)
    quiet, loud = (columns(of_samples(waveform.samples * gain), LogMel(kind="log_mel")) for gain in (1, 2))
    np.testing.assert_allclose(loud - quiet, np.log(4), atol=1e-5)


def test_a_loud_end_changes_nothing_before_it() -> None:
    waveform = noise(2.0, 7)
    with_bang = waveform.samples.copy()
    with_bang[-RATE // 2 :] *= 1e4
    for part in EVERY:
        if not (isinstance(part, Mfcc) and part.deltas):
            before, after = (columns(of_samples(y), part)[:120] for y in (waveform.samples, with_bang))
            np.testing.assert_array_equal(before, after, err_msg=repr(part))


def test_short_recordings_have_derivatives() -> None:
    part = Mfcc(kind="mfcc", n_mfcc=4, deltas=2)
    for n_samples in (1, 400, 1279, 1280):
        found = columns(of_samples(np.random.default_rng(0).normal(size=n_samples)), part)
        assert found.shape == (1 + n_samples // 160, 12)


def test_mixed_rates_and_empty_waveforms_are_refused() -> None:
    stream = FeatureStream(name="x", parts=(Energy(kind="energy"),))
    with pytest.raises(ValueError, match=r"one sample rate; came \[8000, 16000\]"):
        extract([noise(0.1, 0), noise(0.1, 0, 8000)], [stream], FRAMES)
    with pytest.raises(ValueError, match="empty"):
        extract([of_samples(np.zeros(0))], [stream], FRAMES)
    assert extract([], [stream], FRAMES) == []


def test_fast_sizes_are_even_and_enough() -> None:
    for low, high in pairwise(range(1, 3000, 37)):
        assert low <= features_temporal.fast_size(low) <= features_temporal.fast_size(high)
        assert features_temporal.fast_size(low) % 2 == 0


def test_extraction_keeps_no_gradient_and_no_thread_setting() -> None:
    threads = torch.get_num_threads()
    columns(noise(0.1, 0), LogMel(kind="log_mel"))
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
