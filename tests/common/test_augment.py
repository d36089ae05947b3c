"""Augmentation changes what it says it changes, the same way every time, and nothing else."""

import numpy as np
import pytest
import torch

from sottovoce.common import augment
from sottovoce.common.audio import Waveform
from sottovoce.common.feature_specs import Frames
from sottovoce.common.streams import stream
from sottovoce.common.study import Augmentation

RATE = 16_000
EVERYTHING = Augmentation(noise_prob=1.0, speed_prob=1.0, pitch_prob=1.0, shift_prob=1.0)
MASKS = Augmentation(time_masks=2, time_mask_seconds=0.2, band_masks=2, band_mask_width=8)


def tone(hertz: float = 440.0, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def strongest_hz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 18))
    return float(np.argmax(spectrum)) * RATE / (1 << 18)


def test_the_same_generator_gives_the_same_copy() -> None:
    waveform = Waveform(samples=tone(), sample_rate_hz=RATE)
    first, second, other = (
        augment.augment(waveform, EVERYTHING, stream(1, "augmentation", key)).samples for key in "aab"
    )
    np.testing.assert_array_equal(first, second)
    assert len(first) != len(other) or not np.array_equal(first, other)
    np.testing.assert_array_equal(waveform.samples, tone())


def test_without_probabilities_nothing_changes() -> None:
    waveform = Waveform(samples=tone(), sample_rate_hz=RATE)
    copy = augment.augment(waveform, Augmentation(), np.random.default_rng(0))
    np.testing.assert_array_equal(copy.samples, waveform.samples)


def test_switching_one_stage_off_leaves_the_others_draws_alone() -> None:
    waveform = Waveform(samples=tone(), sample_rate_hz=RATE)
    with_noise, without = (
        augment.augment(
            waveform, Augmentation(speed_prob=1.0, noise_prob=probability), stream(0, "augmentation")
        ).samples
        for probability in (1.0, 0.0)
    )
    assert len(with_noise) == len(without) != RATE
    assert np.corrcoef(with_noise, without)[0, 1] > 0.9


def test_every_stage_is_applied_about_as_often_as_it_says() -> None:
    waveform = Waveform(samples=tone(seconds=0.1), sample_rate_hz=RATE)
    random = np.random.default_rng(0)
    changed = [
        not np.array_equal(
            augment.augment(waveform, Augmentation(noise_prob=0.3), random).samples, waveform.samples
        )
        for _ in range(400)
    ]
    assert 0.22 < np.mean(changed) < 0.38


@pytest.mark.parametrize("snr_db", [-5.0, 10.0, 30.0])
def test_noise_has_the_stated_ratio(snr_db: float) -> None:
    noise = augment.add_noise(tone(), snr_db, np.random.default_rng(0)) - tone()
    assert 10 * np.log10(np.mean(tone() ** 2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.2)


def test_noise_on_silence_is_silence() -> None:
    assert not augment.add_noise(np.zeros(100, dtype=np.float32), 10.0, np.random.default_rng(0)).any()


@pytest.mark.parametrize("factor", [0.8, 0.95, 1.1, 1.25])
def test_speed_shortens_and_raises(factor: float) -> None:
    out = augment.change_speed(tone(), factor)
    assert len(out) == pytest.approx(RATE / factor, abs=1)
    assert strongest_hz(out) == pytest.approx(440 * factor, rel=1e-3)


@pytest.mark.parametrize("semitones", [-4.0, -1.0, 0.5, 3.0])
def test_pitch_moves_and_length_stays(semitones: float) -> None:
    out = augment.change_pitch(tone(), semitones)
    assert len(out) == RATE
    assert strongest_hz(out[2000:-2000]) == pytest.approx(440 * 2 ** (semitones / 12), rel=0.01)
    assert np.std(out[4000:-4000]) == pytest.approx(np.std(tone()), rel=0.15)


@pytest.mark.parametrize("speed", [0.7, 1.0, 1.4])
def test_stretching_keeps_pitch(speed: float) -> None:
    out = augment.stretch(tone(), speed)
    assert len(out) == round(RATE / speed)
    assert strongest_hz(out[2000:-2000]) == pytest.approx(440, rel=0.005)


def test_shift_moves_and_fills_with_zeros() -> None:
    samples = np.arange(1, 6, dtype=np.float32)
    assert augment.shift(samples, 2).tolist() == [0, 0, 1, 2, 3]
    assert augment.shift(samples, -2).tolist() == [3, 4, 5, 0, 0]
    assert augment.shift(samples, 0).tolist() == samples.tolist()
    assert not augment.shift(samples, 5).any()
    assert not augment.shift(samples, -9).any()


@pytest.mark.parametrize("n_samples", [1, 100, 600])
def test_short_recordings_survive_everything(n_samples: int) -> None:
    waveform = Waveform(samples=tone()[:n_samples], sample_rate_hz=RATE)
    for key in range(5):
        copy = augment.augment(waveform, EVERYTHING, stream(0, "augmentation", key))
        assert len(copy.samples) >= 1
        assert np.isfinite(copy.samples).all()


def test_masks_lie_in_valid_frames_and_are_no_wider_than_stated() -> None:
    features, lengths = torch.ones(64, 100, 40), torch.arange(36, 100)
    masked = augment.mask(features, lengths, MASKS, Frames(), np.random.default_rng(0))
    assert features.all()
    for row, length in zip(masked, lengths.tolist(), strict=True):
        assert row[length:].all()
        steps = (row[:length] == 0).all(dim=1).sum()
        bands = (row[:length] == 0).all(dim=0).sum()
        assert steps <= 2 * 20
        assert bands <= 2 * 8
    assert 0.05 < (masked == 0).float().mean() < 0.5


def test_each_row_has_its_own_masks_and_the_same_generator_the_same() -> None:
    features, lengths = torch.ones(8, 100, 40), torch.full((8,), 100)
    first, second = (
        augment.mask(features, lengths, MASKS, Frames(), np.random.default_rng(3)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_masks_wider_than_the_recording_leave_half_of_it() -> None:
    spec = Augmentation(time_masks=1, time_mask_seconds=5.0)
    masked = augment.mask(
        torch.ones(50, 20, 4), torch.full((50,), 20), spec, Frames(), np.random.default_rng(0)
    )
    assert (masked[:, :, 0].sum(dim=1) >= 10).all()
