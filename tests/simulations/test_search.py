"""Settings are chosen inside training speakers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sottovoce.common.errors import SottovoceError
from sottovoce.common.study import loads
from sottovoce.simulations import results_studies
from sottovoce.simulations.results_studies import COLUMNS, Setting, study_text
from sottovoce.simulations.search import Candidate, Found, Recordings, choices_of, read, write

N_CLASSES, N_FOLDS = 3, 4
SETTINGS = [Setting(stream="encoder", decay=decay) for decay in (10.0, 0.01)]


def _case(random: np.random.Generator) -> tuple[list[Candidate], Recordings]:
    """Two settings, and what decides between them differs from fold to fold."""
    labels = np.tile(np.arange(N_CLASSES), 40)
    folds = np.repeat(np.arange(N_FOLDS), len(labels) // N_FOLDS)
    candidates = [
        Candidate(
            setting=setting,
            rows=np.eye(N_CLASSES)[labels] * 0.7 + random.standard_normal((len(labels), N_CLASSES)),
        )
        for setting in SETTINGS
    ]
    return candidates, Recordings(labels=labels, folds=folds, weights=np.ones(N_CLASSES))


def test_nothing_of_a_folds_test_speakers_changes_what_is_chosen_for_it() -> None:
    random = np.random.default_rng(3)
    candidates, recordings = _case(random)
    chosen = choices_of(candidates, recordings)
    for fold in range(N_FOLDS):
        tested = recordings.folds == fold
        garbage = [
            replace(
                one, rows=np.where(tested[:, None], 1e3 * random.standard_normal(one.rows.shape), one.rows)
            )
            for one in candidates
        ]
        labels = np.where(tested, (recordings.labels + 1) % N_CLASSES, recordings.labels)
        other = choices_of(garbage, replace(recordings, labels=labels))
        assert other[fold] == chosen[fold]  # the inner figures too, to the bit
        assert any(other[i].inner_uar != chosen[i].inner_uar for i in range(N_FOLDS) if i != fold)


def test_the_best_inner_setting_is_chosen_and_the_simplest_of_equals() -> None:
    candidates, recordings = _case(np.random.default_rng(4))
    blind = replace(candidates[0], rows=np.zeros_like(candidates[0].rows))
    for order in ([blind, candidates[1]], [candidates[1], blind]):
        assert all(choice.setting == candidates[1].setting for choice in choices_of(order, recordings))
    same = [candidates[0], replace(candidates[0], setting=replace(SETTINGS[0], shrinkage=1.0))]
    assert all(choice.setting == SETTINGS[0] for choice in choices_of(same, recordings))


def test_two_workers_choose_as_one_does_to_the_bit() -> None:
    candidates, recordings = _case(np.random.default_rng(6))
    assert choices_of(candidates, recordings, workers=2) == choices_of(candidates, recordings)


def test_a_search_that_was_written_is_read_again_with_its_counts(tmp_path: Path) -> None:
    candidates, recordings = _case(np.random.default_rng(5))
    found = Found(
        column="x", digest="0", compared=tuple(SETTINGS), choices=choices_of(candidates, recordings)
    )
    write(tmp_path / "search.json", [found])
    assert read(tmp_path / "search.json") == [found]
    assert '"compared_by_inner_folds": 2' in (tmp_path / "search.json").read_text()
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(SottovoceError, match="search"):
        read(tmp_path / "empty.json")


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.scenario)
def test_a_setting_sets_what_it_names_and_nothing_else(column: results_studies.Column) -> None:
    texts = {study_text(column, setting, folds=[1, 3], n_seeds=2) for setting in column.grid}
    assert len(texts) == len(column.grid)
    study = loads(study_text(column, column.grid[-1], folds=[1, 3], n_seeds=2))
    assert (study.evaluation.only_folds, study.evaluation.seeds) == ((1, 3), (0, 1))
    assert study.training.weight_decay == column.grid[-1].decay
    if study.normalisation.enrols is not None:
        assert study.normalisation.enrols.scale == column.grid[-1].scale == "shrunk"
    widths = {name: len(values) for name, values in study.normalisation.mean.items()}
    if study.normalisation.scheme != "speaker":
        assert widths["both"] > widths["encoder"] == 3 * 768


@pytest.mark.parametrize("name", ["results-nothing-heard", "results-enrolment"])
def test_figures_are_those_of_todays_embedded_corpus_and_extractor(name: str) -> None:
    assert results_studies.made_line() in (results_studies.SCENARIOS / f"{name}.toml").read_text()
