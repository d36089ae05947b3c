"""How often the detector of speech is right: accepted recordings of a corpus, refused sounds, and noise in between.

    python -m sottovoce.simulations.speech_activity --corpus DIR [--every 1] [--seeds 5]

Guarantees:
  - Every figure is computed from the corpus named and from sounds made here; none is typed in.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sottovoce.common.audio import Decoder, Waveform
from sottovoce.common.corpus import scan
from sottovoce.common.speech_activity import AUDIO, Reason, why_no_speech
from sottovoce.common.streams import stream
from sottovoce.simulations.sounds import RATE_HZ, Samples, coloured, not_speech

SNRS_DB = (20, 10, 5, 0)  # of pink noise under speech
CROWDS = (2, 4, 8, 16, 32)  # voices at once

Verdicts = Counter[Reason | None]


def of_corpus(waveforms: Sequence[Waveform], *, snr_db: float | None = None) -> Verdicts:
    """Returns the verdicts over recordings of speech, with pink noise under them or as they are."""
    random = stream(0, "speech activity", str(snr_db))
    return Counter(
        why_no_speech(one if snr_db is None else _waveform(_with_noise(one.samples, snr_db, random)))
        for one in waveforms
    )


def of_crowds(waveforms: Sequence[Waveform], voices: int, times: int = 20) -> Verdicts:
    """Returns the verdicts over so many recordings at once, each starting anywhere."""
    random = stream(0, "crowds", voices)
    verdicts: Verdicts = Counter()
    for _ in range(times):
        total = np.zeros(3 * RATE_HZ)
        for index in random.choice(len(waveforms), voices):
            samples = waveforms[index].samples / max(float(np.abs(waveforms[index].samples).max()), 1e-9)
            total += np.resize(np.roll(samples, random.integers(len(samples))), len(total))
        verdicts[why_no_speech(_waveform(total / np.abs(total).max() * 0.3))] += 1
    return verdicts


def of_sounds(seeds: int) -> dict[str, Verdicts]:
    """Returns the verdicts over sounds that are no speech, by name."""
    found: dict[str, Verdicts] = {}
    for seed in range(seeds):
        for name, samples in not_speech(seed):
            found.setdefault(name, Counter())[why_no_speech(_waveform(samples))] += 1
    return found


def lines(corpus: Path, *, every: int, seeds: int) -> Iterator[str]:
    """Yields the table."""
    utterances = scan(corpus, name="speech").utterances[::every]
    with Decoder(AUDIO) as decoder:
        waveforms = [decoder.load(one.path, one.start_seconds, one.end_seconds) for one in utterances]
    yield f"{len(waveforms)} recordings of speech, as they are: {_accepted(of_corpus(waveforms))}"
    for snr in SNRS_DB:
        yield f"  with pink noise {snr} dB below: {_accepted(of_corpus(waveforms[::10], snr_db=snr))}"
    for voices in CROWDS:
        yield f"  {voices} voices at once: {_accepted(of_crowds(waveforms, voices))}"
    yield f"sounds that are no speech, {seeds} of each:"
    for name, verdicts in of_sounds(seeds).items():
        yield f"  {name}: {_accepted(verdicts)}"


def _accepted(verdicts: Verdicts) -> str:
    total, others = (
        sum(verdicts.values()),
        {reason: n for reason, n in verdicts.items() if reason is not None},
    )
    why = ", ".join(f"{reason} {n}" for reason, n in sorted(others.items()))
    return f"accepted {100 * verdicts[None] / total:.1f} %" + (f" (refused: {why})" if why else "")


def _with_noise(
    samples: np.ndarray[tuple[int], np.dtype[np.float32]], snr_db: float, random: np.random.Generator
) -> Samples:
    speech = samples.astype(np.float64)
    noise = coloured(random, len(speech))
    return np.asarray(speech + noise * speech.std() * 10.0 ** (-snr_db / 20.0))


def _waveform(samples: Samples) -> Waveform:
    return Waveform(samples=samples.astype(np.float32), sample_rate_hz=RATE_HZ)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m sottovoce.simulations.speech_activity")
    parser.add_argument("--corpus", type=Path, required=True, help="a folder of recordings of speech")
    parser.add_argument("--every", type=int, default=1, help="each n-th recording only")
    parser.add_argument("--seeds", type=int, default=5)
    chosen = parser.parse_args()
    for line in lines(chosen.corpus, every=chosen.every, seeds=chosen.seeds):
        print(line)


if __name__ == "__main__":
    main()
