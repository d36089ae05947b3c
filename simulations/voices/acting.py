"""From a voice and an emotion to prosody: what the speech library is told, and what is shaped afterwards.

Each speaker has an own way with each emotion: the common direction, scaled by how expressive the speaker is,
plus a habit that never changes, plus a little that changes with every take. A classifier that has met the
speaker knows the habit; one that has not must do with the direction. That is the whole difference between
a random split and an honest one, and it is drawn here.

Guarantees:
  - A voice and a performance are functions of (seed, speaker, emotion, take) alone.
  - Whatever is drawn, each physical figure stays within what the library accepts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from sottovoce.common.errors import SynthesisError
from sottovoce.common.streams import stream
from sottovoce.simulations.voices.parameters import DIMENSIONS, PARAMETERS, Acting, Parameters

Sex = Literal["female", "male"]
Ending = Literal[".", "?", "!"]


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One speaker at rest. `formant_percent` scales the vocal tract's resonances, lowest first."""

    name: str
    seed: int
    language: str
    sex: Sex
    age: int
    pitch_hz: float
    range_semitones: float
    rate_wpm: float
    formant_percent: tuple[float, ...]
    level_db: float
    brightness_db_per_octave: float
    breath_level: float
    expressiveness: float


@dataclass(frozen=True, kw_only=True)
class Prosody:
    """One performance in physical units."""

    rate_wpm: int
    low_hz: int
    high_hz: int
    level_dbfs: float
    brightness_db_per_octave: float
    breath_level: int
    roughness: int
    flutter: int
    tremor_depth: float
    tremor_hz: float
    pause_ms: int
    ending: Ending


def draw_voice(
    seed: int, name: str, *, language: str, sex: Sex, age: int, parameters: Parameters = PARAMETERS
) -> Voice:
    """Draws a speaker of the given language, sex and age; another name is another speaker.

    >>> draw_voice(1, "s0001", language="it", sex="male", age=40).pitch_hz < 180
    True
    """
    spread, draws = parameters.speakers, stream(seed, "voices/voice", name)
    elderly = max(0.0, (age - 55) / 25)  # slower, breathier; women's voices sink, men's rise
    drift = elderly * (-1.5 if sex == "female" else 1.5)
    semitones = drift + spread.pitch_semitones * draws.standard_normal()
    tract = spread.tract_percent[sex] + spread.tract_spread_percent * draws.standard_normal()
    formants = tract + spread.formant_spread_percent * draws.standard_normal(9)
    return Voice(
        name=name,
        seed=seed,
        language=language,
        sex=sex,
        age=age,
        pitch_hz=spread.pitch_hz[sex] * 2 ** (semitones / 12),
        range_semitones=spread.range_semitones * 2 ** (spread.range_octaves * draws.standard_normal()),
        rate_wpm=spread.rate_wpm * 2 ** (spread.rate_octaves * draws.standard_normal() - 0.2 * elderly),
        formant_percent=tuple(float(percent) for percent in formants),
        level_db=spread.level_db * draws.standard_normal(),
        brightness_db_per_octave=spread.brightness_db_per_octave * draws.standard_normal(),
        breath_level=spread.breath_level * (abs(draws.standard_normal()) + elderly),
        expressiveness=2 ** (spread.expressiveness_octaves * draws.standard_normal()),
    )


def perform(voice: Voice, emotion: str, *, take: int, parameters: Parameters = PARAMETERS) -> Prosody:
    """Acts `emotion` with this voice. Takes of one emotion resemble each other.

    Raises:
        SynthesisError: the emotion is not one that can be acted.
    """
    acting = _acting(voice, emotion, take, parameters)
    return _physical(
        voice, acting, stream(voice.seed, "voices/ending", voice.name, emotion, take), parameters
    )


def _acting(voice: Voice, emotion: str, take: int, parameters: Parameters) -> Acting:
    if emotion not in parameters.prototypes:
        known = ", ".join(parameters.prototypes)
        raise SynthesisError(f"Expected an emotion that can be acted: {known}; came {emotion!r}.")
    prototype, spread = parameters.prototypes[emotion], parameters.speakers
    keys = (voice.name, emotion)
    habit = stream(voice.seed, "voices/habit", *keys).standard_normal(len(DIMENSIONS))
    moment = stream(voice.seed, "voices/take", *keys, take).standard_normal(len(DIMENSIONS))
    common = (
        spread.common * voice.expressiveness * np.array([getattr(prototype, name) for name in DIMENSIONS])
    )
    values = common + spread.habit * habit + spread.take * moment
    return Acting(rise=prototype.rise, force=prototype.force, **_named(values))


def _named(values: np.ndarray) -> Mapping[str, float]:
    return dict(zip(DIMENSIONS, map(float, values), strict=True))


def _physical(voice: Voice, acting: Acting, draws: np.random.Generator, parameters: Parameters) -> Prosody:
    units = parameters.units
    centre = voice.pitch_hz * 2 ** (units.pitch_semitones * acting.pitch / 12)
    centre = _within(centre, 60, 420)
    octaves = _within(voice.range_semitones * 2 ** (units.range_octaves * acting.range), 1, 14) / 12
    breath = voice.breath_level + units.breath_level * acting.breath
    tremor = max(0.0, acting.tremor)
    return Prosody(
        rate_wpm=round(_within(voice.rate_wpm * 2 ** (units.rate_octaves * acting.rate), 80, 380)),
        low_hz=round(centre * 2 ** (-octaves / 2)),
        high_hz=round(centre * 2 ** (octaves / 2)),
        level_dbfs=parameters.level_dbfs + voice.level_db + units.loudness_db * acting.loudness,
        brightness_db_per_octave=voice.brightness_db_per_octave
        + units.brightness_db_per_octave * acting.brightness,
        breath_level=round(_within(breath, 0, 40)),
        roughness=round(_within(2 + units.roughness_steps * acting.roughness, 0, 7)),
        flutter=round(_within(2 + units.flutter_steps * tremor, 0, 14)),
        tremor_depth=_within(units.tremor_depth * tremor, 0, 0.6),
        tremor_hz=float(draws.uniform(4.5, 7.5)),
        pause_ms=round(_within(units.pause_ms * acting.pause, 0, 800)),
        ending=_ending(acting, draws),
    )


def _ending(acting: Acting, draws: np.random.Generator) -> Ending:
    endings: tuple[Ending, ...] = (".", "?", "!")
    weights = np.array([1.0, math.exp(acting.rise), math.exp(acting.force)])
    return endings[int(np.searchsorted(np.cumsum(weights / weights.sum()), draws.random()))]


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


if {field.name for field in fields(Acting)} - {*DIMENSIONS, "rise", "force"}:  # a new field must be acted
    raise TypeError("Expected every field of Acting in DIMENSIONS.")
