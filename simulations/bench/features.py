"""Feature extraction against librosa, file by file, and against a bare Fourier transform; one thread each.

The set is what speech-emotion work computes: log-mel, MFCC with two derivatives, pitch, energy, zero crossings,
chroma and spectral shape. Recordings are pulses through resonances over noise; what they are does not change
the time. librosa runs in its usual float32; equality is measured against that, and against librosa in double.

librosa is timed twice: called with the samples, as its documentation shows, and with one Fourier transform made
by hand and given to every function that takes one.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sottovoce.common.audio import Waveform
from sottovoce.common.feature_specs import (
    Chroma,
    Energy,
    FeatureSpec,
    FeatureStream,
    Frames,
    LogMel,
    Mfcc,
    Pitch,
    SpectralShape,
    ZeroCrossings,
)
from sottovoce.common.features import VOICED_PERIODICITY, extract, librosa_reference
from sottovoce.simulations.bench.timing import Row, report, take_turns, timed

RATE = 16_000
N_RECORDINGS, REPEATS = 24, 7
FRAMES = Frames()
PITCH = Pitch(kind="pitch")
SET: tuple[FeatureSpec, ...] = (
    LogMel(kind="log_mel"),
    Mfcc(kind="mfcc", deltas=2),
    PITCH,
    Energy(kind="energy"),
    ZeroCrossings(kind="zero_crossings"),
    Chroma(kind="chroma"),
    SpectralShape(kind="spectral_shape"),
)
STREAMS = tuple(FeatureStream(name=part.kind, parts=(part,)) for part in SET)
BAR, TOLERANCE = 10.0, 1e-4


def measure(n_recordings: int = N_RECORDINGS, repeats: int = REPEATS) -> dict[str, Any]:
    """Times the four, and compares every number with librosa's."""
    torch.set_num_threads(1)
    waveforms = [_recording(seed) for seed in range(n_recordings)]
    seconds = sum(waveform.seconds for waveform in waveforms)
    times = take_turns(
        {
            "samples": timed(lambda: _librosa(waveforms, by_hand=False)),
            "by_hand": timed(lambda: _librosa(waveforms, by_hand=True)),
            "ours": timed(lambda: extract(waveforms, STREAMS, FRAMES)),
            "transform": timed(lambda: _bare_transform(waveforms)),
        },
        repeats,
    )
    ours = times["ours"]

    def row(what: str, name: str, **more: Any) -> Row:
        speed = seconds / times[name].median
        return Row(what=what, value=1000 / speed, unit="ms per s of sound", note=f"{speed:,.0f}x", **more)

    speed_up, by_hand = times["samples"].ratio(ours), times["by_hand"].ratio(ours)
    return report(
        [
            row("librosa, each function with the samples", "samples"),
            row("librosa, one transform made by hand", "by_hand"),
            row("a bare torch.stft, float32", "transform"),
            row(
                "ours, the whole set",
                "ours",
                ratio=speed_up,
                against="librosa with the samples, times faster",
                bar=f"at least {BAR:g}",
                met=speed_up >= BAR,
            ),
            row("ours", "ours", ratio=by_hand, against="librosa by hand, times faster"),
            row("ours", "ours", ratio=ours.ratio(times["transform"]), against="the bare transform's time"),
            row(
                "ours",
                "ours",
                ratio=times["samples"].cpu_ratio(ours),
                against="librosa with the samples, times faster in processor time",
            ),
            *(_difference_row(waveforms, double=double) for double in (False, True)),
        ],
        seconds_of_sound=seconds,
        repeats=repeats,
        page_faults={name: taken.page_faults for name, taken in times.items()},
    )


def _difference_row(waveforms: Sequence[Waveform], *, double: bool) -> Row:
    apart = max(_differences(waveforms, double=double))
    return Row(
        what=f"largest difference from librosa in {'double' if double else 'float32'}, of max(1, |value|)",
        value=apart,
        unit="",
        bar=f"at most {TOLERANCE:g}",
        met=apart <= TOLERANCE,
        note="pitch: in voiced frames",
    )


def _recording(seed: int) -> Waveform:
    random = np.random.default_rng(seed)
    n_samples = int(random.uniform(2.5, 4.5) * RATE)
    f0 = 150 * 2 ** (0.4 * np.sin(np.arange(n_samples) / RATE * random.uniform(2, 9)))
    pulses = np.diff(np.floor(np.cumsum(f0) / RATE), prepend=0.0)
    spectrum = np.fft.rfft(pulses)
    hertz = np.fft.rfftfreq(n_samples, 1 / RATE)
    throat = sum(
        1 / (1 + ((hertz - at) / 60) ** 2) for at in random.uniform([400, 1000, 2200], [900, 1900, 3200])
    )
    voice = np.fft.irfft(spectrum * throat, n_samples)
    samples = 0.3 * voice / np.abs(voice).max() + 1e-3 * random.normal(size=n_samples)
    return Waveform(samples=samples.astype(np.float32), sample_rate_hz=RATE)


def _librosa(waveforms: Sequence[Waveform], *, by_hand: bool) -> None:
    for waveform in waveforms:
        librosa_reference(waveform, SET, FRAMES, double=False, by_hand=by_hand)


def _bare_transform(waveforms: Sequence[Waveform]) -> None:
    window = torch.hann_window(round(FRAMES.window_seconds * RATE))
    for waveform in waveforms:
        torch.stft(
            torch.from_numpy(waveform.samples),
            FRAMES.fft_size,
            round(FRAMES.hop_seconds * RATE),
            len(window),
            window,
            pad_mode="constant",
            return_complex=True,
        )


def _differences(waveforms: Sequence[Waveform], *, double: bool) -> list[float]:
    worst = [-math.inf] * len(SET)
    for waveform, mine in zip(waveforms, extract(waveforms, STREAMS, FRAMES), strict=True):
        theirs = librosa_reference(waveform, SET, FRAMES, double=double)
        for place, (part, expected) in enumerate(zip(SET, theirs, strict=True)):
            found = mine[part.kind][:, : expected.shape[1]]
            apart = np.abs(found - expected) / np.maximum(1, np.abs(expected))
            if part is PITCH:
                apart = apart[mine[part.kind][:, 1] >= VOICED_PERIODICITY]
            worst[place] = max(worst[place], float(apart.max()))
    return worst
