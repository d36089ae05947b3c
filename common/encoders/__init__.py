"""Frozen encoders as feature sources: how many columns and rows they have. Nothing heavy is imported here.

    encode             a recording's parts, computed        whisper, ge2e      from sound to vectors
    whisper_network    Whisper's encoder in plain torch     ctranslate2_file   the file that its weights are in

What an encoder makes of a recording names the speaker: Whisper's last layer well enough to recognise a voice, GE2E by
design. Like every feature it is computed at the site and stays there; what travels is a model's weights, by the study's
mode of privacy.
"""

from collections.abc import Sequence
from typing import Literal

from sottovoce.common.feature_specs import WHISPER_SIZES, EncoderSpec, FeatureStream, Whisper

SAMPLE_RATE_HZ = 16_000  # of both
HOP = 160  # samples from one mel frame to the next, of both
GE2E_WIDTH = 256
WINDOW_FRAMES = 160  # of GE2E: the 1.6 s that it was trained on
SEQUENCE_STEP = 10  # mel frames from one row of a GE2E sequence to the next
LEAST_COVERAGE = 0.75  # a last window with less speech in it than this is left out

Pooling = Literal["none", "statistics"]


def width(spec: EncoderSpec, pooling: Pooling) -> int:
    """Returns how many columns an encoder's part has.

    >>> width(Whisper(kind="whisper"), "statistics"), width(Whisper(kind="whisper"), "none")
    (768, 384)
    """
    if not isinstance(spec, Whisper):
        return GE2E_WIDTH
    columns = WHISPER_SIZES[spec.size][0] * len(spec.numbers)
    return 2 * columns if pooling == "statistics" else columns


def n_rows(spec: EncoderSpec, n_samples: int) -> int:
    """Returns how many rows a recording's sequence has."""
    return n_frames(n_samples) if isinstance(spec, Whisper) else len(windows(n_samples, SEQUENCE_STEP))


def n_frames(n_samples: int) -> int:
    """Returns how many frames Whisper makes of a recording: one for every 20 ms begun.

    >>> n_frames(16_000), n_frames(16_001)
    (50, 51)
    """
    return -(-n_samples // (2 * HOP))


def windows(n_samples: int, step: int) -> range:
    """Returns the first mel frame of each of GE2E's windows: one at least, the last one mostly filled.

    >>> list(windows(16_000, 77)), list(windows(64_000, 77))
    ([0], [0, 77, 154, 231])
    """
    n_mel = 1 + n_samples // HOP
    found = range(0, max(1, n_mel - WINDOW_FRAMES + step + 1), step)
    covered = (n_samples - found[-1] * HOP) / (WINDOW_FRAMES * HOP)
    return found if covered >= LEAST_COVERAGE or len(found) == 1 else found[:-1]


def problems(streams: Sequence[FeatureStream], sample_rate_hz: int) -> list[str]:
    """Returns what is wrong with the encoders' parts of a study's streams."""
    found = []
    for stream in streams:
        if not stream.encoders:
            continue
        if stream.pooling == "none" and len(stream.parts) > 1:
            found.append(
                f"streams: {stream.name!r} is a sequence; expected {stream.encoders[0].kind} alone in it, which has "
                f"frames of its own; came {len(stream.parts)} parts. Give each a stream, or pool them."
            )
        if sample_rate_hz != SAMPLE_RATE_HZ:
            found.append(
                f"audio.sample_rate_hz: expected {SAMPLE_RATE_HZ}, what {stream.encoders[0].kind} of stream "
                f"{stream.name!r} was trained on; came {sample_rate_hz}."
            )
        found += [
            f"streams: {stream.name!r}: {text}" for part in stream.encoders for text in _part_problems(part)
        ]
    return found


def _part_problems(part: EncoderSpec) -> list[str]:
    found = []
    if not set(part.sha256) <= set("0123456789abcdef"):
        found.append(f"{part.kind}.sha256: expected 64 hexadecimal digits, in lower case.")
    if isinstance(part, Whisper):
        last = WHISPER_SIZES[part.size][1] + 1
        if not part.numbers or max(part.numbers) > last or list(part.numbers) != sorted(set(part.numbers)):
            came = ", ".join(map(str, part.numbers)) or "none"
            found.append(
                f"whisper.layers: expected some of 0 to {last} in ascending order for size {part.size!r}; came {came}."
            )
    return found
