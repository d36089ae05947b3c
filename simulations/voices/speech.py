"""Emotional speech synthesis in one function: text, voice and emotion to audio."""

from sottovoce.common.audio import Waveform
from sottovoce.common.errors import SynthesisError
from sottovoce.simulations.voices.acting import Voice, perform
from sottovoce.simulations.voices.espeak import phrase
from sottovoce.simulations.voices.parameters import PARAMETERS, Parameters
from sottovoce.simulations.voices.rooms import RATE_HZ, Channel, Shaping, Take
from sottovoce.simulations.voices.synthesiser import Synthesiser
from sottovoce.simulations.voices.worker import Job


def say(
    text: str,
    voice: Voice,
    emotion: str,
    *,
    take: int = 0,
    channel: Channel | None = None,
    recording: Take | None = None,
    synthesiser: Synthesiser | None = None,
) -> Waveform:
    """Speaks `text` with `voice` in the manner of `emotion`; another `take` differs as people's do.

    `|` in the text marks where a pause may stand. Without `channel` the voice is clean; with it and
    `recording` it is heard through a site's microphone, room and noise. Pass a `synthesiser` to speak many
    phrases: without one a process is started for this phrase alone (about half a second).

    Guarantees:
      - The same arguments give the same samples on one machine.
      - A crash of the speech library is a `SynthesisError`, never a crash of the caller.

    Raises:
        SynthesisError: unknown emotion or language, empty or overlong text, or no speech came.
    """
    task = job(text, voice, emotion, take=take, channel=channel, recording=recording)
    if synthesiser is not None:
        return Waveform(samples=synthesiser.make(task), sample_rate_hz=RATE_HZ)
    with Synthesiser() as own:
        return Waveform(samples=own.make(task), sample_rate_hz=RATE_HZ)


def job(
    text: str,
    voice: Voice,
    emotion: str,
    *,
    take: int,
    channel: Channel | None,
    recording: Take | None,
    parameters: Parameters = PARAMETERS,
) -> Job:
    """Writes down the work of `say`, for the worker process; it returns samples, as its `path` is None."""
    if take < 0:
        raise SynthesisError(f"Expected take={take} at least 0.")
    prosody = perform(voice, emotion, take=take, parameters=parameters)
    shaping = Shaping(
        level_dbfs=prosody.level_dbfs,
        tilt_db_per_octave=prosody.brightness_db_per_octave,
        tremor_depth=prosody.tremor_depth,
        tremor_hz=prosody.tremor_hz,
    )
    return Job(
        phrase=phrase(text, voice, prosody), shaping=shaping, channel=channel, take=recording, path=None
    )
