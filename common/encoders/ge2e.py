"""The speaker encoder of Wan et al. 2018 (GE2E) as Resemblyzer publishes it: three LSTM layers on 40 mel bands.

    encoder = load(sha256)
    embed(encoder, waveform)    # (256,), of length 1
    sequence(encoder, waveform) # (windows, 256), one every 0.1 s

Guarantees:
  - A window's vector equals that of the published definition computed otherwise (in the tests: librosa, plain loops).
  - A recording is encoded alone, by one thread: the same bits whatever recordings stand beside it.
  - Weights come from a file with the stated SHA-256 that is read as tensors only: no code in it is ever run.

Silence is not cut out as Resemblyzer does (with a detector that is a package of its own): a study's `trim_silence_db`
cuts it at the ends.

**What comes out names the speaker: it was made for that.** It is computed and kept where the recording is; it never
leaves a hospital.
"""

import pickle
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from sottovoce.common import features_spectral as spectral
from sottovoce.common.audio import Waveform
from sottovoce.common.encoders import GE2E_WIDTH, HOP, SAMPLE_RATE_HZ, SEQUENCE_STEP, WINDOW_FRAMES, windows
from sottovoce.common.errors import WeightsError
from sottovoce.common.pretrained import find

FFT_SIZE, N_MELS, N_LAYERS = 400, 40, 3
EMBEDDING_STEP = 77  # mel frames between windows of a whole recording: 1.3 windows a second
LOUDNESS_DBFS = -30.0
WINDOWS_AT_ONCE = 64
LEAST_LENGTH = 1e-12

Array = npt.NDArray[np.float32]


class Ge2eEncoder(nn.Module):
    """Windows of mel frames (B, 160, 40) in, vectors of length 1 out (B, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(N_MELS, GE2E_WIDTH, N_LAYERS, batch_first=True)
        self.linear = nn.Linear(GE2E_WIDTH, GE2E_WIDTH)

    def forward(self, mel: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mel)
        return functional.normalize(functional.relu(self.linear(hidden[-1])), dim=1, eps=LEAST_LENGTH)


@lru_cache(maxsize=1)
def load(sha256: str) -> Ge2eEncoder:
    """Returns the encoder with these weights; it is kept, and must not be changed.

    Raises:
        WeightsError: the weights are not on this machine, or not those of this network.
    """
    path = find(sha256, what="ge2e")
    # Loaded for good, so also for callers that need a gradient; on no device: no memory, and no random number.
    with torch.inference_mode(False), torch.device("meta"):
        encoder = Ge2eEncoder()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        encoder.load_state_dict({name: state[name].float() for name in encoder.state_dict()}, assign=True)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise WeightsError(
            f"{path.name}: expected the weights of a GE2E encoder as Resemblyzer publishes them; they cannot be read "
            f"({type(error).__name__}). Use the file that the study's SHA-256 was taken of."
        ) from None
    return encoder.eval().requires_grad_(False)


def embed(encoder: Ge2eEncoder, waveform: Waveform) -> Array:
    """Returns the recording's vector: the mean of its windows' vectors, made as long as they are."""
    mean = torch.from_numpy(_of_windows(encoder, waveform, EMBEDDING_STEP)).double().mean(0)
    return np.asarray(functional.normalize(mean, dim=0, eps=LEAST_LENGTH), np.float32)


def sequence(encoder: Ge2eEncoder, waveform: Waveform) -> Array:
    """Returns the vectors of windows every 0.1 s, (windows, 256)."""
    return _of_windows(encoder, waveform, SEQUENCE_STEP)


def _of_windows(encoder: Ge2eEncoder, waveform: Waveform, step: int) -> Array:
    firsts = windows(len(waveform.samples), step)
    frames = mel(waveform.samples, at_least=firsts[-1] + WINDOW_FRAMES)
    cut = frames.unfold(0, WINDOW_FRAMES, step).transpose(1, 2)[: len(firsts)]
    return np.concatenate([encoder(some).numpy() for some in torch.split(cut, WINDOWS_AT_ONCE)])


def mel(samples: Array, *, at_least: int) -> Tensor:
    """Returns the power in 40 mel bands, (frames, 40): no logarithm, of speech that is not too quiet."""
    missing = max(0, at_least * HOP - len(samples))
    padded = np.pad(_loud(np.asarray(samples, np.float64)), (0, missing)).astype(np.float32)
    window = torch.hann_window(FFT_SIZE)
    transform = torch.stft(
        torch.from_numpy(padded)[None], FFT_SIZE, HOP, window=window, pad_mode="constant", return_complex=True
    )
    return transform[0].abs().square().T @ _mel_filters()


def _loud(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the samples, made louder where they are below the loudness that the network was trained on."""
    rms = float(np.sqrt(np.mean(samples**2)))
    wanted = 10 ** (LOUDNESS_DBFS / 20)
    return samples * (wanted / rms) if 0 < rms < wanted else samples


@lru_cache(maxsize=1)
def _mel_filters() -> Tensor:
    filters, _, _ = spectral.mel_filters(SAMPLE_RATE_HZ, FFT_SIZE, N_MELS, 0.0, SAMPLE_RATE_HZ / 2)
    return torch.from_numpy(filters)
