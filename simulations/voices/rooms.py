"""From a clean voice to a recording: the speaker's shaping, then microphone, room and noise of a site.

Everything between the library's samples and ours is one multiplication in the frequency domain, which is
also the change of rate from 22,050 to 16,000 Hz (exactly 320 samples for 441).

Guarantees:
  - The same samples, shaping, channel and keys give the same recording.
  - Finite input gives finite output within [-1, 1], whatever the levels.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.common.streams import stream
from sottovoce.simulations.voices.parameters import PARAMETERS, Parameters

Signal = npt.NDArray[Any]

LIBRARY_RATE_HZ = 22_050
RATE_HZ = 16_000
_IN, _OUT = 441, 320  # 22,050 : 16,000
_TILT_PIVOT_HZ = 700.0  # where tilt neither raises nor lowers; below 100 Hz it stays flat
_TAIL_SECONDS = 0.3  # how much of the room's ringing is kept after the last word
_FIRST_ECHO = 48  # samples: the way to the nearest wall and back, one metre
_NOISE_SAMPLES = 1 << 19  # 33 s of a site's noise, from which recordings take their part


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """What a performance asks for beyond the library: level, tilt of the spectrum, a trembling loudness."""

    level_dbfs: float
    tilt_db_per_octave: float
    tremor_depth: float
    tremor_hz: float


@dataclass(frozen=True, kw_only=True)
class Peak:
    """One bump or dip of a microphone's response."""

    centre_hz: float
    gain_db: float
    width_octaves: float


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A site's microphone, room and noise."""

    name: str
    seed: int
    gain_db: float
    tilt_db_per_octave: float
    peaks: tuple[Peak, ...]
    low_cut_hz: float
    high_cut_hz: float
    reverb_seconds: float
    reverb_db: float
    noise_dbfs: float
    noise_slope_db_per_octave: float


@dataclass(frozen=True, kw_only=True)
class Take:
    """What belongs to one recording: the noise's key, silence around the words, how near the mouth was."""

    key: str
    lead_seconds: float
    tail_seconds: float
    gain_db: float


def draw_channel(seed: int, site: str, parameters: Parameters = PARAMETERS) -> Channel:
    """Draws the microphone, room and noise of a site."""
    spread, draws = parameters.sites, stream(seed, "voices/channel", site)
    peaks = tuple(
        Peak(
            centre_hz=float(200 * 2 ** draws.uniform(0, 4.7)),
            gain_db=float(spread.peak_db * draws.standard_normal()),
            width_octaves=float(draws.uniform(0.3, 0.9)),
        )
        for _ in range(spread.peaks)
    )
    return Channel(
        name=site,
        seed=seed,
        gain_db=float(spread.gain_db * draws.standard_normal()),
        tilt_db_per_octave=float(spread.tilt_db_per_octave * draws.standard_normal()),
        peaks=peaks,
        low_cut_hz=float(draws.uniform(*spread.low_cut_hz)),
        high_cut_hz=float(draws.uniform(*spread.high_cut_hz)),
        reverb_seconds=float(draws.uniform(*spread.reverb_seconds)),
        reverb_db=float(draws.uniform(*spread.reverb_db)),
        noise_dbfs=float(draws.uniform(*spread.noise_dbfs)),
        noise_slope_db_per_octave=float(draws.uniform(*spread.noise_slope_db_per_octave)),
    )


def draw_take(seed: int, key: str, parameters: Parameters = PARAMETERS) -> Take:
    """Draws what changes from one recording to the next."""
    spread, draws = parameters.sites, stream(seed, "voices/recording", key)
    lead, tail = draws.uniform(*spread.lead_seconds, 2)
    gain = spread.take_gain_db * draws.standard_normal()
    return Take(key=key, lead_seconds=float(lead), tail_seconds=float(tail), gain_db=float(gain))


def record(pcm: Signal, shaping: Shaping, channel: Channel | None, take: Take | None) -> Signal:
    """Returns 16 kHz float32 samples of the library's 22,050 Hz int16 `pcm`, as the channel hears them."""
    dry = _trembling(pcm.astype(np.float64) / 32768, shaping)
    n_lead = round((take.lead_seconds if take else 0.0) * LIBRARY_RATE_HZ)
    tail_seconds = (take.tail_seconds if take else 0.0) + (_TAIL_SECONDS if channel else 0.0)
    n_wanted = n_lead + len(dry) + round(tail_seconds * LIBRARY_RATE_HZ)
    blocks = _smooth_number(math.ceil(n_wanted / _IN))
    padded = np.zeros(blocks * _IN)
    padded[n_lead : n_lead + len(dry)] = dry
    spectrum = np.fft.rfft(padded)[: blocks * _OUT // 2 + 1]
    gain_db = shaping.level_dbfs - _speech_level_dbfs(dry) + (take.gain_db if take else 0.0)
    spectrum *= _tilt(blocks * _OUT, shaping.tilt_db_per_octave) * (10 ** (gain_db / 20) * _OUT / _IN)
    if channel is not None:
        spectrum *= _response(channel, blocks * _OUT)
    samples = np.fft.irfft(spectrum, blocks * _OUT)[: math.ceil(n_wanted * _OUT / _IN)]
    if channel is not None and take is not None:
        samples += _noise(channel, take.key, len(samples))
    return np.clip(samples, -1.0, 1.0).astype(np.float32)


def _trembling(samples: Signal, shaping: Shaping) -> Signal:
    if shaping.tremor_depth == 0:
        return samples
    phase = np.arange(len(samples)) * (2 * math.pi * shaping.tremor_hz / LIBRARY_RATE_HZ)
    trembling: Signal = samples * (1 - shaping.tremor_depth * (0.5 + 0.5 * np.sin(phase)))
    return trembling


def _speech_level_dbfs(samples: Signal) -> float:
    """Returns the root mean square of what is louder than a tenth of the peak: pauses must not count."""
    loud = samples[np.abs(samples) > 0.1 * np.max(np.abs(samples), initial=1e-6)]
    return 10 * math.log10(float(np.mean(loud * loud))) if len(loud) else 0.0


def _tilt(n: int, db_per_octave: float) -> Signal:
    return np.exp(_octaves(n) * (db_per_octave * math.log(10) / 20))


@lru_cache(maxsize=64)
def _octaves(n: int) -> Signal:
    """Returns each frequency's distance from the pivot; `n` takes few values, so they are kept."""
    octaves: Signal = np.log2(np.maximum(np.fft.rfftfreq(n, 1 / RATE_HZ), 100.0) / _TILT_PIVOT_HZ)
    return octaves


@lru_cache(maxsize=64)
def _response(channel: Channel, n: int) -> Signal:
    """Returns the transfer function of microphone and room."""
    return _microphone(channel, n) * _room(channel, n)


def _microphone(channel: Channel, n: int) -> Signal:
    frequencies = np.maximum(np.fft.rfftfreq(n, 1 / RATE_HZ), 1.0)
    response_db = channel.gain_db + channel.tilt_db_per_octave * _octaves(n)
    for peak in channel.peaks:
        distance = np.log2(frequencies / peak.centre_hz) / peak.width_octaves
        response_db += peak.gain_db * np.exp(-0.5 * distance * distance)
    low = (channel.low_cut_hz / frequencies) ** 4
    high = (frequencies / channel.high_cut_hz) ** 8
    response: Signal = 10 ** (response_db / 20) / np.sqrt((1 + low) * (1 + high))
    return response


def _room(channel: Channel, n: int) -> Signal:
    """Returns the room's transfer function: the direct sound, then noise that decays 60 dB in its time."""
    n_ringing = round(channel.reverb_seconds * RATE_HZ)
    ringing = stream(channel.seed, "voices/room", channel.name).standard_normal(n_ringing)
    ringing *= 10 ** (-3 * np.arange(n_ringing) / n_ringing)
    ringing *= 10 ** (channel.reverb_db / 20) / math.sqrt(float(ringing @ ringing))
    response = np.zeros(n)
    response[0] = 1.0
    heard = ringing[: max(0, n - _FIRST_ECHO)]  # a phrase shorter than the ringing hears less of it
    response[_FIRST_ECHO : _FIRST_ECHO + len(heard)] = heard
    return np.fft.rfft(response)


def _noise(channel: Channel, key: str, n: int) -> Signal:
    """Returns `n` samples of the site's noise, from a place of its own for each key."""
    bed = _noise_bed(channel)
    start = int(stream(channel.seed, "voices/noise-start", key).integers(len(bed)))
    return np.take(bed, np.arange(start, start + n), mode="wrap")


@lru_cache(maxsize=8)
def _noise_bed(channel: Channel) -> Signal:
    spectrum = np.fft.rfft(stream(channel.seed, "voices/noise", channel.name).standard_normal(_NOISE_SAMPLES))
    noise = np.fft.irfft(spectrum * _tilt(_NOISE_SAMPLES, channel.noise_slope_db_per_octave), _NOISE_SAMPLES)
    return noise * (10 ** (channel.noise_dbfs / 20) / math.sqrt(float(np.mean(noise * noise))))


def _smooth_number(n: int) -> int:
    """Returns the least number from `n` on that is 2, 3 or 5 times a power of two, or 15 or 9 times one.

    Those transform fast, and there are few of them, so that what depends on the length alone is kept.
    """
    return min(factor << max(0, math.ceil(math.log2(n / factor))) for factor in (1, 3, 5, 9, 15))
