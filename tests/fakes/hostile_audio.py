"""Recordings that nobody should decode: made, not stored, each with the reason in its name.

`write(folder)` makes them all. None of them is a valid recording for `MAX_SECONDS`.
"""

import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

MAX_SECONDS = 60.0  # the limit that the long ones break
RATE = 16_000

Maker = Callable[[Path], None]
NOISE = np.random.default_rng(1).bytes(20_000)


def write(folder: Path) -> list[Path]:
    """Writes every hostile recording into `folder` and returns their paths."""
    paths = []
    for name, make in makers().items():
        path = folder / name
        make(path)
        paths.append(path)
    return paths


def makers() -> dict[str, Maker]:
    """Returns, by file name, what makes it."""
    return {
        **_not_recordings(),
        **_wrong_names(),
        **_broken_wav(),
        **_impossible_wav(),
        **_cut(),
        **_bombs(),
        **_bad_samples(),
        **_not_files(),
    }


def _not_recordings() -> dict[str, Maker]:
    return {
        "empty.wav": _bytes(lambda: b""),
        "one_byte.wav": _bytes(lambda: b"R"),
        "random.wav": _bytes(lambda: b"\x01" + NOISE),
        "random.flac": _bytes(lambda: b"fLaC" + NOISE),
        "random.ogg": _bytes(lambda: b"OggS" + NOISE),
        "random.mp3": _bytes(lambda: b"\xff\xfb\x90\x00" + NOISE),
        "text.wav": _bytes(lambda: b"This is not a recording.\n" * 100),
        "page.mp3": _bytes(lambda: b"<html><body>404 Not Found</body></html>"),
        "archive.flac": _bytes(lambda: b"PK\x03\x04" + NOISE),
        "program.ogg": _bytes(lambda: b"\x7fELF\x02\x01\x01" + NOISE),
        "pickle.wav": _bytes(lambda: pickle.dumps({"samples": [0.0] * 100})),
        "zeros.mp3": _bytes(lambda: bytes(100_000)),
    }


def _wrong_names() -> dict[str, Maker]:
    return {
        "really_wav.mp3": _bytes(lambda: wav(_pcm(1.0))),
        "really_flac.wav": _bytes(lambda: _encoded("FLAC")),
        "really_ogg.flac": _bytes(lambda: _encoded("OGG")),
        "really_aiff.wav": _bytes(lambda: _encoded("AIFF")),
        "really_au.wav": _bytes(lambda: _encoded("AU")),
        "really_w64.wav": _bytes(lambda: _encoded("W64")),
    }


def _broken_wav() -> dict[str, Maker]:
    good = wav(_pcm(1.0))
    fmt, data = good[12:36], good[36:]
    return {
        "header_alone.wav": _bytes(lambda: good[:12]),
        "no_format.wav": _bytes(lambda: b"RIFF" + struct.pack("<I", 4 + len(data)) + b"WAVE" + data),
        "no_samples.wav": _bytes(lambda: b"RIFF" + struct.pack("<I", 4 + len(fmt)) + b"WAVE" + fmt),
        "zero_frames.wav": _bytes(lambda: wav(b"")),
        "riff_size_ffffffff.wav": _bytes(lambda: good[:4] + b"\xff\xff\xff\xff" + good[8:]),
        "data_size_ffffffff.wav": _bytes(lambda: wav(_pcm(1.0), data_size=0xFFFFFFFF)),
        "data_size_negative.wav": _bytes(lambda: wav(_pcm(1.0), data_size=0x80000000)),
        "format_chunk_of_2_gib.wav": _bytes(lambda: good[:16] + b"\xff\xff\xff\x7f" + good[20:]),
        "million_chunks.wav": _bytes(
            lambda: b"RIFF\xff\xff\x00\x00WAVE" + b"junk\x00\x00\x00\x00" * 1_000_000
        ),
    }


def _impossible_wav() -> dict[str, Maker]:
    second = _pcm(1.0)
    return {
        "1024_channels.wav": _bytes(lambda: wav(bytes(1024 * 2 * 100), channels=1024)),
        "65535_channels.wav": _bytes(lambda: wav(second, channels=65_535)),
        "no_channels.wav": _bytes(lambda: wav(second, channels=0)),
        "three_channels.wav": _bytes(lambda: wav(second, channels=3)),
        "rate_2_to_31.wav": _bytes(lambda: wav(second, rate=2**31)),
        "rate_2_to_32.wav": _bytes(lambda: wav(second, rate=2**32 - 1)),
        "rate_zero.wav": _bytes(lambda: wav(second, rate=0)),
        "rate_4_khz.wav": _bytes(lambda: wav(second, rate=4_000)),
        "rate_96_khz.wav": _bytes(lambda: wav(second, rate=96_000)),
        "no_bits.wav": _bytes(lambda: wav(second, bits=0)),
        "unknown_coding.wav": _bytes(lambda: wav(second, coding=0x7777)),
    }


def _cut() -> dict[str, Maker]:
    return {
        "cut_header.wav": _bytes(lambda: wav(_pcm(1.0))[:30]),
        "cut_body.wav": _bytes(lambda: wav(_pcm(1.0))[:20_000]),
        "cut_header.flac": _bytes(lambda: _encoded("FLAC")[:30]),
        "cut_body.flac": _bytes(lambda: _encoded("FLAC")[:8_000]),
        "cut_header.ogg": _bytes(lambda: _encoded("OGG")[:60]),
        "cut_header.mp3": _bytes(lambda: _encoded("MP3")[:3]),
        "zero_frames.flac": _bytes(lambda: _encoded("FLAC", np.zeros(0))),
    }


def _bombs() -> dict[str, Maker]:
    return {
        "ten_minutes.flac": _bytes(_ten_minutes),
        "ten_minutes_said_to_be_one_second.flac": _bytes(lambda: _with_flac_length(_long_flac(), RATE)),
        "ten_minutes_of_unknown_length.flac": _bytes(lambda: _with_flac_length(_ten_minutes(), 0)),
        "two_hours_in_one_second.flac": _bytes(lambda: _with_flac_length(_encoded("FLAC"), 7200 * RATE)),
        "three_minutes.ogg": _bytes(lambda: _encoded("OGG", np.zeros(180 * 8_000), rate=8_000)),
        "two_minutes.mp3": _bytes(lambda: _encoded("MP3", np.zeros(120 * RATE))),
        "tag_of_256_mib.mp3": _bytes(lambda: b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(1000)),
        "tags_in_tags.mp3": _bytes(lambda: b"ID3\x04\x00\x00\x00\x00\x00\x0a" * 2000),
    }


def _bad_samples() -> dict[str, Maker]:
    tone = np.sin(np.arange(RATE) / 10)
    spoilt = {
        "nan": np.nan,
        "infinite": np.inf,
        "beyond_float32": 1e300,
        "gigantic": 1e30,
        "unscaled": 20_000.0,
    }
    return {
        f"{name}.wav": _float_wav(np.where(np.arange(RATE) == RATE - 5, value, tone))
        for name, value in spoilt.items()
    }


def _not_files() -> dict[str, Maker]:
    return {
        "folder.wav": lambda path: path.mkdir(),
        "pipe.wav": lambda path: os.mkfifo(path),
        "endless.wav": lambda path: path.symlink_to("/dev/zero"),
        "nowhere.wav": lambda path: path.symlink_to("no such file"),
        "itself.wav": lambda path: path.symlink_to(path.name),
        "missing.wav": lambda path: None,
        "four_gib_of_nothing.wav": _sparse,
        "two\nlines\x1b[31m.wav": _bytes(lambda: b"x"),
        "\u202edesrever.wav": _bytes(lambda: b"x"),
        os.fsdecode(b"not_utf8_\xff\xfe.wav"): _bytes(lambda: b"x"),
    }


def wav(
    data: bytes,
    *,
    rate: int = RATE,
    channels: int = 1,
    bits: int = 16,
    coding: int = 1,
    data_size: int | None = None,
) -> bytes:
    """Returns a WAV file with any header."""
    align = channels * bits // 8
    fmt = struct.pack("<HHIIHH", coding, channels, rate, rate * align % 2**32, align % 2**16, bits)
    size = len(data) if data_size is None else data_size
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _pcm(seconds: float) -> bytes:
    tone = np.sin(np.arange(int(seconds * RATE)) / 10) * 10_000
    return tone.astype("<i2").tobytes()


def _encoded(container: str, samples: np.ndarray | None = None, rate: int = RATE) -> bytes:
    if samples is None:
        samples = np.random.default_rng(2).normal(size=RATE) * 0.1
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container)
    return file.getvalue()


def _ten_minutes() -> bytes:
    return _encoded("FLAC", np.zeros(600 * RATE))  # in some 20 kB


def _long_flac() -> bytes:
    # Noise in its least bit: silence would leave too little behind the first second to be noticed as more.
    return _encoded("FLAC", np.random.default_rng(3).integers(0, 2, 600 * RATE) / 2**15)


def _with_flac_length(flac: bytes, n_samples: int) -> bytes:
    # The last 36 bits of bytes 18-25 of the file (STREAMINFO) are the number of samples.
    packed = struct.unpack(">Q", flac[18:26])[0] >> 36 << 36
    return flac[:18] + struct.pack(">Q", packed | n_samples) + flac[26:]


def _float_wav(samples: np.ndarray) -> Maker:
    return _bytes(lambda: wav(samples.astype("<f8").tobytes(), bits=64, coding=3))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(wav(b"")[:44])
        file.truncate(4 << 30)


def _bytes(content: Callable[[], bytes]) -> Maker:
    def make(path: Path) -> None:
        path.write_bytes(content())

    return make
