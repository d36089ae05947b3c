"""The espeak-ng library through ctypes: a phrase in, 22,050 Hz samples out. Runs only inside the worker.

The library keeps state from one phrase to the next (its random numbers, its phase), so the same phrase
sounds different the second time. Each phrase is therefore spoken by a fork of the freshly loaded library.

Guarantees:
  - The same phrase gives the same samples, whatever was spoken before.
  - A phrase that crashes the library, or holds it up for `MAX_SECONDS`, is an error for that phrase only.
"""

import ctypes
import os
import resource
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from xml.sax.saxutils import escape

from sottovoce.common.errors import SynthesisError
from sottovoce.simulations.voices.acting import Prosody, Voice

MAX_SECONDS = 20  # the library speaks 200 times faster than people do
MAX_SPEECH_SECONDS = 120.0
MAX_CHARACTERS = 2000

# Of the public header speak_lib.h of espeak-ng 1.52.
_SYNCHRONOUS, _DO_NOT_EXIT = 2, 0x8000
_RATE, _VOLUME = 1, 2
_UTF8, _SSML = 1, 0x10
_NOISE_SEED = 1
_VOLUME_PERCENT = 50  # leaves headroom: the library clips
_VOICE_REFUSED, _TEXT_REFUSED, _NO_ROOM, _NOT_LOADED = 3, 4, 5, 6
_REASONS = {
    _VOICE_REFUSED: "the library refused the voice",
    _TEXT_REFUSED: "the library refused the text",
    _NO_ROOM: "no temporary file could be written",
}
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """One phrase as the library takes it: a voice file's lines, marked-up text, words a minute."""

    language: str
    voice_lines: str
    marked_up: str
    rate_wpm: int


def phrase(text: str, voice: Voice, prosody: Prosody) -> Phrase:
    """Writes down how `text` is spoken. `|` in the text is where a pause may stand.

    Raises:
        SynthesisError: the text is empty, or longer than `MAX_CHARACTERS`.
    """
    if not text.strip(" |.!?") or len(text) > MAX_CHARACTERS:
        raise SynthesisError(f"Expected a text of 1 to {MAX_CHARACTERS} characters; came {len(text)}.")
    pause = f'<break time="{prosody.pause_ms}ms"/>' if prosody.pause_ms >= 30 else " "
    words = pause.join(escape(part.strip()) for part in text.split("|"))
    breath = " ".join(["0"] + [str(prosody.breath_level)] * 7)
    formants = [f"formant {number} {percent:.0f}" for number, percent in enumerate(voice.formant_percent)]
    lines = [
        f"pitch {prosody.low_hz} {prosody.high_hz}",
        f"flutter {prosody.flutter}",
        f"roughness {prosody.roughness}",
        f"breath {breath}",
        *formants,
    ]
    return Phrase(
        language=voice.language,
        voice_lines="\n".join(lines) + "\n",
        marked_up=f"<speak>{words}{prosody.ending}</speak>",
        rate_wpm=prosody.rate_wpm,
    )


class Library:
    """espeak-ng, loaded once and never spoken with: forks do that."""

    def __init__(self) -> None:
        import espeakng_loader  # here: the parent process never needs it

        self._data = Path(str(espeakng_loader.get_data_path()))
        self._library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(self._data), _DO_NOT_EXIT)
        if rate != 22_050:
            raise SynthesisError(f"Expected espeak-ng to start at 22050 Hz; came {rate}. Reinstall it.")
        self._languages = {
            path.name.lower(): path for path in (self._data / "lang").rglob("*") if path.is_file()
        }

    def speak(self, phrase: Phrase) -> bytes:
        """Returns the phrase as little-endian 16-bit samples.

        Raises:
            SynthesisError: no such language, or the library crashed, stalled, or gave nothing.
        """
        if phrase.language not in self._languages:
            raise SynthesisError(f"Expected a language of espeak-ng; came {phrase.language!r}.")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self._speak_and_exit(phrase, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            pcm = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == -signal.SIGALRM:
            raise SynthesisError(f"Expected a phrase to be spoken within {MAX_SECONDS} s; it was stopped.")
        if status != 0 or not pcm:
            reason = _REASONS.get(status, "the library crashed" if status < 0 else "nothing was spoken")
            raise SynthesisError(f"Expected speech in {phrase.language!r}; {reason}. Try another text.")
        return pcm

    def _speak_and_exit(self, phrase: Phrase, writing: int) -> NoReturn:
        status = _NOT_LOADED
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(MAX_SECONDS)  # counted by the kernel: it holds although the library never returns
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            chunks: list[bytes] = []
            status = self._say(phrase, chunks)
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(b"".join(chunks))
        finally:
            os._exit(status)  # no exit handlers: they belong to the worker

    def _say(self, phrase: Phrase, chunks: list[bytes]) -> int:
        n_left = int(MAX_SPEECH_SECONDS * 22_050)

        def keep(samples: object, n: int, _events: object) -> int:
            nonlocal n_left
            if samples and n > 0:
                chunks.append(ctypes.string_at(samples, 2 * n))  # type: ignore[arg-type]
                n_left -= n
            return int(n_left < 0)  # 1 stops the library

        callback = _Callback(keep)
        self._library.espeak_SetSynthCallback(callback)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(_NOISE_SEED))  # it starts from the clock
        try:
            refused = self._set_voice(phrase)
        except OSError:
            return _NO_ROOM
        if refused:
            return _VOICE_REFUSED
        self._library.espeak_SetParameter(_RATE, phrase.rate_wpm, 0)
        self._library.espeak_SetParameter(_VOLUME, _VOLUME_PERCENT, 0)
        text = phrase.marked_up.encode() + b"\0"
        flags = _UTF8 | _SSML
        refused = self._library.espeak_Synth(text, len(text), 0, 0, 0, flags, None, None)
        return _TEXT_REFUSED if refused else 0

    def _set_voice(self, phrase: Phrase) -> bool:
        """Makes a voice of the language's file and the speaker's lines; returns whether it was refused."""
        language = self._languages[phrase.language].read_text(encoding="utf-8")
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".voice") as file:
            file.write(language + "\n" + phrase.voice_lines)
            file.flush()
            return bool(self._library.espeak_ng_SetVoiceByFile(os.fsencode(file.name)))
