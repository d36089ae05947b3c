"""Claims of personal models: by hand, on sites that disagree, and that nothing of them leaves."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from sottovoce.client import app as client_app
from sottovoce.client import personalise
from sottovoce.client.evaluate import mean_loss
from sottovoce.client.personal import PersonalState
from sottovoce.client.personalise import Round
from sottovoce.client.train import train
from sottovoce.common import models
from sottovoce.common import study as studies
from sottovoce.common.dataset import Example, SiteData, StreamShape
from sottovoce.common.errors import StudyError
from sottovoce.common.personal_specs import Ditto, FedRep, FineTuning
from sottovoce.common.predictions import read
from sottovoce.common.study import Execution, QFedAvg, Study
from sottovoce.common.weights import Array, Layout, ModelWeights, from_state_dict
from sottovoce.server.exchange import Call, Share
from sottovoce.server.rounds import Cell, Outcome, run, run_alone
from sottovoce.simulations import site_ledgers
from sottovoce.simulations.cells import Job, compute
from sottovoce.simulations.engines import open_exchange
from tests.fakes.secure_rounds import LOCAL
from tests.fakes.sites import MLP, N_CLASSES, NONE, SGD, WIDTH, write_sites, write_study

CELL = Cell(seed=0, fold=1, arm="federated")
QUIET = LOCAL.replace("noise_multiplier = 1.0", "noise_multiplier = 8.0")  # its cost is quick to compute
KINDS = {
    "fedper": '{ kind = "fedper" }',
    "fedrep": '{ kind = "fedrep", head_epochs = 2 }',
    "ditto": '{ kind = "ditto", pull = 0.01 }',
    "fine_tuning": '{ kind = "fine_tuning", epochs = 40 }',
}
PLAIN_MLP = MLP.replace("dropout = 0.3", "dropout = 0.0").replace("hidden = 5", "hidden = 16")
TRAINING = '{ learning_rate = 0.03, optimiser = "adam", batch_size = 8, local_epochs = 2 }'


def study_file(path: Path, kind: str | None, **more: Any) -> Path:
    federation = "secure_sum = false" + ("" if kind is None else f", personalisation = {KINDS[kind]}")
    settings: dict[str, Any] = {"n_sites": 3, "model": PLAIN_MLP, "training": TRAINING, **more}
    return write_study(path, federation=federation, **settings)


def disagreeing(folder: Path) -> dict[str, Path]:
    """Writes three sites that call the same three sounds by different names."""
    draw, shapes = np.random.default_rng(4), {"pooled": StreamShape(width=WIDTH, n_frames=None)}
    centres = 2.0 * draw.normal(size=(N_CLASSES, WIDTH))
    for shift in range(3):
        site, examples = f"site-{shift + 1}", []
        for index in range(36):
            sound = index % 3
            row = (centres[sound] + 0.3 * draw.normal(size=WIDTH)).astype(np.float32)
            who, label = f"{site}-{index // 6}", (sound + shift) % 3
            examples.append(
                Example(
                    key=f"{site}/{index}",
                    label=label,
                    speaker=who,
                    patient=who,
                    groups={},
                    features={"pooled": row},
                )
            )
        SiteData.write(folder / site, site=site, shapes=shapes, examples=examples)
    return {f"site-{n}": folder / f"site-{n}" for n in range(1, 4)}


def start(study: Study) -> Mapping[str, Array]:
    return from_state_dict(models.build(study.model, {"pooled": WIDTH}, N_CLASSES, 0).state_dict())


def federate(folder: Path, sites: dict[str, Path], path: Path) -> Outcome:
    study = studies.load(path)
    with open_exchange(Execution(), sites, study_file=path, states=folder / "states") as exchange:
        return run(exchange, study, cell=CELL, weights=start(study))


def share_right(outcome: Outcome) -> float:
    counts = np.asarray(outcome.rounds[-1].confusion)
    return float(np.trace(counts) / counts.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_where_sites_disagree_a_model_of_ones_own_is_right_and_the_shared_one_is_not(
    tmp_path: Path, kind: str
) -> None:
    sites = disagreeing(tmp_path / "sites")
    shared = federate(tmp_path, sites, study_file(tmp_path / "shared.toml", None, rounds=10))
    own = federate(tmp_path, sites, study_file(tmp_path / "own.toml", kind, rounds=10))
    assert share_right(shared) < 0.7
    assert share_right(own) > 0.9


@pytest.mark.parametrize("kind", ["fedper", "fedrep"])
def test_a_head_that_stays_here_goes_back_as_it_came(tmp_path: Path, kind: str) -> None:
    sites = disagreeing(tmp_path / "sites")
    path = study_file(tmp_path / "study.toml", kind)
    study = studies.load(path)
    layout = Layout.of(start(study))
    call = Call(
        round=1, rounds=3, attempt=1, seed=0, fold=1, layout=layout, weights=layout.flatten(start(study)),
        deadline_seconds=60.0, max_update_norm=100.0, config={"personal": True}, single=True,
    )  # fmt: skip
    with open_exchange(Execution(), sites, study_file=path, states=tmp_path / "states") as exchange:
        collected = exchange.train(call, [Share(site=site) for site in sites])
    for update in collected.updates:
        change = layout.unflatten(update.difference.astype(np.float32))
        for name, array in change.items():
            assert np.any(array) is np.bool_(not personalise.is_head(name)), name
        kept = PersonalState(
            tmp_path / "states" / update.site, study_digest=study.digest(), seed=0, fold=1
        ).read(1)
        assert set(kept) == {"head.weight", "head.bias"}
        assert np.abs(kept["head.weight"] - start(study)["head.weight"]).max() > 0.01


@pytest.mark.parametrize("kind", ["ditto", "fine_tuning"])
def test_what_leaves_is_what_would_leave_without(tmp_path: Path, kind: str) -> None:
    sites = disagreeing(tmp_path / "sites")
    shared = federate(tmp_path, sites, study_file(tmp_path / "shared.toml", None))
    assert federate(tmp_path, sites, study_file(tmp_path / "own.toml", kind)).digest == shared.digest


def test_a_twin_that_trains_alone_has_no_model_of_its_own(tmp_path: Path) -> None:
    sites = write_sites(tmp_path / "sites", 3)
    outcomes = []
    for kind in (None, "fedper"):
        path = study_file(tmp_path / f"{kind}.toml", kind)
        study = studies.load(path)
        with open_exchange(Execution(), sites, study_file=path) as exchange:
            outcomes.append(run_alone(exchange, study, cell=CELL, weights=start(study))["site-2"].digest)
    assert outcomes[0] == outcomes[1]


def small_round(
    tmp_path: Path, training: str = SGD
) -> tuple[nn.Module, SiteData, Round, Mapping[str, Array]]:
    sites = disagreeing(tmp_path / "sites")
    study = studies.load(study_file(tmp_path / "study.toml", "ditto", training=training))
    model = models.build(study.model, {"pooled": WIDTH}, N_CLASSES, 0)
    now = Round(study=study, site="site-1", seed=0, round=1)
    return model, SiteData.open(sites["site-1"]), now, start(study)


def state_in(folder: Path) -> PersonalState:
    return PersonalState(folder, study_digest="d", seed=0, fold=1)


def test_ditto_takes_the_step_of_its_own_loss_and_the_pull_by_hand(tmp_path: Path) -> None:
    """One step at rate 1 over all recordings: v - gradient - pull (v - w)."""
    whole = SGD.replace('"sgd"', '"sgd", batch_size = 64')
    model, data, now, sent = small_round(tmp_path, whole)
    own = {name: array + np.float32(0.1) for name, array in sent.items()}
    steps = []
    for pull in (0.0, 0.25):
        state = state_in(tmp_path / str(pull))
        state.write(0, own, oldest=0)
        personalise.train_own(model, data, Ditto(kind="ditto", pull=pull), state, sent, now)
        steps.append(state.read(1))
    for name, array in sent.items():
        pulled = 0.25 * (own[name] - array)
        np.testing.assert_allclose(steps[0][name] - steps[1][name], pulled, atol=1e-6)
    assert any(np.abs(steps[0][name] - own[name]).max() > 0.01 for name in sent)


def test_fedrep_trains_the_head_on_the_body_that_came_and_then_the_body_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, now, sent = small_round(tmp_path)
    weights, seen = ModelWeights(model), []
    weights.write(sent)

    def spy(model: nn.Module, *arguments: Any, **settings: Any) -> Any:
        before = from_state_dict({name: t.clone() for name, t in model.state_dict().items()})
        result = train(model, *arguments, **settings)
        after = from_state_dict(model.state_dict())
        seen.append({name for name in after if np.any(after[name] != before[name])})
        return result

    monkeypatch.setattr(personalise, "train", spy)
    personalise.train_in_turn(model, data, FedRep(kind="fedrep", head_epochs=2), now)
    assert seen[0] == {"head.weight", "head.bias"}
    assert seen[1] == set(sent) - seen[0]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_fine_tuning_is_training_from_the_last_weights_and_only_then(tmp_path: Path) -> None:
    model, data, now, sent = small_round(tmp_path)
    spec, last = FineTuning(kind="fine_tuning", epochs=2), replace(now, round=now.study.federation.rounds)
    early = personalise.scored_weights(model, data, spec, state_in(tmp_path), sent, now)
    late = personalise.scored_weights(model, data, spec, state_in(tmp_path), sent, last)
    np.testing.assert_array_equal(early["head.weight"], sent["head.weight"])
    assert mean_loss(_with(model, late), data, now.study.training) < mean_loss(
        _with(model, sent), data, now.study.training
    )


def _with(model: nn.Module, weights: Mapping[str, Array]) -> nn.Module:
    ModelWeights(model).write(weights)
    return model


def test_fedper_in_mode_local_keeps_a_head_of_released_numbers_and_charges_as_without(tmp_path: Path) -> None:
    sites, charged = write_sites(tmp_path / "sites", 3), []
    for kind in (None, "fedper"):
        path = study_file(tmp_path / f"{kind}.toml", kind, privacy=QUIET, training=SGD, rounds=2)
        study = studies.load(path)
        home = tmp_path / f"ledgers-{kind}"
        site_ledgers.open_all(home, study, sites)
        with open_exchange(
            Execution(), sites, study_file=path, ledgers=home, states=tmp_path / "states"
        ) as exchange:
            outcome = run(exchange, study, cell=CELL, weights=start(study))
        charged.append([(home / site / "ledger.jsonl").read_text().count('"commit"') for site in sites])
        assert outcome.refused == []
    assert charged[0] == charged[1]
    np.testing.assert_array_equal(outcome.weights["head.weight"], start(study)["head.weight"])
    assert PersonalState(tmp_path / "states" / "site-1", study_digest=study.digest(), seed=0, fold=1).read(2)


def test_in_a_private_mode_counts_that_leave_are_not_of_a_model_trained_without_noise(tmp_path: Path) -> None:
    sites, counts = write_sites(tmp_path / "sites", 3), []
    for kind in (None, "ditto"):
        path = study_file(tmp_path / f"{kind}.toml", kind, privacy=QUIET, training=SGD, rounds=2)
        home, study = tmp_path / f"ledgers-{kind}", studies.load(path)
        site_ledgers.open_all(home, study, sites)
        with open_exchange(
            Execution(), sites, study_file=path, ledgers=home, states=tmp_path / "states"
        ) as exchange:
            outcome = run(exchange, study, cell=CELL, weights=start(study))
        counts.append((outcome.digest, outcome.rounds[-1].confusion))
    assert counts[0] == counts[1]
    assert PersonalState(tmp_path / "states" / "site-1", study_digest=study.digest(), seed=0, fold=1).read(2)


def test_a_cell_scores_each_sites_speakers_by_that_sites_own_model(tmp_path: Path) -> None:
    sites = disagreeing(tmp_path / "sites")
    path = study_file(tmp_path / "study.toml", "fedper", rounds=10)
    study = studies.load(path)
    job = Job(
        cell=CELL, study_file=path, sites=tmp_path / "sites", pooled=tmp_path / "none",
        ledgers=tmp_path / "ledgers", extracts=tmp_path / "extracts", states=tmp_path / "states",
        made=tmp_path / "made", checkpoint=tmp_path / "c.safetensors", rounds=tmp_path / "rounds.jsonl",
        predictions=tmp_path / "predictions.jsonl", execution=Execution(),
    )  # fmt: skip
    compute(job, study, lambda facts: None)
    rows = read(job.predictions, n_classes=N_CLASSES)
    assert {row.site for row in rows} == set(sites)
    assert np.mean([row.predicted == row.truth for row in rows]) > 0.9
    assert not job.states.exists()


def test_for_qfedavg_a_site_states_the_loss_of_the_weights_it_was_sent(tmp_path: Path) -> None:
    sites, path = write_sites(tmp_path / "sites", 3), study_file(tmp_path / "study.toml", None, rounds=1)
    text = path.read_text().replace("secure_sum = false", 'strategy = { kind = "qfedavg" }')
    path.write_text(text)
    study = studies.load(path)
    assert isinstance(study.federation.strategy, QFedAvg)
    losses = []
    for folder in sites.values():
        data = SiteData.open(folder)
        kept = data.select(~client_app.withheld(data, study, seed=0, fold=1))
        model = models.build(study.model, {"pooled": WIDTH}, N_CLASSES, 0)
        losses.append(mean_loss(model, kept, study.training))
    assert federate(tmp_path, sites, path).rounds[0].loss == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "model", "privacy", "more", "wanted"),
    [
        ("fedper", '{ kind = "linear", stream = "pooled" }', NONE, "", "a model with a body"),
        ("fedrep", MLP, LOCAL, "", "paid for twice"),
        ("ditto", MLP, NONE, ', strategy = { kind = "scaffold" }', "another strategy than 'scaffold'"),
        ("fedper", MLP, LOCAL.replace("seeded_noise", 'trained = "head", seeded_noise'), "", "'all' or 'low_rank'"),
    ],
)  # fmt: skip
def test_a_pair_that_does_not_go_together_is_refused(
    tmp_path: Path, kind: str, model: str, privacy: str, more: str, wanted: str
) -> None:
    path = write_study(
        tmp_path / "s.toml", n_sites=3, model=model, privacy=privacy, training=SGD,
        federation=f"secure_sum = false, personalisation = {KINDS[kind]}{more}",
    )  # fmt: skip
    with pytest.raises(StudyError) as caught:
        studies.load(path)
    assert wanted in str(caught.value)
