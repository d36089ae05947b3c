"""What a column of features says, in words that a clinician has: loudness, pauses, pitch, voicing, vowels, timbre.

    families = [column.family for column in columns(stream, frames, 16_000)]

Guarantees:
  - Every column of every stream has one family; there are as many as `features.width` says, in the same order.
  - Hundreds of columns become a handful of families.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from sottovoce.common.feature_specs import (
    Chroma,
    EncoderSpec,
    Energy,
    FeatureSpec,
    FeatureStream,
    Formants,
    Frames,
    LogMel,
    Lpc,
    Mfcc,
    Pitch,
    SpectralShape,
    Stft,
    Whisper,
    ZeroCrossings,
)
from sottovoce.common.features import width

Family = Literal[
    "loudness",
    "pauses",
    "pitch",
    "melody",
    "voicing",
    "rate",
    "vowels",
    "bands",
    "brightness",
    "timbre",
    "tones",
    "learned",
    "identity",
    "mixed",
]
Statistic = Literal["mean", "deviation", "20th percentile", "80th percentile", "sequence", "whole"]

WORDS: dict[Family, str] = {
    "loudness": "how loud the voice is",
    "pauses": "pauses and changes of loudness",
    "pitch": "how high the voice is",
    "melody": "how much the pitch moves",
    "voicing": "voiced, breathy or hissing sounds",
    "rate": "how fast the sounds change",
    "vowels": "resonances of the mouth",
    "bands": "loudness of low, middle and high frequencies",
    "brightness": "brightness of the sound",
    "timbre": "timbre, the smooth shape of the spectrum",
    "tones": "which musical tones are strong",
    "learned": "what Whisper's network hears",
    "identity": "what tells speakers apart (GE2E)",
    "mixed": "all features, mixed by the study's public map",
}
FOUR: tuple[Statistic, ...] = ("mean", "deviation", "20th percentile", "80th percentile")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: the part it comes from, the family it is told by, and which figure of the recording it is."""

    kind: str
    family: Family
    statistic: Statistic


def columns(stream: FeatureStream, frames: Frames, sample_rate_hz: int) -> tuple[Column, ...]:
    """Returns the columns of a stream, in their order; of a stream that is mixed by a public map, as many as it has."""
    if stream.reduction is not None:
        mixed = Column(kind="reduction", family="mixed", statistic="whole")
        return (mixed,) * stream.reduction.columns

    def alone(part: FeatureSpec) -> int:
        return width(FeatureStream(name="x", parts=(part,), pooling=stream.pooling), frames, sample_rate_hz)

    found: list[Column] = []
    for is_encoder, run in groupby(stream.parts, key=lambda part: isinstance(part, EncoderSpec)):
        parts = list(run)
        if is_encoder:
            found += [_of_encoder(part, stream) for part in parts for _ in range(alone(part))]
        elif stream.pooling == "none":
            found += [one for part in parts for one in _of_part(part, alone(part), "sequence")]
        else:  # all means, then all deviations, and so on
            for figure in FOUR:
                found += [one for part in parts for one in _of_part(part, alone(part) // len(FOUR), figure)]
    return tuple(found)


def _of_encoder(part: FeatureSpec, stream: FeatureStream) -> Column:
    family: Family = "learned" if isinstance(part, Whisper) else "identity"
    return Column(
        kind=part.kind, family=family, statistic="sequence" if stream.pooling == "none" else "whole"
    )


def _of_part(part: FeatureSpec, n: int, figure: Statistic) -> Iterator[Column]:
    for index in range(n):
        yield Column(kind=part.kind, family=_family(part, index, figure), statistic=figure)


def _family(part: FeatureSpec, index: int, figure: Statistic) -> Family:
    # What spreads, and how quiet the quiet fifth is, tells of pauses; the rest of loudness.
    loud: Family = "pauses" if figure in ("deviation", "20th percentile") else "loudness"
    match part:
        case Energy():
            return loud
        case Pitch() if index == 0:
            return "melody" if figure == "deviation" else "pitch"
        case Pitch() | ZeroCrossings():
            return "voicing"
        case Formants() | Lpc():
            return "vowels"
        case LogMel() | Stft():
            return "bands"
        case SpectralShape():
            return "brightness"
        case Chroma():
            return "tones"
        case Mfcc() if index >= min(part.n_mfcc, part.n_mels):  # derivatives
            return "rate"
        case Mfcc() if index == 0:  # the mean of the log spectrum
            return loud
        case _:
            return "timbre"
