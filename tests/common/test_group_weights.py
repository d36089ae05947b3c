"""Weights by group: exponentiated steps by hand, told alike to all, and never more than a clipping norm for anybody."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.client.instruction import is_of_study
from sottovoce.client.train_private import train_private
from sottovoce.common import group_weights as gw
from sottovoce.common import models
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import PrivacyError, StudyError
from sottovoce.common.privacy.clip import clip, quantised_sum
from sottovoce.common.privacy.source import SimulatedNoise_NotPrivate
from sottovoce.common.privacy.stages import PatientGradients
from sottovoce.common.run_files import Counted
from sottovoce.common.study import Execution, Study, load, loads
from sottovoce.common.weights import Layout, from_state_dict
from sottovoce.server.exchange import Call
from sottovoce.server.rounds import Cell, Outcome, run
from sottovoce.simulations.engines import open_exchange
from tests.fakes.federations import STUDY, weights_of
from tests.fakes.privacy import some_gradients
from tests.fakes.sites import (
    GROUPS,
    LINEAR,
    LOCAL,
    N_CLASSES,
    NONE,
    SGD,
    WIDTH,
    write_sites,
    write_study,
)

SMALL = GROUPS.replace("} }", "}, minimum_size = 3 }")
ROBUST = 'group_robust = { attribute = "sex", step = 1.0 }'


def a_study(robust: str = ROBUST, *, every_rounds: int = 2) -> Study:
    text = STUDY.replace("learning_rate = 0.1", f"learning_rate = 0.1, {robust}")
    return loads(text.replace("every_rounds = 2", f"every_rounds = {every_rounds}, {GROUPS}"))


def counts(female: float, male: float) -> Counted:
    """Of 100 recordings of each class and sex so many are right."""
    tables = [
        [[int(100 * right), int(100 - 100 * right)], [int(100 - 100 * right), int(100 * right)]]
        for right in (female, male)
    ]
    both = np.sum(tables, axis=0).tolist()
    return Counted(deviation=0.0, tables=tuple(tuple(map(tuple, table)) for table in (both, *tables)))


def test_weights_move_by_the_exponential_of_the_error_and_keep_their_mean() -> None:
    study = a_study()
    female, male = gw.weights_after(study, [counts(0.5, 0.9)])
    assert female / male == pytest.approx(math.exp(0.5 - 0.1), rel=1e-5)
    assert female + male == pytest.approx(2.0, abs=1e-5)
    twice = gw.weights_after(study, [counts(0.5, 0.9)] * 2)
    assert twice[0] / twice[1] == pytest.approx(math.exp(0.8), rel=1e-5)
    assert gw.weights_after(study, []) == (1.0, 1.0)


def test_a_group_that_noise_drowns_moves_with_the_others_and_no_weight_leaves_its_bounds() -> None:
    study = a_study()
    drowned = replace(counts(0.5, 0.9), deviation=1e4)
    assert gw.weights_after(study, [drowned] * 3) == (1.0, 1.0)
    far = gw.weights_after(study, [counts(0.0, 1.0)] * 50)
    assert all(1 / 3 - 1e-6 <= weight <= 3 for weight in far)
    assert gw.read(gw.told(far), study) == far


@pytest.mark.parametrize(
    "text",
    ["", "1.0", "1.000000", "1.000000,9.000000", "nan,nan", "1.0,1.0", "1.000000,1.000000,1.000000", 7],
)
def test_a_site_refuses_weights_that_its_study_cannot_have(text: object) -> None:
    study = a_study()
    told = {"seed": 0, "fold": 0, "round": 1, "rounds": 5, "proximal_mu": 0.0, "leaks": False}
    assert gw.read(text, study) is None
    assert not is_of_study(study, **told, weights=text)  # type: ignore[arg-type]
    assert not is_of_study(study, **told)  # type: ignore[arg-type]
    assert is_of_study(study, **told, weights="1.000000,1.000000")  # type: ignore[arg-type]
    assert not is_of_study(loads(STUDY), **told, weights="1.000000,1.000000")  # type: ignore[arg-type]


def test_sites_of_one_sum_were_told_the_same_weights() -> None:
    assert gw.bound_to("a", None) == "a"
    weights = weights_of()
    layout = Layout.of(weights)

    def model(**config: str) -> str:
        return Call(
            round=1, rounds=5, attempt=1, seed=0, fold=0, layout=layout, weights=layout.flatten(weights),
            deadline_seconds=1.0, max_update_norm=1.0, config=config,
        ).model  # fmt: skip

    texts = [{}, *({gw.TOLD: text} for text in ("1.000000,1.000000", "1.000001,0.999999"))]
    assert len({model(**config) for config in texts}) == 3


def test_a_recording_weighs_by_its_own_group_and_label_and_one_of_no_group_weighs_one() -> None:
    study = a_study('group_robust = { attribute = "sex", step = 1.0, constants = { male = [1.0, 4.0] } }')
    stated: list[Mapping[str, str]] = [{"sex": "female"}, {"sex": "male"}, {"sex": "other"}, {}]
    found = gw.of_recordings(study, (1.5, 0.5), stated, np.array([1, 1, 1, 1]))
    assert found is not None
    assert found.tolist() == [1.5, 2.0, 1.0, 1.0]
    assert gw.largest(study, (1.5, 0.5)) == 2.0
    assert gw.of_recordings(loads(STUDY), (), stated, np.array([0] * 4)) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_scaled_rows_stay_within_the_clipping_norm(scales: list[float]) -> None:
    rows = replace(some_gradients(4, 10, scale=5.0), scales=np.array(scales))
    clipped = clip(rows, 1.0)
    norms = np.linalg.norm(clipped.dense(), axis=1)
    assert (norms <= np.array(scales) + 1e-12).all()
    plain = clip(some_gradients(4, 10, scale=5.0), 1.0)
    np.testing.assert_allclose(clipped.dense(), plain.dense() * np.array(scales)[:, None], atol=1e-300)
    assert np.isfinite(quantised_sum(clipped, 2.0**-10).values).all()


@pytest.mark.parametrize(
    "scales", [[1.0, 1.0, 1.0, 1.1], [1.0, 1.0, 1.0, -0.1], [1.0, 1.0, 1.0, np.nan], [1.0]]
)
def test_a_scale_above_one_is_refused(scales: list[float]) -> None:
    with pytest.raises(PrivacyError, match="one scale in"):
        clip(PatientGradients(values=some_gradients().values, scales=np.array(scales)), 1.0)


@pytest.mark.parametrize(
    ("robust", "words"),
    [
        ('group_robust = { attribute = "age", step = 1.0 }', "expected one of evaluation.groups.attributes"),
        ('group_robust = { attribute = "sex" }', "with neither it does nothing"),
        ('group_robust = { attribute = "sex", constants = { male = [1.0] } }', "2 weights"),
    ],
)
def test_a_weighting_that_means_nothing_is_refused(robust: str, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        a_study(robust)
    with pytest.raises(StudyError, match="every_rounds below"):
        a_study(every_rounds=5)


def federated(folder: Path, training: str, *, checkpoint: Path | None = None) -> tuple[Study, Outcome]:
    training = SGD[:-1] + f", {training} }}" if training else SGD
    file = write_study(
        folder / "study.toml",
        n_sites=2,
        rounds=5,
        model=LINEAR,
        training=training,
        privacy=NONE,
        evaluation=SMALL,
    )
    study = load(file)
    sites = write_sites(folder / "sites", 2, n_examples=24)
    weights = from_state_dict(models.build(study.model, {"pooled": WIDTH}, N_CLASSES, seed=0).state_dict())
    with open_exchange(Execution(), sites, study_file=file) as exchange:
        return study, run(
            exchange,
            study,
            cell=Cell(seed=0, fold=0, arm="federated"),
            weights=weights,
            checkpoint=checkpoint,
        )


def test_in_a_federation_weights_are_steered_by_who_is_trained_on_and_the_withheld_are_counted_once(
    tmp_path: Path,
) -> None:
    for name in ("robust", "plain"):
        (tmp_path / name).mkdir()
    study, robust = federated(tmp_path / "robust", ROBUST)
    _, plain = federated(tmp_path / "plain", "")
    rounds = [
        (record.round, record.counted is not None, record.confusion is not None) for record in robust.rounds
    ]
    assert [one for one in rounds if one[1]] == [(2, True, False), (4, True, False), (5, True, True)]
    trained_on, withheld = (np.sum(robust.rounds[index].counted.tables[0], axis=1) for index in (1, 4))  # type: ignore[union-attr]
    everybody = np.bincount(
        np.concatenate([SiteData.open(tmp_path / "robust" / "sites" / f"site-{n}").labels for n in (1, 2)])
    )
    assert trained_on.tolist() != withheld.tolist()
    assert (trained_on + withheld).tolist() == everybody.tolist()
    confusion = plain.rounds[-1].confusion
    assert confusion is not None
    assert withheld.sum() == np.sum(confusion)
    counted = [record.counted for record in robust.rounds[:4] if record.counted is not None]
    assert len(set(gw.weights_after(study, counted))) == 2  # they moved
    assert robust.rounds[0].update_norm == plain.rounds[0].update_norm  # at first all weigh alike
    assert robust.digest != plain.digest


def test_in_private_steps_a_smaller_weight_makes_a_smaller_step_and_a_common_one_none(tmp_path: Path) -> None:
    training = (
        SGD[:-1] + ', group_robust = { attribute = "sex", constants = { male = [0.001, 0.001, 0.001] } } }'
    )
    local = LOCAL.replace("noise_multiplier = 1.0, samp", "noise_multiplier = 0.05, samp").replace(
        "0.75", "1.0"
    )
    file = write_study(
        tmp_path / "study.toml", n_sites=1, model=LINEAR, training=training, privacy=local, evaluation=GROUPS
    )
    study = load(file)
    data = SiteData.open(write_sites(tmp_path / "sites", 1)["site-1"])
    men = {p for p, one in zip(data.patients, data.groups, strict=True) if one["sex"] == "male"}

    def change(study: Study, withdrawn: Collection[str] = ()) -> np.ndarray:
        model = models.build(study.model, {"pooled": WIDTH}, N_CLASSES, seed=0)
        source = SimulatedNoise_NotPrivate(seed=1, site="site-1", round=1)
        before = np.concatenate([t.numpy().ravel() for t in model.state_dict().values()])
        after = train_private(
            model, data, study, site="site-1", round=1, source=source, withdrawn=withdrawn
        ).values
        return np.asarray(after - before)

    bare = replace(study, training=replace(study.training, group_robust=None))
    women_alone = change(bare, men)
    # Of men, a thousandth is left: with them or without, the step is the women's, but for noise (0.025 a number).
    assert np.linalg.norm(change(study) - women_alone) < 0.3
    assert np.linalg.norm(change(bare) - women_alone) > 0.6
