"""Whisper (Radford et al. 2022) as a feature source: 50 vectors a second of speech, of the layers that are asked for.

    encoder = whisper_network.load(sha256, 384, 4)
    for chunk in encode(encoder, waveform, layers=(5,)):
        chunk[5].shape  # (frames, 384), float32

Guarantees:
  - A recording is encoded alone, by one thread: its numbers are the same bits whatever recordings stand beside it,
    however many processes are at work.
  - There is one frame for every 20 ms, the last one begun; nothing is padded to 30 s.

Whisper was trained on 30 s with silence behind the speech. Its positions are learned, so a clip's own frames alone may
be given: they get the first positions. Longer recordings are encoded in chunks of 30 s that know nothing of each other.
Within a chunk every frame knows of all others, also of those after `clip_seconds`, which a sequence is cut to.

**What comes out names the speaker.** It is computed and kept where the recording is; it never leaves a hospital.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sottovoce.common import features_spectral as spectral
from sottovoce.common.audio import Waveform
from sottovoce.common.encoders import HOP, SAMPLE_RATE_HZ
from sottovoce.common.encoders.whisper_network import MAX_FRAMES, N_MELS, WhisperEncoder

FFT_SIZE = 400
FRAME_SAMPLES = 2 * HOP  # the second convolution halves the mel frames
MEL_FLOOR = 1e-10
DYNAMIC_RANGE = 8.0  # bels below the loudest mel band of the recording

Array = npt.NDArray[np.float32]


def log_mel(samples: Array) -> Tensor:
    """Returns Whisper's input, (2 * n_frames, 80): log10 power of mel bands, clamped, about -1 to 1.

    The clamp, 80 dB below the loudest band, is by the recording itself and by no other.
    """
    padded = np.pad(np.asarray(samples, np.float32), (0, -len(samples) % FRAME_SAMPLES))
    window = torch.hann_window(FFT_SIZE)
    transform = torch.stft(
        torch.from_numpy(padded)[None], FFT_SIZE, HOP, window=window, pad_mode="reflect", return_complex=True
    )
    power = transform[0, :, :-1].abs().square().T  # the frame beyond the end is Whisper's to drop
    logs = torch.clamp(power @ _mel_filters(), min=MEL_FLOOR).log10()
    return (torch.maximum(logs, logs.max() - DYNAMIC_RANGE) + 4.0) / 4.0


@lru_cache(maxsize=1)
def _mel_filters() -> Tensor:
    filters, _, _ = spectral.mel_filters(SAMPLE_RATE_HZ, FFT_SIZE, N_MELS, 0.0, SAMPLE_RATE_HZ / 2)
    return torch.from_numpy(filters)


def encode(encoder: WhisperEncoder, waveform: Waveform, layers: Sequence[int]) -> Iterator[dict[int, Array]]:
    """Yields the layers of each 30 s of a recording, (frames, width) by number."""
    mel = log_mel(waveform.samples)
    for first in range(0, len(mel), 2 * MAX_FRAMES):
        chunk = encoder(mel[None, first : first + 2 * MAX_FRAMES], layers)
        yield {number: values[0].numpy() for number, values in chunk.items()}
