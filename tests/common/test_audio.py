"""Decoding never lets a file hurt the caller, and gives the samples that are in it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile

from sottovoce.common import audio, audio_child, audio_stages
from sottovoce.common.audio import Decoder, Limits, printable
from sottovoce.common.errors import AudioError, SottovoceError
from sottovoce.common.study import Audio
from tests.fakes import hostile_audio

pytestmark = pytest.mark.usefixtures("compiled_librosa")

RATE = 16_000
SPEC = Audio(max_seconds=hostile_audio.MAX_SECONDS)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(SPEC) as shared:
        yield shared


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {path.name: path for path in hostile_audio.write(tmp_path_factory.mktemp("hostile"))}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording that takes a fraction of a second to decode."""
    noise = np.random.default_rng(0).normal(size=(40 * 48_000, 2))
    return recording(tmp_path_factory.mktemp("slow"), noise, 48_000, "slow.flac")


def tone(seconds: float = 1.0, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def recording(folder: Path, samples: np.ndarray, rate: int = RATE, name: str = "a.wav", **kind: str) -> Path:
    path = folder / name
    soundfile.write(path, samples, rate, **kind)
    return path


# Hostile files


def test_there_are_at_least_forty_hostile_files() -> None:
    assert len(hostile_audio.makers()) >= 40


@pytest.mark.parametrize("name", hostile_audio.makers())
def test_a_hostile_file_is_one_line_that_names_it(
    name: str, hostile: dict[str, Path], decoder: Decoder
) -> None:
    started = time.monotonic()
    with pytest.raises(AudioError) as refusal:
        decoder.load(hostile[name])
    message = str(refusal.value)
    assert printable(Path(name)) in message
    assert message.isprintable()
    assert len(message) < 600
    assert time.monotonic() - started < Limits().wall_seconds, "it was refused for what it is"


def test_decoding_goes_on_after_hostile_files(
    hostile: dict[str, Path], decoder: Decoder, tmp_path: Path
) -> None:
    good = recording(tmp_path, tone())
    child = decoder.child_pid
    for path in hostile.values():
        with pytest.raises(AudioError):
            decoder.load(path)
        assert len(decoder.load(good).samples) == RATE
    assert decoder.child_pid == child  # not one of them even killed the child


# What is in a good file comes out


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.wav", "PCM_U8"),
        ("a.wav", "PCM_16"),
        ("a.wav", "PCM_24"),
        ("a.wav", "FLOAT"),
        ("a.WAV", "ULAW"),
        ("a.wav", "IMA_ADPCM"),
        ("a.flac", "PCM_16"),
        ("a.flac", "PCM_24"),
        ("a.ogg", "VORBIS"),
        ("a.opus", "OPUS"),
        ("a.mp3", "MPEG_LAYER_III"),
        ("a", "PCM_16"),
    ],
)
def test_samples_are_those_of_the_file(name: str, subtype: str, decoder: Decoder, tmp_path: Path) -> None:
    container = {".flac": "FLAC", ".ogg": "OGG", ".opus": "OGG", ".mp3": "MP3"}.get(Path(name).suffix, "WAV")
    path = recording(tmp_path, tone(2.5), name=name, subtype=subtype, format=container)
    expected, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_allclose(decoder.load(path).samples, expected, rtol=0, atol=1e-7)


def test_two_channels_are_averaged(decoder: Decoder, tmp_path: Path) -> None:
    path = recording(tmp_path, np.stack([tone(), np.zeros(RATE)], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(decoder.load(path).samples, tone() / 2, atol=1e-7)


def test_a_recording_of_exactly_the_longest_length_is_accepted(decoder: Decoder, tmp_path: Path) -> None:
    path = recording(tmp_path, np.zeros(round(SPEC.max_seconds) * RATE), name="a.flac")
    assert decoder.load(path).seconds == SPEC.max_seconds


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_a_segment_is_cut_from_a_longer_recording(name: str, decoder: Decoder, tmp_path: Path) -> None:
    path = recording(tmp_path, np.random.default_rng(0).normal(size=80 * RATE) * 0.1, name=name)
    with pytest.raises(AudioError, match="at most 60 s"):
        decoder.load(path)
    whole, _ = soundfile.read(path, dtype="float32")
    segment = decoder.load(path, 70.5, 72.25)
    np.testing.assert_allclose(segment.samples, whole[round(70.5 * RATE) : round(72.25 * RATE)], atol=1e-6)
    assert decoder.load(path, 79.0).seconds == 1.0
    assert decoder.load(path, 79.0, 80.05).seconds == 1.0  # tables are rounded


@pytest.mark.parametrize(
    ("start", "end"), [(2.0, 1.0), (-1.0, 1.0), (5.0, 6.0), (0.5, 6.0), (0.0, 0.0), (float("nan"), 1.0)]
)
def test_a_segment_outside_the_recording_is_refused(
    start: float, end: float, decoder: Decoder, tmp_path: Path
) -> None:
    with pytest.raises(AudioError, match="segment"):
        decoder.load(recording(tmp_path, tone()), start, end)


# The child


def test_a_killed_idle_child_is_replaced_without_an_error(tmp_path: Path) -> None:
    path = recording(tmp_path, tone())
    with Decoder(SPEC) as decoder:
        decoder.load(path)
        os.kill(decoder.child_pid or 0, signal.SIGKILL)
        assert len(decoder.load(path).samples) == RATE


def test_a_child_killed_in_the_middle_of_work_is_replaced_without_an_error(slow: Path) -> None:
    with Decoder(SPEC) as decoder:
        decoder.load(slow)
        first = decoder.child_pid or 0
        os.kill(first, signal.SIGSTOP)  # it takes the request and does not get done with it
        killer = threading.Timer(0.1, os.kill, (first, signal.SIGKILL))
        killer.start()
        assert decoder.load(slow).seconds == 40
        assert decoder.child_pid != first
        killer.join()


def test_a_file_is_blamed_when_two_children_died_of_it(slow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Decoder(SPEC) as decoder:
        decode = audio._Child.decode

        def struck(child: Any, *request: Any) -> Any:
            os.kill(child.pid, signal.SIGSTOP)  # it takes the request and does not get done with it
            threading.Timer(0.1, os.kill, (child.pid, signal.SIGKILL)).start()
            return decode(child, *request)

        with monkeypatch.context() as patch:
            patch.setattr(audio._Child, "decode", struck)
            with pytest.raises(AudioError, match=r"slow\.flac: it made the decoder end twice \(SIGKILL\)"):
                decoder.load(slow)
        assert decoder.load(slow).seconds == 40


def test_a_child_that_stalls_is_killed_in_time(tmp_path: Path) -> None:
    path = recording(tmp_path, tone())
    with Decoder(SPEC) as decoder:
        decoder.load(path)
        stalled, child = decoder.child_pid or 0, decoder._child
        assert child is not None
        child._limits = Limits(wall_seconds=0.3)  # its own alone: the one that comes after has its full time
        os.kill(stalled, signal.SIGSTOP)
        with pytest.raises(AudioError, match="took too long"):
            decoder.load(path)
        assert not _exists(stalled)
        assert len(decoder.load(path).samples) == RATE


def test_no_zombie_stays(tmp_path: Path) -> None:
    decoder = Decoder(SPEC)
    decoder.load(recording(tmp_path, tone()))
    pid = decoder.child_pid or 0
    assert _exists(pid)
    decoder.close()
    assert not _exists(pid)


def test_an_abandoned_decoder_takes_its_child_along(tmp_path: Path) -> None:
    decoder = Decoder(SPEC)
    decoder.load(recording(tmp_path, tone()))
    pid = decoder.child_pid or 0
    del decoder
    assert not _exists(pid)


def test_the_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from sottovoce.common.audio import Decoder; from sottovoce.common.study import Audio\n"
        "decoder = Decoder(Audio()); decoder.load(Path(sys.argv[1]))\n"
        "print(decoder.child_pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(recording(tmp_path, tone()))]
    parent = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert parent.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while _exists(int(parent.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _exists(int(parent.stdout))


def test_the_child_is_limited(tmp_path: Path) -> None:
    with Decoder(SPEC) as decoder:
        decoder.load(recording(tmp_path, tone()))
        table = Path(f"/proc/{decoder.child_pid}/limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split()[0] for line in table}
    assert limits["Max address space"] == str(Limits().memory_bytes)
    assert limits["Max core file size"] == limits["Max file size"] == limits["Max processes"] == "0"
    assert int(limits["Max cpu time"]) <= Limits().cpu_seconds + 2
    assert int(limits["Max open files"]) <= 32


def test_the_child_may_use_no_more_memory_than_it_is_given(tmp_path: Path) -> None:
    path = recording(tmp_path, tone())
    with (
        Decoder(SPEC, Limits(memory_bytes=1 << 20)) as decoder,
        pytest.raises((AudioError, SottovoceError)),
    ):
        decoder.load(path)


LIES = {
    "not finite": "head(16000, 1, 4); block(numpy.full(4, numpy.nan)); end(4)",
    "more than stated": "head(16000, 1, 4); block(numpy.zeros(8)); end(8)",
    "more than allowed": "head(16000, 1, 10**9); end(0)",
    "no samples": "head(16000, 1, 4); end(0)",
    "miscounted": "head(16000, 1, 4); block(numpy.zeros(4)); end(3)",
    "half a sample": "head(16000, 1, 4); send(2, b'123')",
    "rate": "head(2**31, 1, 4); block(numpy.zeros(4)); end(4)",
    "no header": "block(numpy.zeros(4)); end(4)",
    "unknown kind": "send(99, b'')",
    "huge frame": "channel.sendall(FRAME.pack(2, 2**32 - 1))",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_child_is_not_believed(lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "liar.py"
    script.write_text(
        "import socket, struct, sys, numpy\n"
        "channel = socket.socket(fileno=int(sys.argv[1])); FRAME = struct.Struct('<BI')\n"
        "def send(kind, data): channel.sendall(FRAME.pack(kind, len(data)) + data)\n"
        "def head(*numbers): send(1, struct.pack('<IIq', *numbers))\n"
        "def block(samples): send(2, samples.astype('<f4').tobytes())\n"
        "def end(count): send(3, struct.pack('<q', count))\n"
        f"send(0, b''); socket.recv_fds(channel, 100, 1)\n{LIES[lie]}\nchannel.recv(1)\n"
    )
    path = recording(tmp_path, tone())
    with Decoder(SPEC) as decoder:
        with monkeypatch.context() as patch:
            patch.setattr(audio_child, "__file__", str(script))
            with pytest.raises(AudioError, match="break its protocol"):
                decoder.load(path)
        assert len(decoder.load(path).samples) == RATE  # an honest one took its place


def test_a_lying_childs_reason_cannot_write_to_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "liar.py"
    script.write_text(
        "import socket, struct, sys\n"
        "channel = socket.socket(fileno=int(sys.argv[1])); FRAME = struct.Struct('<BI')\n"
        "channel.sendall(FRAME.pack(0, 0)); socket.recv_fds(channel, 100, 1)\n"
        "text = b'\\x1b[2J\\nroot:' + b'x' * 100000\n"
        "channel.sendall(FRAME.pack(4, len(text)) + text); channel.recv(1)\n"
    )
    monkeypatch.setattr(audio_child, "__file__", str(script))
    with Decoder(SPEC) as decoder, pytest.raises(AudioError) as refusal:
        decoder.load(recording(tmp_path, tone()))
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 1000


def test_a_decoder_that_cannot_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit(3)")
    monkeypatch.setattr(audio_child, "__file__", str(script))
    with Decoder(SPEC) as decoder, pytest.raises(SottovoceError, match=r"did not start \(exit status 3\)"):
        decoder.load(recording(tmp_path, tone()))


def _exists(pid: int) -> bool:
    """Whether a process is there, as a zombie or alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# Stages


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 47_999])
def test_a_tone_survives_resampling(rate: int) -> None:
    for share in (0.1, 0.5, 0.9):
        hertz = share * min(rate, RATE) / 2
        out = audio_stages.resample(tone(1.0, rate, hertz).astype(np.float32), rate, RATE)
        assert len(out) == RATE
        inner = slice(RATE // 8, -RATE // 8)
        np.testing.assert_allclose(out[inner], tone(1.0, RATE, hertz)[inner], atol=0.3 * 1e-3)


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_a_tone_beyond_the_band_does_not_fold_back(rate: int) -> None:
    out = audio_stages.resample(tone(1.0, rate, 8_100.0).astype(np.float32), rate, RATE)
    level = np.sqrt(np.mean(out[2000:-2000] ** 2)) / np.sqrt(0.3**2 / 2)
    assert 20 * np.log10(level) < -90


def test_a_constant_stays_that_constant_when_resampled() -> None:
    out = audio_stages.resample(np.full(44_100, 0.25, dtype=np.float32), 44_100, RATE)
    np.testing.assert_allclose(out[1000:-1000], 0.25, atol=1e-6)


@pytest.mark.parametrize("n_samples", [1, 2, 159, 1000])
def test_resampling_keeps_the_length(n_samples: int) -> None:
    out = audio_stages.resample(np.ones(n_samples, dtype=np.float32), 44_100, RATE)
    assert len(out) == -(-n_samples * 160 // 441)


def test_loading_resamples(tmp_path: Path) -> None:
    path = recording(tmp_path, tone(1.0, 48_000), 48_000)
    with Decoder(Audio(sample_rate_hz=8000)) as decoder:
        waveform = decoder.load(path)
    assert waveform.sample_rate_hz == 8000
    np.testing.assert_allclose(waveform.samples[1000:-1000], tone(1.0, 8000)[1000:-1000], atol=1e-3)


@pytest.mark.parametrize("top_db", [20.0, 40.0, 60.0])
@pytest.mark.parametrize("seed", range(5))
def test_trimming_equals_librosas(top_db: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    envelope = np.repeat(10 ** random.uniform(-5, 0, 20), random.integers(500, 3000, 20))
    samples = (random.normal(size=len(envelope)) * envelope).astype(np.float32)
    _, expected = librosa.effects.trim(samples, top_db=top_db)
    assert audio_stages.loud_part(samples, top_db) == tuple(expected)


def test_silence_is_not_trimmed_to_nothing() -> None:
    samples = np.zeros(10_000, dtype=np.float32)
    assert len(audio_stages.prepare(samples, RATE, Audio(trim_silence_db=30.0))) == 10_000


def test_pre_emphasis_is_a_first_difference() -> None:
    out = audio_stages.prepare(np.array([1, 1, 3], dtype=np.float32), RATE, Audio(pre_emphasis=0.5))
    np.testing.assert_allclose(out, [1, 0.5, 2.5])


def test_denoising_takes_white_noise_out_and_leaves_speech() -> None:
    random = np.random.default_rng(0)
    speech = tone(4.0) * np.repeat([1, 0, 1, 0, 1, 0, 1, 0], RATE // 2)
    noise = 0.01 * random.normal(size=len(speech))
    out = audio_stages.spectral_gate((speech + noise).astype(np.float32))
    before, after = np.mean(noise**2), np.mean((out - speech) ** 2)
    assert 10 * np.log10(before / after) > 6
    assert np.corrcoef(out, speech)[0, 1] > 0.999
    clean = audio_stages.spectral_gate(speech.astype(np.float32))
    np.testing.assert_allclose(clean, speech, atol=0.01)


def test_names_are_printed_on_one_line_whatever_they_hold() -> None:
    assert printable(Path("a\nb\x1b\u202e/é中.wav")) == r"a\nb\x1b\u202e/é中.wav"
    assert len(printable(Path("x" * 5000))) < 250
