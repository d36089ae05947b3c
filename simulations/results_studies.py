"""The studies of docs/results.md: three columns, by what was heard of a new speaker before.

    text = study_text(COLUMNS[0], Setting(stream="encoder", decay=1.0), folds=(0, 3), n_seeds=5)

A column is a scenario. What a search inside training speakers may set (`Setting`) stands in it on lines of their own,
and can be another in each fold: then a column is several studies, each with the folds that chose alike.

Features are standardised by public figures, those of the embedded synthetic voices. They stand at the end of the
scenarios; `python -m sottovoce.simulations.results_studies` measures them anew.

Guarantees:
  - A study's text follows from the scenario, the setting, the folds and the seeds; nothing else.
  - A scenario's figures state the corpus and the version of the extractor they were made with; a test holds both.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from sottovoce.common.progress import silent
from sottovoce.common.study import CorpusSpec, Normalisation, Study, loads
from sottovoce.simulations.public_figures import CORPUS, DIGITS, made_with
from sottovoce.simulations.run_folder import write_text
from sottovoce.simulations.utility import with_values

SCENARIOS = Path(__file__).parent / "scenarios"
MARK = "# Public figures of synthetic voices, by `python -m sottovoce.simulations.results_studies`: "

Stream = Literal["encoder", "both", "all"]
Figures = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the search chooses: the stream, the weight decay, and how far a speaker's own figures count.

    `scale`: whether what enrols a speaker moves the mean alone (`public`), or the deviation as well (`shrunk`).
    """

    stream: Stream
    decay: float
    shrinkage: float | None = None  # None: the scenario has no such line
    scale: Literal["public", "shrunk"] = "public"

    @property
    def label(self) -> str:
        """
        >>> Setting(stream="both", decay=0.3, shrinkage=2.5).label
        'both, decay 0.3, shrinkage 2.5'
        """
        shrunk = "" if self.shrinkage is None else f", shrinkage {self.shrinkage:g}"
        scaled = ", own deviation" if self.scale == "shrunk" else ""
        return f"{self.stream}, decay {self.decay:g}{shrunk}{scaled}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """What is heard of a new speaker, the scenario, and what the search chooses from; the simplest first."""

    title: str
    scenario: str
    grid: tuple[Setting, ...]
    bar: float
    stretch: float


DECAYS = (1.0, 0.3)
SCALES: tuple[Literal["public", "shrunk"], ...] = ("public", "shrunk")
COLUMNS = (
    Column(
        title="nothing heard",
        scenario="results-nothing-heard",
        grid=tuple(
            Setting(stream=stream, decay=decay) for stream in ("encoder", "both") for decay in (*DECAYS, 3.0)
        ),
        bar=0.74,
        stretch=0.78,
    ),
    Column(
        title="enrolment",
        scenario="results-enrolment",
        grid=tuple(
            Setting(stream=stream, decay=decay, shrinkage=shrinkage, scale=scale)
            for stream in ("encoder", "both")
            for decay in DECAYS
            for shrinkage in (5.0, 2.5, 1.0)
            for scale in SCALES
        ),
        bar=0.79,
        stretch=0.82,
    ),
    Column(
        title="transductive",
        scenario="results-transductive",
        grid=tuple(
            Setting(stream=stream, decay=decay) for stream in ("encoder", "both", "all") for decay in DECAYS
        ),
        bar=0.82,
        stretch=0.85,
    ),
)


def study_text(column: Column, setting: Setting, *, folds: Sequence[int], n_seeds: int) -> str:
    """Returns the study of a column with a setting, for some of the folds.

    Raises:
        SottovoceError: the scenario has no line of its own for what is set.
    """
    values: dict[str, object] = {
        "stream": f'"{setting.stream}"',
        "weight_decay": setting.decay,
        "only_folds": list(folds),
        "seeds": list(range(n_seeds)),
    }
    if setting.shrinkage is not None:
        values["shrinkage"] = setting.shrinkage
    if setting.scale == "shrunk":
        values["enrolment"] = '{ emotions = ["calm"], clips = 4, scale = "shrunk" }'
    return with_values((SCENARIOS / f"{column.scenario}.toml").read_text(encoding="utf-8"), values)


def made_line() -> str:
    """Returns the line above the figures: the corpus and the extractor."""
    return MARK + ", ".join(f"{key} {value}" for key, value in made_with().items())


def measure(study: Study, workers: int) -> str:
    """Returns the tables of figures of a study's streams. Minutes on a first call: the voices are made."""
    from sottovoce.common.dataset import SiteData
    from sottovoce.simulations.cells import POOLED
    from sottovoce.simulations.prepare import lay_out, prepare

    corpora = (CorpusSpec(name="voices", synthetic=CORPUS),)
    plain = replace(study, corpora=corpora, normalisation=Normalisation(scheme="constants"))
    prepared = prepare(plain, {}, workers=workers, on_event=silent).prepared
    with tempfile.TemporaryDirectory() as folder:
        lay_out(plain, prepared, Path(folder), silent)
        data = SiteData.open(Path(folder) / POOLED)
        rows = {name: data.pooled(name).astype(np.float64) for name in data.shapes}
    return tables(
        {name: values.mean(axis=0) for name, values in rows.items()},
        {name: values.std(axis=0) for name, values in rows.items()},
    )


def tables(mean: Figures, deviation: Figures) -> str:
    """Returns figures by stream as tables of `[normalisation]`, below the line that says what they are of."""
    blocks = [made_line()]
    for kind, by_stream in (("mean", mean), ("deviation", deviation)):
        lines = [f"{name} = [{', '.join(map(_number, values))}]" for name, values in by_stream.items()]
        blocks.append(f"[normalisation.{kind}]\n" + "\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _number(value: float) -> str:
    return f"{value:.{DIGITS}g}"


def main() -> None:
    """Writes the figures into the scenarios that have some."""
    for place in sorted(SCENARIOS.glob("results-*.toml")):
        text = place.read_text(encoding="utf-8")
        if MARK in text:
            figures = measure(loads(text), os.cpu_count() or 1)
            write_text(place, text[: text.index(MARK)] + figures)
            print(place)


if __name__ == "__main__":
    main()
