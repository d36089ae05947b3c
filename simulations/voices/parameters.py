"""Every constant of the embedded corpus, in one frozen tree whose digest is written down.

Later figures (accuracy, fairness, privacy against utility) rest on these numbers. Whoever changes one makes
another corpus: `PARAMETERS_SHA256` no longer fits, a test says so, and every folder made before is refused.

Guarantees:
  - `digest(PARAMETERS)` equals `PARAMETERS_SHA256`; it covers each number here and each sentence.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from sottovoce.common.config import canonical
from sottovoce.simulations.voices.sentences import SENTENCES

PARAMETERS_SHA256 = "0d3c7f705e1f43831d4e4dc64419ee7c9970491a1993bef7d7e92746c1a0257f"


@dataclass(frozen=True, kw_only=True)
class Acting:
    """How far a manner of speaking is from a speaker's neutral one; 1.0 is a plain, audible change.

    `rate` to `roughness` are signed; `tremor` and `pause` count from zero; `rise` is the log odds that the
    sentence ends like a question, `force` that it ends like an exclamation (each beside a plain ending).
    """

    rate: float = 0.0
    pitch: float = 0.0
    range: float = 0.0
    loudness: float = 0.0
    brightness: float = 0.0
    breath: float = 0.0
    roughness: float = 0.0
    tremor: float = 0.0
    pause: float = 0.0
    rise: float = -3.0
    force: float = -2.0


DIMENSIONS = ("rate", "pitch", "range", "loudness", "brightness", "breath", "roughness", "tremor", "pause")

# Directions as the literature on vocal emotion agrees on them (arousal raises pitch, range, level and
# brightness; sadness slows and darkens; fear trembles); sizes are ours.
PROTOTYPES: Mapping[str, Acting] = {
    "neutral": Acting(),
    "calm": Acting(rate=-0.6, pitch=-0.4, range=-0.5, loudness=-0.6, brightness=-0.5, breath=0.6, pause=0.4),
    "happy": Acting(rate=0.5, pitch=0.9, range=1.1, loudness=0.5, brightness=0.5, force=0.0),
    "sad": Acting(rate=-1.0, pitch=-0.6, range=-0.9, loudness=-1.1, brightness=-0.9, breath=0.8, pause=0.9),
    "angry": Acting(
        rate=0.4, pitch=0.6, range=0.6, loudness=1.5, brightness=1.3, breath=-0.5, roughness=1.2, force=1.0
    ),
    "fearful": Acting(
        rate=1.0, pitch=1.4, range=-0.3, loudness=-0.1, brightness=0.2, breath=0.6, tremor=1.4, pause=0.3
    ),
    "disgust": Acting(
        rate=-0.8, pitch=-0.5, range=0.5, loudness=0.2, brightness=0.3, roughness=1.0, pause=0.3
    ),
    "surprised": Acting(rate=-0.1, pitch=1.5, range=1.4, loudness=0.6, brightness=0.2, breath=0.3, rise=1.0),
    "boredom": Acting(
        rate=-1.0, pitch=-0.5, range=-1.3, loudness=-0.5, brightness=-0.4, roughness=0.4, pause=0.6
    ),
    "excited": Acting(rate=0.9, pitch=1.2, range=1.2, loudness=1.1, brightness=0.8, force=1.0),
    "frustrated": Acting(
        rate=-0.1, pitch=0.3, range=0.3, loudness=0.9, brightness=0.8, breath=0.5, pause=0.4
    ),
    "contempt": Acting(rate=-0.4, pitch=-0.3, range=0.1, loudness=-0.1, brightness=0.4, roughness=0.3),
}


@dataclass(frozen=True, kw_only=True)
class PhysicalUnits:
    """What one unit of `Acting` is in sound."""

    rate_octaves: float = 0.24
    pitch_semitones: float = 2.6
    range_octaves: float = 0.5
    loudness_db: float = 4.0
    brightness_db_per_octave: float = 1.5
    breath_level: float = 5.0
    roughness_steps: float = 2.0
    tremor_depth: float = 0.22
    flutter_steps: float = 5.0
    pause_ms: float = 120.0


@dataclass(frozen=True, kw_only=True)
class SpeakerSpread:
    """How speakers differ. The spreads of acting are in units of `Acting`; they decide how far a random
    split flatters: `habit` is the same in every take of a speaker, `take` changes with each."""

    common: float = 2.0
    habit: float = 0.64
    take: float = 0.5
    expressiveness_octaves: float = 0.25
    pitch_hz: Mapping[str, float] = field(default_factory=lambda: {"female": 195.0, "male": 115.0})
    pitch_semitones: float = 1.5
    range_semitones: float = 5.0
    range_octaves: float = 0.3
    tract_percent: Mapping[str, float] = field(default_factory=lambda: {"female": 114.0, "male": 100.0})
    tract_spread_percent: float = 3.0
    formant_spread_percent: float = 2.5
    rate_wpm: float = 205.0
    rate_octaves: float = 0.16
    level_db: float = 2.0
    brightness_db_per_octave: float = 1.0
    breath_level: float = 2.0
    age_years: tuple[int, int] = (18, 80)


@dataclass(frozen=True, kw_only=True)
class SiteSpread:
    """How sites differ: microphone, room, noise, and who comes there."""

    home_language_share: float = 0.75
    gain_db: float = 2.0
    tilt_db_per_octave: float = 0.8
    peaks: int = 3
    peak_db: float = 2.5
    low_cut_hz: tuple[float, float] = (40.0, 180.0)
    high_cut_hz: tuple[float, float] = (5000.0, 7900.0)
    reverb_seconds: tuple[float, float] = (0.12, 0.6)
    reverb_db: tuple[float, float] = (-26.0, -12.0)
    noise_dbfs: tuple[float, float] = (-68.0, -48.0)
    noise_slope_db_per_octave: tuple[float, float] = (-6.0, 0.0)
    take_gain_db: float = 1.0
    lead_seconds: tuple[float, float] = (0.05, 0.25)
    label_skew_log_weight: float = 1.2
    emotion_missing_prob: float = 0.04


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The whole generator."""

    format: int = 1
    sample_rate_hz: int = 16_000
    level_dbfs: float = -28.0
    units: PhysicalUnits = field(default_factory=PhysicalUnits)
    speakers: SpeakerSpread = field(default_factory=SpeakerSpread)
    sites: SiteSpread = field(default_factory=SiteSpread)
    prototypes: Mapping[str, Acting] = field(default_factory=lambda: PROTOTYPES)
    sentences: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: SENTENCES)


PARAMETERS = Parameters()


def digest(parameters: Parameters) -> str:
    """Returns the SHA-256 of the parameters' canonical text, as 64 hexadecimal digits."""
    return hashlib.sha256(b"sottovoce/voices/1\n" + canonical(parameters).encode()).hexdigest()
