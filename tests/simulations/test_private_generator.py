"""Claims about a generator at the coordinator: it knows of sites what they released, at the price of updates."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sottovoce.client.site_ledger import charges_of
from sottovoce.client.train_private import train_private
from sottovoce.common import models
from sottovoce.common import study as studies
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import StudyError
from sottovoce.common.generative.networks import each_class
from sottovoce.common.groups import Tables
from sottovoce.common.model_specs import Linear
from sottovoce.common.privacy_specs import LocalPrivacy
from sottovoce.common.study import Execution, Study
from sottovoce.common.weights import Layout, from_state_dict
from sottovoce.server import strategies
from sottovoce.server.checkpoint import Identity
from sottovoce.server.checkpoint import load as load_checkpoint
from sottovoce.server.exchange import Call, Collected, Evaluated, Exchange, Share
from sottovoce.server.made_rows import made_rows, noise_on_sums
from sottovoce.server.rounds import Cell, Outcome, run
from sottovoce.server.strategies.adversarial import GENERATOR, GENERATOR_MEAN, GENERATOR_SQUARE
from sottovoce.simulations import site_ledgers
from sottovoce.simulations.engines import open_exchange
from tests.client.test_train_private import ByCall
from tests.fakes.sites import LOCAL, NONE, WIDTH, write_sites, write_study

N_SITES, ROUNDS = 2, 3
DISCRIMINATOR = '{ kind = "discriminator", stream = "pooled", hidden = 5, per_class = 4 }'
MOMENTS = '{ kind = "moments", stream = "pooled", per_class = 4 }'
STEP = '{ learning_rate = 0.5, optimiser = "sgd", steps_per_round = 1, batch_size = 64, loss = "%s" }'
GAME = 'strategy = { kind = "adversarial", noise = 3, hidden = 6, fakes = 4 }'
PRIVATE = LOCAL.replace("counts_noise_multiplier = 1.0, counts_utterances = 2 }", "cap = 8 }").replace(
    "0.75", "1.0"
)
CELL = Cell(seed=0, fold=-1, arm="federated")


class Recording:
    """An exchange that keeps what came of each round: all that the coordinator ever sees."""

    def __init__(self, inner: Exchange) -> None:
        self.inner = inner
        self.means: list[np.ndarray] = []

    @property
    def sites(self) -> Sequence[str]:
        return self.inner.sites

    def train(self, call: Call, cohort: Sequence[Share]) -> Collected:
        collected = self.inner.train(call, cohort)
        self.means.append((collected.total / collected.weight).astype(np.float32))
        return collected

    def evaluate(self, call: Call, sites: Sequence[str], tables: Tables) -> Evaluated:
        raise AssertionError("a model that makes rows is never evaluated at a site")


def study_file(folder: Path, *, private: bool, model: str = DISCRIMINATOR, federation: str = GAME) -> Path:
    loss = "hinge" if model == DISCRIMINATOR else "label_score"
    return write_study(
        folder / "study.toml",
        n_sites=N_SITES,
        rounds=ROUNDS,
        model=model,
        training=STEP % loss,
        privacy=PRIVATE if private else NONE,
        federation=federation,
    )


def federate(folder: Path, *, private: bool, **more: str) -> tuple[Study, Outcome, list[np.ndarray]]:
    path = study_file(folder, private=private, **more)
    study, sites = studies.load(path), write_sites(folder / "sites", N_SITES)
    ledgers = folder / "ledgers" if private else None
    if ledgers is not None:
        site_ledgers.open_all(ledgers, study, sites)
    with open_exchange(Execution(), sites, study_file=path, ledgers=ledgers) as exchange:
        recording = Recording(exchange)
        outcome = run(
            recording,
            study,
            cell=CELL,
            weights=initial(study),
            checkpoint=folder / "cell.safetensors",
        )
    return study, outcome, recording.means


def initial(study: Study) -> dict[str, np.ndarray]:
    return from_state_dict(models.build(study.model, {"pooled": WIDTH}, 3, seed=0).state_dict())


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Outcome, list[np.ndarray], Path]:
    folder = tmp_path_factory.mktemp("private")
    return (*federate(folder, private=True), folder)


def test_a_replay_of_what_was_released_gives_the_generator_again_to_the_bit(
    private: tuple[Study, Outcome, list[np.ndarray], Path],
) -> None:
    study, outcome, means, _ = private
    weights = initial(study)
    strategy = strategies.of(study, seed=CELL.seed)
    state = strategy.init(Layout.of(weights).flatten(weights))
    first = state.others[GENERATOR]
    for mean in means:
        state = strategy.apply(state, mean)
    assert len(means) == ROUNDS
    assert (state.others[GENERATOR] != first).any()
    for name in (GENERATOR, GENERATOR_MEAN, GENERATOR_SQUARE):
        np.testing.assert_array_equal(state.others[name], outcome.others[name])
    made, again = (
        made_rows(study, Layout.of(weights).unflatten(flat), others, seed=0)
        for flat, others in (
            (Layout.of(weights).flatten(outcome.weights), outcome.others),
            (state.weights, state.others),
        )
    )
    np.testing.assert_array_equal(made.streams["pooled"], again.streams["pooled"])
    np.testing.assert_array_equal(made.labels, each_class(3, 4))
    state = strategy.init(Layout.of(weights).flatten(weights))
    for mean in means:  # the twin: other releases, another generator
        state = strategy.apply(state, mean * np.float32(1.001))
    assert (state.others[GENERATOR] != outcome.others[GENERATOR]).any()


def test_it_costs_what_plain_updates_cost(private: tuple[Study, Outcome, list[np.ndarray], Path]) -> None:
    study, _, _, _ = private
    plain = replace(
        study,
        model=Linear(kind="linear", stream="pooled"),
        training=replace(study.training, loss="cross_entropy"),
        federation=replace(study.federation, strategy=studies.FedAvg(kind="fedavg")),
    )
    assert charges_of(study) == charges_of(plain)
    assert [charge.what for charge in charges_of(study)] == ["update"]


def test_a_checkpoint_holds_the_generator(private: tuple[Study, Outcome, list[np.ndarray], Path]) -> None:
    study, outcome, _, folder = private
    identity = Identity(study_digest=study.digest(), cell=CELL.name)
    found = load_checkpoint(folder / "cell.safetensors", Layout.of(initial(study)), identity)
    assert set(found.state.others) == {GENERATOR, GENERATOR_MEAN, GENERATOR_SQUARE}
    for name, vector in outcome.others.items():
        np.testing.assert_array_equal(found.state.others[name], vector)


def test_the_discriminator_stays_within_the_bound(tmp_path: Path) -> None:
    study, outcome, _ = federate(tmp_path, private=False)
    strategy = study.federation.strategy
    for name, weight in outcome.weights.items():
        if weight.ndim == 2:
            assert np.linalg.norm(weight.astype(np.float64), 2) <= strategy.bound * 1.001, name  # type: ignore[union-attr]


def test_sums_by_class_are_those_of_the_sites(tmp_path: Path) -> None:
    study, outcome, _ = federate(tmp_path, private=False, model=MOMENTS, federation="")
    parts = [SiteData.open(tmp_path / "sites" / f"site-{number}") for number in (1, 2)]
    rows, labels = (
        np.concatenate(both) for both in zip(*((p.pooled("pooled"), p.labels) for p in parts), strict=True)
    )
    cut = np.clip(rows, -3.0, 3.0)
    counts = np.bincount(labels, minlength=3) / len(labels)
    np.testing.assert_allclose(outcome.weights["head.bias"], 0.5 * ROUNDS * counts, rtol=1e-5)
    mean = cut[labels == 1].mean(axis=0)
    sums = outcome.weights["head.weight"][1, :WIDTH] / outcome.weights["head.bias"][1] * np.sqrt(WIDTH)
    np.testing.assert_allclose(sums, mean, atol=1e-4)
    made = made_rows(study, outcome.weights, {}, seed=0)
    assert made.streams["pooled"].shape == (12, WIDTH)
    assert noise_on_sums(study) == 0.0


def test_one_patient_moves_sums_by_class_by_one_clip_at_most(tmp_path: Path) -> None:
    study = studies.load(study_file(tmp_path, private=True, model=MOMENTS, federation=""))
    assert isinstance(study.privacy, LocalPrivacy)
    study = replace(study, privacy=replace(study.privacy, sampling_prob=1.0, clip_norm=0.2))
    data = SiteData.open(write_sites(tmp_path / "sites", 1)["site-1"])
    without = data.select(np.array([one != max(data.patients) for one in data.patients]))
    model = models.build(study.model, {"pooled": WIDTH}, 3, seed=0)
    one, other = (
        train_private(model, part, study, site="site-1", round=1, source=ByCall()).values
        for part in (data, without)
    )
    bound = 0.5 * 0.2 / 2.0  # rate x clip / expected patients
    assert 0.99 * bound < np.linalg.norm(one.astype(np.float64) - other) <= bound * (1 + 1e-5)
    assert np.linalg.norm(one) > 3 * bound  # noise is much louder than anybody


def test_the_noise_on_sums_is_that_of_the_releases(tmp_path: Path) -> None:
    study = studies.load(study_file(tmp_path, private=True, model=MOMENTS, federation=""))
    # rate 0.5, noise 1 x clip 1 over 2 expected patients, three rounds, the mean of two sites
    assert noise_on_sums(study) == pytest.approx(0.25 * np.sqrt(3 / 2))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('loss = "hinge"', 'loss = "focal"', "training.loss"),
        (GAME, 'strategy = { kind = "fedavg" }', "federation.strategy"),
        ("steps_per_round = 1, batch_size", "local_epochs = 3, batch_size", "steps_per_round"),
        ('optimiser = "sgd"', 'optimiser = "adam"', "training"),
        ("cap = 8", "counts_noise_multiplier = 1.0", "privacy.counts_noise_multiplier"),
    ],
)
def test_a_study_that_does_not_fit_together_is_refused(old: str, new: str, key: str, tmp_path: Path) -> None:
    text = study_file(tmp_path, private=True).read_text()
    studies.loads(text)
    assert old in text
    with pytest.raises(StudyError, match=key):
        studies.loads(text.replace(old, new))


@pytest.mark.parametrize("mode", ["none", "local"])
def test_public_rows_are_for_mode_none_alone(mode: str, tmp_path: Path) -> None:
    training = '{ learning_rate = 0.5, synthetic = { sha256 = "%s", per_class = 3 } }' % ("a" * 64)
    path = write_study(
        tmp_path / "s.toml", n_sites=2, training=training, privacy=NONE if mode == "none" else PRIVATE
    )
    if mode == "none":
        assert studies.load(path).training.synthetic is not None
    else:
        with pytest.raises(StudyError, match=r"training\.synthetic"):
            studies.load(path)
