"""How far a random split flatters on the embedded corpus: `python -m sottovoce.simulations.bench.voices_split`.

An RBF SVM on pooled classical features, five folds, three corpora (seeds 1, 2, 3) of 24 speakers, 8 emotions
and 8 recordings of each. Prints UAR for a random split and for one by speaker, with features standardised
over the training rows, and again after standardising each speaker by all of that speaker's own recordings.
"""

import argparse
import csv
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.common.audio import Decoder
from sottovoce.common.feature_specs import (
    Energy,
    FeatureStream,
    Frames,
    Mfcc,
    Pitch,
    SpectralShape,
    ZeroCrossings,
)
from sottovoce.common.features import extract
from sottovoce.common.metrics import Confusion
from sottovoce.common.streams import stream
from sottovoce.common.study import Audio, Synthetic
from sottovoce.simulations.baselines import fit_predict
from sottovoce.simulations.voices import synthesize
from sottovoce.simulations.voices.parameters import PARAMETERS, Parameters

REFERENCE = Synthetic(n_speakers=24, utterances_per_emotion=8)
SEEDS = (1, 2, 3)
N_FOLDS = 5
CLASSICAL = FeatureStream(
    name="classical",
    parts=(
        Mfcc(kind="mfcc", n_mfcc=20, deltas=1),
        Pitch(kind="pitch"),
        Energy(kind="energy"),
        ZeroCrossings(kind="zero_crossings"),
        SpectralShape(kind="spectral_shape"),
    ),
    pooling="statistics",
)

Rows = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """UAR in per cent."""

    seed: int
    n_recordings: int
    random_split: float
    by_speaker: float
    random_split_speaker_normalised: float
    by_speaker_speaker_normalised: float


def measure(spec: Synthetic, folder: Path, *, workers: int, parameters: Parameters = PARAMETERS) -> Measured:
    """Makes the corpus, its features, and the four figures."""
    synthesize(spec, folder, workers=workers, parameters=parameters)
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    rows = np.stack(list(_features(folder, [line["path"] for line in table])))
    labels = _codes([line["label"] for line in table])
    voices = _codes([line["speaker"] for line in table])
    chance = stream(spec.seed, "voices_split/random").permutation(len(table)) % N_FOLDS
    order = stream(spec.seed, "voices_split/speakers").permutation(voices.max() + 1)
    honest = order[voices] % N_FOLDS
    normalised = _speaker_normalised(rows, voices)
    return Measured(
        seed=spec.seed,
        n_recordings=len(table),
        random_split=_uar(rows, labels, chance),
        by_speaker=_uar(rows, labels, honest),
        random_split_speaker_normalised=_uar(normalised, labels, chance),
        by_speaker_speaker_normalised=_uar(normalised, labels, honest),
    )


def _features(folder: Path, paths: list[str]) -> Iterator[Rows]:
    with Decoder(Audio()) as decoder:
        for start in range(0, len(paths), 32):
            waveforms = [decoder.load(folder / path) for path in paths[start : start + 32]]
            for features in extract(waveforms, [CLASSICAL], Frames()):
                yield features["classical"].astype(np.float64)


def _uar(rows: Rows, labels: Indices, folds: Indices) -> float:
    n_classes = int(labels.max()) + 1
    total = Confusion.zero(n_classes)
    for fold in range(N_FOLDS):
        train, test = folds != fold, folds == fold
        scores = fit_predict("svm", rows[train], labels[train], rows[test], 0, n_classes=n_classes)
        total += Confusion.of(labels[test], scores.argmax(axis=1), n_classes=n_classes)
    return 100 * total.uar


def _speaker_normalised(rows: Rows, voices: Indices) -> Rows:
    result = np.empty_like(rows)
    for voice in np.unique(voices):
        mine = rows[voices == voice]
        result[voices == voice] = (mine - mine.mean(axis=0)) / (mine.std(axis=0) + 1e-6)
    return result


def _codes(names: list[str]) -> Indices:
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    print("seed  recordings  random split  by speaker | each speaker normalised: random split  by speaker")
    for seed in SEEDS:
        spec = Synthetic(**{**vars(REFERENCE), "seed": seed})
        with tempfile.TemporaryDirectory(prefix="sottovoce-voices-") as folder:
            found = measure(spec, Path(folder) / "corpus", workers=options.workers)
        results.append(vars(found))
        print(
            f"{found.seed:4}  {found.n_recordings:10}  {found.random_split:12.1f}  {found.by_speaker:10.1f} |"
            f" {found.random_split_speaker_normalised:38.1f}  {found.by_speaker_speaker_normalised:10.1f}"
        )
    means = {key: float(np.mean([result[key] for result in results])) for key in results[0]}
    print(
        f"mean  {means['n_recordings']:10.0f}  {means['random_split']:12.1f}  {means['by_speaker']:10.1f} |"
        f" {means['random_split_speaker_normalised']:38.1f}  {means['by_speaker_speaker_normalised']:10.1f}"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
