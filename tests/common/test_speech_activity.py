"""Is anybody speaking? Voices are; silence, noise, hum and music are not."""

from dataclasses import replace

import numpy as np
import pytest

from sottovoce.common import speech_activity
from sottovoce.common.audio import Waveform
from sottovoce.common.speech_activity import Signs, judge, signs_of, why_no_speech
from sottovoce.simulations.sounds import RATE_HZ, not_speech
from sottovoce.simulations.voices import draw_voice, say
from sottovoce.simulations.voices.synthesiser import Synthesiser

SOUNDS = dict(not_speech(seed=7, seconds=3.0))
SPEECH = Signs(level_db=-30.0, depth=1.4, voiced_seconds=1.0, hiss_hz=7000.0, glide=0.8)


def heard(samples: np.ndarray) -> Waveform:
    return Waveform(samples=samples.astype(np.float32), sample_rate_hz=RATE_HZ)


@pytest.fixture(scope="module")
def voices() -> list[Waveform]:
    with Synthesiser() as synthesiser:
        return [
            say(
                "The kettle | stands on the table",
                draw_voice(1, f"s{number}", language="en-us", sex=sex, age=40),  # type: ignore[arg-type]
                emotion,
                synthesiser=synthesiser,
            )
            for number, (sex, emotion) in enumerate(
                (sex, emotion)
                for sex in ("female", "male")
                for emotion in ("neutral", "angry", "sad", "fearful")
            )
        ]


def test_voices_are_heard_in_every_emotion(voices: list[Waveform]) -> None:
    assert [why_no_speech(voice) for voice in voices] == [None] * len(voices)


@pytest.mark.parametrize("name", SOUNDS)
def test_what_is_no_speech_is_refused(name: str) -> None:
    assert why_no_speech(heard(SOUNDS[name])) is not None


def test_sounds_in_front_of_a_voice_do_not_hide_it(voices: list[Waveform]) -> None:
    voice = voices[0].samples
    for name in ("the noise of a microphone", "pink noise", "mains hum"):
        sound = SOUNDS[name][: len(voice)] * 0.1
        assert why_no_speech(heard(np.resize(sound, len(voice)) + voice)) is None, name


def test_loudness_decides_about_silence_alone(voices: list[Waveform]) -> None:
    for gain in (0.1, 0.5):
        louder, softer = signs_of(voices[0]), signs_of(heard(voices[0].samples * gain))
        assert softer == replace(louder, level_db=softer.level_db, **_close(louder, softer))
    assert why_no_speech(heard(voices[0].samples * 1e-5)) == "silence"


def _close(one: Signs, other: Signs) -> dict[str, float]:
    names = ("depth", "voiced_seconds", "hiss_hz", "glide")
    for name in names:
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=0.05)
    return {name: getattr(other, name) for name in names}


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ({"level_db": -66.0}, "silence"),
        ({"depth": 0.3}, "steady sound"),
        ({"voiced_seconds": 0.05}, "no voice"),
        ({"hiss_hz": 800.0}, "tones"),
        ({"glide": 0.1}, "notes"),
        ({"glide": float("nan")}, "notes"),
    ],
)
def test_each_missing_sign_is_named_and_has_words(missing: dict[str, float], reason: str) -> None:
    assert judge(SPEECH) is None
    assert judge(replace(SPEECH, **missing)) == reason
    assert reason in speech_activity.WORDS


def test_without_its_bar_a_melody_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: each bar carries weight, so that taking it away lets something through."""
    melody = heard(SOUNDS["a melody with pauses, string"])
    for name in ("HISS_HZ", "GLIDE"):
        monkeypatch.setattr(speech_activity, name, -1.0)
    assert why_no_speech(melody) is None


def test_a_waveform_of_another_rate_or_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="came 8000"):
        why_no_speech(Waveform(samples=np.zeros(800, np.float32), sample_rate_hz=8000))
    with pytest.raises(ValueError, match="at least one sample"):
        why_no_speech(heard(np.zeros(0)))


def test_a_single_sample_is_silence_or_a_steady_sound_and_no_crash() -> None:
    assert why_no_speech(heard(np.zeros(1))) == "silence"
    assert why_no_speech(heard(np.full(1, 0.5))) is not None
