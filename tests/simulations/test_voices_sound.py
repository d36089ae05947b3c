"""What a voice sounds like, judged by figures: pitch, pace, level, brightness, and that it is repeatable."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from sottovoce.common.audio import Waveform
from sottovoce.common.errors import SynthesisError
from sottovoce.common.feature_specs import Energy, FeatureStream, Frames, Pitch, SpectralShape
from sottovoce.common.features import extract
from sottovoce.simulations.voices import Voice, draw_voice, say
from sottovoce.simulations.voices.acting import perform
from sottovoce.simulations.voices.espeak import MAX_CHARACTERS
from sottovoce.simulations.voices.parameters import DIMENSIONS, PARAMETERS, PROTOTYPES
from sottovoce.simulations.voices.rooms import Shaping, draw_channel, draw_take, record
from sottovoce.simulations.voices.sentences import SENTENCES
from sottovoce.simulations.voices.synthesiser import Synthesiser

SENTENCE = "The kettle stands | on the kitchen table"
FIGURES = FeatureStream(
    name="figures",
    parts=(Pitch(kind="pitch"), Energy(kind="energy"), SpectralShape(kind="spectral_shape")),
    pooling="statistics",
)


@pytest.fixture(scope="module")
def synthesiser() -> Iterator[Synthesiser]:
    with Synthesiser() as running:
        yield running


def voice(name: str = "s1", *, language: str = "en-us", sex: str = "female") -> Voice:
    return draw_voice(1, name, language=language, sex="female" if sex == "female" else "male", age=35)


def figures(waveforms: list[Waveform]) -> dict[str, npt.NDArray[np.float64]]:
    """Returns mean log pitch, its spread, seconds, level and centroid of each waveform."""
    rows = np.stack([found["figures"] for found in extract(waveforms, [FIGURES], Frames())])
    n_columns = rows.shape[1] // 4
    return {
        "pitch": rows[:, 0],
        "range": rows[:, 2 * n_columns :][:, n_columns] - rows[:, 2 * n_columns],
        "level": rows[:, 3 * n_columns + 2],  # the 80th percentile: pauses do not count
        "brightness": rows[:, 3],
        "seconds": np.array([waveform.seconds for waveform in waveforms]),
    }


@pytest.fixture(scope="module")
def acted(synthesiser: Synthesiser) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Figures by emotion of the same sentence from the same 8 speakers."""
    cast = [voice(f"{sex}{n}", sex=sex) for n, sex in product(range(4), ("female", "male"))]
    emotions = ("neutral", "sad", "angry", "happy", "fearful", "surprised", "calm", "disgust")
    return {
        emotion: figures([say(SENTENCE, who, emotion, synthesiser=synthesiser) for who in cast])
        for emotion in emotions
    }


@pytest.mark.parametrize(
    ("higher", "figure", "lower"),
    [
        ("angry", "level", "neutral"),
        ("neutral", "level", "sad"),
        ("happy", "pitch", "neutral"),
        ("fearful", "pitch", "neutral"),
        ("surprised", "pitch", "calm"),
        ("sad", "seconds", "neutral"),
        ("disgust", "seconds", "neutral"),
        ("neutral", "seconds", "fearful"),
        ("angry", "brightness", "sad"),
        ("happy", "range", "sad"),
        ("surprised", "range", "neutral"),
    ],
)
def test_emotions_move_the_sound_in_their_direction(
    acted: dict[str, dict[str, npt.NDArray[np.float64]]], higher: str, figure: str, lower: str
) -> None:
    differences = acted[higher][figure] - acted[lower][figure]
    # Over the same speakers and words; not for each of them, as habits differ.
    assert differences.mean() > 1.5 * differences.std() / np.sqrt(len(differences))


def test_speakers_differ_in_how_they_act_and_takes_differ_less() -> None:
    def pitches(names: list[str], takes: list[int]) -> npt.NDArray[np.float64]:
        performed = [
            perform(replace(voice(name), pitch_hz=200.0), "happy", take=take)
            for name, take in product(names, takes)
        ]
        return np.log([prosody.low_hz for prosody in performed])

    between = pitches([f"s{n}" for n in range(60)], [0]).std()
    within = pitches(["s1"], list(range(60))).std()
    assert 1.1 * within < between


def test_pitch_is_the_one_asked_for(synthesiser: Synthesiser) -> None:
    cast = [replace(voice(), pitch_hz=pitch) for pitch in (90.0, 140.0, 220.0, 300.0)]
    found = figures([say(SENTENCE, who, "neutral", synthesiser=synthesiser) for who in cast])["pitch"]
    # `neutral` has habits too: only the ratios between the same speaker's voices are exact.
    assert np.allclose(np.diff(found), np.diff(np.log([who.pitch_hz for who in cast])), atol=0.06)


@pytest.mark.parametrize("language", SENTENCES)
def test_every_language_speaks_every_sentence(synthesiser: Synthesiser, language: str) -> None:
    assert len(set(SENTENCES[language])) >= 10
    for sentence in SENTENCES[language][:3]:
        waveform = say(sentence, voice(language=language), "neutral", synthesiser=synthesiser)
        assert waveform.sample_rate_hz == 16_000
        assert waveform.samples.dtype == np.float32
        assert 0.8 < waveform.seconds < 6.0
        assert 0.02 < np.abs(waveform.samples).max() <= 1.0


@pytest.mark.parametrize("emotion", PROTOTYPES)
def test_every_emotion_is_spoken_without_clipping(synthesiser: Synthesiser, emotion: str) -> None:
    samples = say(SENTENCE, voice(), emotion, synthesiser=synthesiser).samples
    assert np.mean(np.abs(samples) >= 0.999) < 1e-3


def test_the_same_arguments_give_the_same_samples_whatever_was_spoken_before() -> None:
    first, second = voice(), voice("s2", language="de", sex="male")
    with Synthesiser() as fresh:
        alone = say(SENTENCE, first, "happy", take=3, synthesiser=fresh)
    with Synthesiser() as used:
        for emotion in ("angry", "sad"):
            say("Der Korb steht da", second, emotion, synthesiser=used)
        after = say(SENTENCE, first, "happy", take=3, synthesiser=used)
        other = say(SENTENCE, first, "happy", take=4, synthesiser=used)
    assert np.array_equal(alone.samples, after.samples)
    assert not np.array_equal(alone.samples[:8000], other.samples[:8000])


def test_a_channel_adds_its_own_noise_and_keeps_the_words(synthesiser: Synthesiser) -> None:
    channel, take = draw_channel(1, "site-1"), draw_take(1, "a")
    clean = say(SENTENCE, voice(), "neutral", synthesiser=synthesiser)
    heard = say(
        SENTENCE, voice(), "neutral", channel=channel, recording=take, synthesiser=synthesiser
    ).samples.astype(np.float64)
    lead = heard[: int(0.8 * take.lead_seconds * 16_000)]
    level_db = 10 * np.log10(np.mean(lead * lead))
    assert level_db == pytest.approx(channel.noise_dbfs, abs=3.0)
    assert heard.size > clean.samples.size + int(0.05 * 16_000)


def test_sites_differ_in_response_and_noise() -> None:
    channels = [draw_channel(1, f"site-{n}") for n in range(6)]
    assert len({round(channel.noise_dbfs, 3) for channel in channels}) == 6
    assert np.std([channel.noise_dbfs for channel in channels]) > 2.0


@pytest.mark.parametrize("level_dbfs", [-400.0, 0.0, 400.0])
@pytest.mark.parametrize("pcm", [np.zeros(500), np.full(500, 32767), np.array([-32768])])
def test_a_recording_is_finite_and_within_range(pcm: npt.NDArray[np.float64], level_dbfs: float) -> None:
    shaping = Shaping(level_dbfs=level_dbfs, tilt_db_per_octave=9.0, tremor_depth=0.5, tremor_hz=6.0)
    samples = record(pcm.astype(np.int16), shaping, draw_channel(1, "a"), draw_take(1, "a"))
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1.0


def test_prosody_stays_within_what_the_library_accepts() -> None:
    wild = replace(PARAMETERS, speakers=replace(PARAMETERS.speakers, habit=20.0))
    for take in range(50):
        prosody = perform(voice(), "angry", take=take, parameters=wild)
        assert 80 <= prosody.rate_wpm <= 380
        assert 20 <= prosody.low_hz <= prosody.high_hz <= 900
        assert 0 <= prosody.roughness <= 7
        assert 0 <= prosody.tremor_depth < 1


def test_every_dimension_of_acting_is_heard_or_told(synthesiser: Synthesiser) -> None:
    """A dimension that changes nothing would be a constant that only looks like a parameter."""
    plain = replace(
        PARAMETERS,
        speakers=replace(PARAMETERS.speakers, habit=0.0, take=0.0),
        prototypes={"x": PROTOTYPES["neutral"]},
    )
    before = perform(voice(), "x", take=0, parameters=plain)
    for name in DIMENSIONS:
        moved = replace(plain, prototypes={"x": replace(PROTOTYPES["neutral"], **{name: 1.0})})
        assert perform(voice(), "x", take=0, parameters=moved) != before, name


@pytest.mark.parametrize(
    ("text", "emotion", "language", "expected"),
    [
        ("Hello", "joyful", "en-us", "an emotion that can be acted: neutral, calm"),
        ("Hello", "neutral", "xx-none", "a language of espeak-ng"),
        ("Hello", "neutral", "../../etc/passwd", "a language of espeak-ng"),
        ("  | ", "neutral", "en-us", "a text of 1 to"),
        ("a" * (MAX_CHARACTERS + 1), "neutral", "en-us", "a text of 1 to"),
    ],
)
def test_what_cannot_be_said_is_one_clear_error(
    synthesiser: Synthesiser, text: str, emotion: str, language: str, expected: str
) -> None:
    with pytest.raises(SynthesisError, match=expected) as caught:
        say(text, voice(language=language), emotion, synthesiser=synthesiser)
    assert "\n" not in str(caught.value)
    assert synthesiser.alive


@pytest.mark.parametrize(
    "text", ["a < b & </speak> <audio src='/etc/passwd'/>", "[[x]] 1 2 3", "\x01hm\x02 é 漢字 🙂", "?!?! yes"]
)
def test_hostile_texts_are_spoken_as_words(synthesiser: Synthesiser, text: str) -> None:
    assert say(text, voice(), "neutral", synthesiser=synthesiser).seconds > 0.1


def test_a_worker_killed_between_phrases_is_replaced() -> None:
    with Synthesiser() as synthesiser:
        before = say(SENTENCE, voice(), "happy", synthesiser=synthesiser)
        process = synthesiser._process
        assert process is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        after = say(SENTENCE, voice(), "happy", synthesiser=synthesiser)
    assert np.array_equal(before.samples, after.samples)
    assert not synthesiser.alive


def test_a_worker_that_cannot_start_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SynthesisError, match="ended or stalled twice"):
        say(SENTENCE, voice(), "happy")


CRASH = """
import ctypes, os, signal, sys
from sottovoce.common.errors import SynthesisError
from sottovoce.simulations.voices import draw_voice, espeak
from sottovoce.simulations.voices.acting import perform
voice = draw_voice(1, "s1", language="en-us", sex="female", age=35)
phrase = espeak.phrase("Hello", voice, perform(voice, "neutral", take=0))
class Faulty(espeak.Library):
    def _say(self, phrase, chunks):
        {fault}
library = Faulty()
try:
    library.speak(phrase)
except SynthesisError as error:
    print("refused:", error)
library._say = super(Faulty, library)._say
print("spoken:", len(library.speak(phrase)) > 10000)
"""


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("ctypes.string_at(0)", "the library crashed"),
        ("signal.alarm(1)\n        while True: pass", "was stopped"),
        ("return 0", "nothing was spoken"),
    ],
)
def test_a_crash_or_stall_of_the_library_costs_one_phrase(fault: str, expected: str) -> None:
    script = CRASH.format(fault=fault)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "refused: " in done.stdout, done.stderr
    assert expected in done.stdout
    assert "spoken: True" in done.stdout
