"""Claims of simulations/engines/cohort.py: a stack of sites learns what a loop over them learns."""

from pathlib import Path

import numpy as np
import pytest

from sottovoce.common import models
from sottovoce.common import study as studies
from sottovoce.common.errors import RunError
from sottovoce.common.study import Execution
from sottovoce.common.weights import from_state_dict
from sottovoce.server.rounds import Cell, Outcome, run
from sottovoce.simulations.engines import cohort, open_exchange
from tests.fakes.sites import N_CLASSES, WIDTH, write_sites, write_study

LINEAR = '{ kind = "linear", stream = "pooled" }'
MLP = '{ kind = "mlp", stream = "pooled", hidden = 7, dropout = 0.0 }'
PLAIN = 'learning_rate = 0.1, optimiser = "sgd", batch_size = 5'
STUDIES = {
    "linear": (LINEAR, PLAIN),
    "mlp": (MLP, PLAIN),
    "several epochs": (MLP, f"{PLAIN}, local_epochs = 3"),
    "smoothed labels": (LINEAR, f"{PLAIN}, label_smoothing = 0.2"),
    "class weights": (MLP, f"{PLAIN}, class_weights = [1.0, 2.0, 0.25]"),
    "weight decay": (MLP, f"{PLAIN}, weight_decay = 0.3"),
    "a cosine": (LINEAR, f'{PLAIN}, schedule = "cosine"'),
    "one batch a site": (MLP, PLAIN.replace("batch_size = 5", "batch_size = 500")),
}


def federate(
    engine: str, sites: dict[str, Path], study_file: Path, *, fold: int = 1, more: str = "", seed: int = 0
) -> Outcome:
    if more:
        text = study_file.read_text().replace("partition =", f"{more}, partition =")
        study_file = study_file.with_name("more.toml")
        study_file.write_text(text)
    study = studies.load(study_file)
    weights = from_state_dict(models.build(study.model, {"pooled": WIDTH}, N_CLASSES, 0).state_dict())
    cell = Cell(seed=seed, fold=fold, arm="federated")
    with open_exchange(Execution(engine=engine), sites, study_file=study_file) as exchange:  # type: ignore[arg-type]
        return run(exchange, study, cell=cell, weights=weights)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sites of 12, 17, 3 and 26 recordings, and one that withholds its only one."""
    sites = {}
    for number, n_examples in enumerate([12, 17, 3, 26, 1], start=1):
        folder = tmp_path_factory.mktemp(f"ragged{number}")
        sites[f"site-{number}"] = write_sites(folder, number, n_examples=n_examples)[f"site-{number}"]
    return sites


def assert_same(one: Outcome, other: Outcome) -> None:
    for name, array in one.weights.items():
        np.testing.assert_allclose(array, other.weights[name], rtol=0, atol=1e-6)
    for mine, theirs in zip(one.rounds, other.rounds, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=1e-5)
        assert (mine.sites, mine.confusion) == (theirs.sites, theirs.confusion)


@pytest.mark.parametrize("name", STUDIES)
def test_weights_are_those_of_the_loop(name: str, ragged: dict[str, Path], tmp_path: Path) -> None:
    model, training = STUDIES[name]
    study_file = write_study(
        tmp_path / "study.toml", n_sites=5, rounds=4, model=model, training=f"{{ {training} }}"
    )
    loop = federate("inprocess", ragged, study_file)
    assert_same(federate("cohort", ragged, study_file), loop)
    assert loop.rounds[0].update_norm > 1e-3


@pytest.mark.parametrize(
    "more",
    [
        'strategy = { kind = "fedprox", mu = 0.5 }',
        "site_weights = [1.0, 2.0, 3.0, 0.5, 1.0]",
        "sites_per_round = 2",
    ],
)
def test_federations_are_those_of_the_loop(more: str, ragged: dict[str, Path], tmp_path: Path) -> None:
    study_file = write_study(
        tmp_path / "study.toml", n_sites=5, rounds=4, model=MLP, training=f"{{ {PLAIN}, local_epochs = 2 }}"
    )
    loop = federate("inprocess", ragged, study_file, more=more)
    assert_same(federate("cohort", ragged, study_file, more=more), loop)


def test_chunks_change_nothing_but_the_last_bits(
    ragged: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_file = write_study(tmp_path / "s.toml", n_sites=5, model=MLP, training=f"{{ {PLAIN} }}")
    whole = federate("cohort", ragged, study_file)
    monkeypatch.setattr(cohort, "CHUNK", 2)
    assert_same(federate("cohort", ragged, study_file), whole)


def test_two_runs_give_the_same_bits(ragged: dict[str, Path], tmp_path: Path) -> None:
    study_file = write_study(tmp_path / "s.toml", n_sites=5, model=MLP, training=f"{{ {PLAIN} }}")
    assert len({federate("cohort", ragged, study_file).digest for _ in range(3)}) == 1


def test_seeds_and_folds_are_told_apart(ragged: dict[str, Path], tmp_path: Path) -> None:
    study_file = write_study(tmp_path / "s.toml", n_sites=5, model=LINEAR, training=f"{{ {PLAIN} }}")
    cells = [(seed, fold) for seed in (0, 1) for fold in (-1, 0, 1)]
    outcomes = [federate("cohort", ragged, study_file, seed=s, fold=f) for s, f in cells]
    assert len({outcome.digest for outcome in outcomes}) == 6


def test_updates_out_of_bounds_are_refused_and_do_not_touch_the_sum(
    ragged: dict[str, Path], tmp_path: Path
) -> None:
    study_file = write_study(
        tmp_path / "s.toml", n_sites=5, rounds=1, model=LINEAR, training=f"{{ {PLAIN} }}"
    )
    loop = federate("inprocess", ragged, study_file)
    norms = {"max_update_norm": loop.rounds[0].update_norm * 1.1}
    more = f"max_update_norm = {norms['max_update_norm']!r}, quorum = 1"
    bounded = federate("inprocess", ragged, study_file, more=more)
    assert 0 < len(bounded.rounds[0].refused) < 5
    assert_same(federate("cohort", ragged, study_file, more=more), bounded)


def test_an_update_that_overflows_is_refused_and_the_others_count(
    ragged: dict[str, Path], tmp_path: Path
) -> None:
    training = '{ learning_rate = 1e30, optimiser = "sgd", batch_size = 5, local_epochs = 3 }'
    study_file = write_study(tmp_path / "s.toml", n_sites=5, rounds=1, model=MLP, training=training)
    outcome = federate("cohort", ragged, study_file, fold=1, more="quorum = 1")
    assert outcome.rounds[0].sites == ("site-5",)  # which withholds its only recording
    assert len(outcome.rounds[0].refused) == 4
    assert all(np.isfinite(array).all() for array in outcome.weights.values())


def test_what_it_cannot_train_is_refused_with_every_reason(ragged: dict[str, Path], tmp_path: Path) -> None:
    study_file = write_study(tmp_path / "s.toml", n_sites=5)
    with pytest.raises(RunError, match=r"model.dropout: expected 0; came 0.3; training.optimiser"):
        federate("cohort", ragged, study_file)
