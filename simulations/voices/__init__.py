"""The embedded corpus: espeak-ng voices that act emotions, recorded at sites that differ.

It is real synthesised speech, but not real emotion: good for trying a study, its speed and its failures,
and for teaching why splits must be by speaker; it says nothing about how well people are understood.

    from sottovoce.simulations.voices import draw_voice, say

    voice = draw_voice(1, "s0001", language="en-us", sex="female", age=40)
    waveform = say("The kettle stands on the table", voice, "happy")
"""

from sottovoce.simulations.voices.acting import Voice, draw_voice
from sottovoce.simulations.voices.corpus import synthesize
from sottovoce.simulations.voices.speech import say

__all__ = ["Voice", "draw_voice", "say", "synthesize"]
