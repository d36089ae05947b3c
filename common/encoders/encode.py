"""The encoders' parts of one recording, as several streams ask for them.

    found = encoded(waveform, study.streams)
    found[part, "statistics"]  # (768,)

Guarantees:
  - A network runs once over a recording, whatever number of streams and layers want something of it.
  - By one thread: the bits do not depend on how many this process may use.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from sottovoce.common.audio import Waveform
from sottovoce.common.encoders import Pooling, ge2e, whisper, whisper_network
from sottovoce.common.feature_specs import WHISPER_SIZES, EncoderSpec, FeatureStream, Ge2e, Whisper

ENCODERS_VERSION = 1  # part of the cache key of streams with an encoder: raise it when any number changes

Array = npt.NDArray[np.float32]
Wanted = tuple[EncoderSpec, Pooling]


def encoded(waveform: Waveform, streams: Sequence[FeatureStream]) -> dict[Wanted, Array]:
    """Returns each encoder's part that a stream has, by part and pooling: (rows, columns), or (columns,).

    Raises:
        WeightsError: an encoder's weights are not on this machine.
    """
    wanted = list(dict.fromkeys((part, stream.pooling) for stream in streams for part in stream.encoders))
    found: dict[Wanted, Array] = {}
    with _one_thread(), torch.inference_mode():
        for sha256, size in dict.fromkeys((p.sha256, p.size) for p, _ in wanted if isinstance(p, Whisper)):
            mine = [
                (part, pooling)
                for part, pooling in wanted
                if isinstance(part, Whisper) and (part.sha256, part.size) == (sha256, size)
            ]
            found |= _whisper(whisper_network.load(sha256, *WHISPER_SIZES[size]), waveform, mine)
        for part, pooling in wanted:
            if isinstance(part, Ge2e):
                compute = ge2e.embed if pooling == "statistics" else ge2e.sequence
                found[part, pooling] = compute(ge2e.load(part.sha256), waveform)
    return found


def _whisper(
    encoder: whisper_network.WhisperEncoder, waveform: Waveform, wanted: Sequence[tuple[Whisper, Pooling]]
) -> dict[Wanted, Array]:
    layers = sorted({number for part, _ in wanted for number in part.numbers})
    kept = {number for part, pooling in wanted if pooling == "none" for number in part.numbers}
    frames: dict[int, list[Array]] = {number: [] for number in kept}
    moments = {number: _Moments(encoder.width) for number in layers}
    for chunk in whisper.encode(encoder, waveform, layers):
        for number, values in chunk.items():
            moments[number].add(values)
            if number in kept:
                frames[number].append(values)
    whole = {number: np.concatenate(pieces) for number, pieces in frames.items()}
    return {
        (part, pooling): np.concatenate([whole[number] for number in part.numbers], axis=1)
        if pooling == "none"
        else np.concatenate([moments[number].result() for number in part.numbers])
        for part, pooling in wanted
    }


class _Moments:
    """Mean and standard deviation over time, of a recording of any length in the memory of one chunk."""

    def __init__(self, width: int) -> None:
        self._count, self._sum, self._squares = 0, np.zeros(width), np.zeros(width)

    def add(self, values: Array) -> None:
        wide = values.astype(np.float64)
        self._count += len(wide)
        self._sum += wide.sum(axis=0)
        self._squares += (wide**2).sum(axis=0)

    def result(self) -> Array:
        mean = self._sum / self._count
        variance = np.maximum(self._squares / self._count - mean**2, 0.0)
        return np.concatenate([mean, np.sqrt(variance)]).astype(np.float32)


@contextmanager
def _one_thread() -> Iterator[None]:
    # A product that several threads share is summed in another order than by one.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
