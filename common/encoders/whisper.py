"""The encoder of Whisper (Radford et al. 2022) in plain torch: 50 vectors a second of speech.

    encoder = load(sha256, "tiny")
    for chunk in encode(encoder, waveform, layers=(5,)):
        chunk[5].shape  # (frames, 384), float32

A layer is a number: 1 to `n_blocks` are the outputs of the blocks, `n_blocks + 1` is the last block's after the closing
layer norm, which is what Whisper's decoder reads.

Guarantees:
  - The frames equal those of CTranslate2, an independent implementation, for the same log-mel input.
  - A recording is encoded alone, by one thread: its numbers are the same bits whatever recordings stand beside it,
    however many processes are at work.
  - There is one frame for every 20 ms, the last one begun; nothing is padded to 30 s.
  - Weights come from a CTranslate2 file with the stated SHA-256; nothing of it is run.

Whisper was trained on 30 s with silence behind the speech. Its positions are learned, so a clip's own frames alone may
be given: they get the first positions. Longer recordings are encoded in chunks of 30 s that know nothing of each other.

**What comes out names the speaker.** It is computed and kept where the recording is; it never leaves a hospital.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from sottovoce.common import features_spectral as spectral
from sottovoce.common.audio import Waveform
from sottovoce.common.encoders import HOP, SAMPLE_RATE_HZ
from sottovoce.common.encoders.ctranslate2_file import read_variables
from sottovoce.common.errors import WeightsError
from sottovoce.common.feature_specs import WHISPER_SIZES, WhisperSize
from sottovoce.common.models.layers import blank_padding, strided, valid_frames
from sottovoce.common.pretrained import find

FFT_SIZE, N_MELS = 400, 80
FRAME_SAMPLES = 2 * HOP  # the second convolution halves the mel frames
MAX_FRAMES = 1500  # 30 s: as many positions as were learned
HEAD_WIDTH = 64
MEL_FLOOR = 1e-10
DYNAMIC_RANGE = 8.0  # bells below the loudest mel band of the recording

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


class Block(nn.Module):
    """One pre-norm Transformer layer; keys beyond a recording's end are masked."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.norm_attention(values)
        values = values + self.out(self.attended(self.query_key_value(normed), mask))
        fed: Tensor = self.narrow(functional.gelu(self.widen(self.norm_feed(values))))
        return values + fed

    def attended(self, mixed: Tensor, mask: Tensor | None) -> Tensor:
        """Returns attention over queries, keys and values, which lie side by side in `mixed`."""
        batch, count, columns = mixed.shape
        query, key, value = mixed.view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return seen.transpose(1, 2).reshape(batch, count, columns // 3)


class WhisperEncoder(nn.Module):
    """Log-mel frames in, one vector for every two of them out, of each layer that is asked for."""

    def __init__(self, size: WhisperSize) -> None:
        super().__init__()
        self.width, self.n_blocks = WHISPER_SIZES[size]
        self.conv1 = nn.Conv1d(N_MELS, self.width, 3, padding=1)
        self.conv2 = nn.Conv1d(self.width, self.width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.empty(MAX_FRAMES, self.width))
        self.blocks = nn.ModuleList(Block(self.width) for _ in range(self.n_blocks))
        self.norm = nn.LayerNorm(self.width)

    def forward(self, mel: Tensor, lengths: Tensor | None, layers: Sequence[int]) -> dict[int, Tensor]:
        """Returns layers of a batch (B, T, 80) by number, each (B, T / 2, width).

        With `lengths`, frames from there on are never read; without, all frames are valid.
        """
        values, mask = self.entered(mel, lengths)
        found: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            if number > max(layers):
                break
            values = block(values, mask)
            if number in layers:
                found[number] = values
        if self.n_blocks + 1 in layers:
            found[self.n_blocks + 1] = self.norm(values)
        return found

    def entered(self, mel: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns what the first block reads, and the mask of keys that every block needs."""
        if lengths is None:
            values = self._convolved(mel)
            return values + self.positions[: values.shape[1]], None
        # A blanked tail is like the convolution's own zeros: nothing sees how far the batch is padded.
        hidden = functional.gelu(self.conv1(blank_padding(mel, lengths).transpose(1, 2))).transpose(1, 2)
        hidden = self.conv2(blank_padding(hidden, lengths).transpose(1, 2))
        values = functional.gelu(hidden).transpose(1, 2)
        mask = valid_frames(strided(lengths, 2), values.shape[1])[:, None, None, :]
        return values + self.positions[: values.shape[1]], mask

    def _convolved(self, mel: Tensor) -> Tensor:
        hidden = functional.gelu(self.conv1(mel.transpose(1, 2)))
        return functional.gelu(self.conv2(hidden)).transpose(1, 2)


@lru_cache(maxsize=2)
def load(sha256: str, size: WhisperSize) -> WhisperEncoder:
    """Returns the encoder with these weights; it is kept, and must not be changed.

    Raises:
        WeightsError: the weights are not on this machine, or not those of an encoder of this size.
    """
    path = find(sha256, what="whisper")
    variables = read_variables(path, prefix="encoder/", specification="WhisperSpec")
    # Loaded for good, so also for callers that need a gradient; on no device: no memory, and no random number.
    with torch.inference_mode(False), torch.device("meta"):
        encoder = WhisperEncoder(size)
    try:
        weights = {name: torch.from_numpy(variables[_stored_name(name)]) for name in encoder.state_dict()}
        if variables["num_heads"] * HEAD_WIDTH != encoder.width:
            raise ValueError(f"{variables['num_heads']} heads came")
        encoder.load_state_dict(weights, assign=True)
    except (KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{path.name}: expected the encoder of a Whisper of size {size!r} ({encoder.width} columns, "
            f"{encoder.n_blocks} blocks); came another ({str(error).splitlines()[0]}). "
            "State the size of the model that has this SHA-256."
        ) from None
    return encoder.eval().requires_grad_(False)


def _stored_name(name: str) -> str:
    """Returns what CTranslate2 calls a parameter.

    >>> _stored_name("blocks.2.query_key_value.weight"), _stored_name("norm.bias")
    ('layer_2/self_attention/linear_0/weight', 'layer_norm/beta')
    """
    if name == "positions":
        return "position_encodings/encodings"
    *scope, kind = name.split(".")
    modules = {
        "norm": "layer_norm",
        "norm_attention": "self_attention/layer_norm",
        "norm_feed": "ffn/layer_norm",
        "query_key_value": "self_attention/linear_0",
        "out": "self_attention/linear_1",
        "widen": "ffn/linear_0",
        "narrow": "ffn/linear_1",
    }
    if "norm" in scope[-1]:
        kind = {"weight": "gamma", "bias": "beta"}[kind]
    place = [f"layer_{scope[1]}"] if scope[0] == "blocks" else []
    return "/".join([*place, modules.get(scope[-1], scope[-1]), kind])


def encode(encoder: WhisperEncoder, waveform: Waveform, layers: Sequence[int]) -> Iterator[dict[int, Array]]:
    """Yields the layers of each 30 s of a recording, (frames, width) by number."""
    mel = log_mel(waveform.samples)
    for first in range(0, len(mel), 2 * MAX_FRAMES):
        chunk = encoder(mel[None, first : first + 2 * MAX_FRAMES], None, layers)
        yield {number: values[0].numpy() for number, values in chunk.items()}
