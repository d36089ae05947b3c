"""Runs of a column of docs/results.md, and what they are together.

A column is several studies, each with the folds for which the search chose the same setting.

Guarantees:
  - A fold is scored by models with the setting that was chosen on that fold's training speakers.
  - Parts of a column make the same summary as one run of all its folds would.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sottovoce.common import predictions
from sottovoce.common.predictions import Prediction
from sottovoce.common.study import load
from sottovoce.common.summarise import summarise
from sottovoce.common.summary import Summary
from sottovoce.simulations.pages import made
from sottovoce.simulations.results_page import FEDERATED, POOLED
from sottovoce.simulations.results_studies import Column, Setting, study_text
from sottovoce.simulations.search import Found
from sottovoce.simulations.utility import with_values


def groups_of(found: Found) -> dict[Setting, tuple[int, ...]]:
    """Returns the settings that were chosen, each with its folds."""
    groups: dict[Setting, tuple[int, ...]] = {}
    for choice in found.choices:
        groups[choice.setting] = (*groups.get(choice.setting, ()), choice.fold)
    return groups


def run_column(
    column: Column, found: Found, ravdess: Path, n_seeds: int, runs: Path, workers: int
) -> list[Path]:
    """Makes a column's runs: for each setting that was chosen, with the folds that chose it, federated and pooled.

    Pooled is the same study with one site that has everybody, and its arm is called `central` from here on.
    """
    paths = []
    for setting, folds in groups_of(found).items():
        text = study_text(column, setting, folds=folds, n_seeds=n_seeds)
        name = f"{column.scenario}-folds-{''.join(map(str, folds))}-{n_seeds}-seeds"
        for kind, own in ((FEDERATED, text), (POOLED, with_values(text, {"n_sites": 1}))):
            paths.append(made(own, runs / f"{name}-{kind}", data={"ravdess": ravdess}, workers=workers))
    return paths


def merged(paths: Sequence[Path]) -> Summary:
    """Returns the summary of runs that are parts of one: the same study but for folds, setting and pooling."""
    rows = [row for path in paths for row in rows_of(path)]
    homes = {row.utterance: row.site for row in rows if row.arm != POOLED}
    studies = [load(path / "study.toml") for path in paths]
    folds = sorted({fold for study in studies for fold in study.evaluation.only_folds or ()})
    whole = replace(studies[0], evaluation=replace(studies[0].evaluation, only_folds=tuple(folds)))
    return summarise([replace(row, site=homes.get(row.utterance, row.site)) for row in rows], whole)


def rows_of(run: Path) -> list[Prediction]:
    """Returns a run's predictions; those of a federation of one site are of the arm `central`."""
    study = load(run / "study.toml")
    rows = predictions.read(run / "predictions.jsonl", n_classes=len(study.labels.classes))
    if study.federation.n_sites > 1:
        return rows
    return [replace(row, arm=POOLED) if row.arm == FEDERATED else row for row in rows]
