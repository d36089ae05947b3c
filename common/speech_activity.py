"""Is there anybody speaking at all? A recording of silence, noise or music gets no emotion.

    reason = why_no_speech(waveform)   # None: there is speech

Guarantees:
  - Silence, steady noise, hum, the murmur of many voices, clicks, tones, melodies and chords are refused.
  - A recording is judged by itself, by public constants, in full: no other recording, no label, nothing random.
  - Loudness decides about silence alone: the same sound twice as loud is judged alike.

Five figures of the whole recording, each for one way in which speech differs (`Signs`). Frames are *active* within
25 dB of the loud ones.

| figure           | speech                                  | below the bar                                      |
|------------------|-----------------------------------------|----------------------------------------------------|
| `level_db`       | somebody is near the microphone         | silence                                            |
| `depth`          | syllables and pauses                    | fans, hum, crowds, music that never pauses         |
| `voiced_seconds` | vowels are periodic                     | noise that swells, knocks, clicks; whispering too  |
| `hiss_hz`        | vowels and hissing sounds take turns    | whistles, sirens, instruments, one vowel sung      |
| `glide`          | the pitch of a voice never stands still | notes of a melody, chords, drums                   |

What it cannot tell: singing with words from speech, speech from an instrument with vibrato between drums and pauses,
one near voice from a radio, a living voice from a recording of one. A whisper has no periodic frames and is refused.

Measured by `python -m sottovoce.simulations.speech_activity --corpus DIR`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sottovoce.common.audio import Waveform
from sottovoce.common.feature_specs import Energy, FeatureStream, Frames, Pitch, ZeroCrossings
from sottovoce.common.study import Audio

Reason = Literal["silence", "steady sound", "no voice", "tones", "notes"]

AUDIO = Audio(
    sample_rate_hz=16_000, max_seconds=600.0
)  # untrimmed: a recording's pauses are a sign of speech
FRAMES = Frames(window_seconds=0.032, hop_seconds=0.010)
ACTIVE_DB = 25.0
VOICED = 0.6  # periodicity, as in pooled pitch
STEP_CENTS = (
    3.0,
    100.0,
)  # between neighbouring voiced frames: less stands still, more is a new note or an error

# The bars. Beside each, where the 1,440 recordings of RAVDESS begin, and where sounds without speech end.
LEVEL_DB = -65.0  # -57; -80 for the noise of a good microphone
DEPTH = 0.4  # 0.99; 0.30 for 16 voices at once
VOICED_SECONDS = 0.1  # 0.32; 0.03
HISS_HZ = 1_100.0  # 2,050; 900
GLIDE = 0.2  # 0.42; 0.16 for melodies without vibrato

WORDS: dict[Reason, str] = {
    "silence": "nothing is loud enough to be somebody near the microphone",
    "steady sound": "the sound hardly rises and falls, as noise, hum, a crowd or music do, and speech does not",
    "no voice": "hardly any of it is voiced, as in noise, knocks or a whisper",
    "tones": "it never changes between vowels and hissing sounds, as whistles and instruments do not",
    "notes": "its pitch stands still and jumps, as notes do, and a voice does not",
}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What is heard of a whole recording."""

    level_db: float
    depth: float
    voiced_seconds: float
    hiss_hz: float
    glide: float


def why_no_speech(waveform: Waveform) -> Reason | None:
    """Returns why a recording at 16 kHz holds no speech, or None where it does.

    Raises:
        ValueError: the waveform has another sample rate or no samples.
    """
    return judge(signs_of(waveform))


def judge(signs: Signs) -> Reason | None:
    """Returns the first sign of speech that is missing, or None.

    >>> judge(Signs(level_db=-30, depth=1.2, voiced_seconds=0.9, hiss_hz=6000, glide=0.8))
    >>> judge(Signs(level_db=-90, depth=0.0, voiced_seconds=0.0, hiss_hz=0, glide=0))
    'silence'
    """
    bars: tuple[tuple[Reason, float, float], ...] = (
        ("silence", signs.level_db, LEVEL_DB),
        ("steady sound", signs.depth, DEPTH),
        ("no voice", signs.voiced_seconds, VOICED_SECONDS),
        ("tones", signs.hiss_hz, HISS_HZ),
        ("notes", signs.glide, GLIDE),
    )
    return next((reason for reason, value, bar in bars if not value >= bar), None)


def signs_of(waveform: Waveform) -> Signs:
    """Computes the signs of a recording.

    Raises:
        ValueError: the waveform has another sample rate than 16 kHz, or no samples.
    """
    from sottovoce.common.features import extract  # here, since torch takes a second

    if waveform.sample_rate_hz != AUDIO.sample_rate_hz:
        raise ValueError(f"Expected samples at {AUDIO.sample_rate_hz} Hz; came {waveform.sample_rate_hz}.")
    found = extract([waveform], _STREAMS, FRAMES)[0]
    decibels = found["energy"][:, 0].astype(np.float64) * (20.0 / np.log(10.0))
    level = float(np.percentile(decibels, 95))
    active = decibels > level - ACTIVE_DB
    pitch = found["pitch"].astype(np.float64)
    voiced = active & (pitch[:, 1] >= VOICED)
    return Signs(
        level_db=level,
        depth=_depth(decibels),
        voiced_seconds=float(voiced.sum() * FRAMES.hop_seconds),
        hiss_hz=_spread(found["zero_crossings"][active, 0]) * AUDIO.sample_rate_hz,
        glide=_glide(pitch[:, 0], voiced),
    )


_STREAMS = (
    FeatureStream(name="energy", parts=(Energy(kind="energy"),)),
    FeatureStream(name="pitch", parts=(Pitch(kind="pitch"),)),
    FeatureStream(name="zero_crossings", parts=(ZeroCrossings(kind="zero_crossings"),)),
)


def _depth(decibels: Floats) -> float:
    """Returns the deviation of the frames' amplitude over its mean."""
    amplitude = 10.0 ** ((decibels - decibels.max()) / 20.0)
    return float(amplitude.std() / amplitude.mean())


def _spread(values: npt.NDArray[np.float32]) -> float:
    if not len(values):
        return 0.0
    low, high = np.percentile(values.astype(np.float64), [5, 95])
    return float(high - low)


def _glide(log_hz: Floats, voiced: npt.NDArray[np.bool_]) -> float:
    """Returns in how many of the steps from one voiced frame to the next the pitch moves, but does not jump."""
    cents = np.abs(np.diff(log_hz))[voiced[1:] & voiced[:-1]] * (1200.0 / np.log(2.0))
    still, jump = STEP_CENTS
    steps = cents[cents < jump]
    return float((steps > still).mean()) if len(steps) else 0.0
