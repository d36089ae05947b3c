"""What is lost when a family of features says nothing any more: permutation importance, in points of UAR.

    counts = [counts_of(heard, n_speakers=24), shuffled_counts(heard, chosen, repeats=5, seed=0, n_speakers=24)]

Guarantees:
  - The columns of a family move together, from one other withheld recording: what they say stays true of somebody.
  - Only withheld recordings are read, and each is answered by the model that never heard its speaker.
  - A family that the model does not use loses exactly nothing.

Breiman 2001. A family that others tell too (loudness is in the spectrum as well) loses less than it carries: the rest
still says it. What is shown is what the model cannot do without.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.common import metrics
from sottovoce.common.metrics import Counts, Floats
from sottovoce.common.streams import stream

Array = npt.NDArray[np.float32]
Inputs = Mapping[str, Array]
Chosen = Mapping[str, npt.NDArray[np.bool_]]  # of each stream, which columns


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """One model with the recordings it is asked about. `speakers` counts all speakers of the run.

    `inputs` are (n, columns) for pooled streams and (n, frames, columns) for others, of which `lengths` are valid.
    """

    fold: int
    inputs: Inputs
    lengths: Mapping[str, Counts]
    labels: Counts
    speakers: Counts
    answers: Callable[[Inputs], Counts]


def counts_of(heard: Sequence[Heard], *, n_speakers: int, n_classes: int) -> Floats:
    """Returns (speakers, truth, answer): how often each speaker was answered what."""
    return _summed(heard, [one.answers(one.inputs) for one in heard], n_speakers, n_classes)


def shuffled_counts(
    heard: Sequence[Heard], chosen: Chosen, *, repeats: int, seed: int, n_speakers: int, n_classes: int
) -> Floats:
    """Returns the same with the chosen columns of each recording taken from another: the mean over `repeats`."""
    total = np.zeros((n_speakers, n_classes, n_classes))
    for repeat in range(repeats):
        answers = [
            one.answers(shuffled(one, chosen, stream(seed, "permutation importance", one.fold, repeat)))
            for one in heard
        ]
        total += _summed(heard, answers, n_speakers, n_classes)
    return total / repeats


def shuffled(heard: Heard, chosen: Chosen, random: np.random.Generator) -> dict[str, Array]:
    """Returns the inputs with the chosen columns from one other recording each; sequences are stretched to fit."""
    other = random.permutation(len(heard.labels))
    changed = {}
    for name, values in heard.inputs.items():
        columns = np.flatnonzero(chosen[name])
        changed[name] = values.copy()
        if name not in heard.lengths:
            changed[name][:, columns] = values[other][:, columns]
            continue
        for row, (mine, theirs) in enumerate(
            zip(heard.lengths[name], heard.lengths[name][other], strict=True)
        ):
            frames = np.arange(mine) * theirs // mine
            changed[name][row, :mine, columns] = values[other[row]][frames][:, columns].T
    return changed


def alone_counts(heard: Sequence[Heard], chosen: Chosen, *, n_speakers: int, n_classes: int) -> Floats:
    """Returns (speakers, truth, answer) where every column but the chosen ones is that of the average recording."""
    answers = [one.answers(alone(one, chosen)) for one in heard]
    return _summed(heard, answers, n_speakers, n_classes)


def alone(heard: Heard, chosen: Chosen) -> dict[str, Array]:
    """Returns the inputs with every other column at its average over recordings, or over their valid frames."""
    changed = {}
    for name, values in heard.inputs.items():
        n_rows = len(values) if name not in heard.lengths else heard.lengths[name].sum()
        average = values.sum(axis=tuple(range(values.ndim - 1)), dtype=np.float64) / n_rows
        changed[name] = np.where(chosen[name], values, average.astype(np.float32))
        if name in heard.lengths:
            padding = np.arange(values.shape[1]) >= heard.lengths[name][:, None]
            changed[name][padding] = 0.0
    return changed


def lost(
    before: Floats, after: Floats, *, samples: int, seed: int
) -> tuple[float, float | None, float | None]:
    """Returns the UAR that is lost between two (speakers, truth, answer), with its interval over speakers."""
    both = np.stack([before, after])

    def gap(tables: Floats) -> Floats:
        uars = metrics.uars(tables)
        return np.asarray(uars[:, 0] - uars[:, 1])

    value = float(gap(both.sum(axis=1)[None])[0])
    draws = metrics.resampled(both, gap, samples=samples, seed=seed)  # type: ignore[arg-type]  # means of counts
    bounds = metrics.interval(draws, n_speakers=len(before))
    low, high = (None, None) if bounds is None else (float(side) for side in bounds)
    return value, low, high


def _summed(heard: Sequence[Heard], answers: Sequence[Counts], n_speakers: int, n_classes: int) -> Floats:
    tables = [
        metrics.counts_by(one.speakers, one.labels, said, n_units=n_speakers, n_classes=n_classes)
        for one, said in zip(heard, answers, strict=True)
    ]
    return np.asarray(np.sum(tables, axis=0), np.float64)
