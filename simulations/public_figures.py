"""Public figures for a first study: mean and deviation of its features over the embedded corpus, nobody's patient.

    python -m sottovoce.simulations.public_figures        # writes public_figures.toml beside this file

A study whose speakers are enrolled by a few recordings needs them, for a speaker who has none. They are of
synthetic voices, so that no hospital has to give any away.

Guarantees:
  - The file states the corpus and the version of the extractor it was made with; a test holds both against ours.
"""

import os
import tempfile
import tomllib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.common.features import EXTRACTOR_VERSION
from sottovoce.common.study import CorpusSpec, Normalisation, Study, Synthetic, loads
from sottovoce.simulations.run_folder import write_text

FILE = Path(__file__).with_suffix(".toml")
CORPUS = Synthetic(n_speakers=48, utterances_per_emotion=2, seed=11, label_skew=0.0, sex_skew=0.0)
DIGITS = 4


@lru_cache
def lines() -> str:
    """Returns the figures as tables of a study's `[normalisation]`."""
    return FILE.read_text(encoding="utf-8").split("\n\n", 1)[1].rstrip()


def stated() -> dict[str, Any]:
    """Returns what the file says it was made with."""
    return dict(tomllib.loads(FILE.read_text(encoding="utf-8"))["made_with"])


def made_with() -> dict[str, Any]:
    """Returns what decides the figures: the corpus and the extractor."""
    from sottovoce.simulations.voices.corpus import corpus_digest

    return {"corpus": corpus_digest(CORPUS), "extractor": EXTRACTOR_VERSION}


def measure(study: Study, workers: int) -> str:
    """Returns the text of the file for the streams of a study. Minutes on a first call: the voices are made."""
    from sottovoce.common.dataset import SiteData
    from sottovoce.common.progress import silent
    from sottovoce.simulations.cells import POOLED
    from sottovoce.simulations.prepare import lay_out, prepare

    corpora = (CorpusSpec(name="voices", synthetic=CORPUS),)
    plain = replace(study, corpora=corpora, normalisation=Normalisation(scheme="constants"))
    prepared = prepare(plain, {}, workers=workers, on_event=silent).prepared
    made = "\n".join(f"{key} = {value!r}".replace("'", '"') for key, value in made_with().items())
    blocks = [f"# Made by `python -m sottovoce.simulations.public_figures`.\n[made_with]\n{made}"]
    with tempfile.TemporaryDirectory() as folder:
        lay_out(plain, prepared, Path(folder), silent)
        data = SiteData.open(Path(folder) / POOLED)
        rows = {
            name: np.concatenate([data.valid(name, i) for i in range(len(data))]).astype(np.float64)
            for name in data.shapes
        }
    for kind, of in (("mean", np.mean), ("deviation", np.std)):
        numbers = [f"{name} = {_numbers(of(values, axis=0))}" for name, values in rows.items()]
        blocks.append(f"[normalisation.{kind}]\n" + "\n".join(numbers))
    return "\n\n".join(blocks) + "\n"


def _numbers(values: Any) -> str:
    return "[" + ", ".join(f"{float(value):.{DIGITS}g}" for value in values) + "]"


def main() -> None:
    """Writes the file."""
    from sottovoce.simulations import study_new, study_shape

    shape = replace(study_shape.EMBEDDED, enrols=False)
    write_text(FILE, measure(loads(study_new.study_text("figures", shape)), os.cpu_count() or 1))
    print(FILE)


if __name__ == "__main__":
    main()
