"""Sounds that are no speech: what a detector of speech has to refuse. Public coins; at 16 kHz; nothing recorded.

sounds = list(not_speech(seed=0, seconds=4.0))   # [("silence", samples), ("hiss", samples), ...]
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sottovoce.common.streams import stream

RATE_HZ = 16_000
Samples = npt.NDArray[np.float64]

SCALE = (0, 2, 4, 5, 7, 9, 11, 12, 14, 16)  # semitones of a major scale
TIMBRES: dict[str, tuple[float, ...]] = {
    "pure": (1.0,),
    "flute": (1.0, 0.2, 0.05),
    "organ": (1.0, 0.5, 0.3, 0.2),
    "string": tuple(1.0 / k for k in range(1, 16)),
}


def not_speech(seed: int, seconds: float = 4.0) -> Iterator[tuple[str, Samples]]:
    """Yields a name and samples of each kind."""
    n = int(seconds * RATE_HZ)
    random = stream(seed, "sounds")
    time = np.arange(n) / RATE_HZ
    yield "silence", np.zeros(n)
    yield "the noise of a microphone", random.normal(size=n) * 1e-4
    yield "white noise", random.normal(size=n) * 0.1
    yield "pink noise", coloured(random, n) * 0.1
    yield (
        "noise that swells four times a second",
        coloured(random, n) * (1 + 0.9 * np.sin(8 * np.pi * time)) * 0.1,
    )
    yield "a murmur", murmur(random, n) * 0.1
    yield "mains hum", sum((np.sin(100 * np.pi * k * time) / k for k in range(1, 9)), np.zeros(n)) * 0.1
    yield "clicks", clicks(random, n)
    yield "a drum", drum(n, beats_per_second=2.5)
    yield "a telephone", (np.sin(880 * np.pi * time) + np.sin(960 * np.pi * time)) * 0.1 * (time % 2.0 < 0.8)
    yield "a siren", np.sin(2 * np.pi * np.cumsum(600 + 200 * np.sin(2 * np.pi * 0.5 * time)) / RATE_HZ) * 0.1
    for name in TIMBRES:
        yield f"a melody, {name}", melody(random, n, name) * 0.1
        yield f"a melody with pauses, {name}", melody(random, n, name, pause=0.12) * 0.1
        yield f"a melody that fades note by note, {name}", melody(random, n, name, fade=4.0) * 0.1
        yield f"chords, {name}", melody(random, n, name, intervals=(0, 4, 7, 12), rate=1.5, fade=2.0) * 0.05
        with_drum = melody(random, n, name) * 0.1 + drum(n, beats_per_second=2.0)
        yield f"a band, {name}", with_drum + melody(random, n, "organ", intervals=(0, 4, 7), rate=1.0) * 0.05


def coloured(random: np.random.Generator, n: int, slope: float = 1.0) -> Samples:
    """Returns noise whose power falls with frequency by a power `slope`, of deviation 1."""
    spectrum = np.fft.rfft(random.normal(size=n))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1.0) ** (slope / 2.0)
    samples = np.fft.irfft(spectrum, n)
    return np.asarray(samples / samples.std())


def murmur(random: np.random.Generator, n: int, sources: int = 12) -> Samples:
    """Returns many muffled noises at once, each with swells of its own: a crowd behind a wall."""
    total, hop = np.zeros(n), RATE_HZ // 100
    for _ in range(sources):
        muffled = np.convolve(random.normal(size=n), np.hanning(30), "same")
        total += muffled * np.repeat(np.abs(coloured(random, -(-n // hop))), hop)[:n]
    return np.asarray(total / total.std())


def clicks(random: np.random.Generator, n: int, per_second: float = 6.0) -> Samples:
    """Returns single loud samples at random places."""
    samples = np.zeros(n)
    samples[random.integers(0, n, max(1, int(per_second * n / RATE_HZ)))] = 0.8
    return samples


def drum(n: int, *, beats_per_second: float) -> Samples:
    """Returns beats, low and hissing in turn, that die away within a seventh of a second."""
    samples, time = np.zeros(n), np.arange(int(0.15 * RATE_HZ)) / RATE_HZ
    hiss = stream(0, "drum").normal(size=len(time)) * np.exp(-time / 0.03)
    low = np.sin(2 * np.pi * 60 * time) * np.exp(-time / 0.05)
    for number, start in enumerate(range(0, n, int(RATE_HZ / beats_per_second))):
        beat = (hiss if number % 2 else low)[: n - start]
        samples[start : start + len(beat)] += beat * 0.2
    return samples


def melody(
    random: np.random.Generator,
    n: int,
    timbre: str,
    *,
    intervals: Sequence[int] = (0,),
    rate: float = 3.0,
    fade: float = 0.0,
    pause: float = 0.0,
) -> Samples:
    """Returns notes of a scale, each with an envelope; several `intervals` at once are a chord."""
    pieces: list[Samples] = []
    while sum(map(len, pieces)) < n:
        base = 220.0 * 2.0 ** (random.choice(SCALE) / 12) / (2.0 if len(intervals) > 1 else 1.0)
        length = random.choice((0.5, 1.0, 1.0, 2.0)) / rate
        notes = [_note(base * 2.0 ** (step / 12), length, TIMBRES[timbre], fade) for step in intervals]
        pieces += [np.sum(notes, axis=0), np.zeros(int(pause * RATE_HZ))]
    return np.concatenate(pieces)[:n]


def _note(hertz: float, seconds: float, partials: Sequence[float], fade: float) -> Samples:
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    tone: Callable[[int], Samples] = lambda k: np.sin(2 * np.pi * hertz * k * time)  # noqa: E731
    samples = np.sum([size * tone(k) for k, size in enumerate(partials, start=1)], axis=0) * np.exp(
        -fade * time
    )
    edge = np.minimum(time / 0.02, (seconds - time) / 0.05)  # no click at its ends
    return np.asarray(samples * np.clip(edge, 0.0, 1.0))
