"""GE2E: the published definition computed otherwise, of a recording alone, from a file of tensors only."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sottovoce.common.audio import Waveform
from sottovoce.common.encoders import ge2e, windows
from sottovoce.common.errors import WeightsError
from sottovoce.common.pretrained import looking_in

pytestmark = pytest.mark.usefixtures("compiled_librosa")

RATE = 16_000


def sound(seconds: float, loudness: float = 0.1) -> Any:
    random = np.random.default_rng(0)
    times = np.arange(round(seconds * RATE)) / RATE
    return (loudness * (np.sin(1000 * times) + 0.1 * random.normal(size=len(times)))).astype(np.float32)


def put(folder: Path, content: object) -> str:
    torch.save(content, folder / "ge2e.pt")
    return hashlib.sha256((folder / "ge2e.pt").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ge2e.Ge2eEncoder:
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = {name: 3 * value for name, value in ge2e.Ge2eEncoder().state_dict().items()}
    with looking_in(folder):
        return ge2e.load(put(folder, {"model_state": state | {"similarity_weight": torch.ones(1)}}))


def by_hand(encoder: ge2e.Ge2eEncoder, mel: Any) -> Any:
    """One window: three layers of LSTM, a linear layer, rectified, of length 1; in doubles."""
    weights = {name: value.double().numpy() for name, value in encoder.state_dict().items()}

    def gate(values: Any) -> Any:
        return 1 / (1 + np.exp(-values))

    rows = mel
    for layer in range(3):
        hidden, cell, out = np.zeros(256), np.zeros(256), []
        given = rows @ weights[f"lstm.weight_ih_l{layer}"].T + weights[f"lstm.bias_ih_l{layer}"]
        for row in given:
            held = weights[f"lstm.weight_hh_l{layer}"] @ hidden + weights[f"lstm.bias_hh_l{layer}"]
            opens, forgets, proposes, shows = np.split(row + held, 4)
            cell = gate(forgets) * cell + gate(opens) * np.tanh(proposes)
            hidden = gate(shows) * np.tanh(cell)
            out.append(hidden)
        rows = np.array(out)
    raw = np.maximum(weights["linear.weight"] @ rows[-1] + weights["linear.bias"], 0)
    return raw / np.linalg.norm(raw)


def test_a_recording_is_the_mean_of_its_windows_as_computed_by_hand(encoder: ge2e.Ge2eEncoder) -> None:
    librosa = pytest.importorskip("librosa")
    samples = sound(2.4, loudness=0.001).astype(np.float64)
    louder = np.pad(samples * 10 ** (-30 / 20) / np.sqrt(np.mean(samples**2)), (0, 16_000))
    mel = librosa.feature.melspectrogram(y=louder, sr=RATE, n_fft=400, hop_length=160, n_mels=40).T
    both = np.array([by_hand(encoder, mel[first : first + 160]) for first in (0, 77)])
    assert list(windows(len(samples), 77)) == [0, 77]
    wanted = both.mean(axis=0) / np.linalg.norm(both.mean(axis=0))
    with torch.inference_mode():
        found = ge2e.embed(encoder, Waveform(samples=sound(2.4, loudness=0.001), sample_rate_hz=RATE))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found.max() > 0.1
    assert np.abs(both[0] - both[1]).max() > 1e-4


def test_quiet_speech_is_made_louder_and_loud_speech_is_left(encoder: ge2e.Ge2eEncoder) -> None:
    with torch.inference_mode():
        quiet, quieter, loud, louder = (
            ge2e.embed(encoder, Waveform(samples=sound(1.6, loudness), sample_rate_hz=RATE))
            for loudness in (0.01, 0.001, 0.1, 0.4)
        )
    np.testing.assert_allclose(quiet, quieter, atol=1e-5)
    assert np.abs(loud - louder).max() > 1e-4


@pytest.mark.parametrize(("n_samples", "rows"), [(1, 1), (16_000, 1), (16_000 * 3, 16), (16_000 * 4, 26)])
def test_a_sequence_has_a_row_every_tenth_of_a_second(
    encoder: ge2e.Ge2eEncoder, n_samples: int, rows: int
) -> None:
    samples = np.zeros(n_samples, np.float32)
    samples[::7] = 0.1
    assert len(windows(n_samples, 10)) == rows
    with torch.inference_mode():
        found = ge2e.sequence(encoder, Waveform(samples=samples, sample_rate_hz=RATE))
    assert found.shape == (rows, 256)
    assert np.isfinite(found).all()


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    sha256 = put(tmp_path, {"model_state": Harm()})
    with looking_in(tmp_path), pytest.raises(WeightsError, match="UnpicklingError"):
        ge2e.load(sha256)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{}, {"model_state": {}}, [1], {"model_state": {"linear.bias": 1}}])
def test_tensors_of_another_network_are_refused(tmp_path: Path, content: object) -> None:
    sha256 = put(tmp_path, content)
    with looking_in(tmp_path), pytest.raises(WeightsError, match="GE2E"):
        ge2e.load(sha256)
