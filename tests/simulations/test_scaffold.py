"""Claims of SCAFFOLD: by hand, on a skewed split, and in every way in which its messages travel."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sottovoce.client import scaffold as at_site
from sottovoce.client.app import app as client_app
from sottovoce.client.personal import RELEASED, PersonalState
from sottovoce.client.traffic import messages_of
from sottovoce.common import counted, models
from sottovoce.common import study as studies
from sottovoce.common.dataset import Example, SiteData, StreamShape, pool
from sottovoce.common.errors import RunError, StudyError
from sottovoce.common.flower import COUNTED, ClientApp, Context, Message, Scalar
from sottovoce.common.study import Execution, FedAvg, Study
from sottovoce.common.weights import Layout, from_state_dict
from sottovoce.server import strategies
from sottovoce.server.exchange import Call, Exchange
from sottovoce.server.rounds import Cell, Outcome, run, run_alone
from sottovoce.simulations import site_ledgers
from sottovoce.simulations.engines import CLIENT_APP, open_exchange
from tests.fakes.federations import study_of
from tests.fakes.sealed_rounds import SealedFederation
from tests.fakes.secure_rounds import CELL as SEALED_CELL
from tests.fakes.secure_rounds import LOCAL
from tests.fakes.sites import LINEAR, N_CLASSES, NONE, WIDTH, write_sites, write_study

CELL = Cell(seed=0, fold=1, arm="federated")
STEPS, RATE = 4, 0.1
TRAINING = f'{{ learning_rate = {RATE}, optimiser = "sgd", batch_size = 4, steps_per_round = {STEPS} }}'
QUIET = LOCAL.replace("noise_multiplier = 1.0", "noise_multiplier = 8.0")  # its cost is quick to compute
SCAFFOLD = 'strategy = { kind = "scaffold" }'


class Place:
    """Four small sites, a study with SCAFFOLD, and a folder for what sites keep."""

    def __init__(
        self, folder: Path, *, rounds: int = 4, privacy: str = NONE, training: str = TRAINING, more: str = ""
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        federation = f"{SCAFFOLD}, secure_sum = {str('secure' in folder.name).lower()}{more}"
        self.study_file = write_study(
            folder / "study.toml",
            n_sites=4,
            rounds=rounds,
            model=LINEAR,
            training=training,
            privacy=privacy,
            federation=federation,
        )
        self.study: Study = studies.load(self.study_file)
        self.sites = write_sites(folder / "sites", 4)
        self.states, self.home, self.folder = folder / "states", folder / "ledgers", folder
        start = models.build(self.study.model, {"pooled": WIDTH}, N_CLASSES, 0).state_dict()
        self.weights = from_state_dict(start)

    def run(
        self,
        engine: str = "inprocess",
        *,
        study: Study | None = None,
        app: str = CLIENT_APP,
        keep: bool = False,
    ) -> Outcome:
        """Runs the federation; `keep` writes checkpoints and goes on from one."""
        execution = Execution(engine=engine, workers=1)  # type: ignore[arg-type]
        chosen, private = study or self.study, self.study.privacy.mode != "none"
        ledgers = self.home if private else None
        if private:
            site_ledgers.open_all(self.home, self.study, self.sites)
        elif self.study.sums_are_secure:
            site_ledgers.identities(self.home, self.study, self.sites)
        with open_exchange(
            execution,
            self.sites,
            study_file=self.study_file,
            ledgers=ledgers,
            secure=None if private or not chosen.sums_are_secure else self.home,
            states=self.states,
            app=app,
        ) as exchange:
            if not chosen.sums_are_secure:
                return self._go(exchange, chosen, keep)
            with site_ledgers.coordinated(self.home, self.study, exchange) as secure:  # type: ignore[arg-type]
                return self._go(secure, chosen, keep)

    def _go(self, exchange: Exchange, study: Study, keep: bool) -> Outcome:
        checkpoint = self.folder / "checkpoint.safetensors" if keep else None
        return run(exchange, study, cell=CELL, weights=self.weights, checkpoint=checkpoint, resume=keep)

    def control(self, site: str, round: int) -> np.ndarray:
        """Returns what a site keeps of a round, flat."""
        state = PersonalState(
            self.states / site,
            study_digest=self.study.digest(),
            seed=CELL.seed,
            fold=CELL.fold,
            series="" if self.study.privacy.mode == "none" else RELEASED,
        )
        return Layout.of(self.weights).flatten(state.read(round)).astype(np.float64)


def shared_controls(place: Place, outcome: Outcome) -> np.ndarray:
    """Returns the coordinator's control, from its checkpoint."""
    found = load_file(place.folder / "checkpoint.safetensors")
    layout = Layout.of(place.weights)
    return layout.flatten({name: found[f"control/{name}"] for name in layout.names}).astype(np.float64)


def vector(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def test_two_rounds_by_hand() -> None:
    """Site a has the loss (w - 1)^2 / 2, site b (w + 3)^2; two steps at rate 0.1 from w = 0.

    Round 1: a goes 0, 0.1, 0.19 and b 0, -0.6, -1.08; the mean update is -0.445. The mean gradients are
    c_a = (0 - 0.19) / 0.2 = -0.95 and c_b = 5.4, and their mean is the shared control, 2.225.
    """
    algorithm = strategies.of(_study_by_hand())
    state = algorithm.init(vector(0.0))
    own = {site: {"w": vector(0.0)} for site in "ab"}
    state, own = _round_by_hand(algorithm, state, own)
    np.testing.assert_allclose(state.weights, [-0.445], rtol=1e-6)
    np.testing.assert_allclose([own["a"]["w"][0], own["b"]["w"][0]], [-0.95, 5.4], rtol=1e-6)
    np.testing.assert_allclose(state.moments["control"], [2.225], rtol=1e-6)
    # Round 2, from -0.445: a steps by (w - 1) + 0.95 + 2.225, b by 2 (w + 3) - 5.4 + 2.225.
    a, b = -0.445, -0.445
    for _ in range(2):
        a, b = a - 0.1 * (a - 1 + 3.175), b - 0.1 * (2 * (b + 3) - 3.175)
    state, own = _round_by_hand(algorithm, state, own)
    np.testing.assert_allclose(state.weights, [(a + b) / 2], rtol=1e-6)
    np.testing.assert_allclose(
        state.moments["control"], [(own["a"]["w"][0] + own["b"]["w"][0]) / 2], rtol=1e-6
    )


def _study_by_hand() -> Study:
    base = study_of(strategy=studies.Scaffold(kind="scaffold"))
    return replace(
        base, training=replace(base.training, optimiser="sgd", steps_per_round=2, learning_rate=0.1)
    )


def _round_by_hand(
    algorithm: strategies.Algorithm,
    state: strategies.ServerState,
    own: Mapping[str, Mapping[str, np.ndarray]],
) -> tuple[strategies.ServerState, dict[str, dict[str, np.ndarray]]]:
    gradients: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "a": lambda w: w - 1.0,
        "b": lambda w: 2.0 * (w + 3.0),
    }
    sent, shared = {"w": state.weights}, {"w": state.moments["control"]}
    after, updates = {}, []
    for site, gradient in gradients.items():
        w, drift = state.weights, at_site.correction(own[site], shared)["w"]
        for _ in range(2):
            w = np.asarray(w - np.float32(0.1) * (gradient(w) + drift), np.float32)
        after[site] = at_site.control_after(own[site], shared, sent=sent, trained={"w": w}, descent=0.2)
        updates.append(w - state.weights)
    return algorithm.apply(state, np.mean(updates, axis=0, dtype=np.float32)), after


def test_the_shared_control_stays_the_mean_of_the_sites(tmp_path: Path) -> None:
    place = Place(tmp_path)
    outcome = place.run(keep=True)
    own = [place.control(site, 4) for site in place.sites]
    assert np.linalg.norm(own) > 0.1
    np.testing.assert_allclose(shared_controls(place, outcome), np.mean(own, axis=0), atol=1e-5)


def test_with_public_weights_and_some_of_the_sites_it_stays_the_weighted_mean(tmp_path: Path) -> None:
    weights = [1.0, 2.0, 3.0, 2.0]
    place = Place(tmp_path, rounds=6, more=f", site_weights = {weights}, sites_per_round = 2, quorum = 2")
    outcome = place.run(keep=True)
    last = {site: record.round for record in outcome.rounds for site in record.sites}
    assert set(last) == set(place.sites)
    assert min(last.values()) < 6
    own = [place.control(site, last[site]) for site in sorted(place.sites)]
    np.testing.assert_allclose(
        shared_controls(place, outcome), np.average(own, axis=0, weights=weights), atol=1e-5
    )


LOST: list[tuple[str, int]] = []
forgetful = ClientApp()


@forgetful.query()
def _query(message: Message, context: Context) -> Message:
    return client_app(message, context)


@forgetful.evaluate()
def _evaluate(message: Message, context: Context) -> Message:
    return client_app(message, context)


@forgetful.train()
def _train(message: Message, context: Context) -> Message:
    """Trains as ever, and keeps what it keeps; the answer of two sites in round 2 is lost on its way."""
    reply = client_app(message, context)
    site, round = Path(str(context.node_config["site-folder"])).name, int(message.content["config"]["round"])  # type: ignore[arg-type]
    if round == 2 and site in ("site-1", "site-3") and (site, round) not in LOST:
        LOST.append((site, round))
        raise RuntimeError("lost")
    return reply


def test_a_site_whose_answer_was_lost_goes_on_from_the_control_that_counted(tmp_path: Path) -> None:
    LOST.clear()
    place = Place(tmp_path, more=", quorum = 2")
    outcome = place.run(app="tests.simulations.test_scaffold:forgetful", keep=True)
    assert set(outcome.rounds[1].refused) == {"site-1", "site-3"}
    own = [place.control(site, 4) for site in place.sites]
    np.testing.assert_allclose(shared_controls(place, outcome), np.mean(own, axis=0), atol=1e-5)


def test_a_round_that_is_asked_again_gives_the_same_bits(tmp_path: Path) -> None:
    LOST.clear()
    place, undisturbed = (
        Place(tmp_path / "lost", more=", quorum = 4"),
        Place(tmp_path / "well", more=", quorum = 4"),
    )
    again = place.run(app="tests.simulations.test_scaffold:forgetful")
    assert again.rounds[1].attempts == 2
    assert again.digest == undisturbed.run().digest


def test_the_same_bits_after_a_crash_and_in_another_process(tmp_path: Path) -> None:
    whole, place = Place(tmp_path / "whole"), Place(tmp_path / "cut")

    class Crash(Exception):
        pass

    def crash(record: object) -> None:
        if record.round == 2:  # type: ignore[attr-defined]
            raise Crash

    path = place.folder / "checkpoint.safetensors"
    opened = open_exchange(Execution(), place.sites, study_file=place.study_file, states=place.states)
    with opened as exchange, pytest.raises(Crash):
        run(exchange, place.study, cell=CELL, weights=place.weights, checkpoint=path, on_round=crash)
    assert place.run("processes", keep=True).digest == whole.run().digest


def test_in_sealed_messages_to_hospitals_the_weights_are_the_same_bits(tmp_path: Path) -> None:
    place = Place(tmp_path / "plain", rounds=2)
    (tmp_path / "sealed").mkdir()
    sealed = SealedFederation(tmp_path / "sealed", place.study_file)
    outcome = sealed.run()
    assert outcome.refused == []
    with open_exchange(
        Execution(), sealed.data, study_file=place.study_file, states=place.states
    ) as exchange:
        plain = run(exchange, place.study, cell=SEALED_CELL, weights=sealed.weights)
    assert outcome.digest == plain.digest
    assert all((hospital.state / place.study.digest()).is_dir() for hospital in sealed.hospitals.values())


def test_under_masks_the_weights_are_those_of_plain_sums_up_to_the_grid(tmp_path: Path) -> None:
    plain, masked = Place(tmp_path / "plain", rounds=2), Place(tmp_path / "secure", rounds=2)
    layout = Layout.of(plain.weights)
    a, b = layout.flatten(plain.run().weights), layout.flatten(masked.run().weights)
    np.testing.assert_allclose(a, b, atol=1e-5)


def _one_digit(text: str) -> str:
    return text.replace("1", "0", 1)


@pytest.mark.parametrize("what", [COUNTED, counted.TOLD, "both", "nothing said"])
def test_under_masks_a_site_that_is_told_of_another_last_round_than_all_were_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """One vector that changes alone, between two sums that are otherwise the same, would be an update in the clear."""
    place, real = Place(tmp_path / "secure", rounds=2, more=", quorum = 3"), Call.config_for

    def lying(call: Call, site: str) -> dict[str, Scalar]:
        config = real(call, site)
        if site == "site-1" and call.round == 2 and counted.TOLD in config:
            if what in (COUNTED, "both"):
                config[COUNTED] = 0
            if what in (counted.TOLD, "both"):
                config[counted.TOLD] = _one_digit(str(config[counted.TOLD]))
            if what == "nothing said":
                del config[counted.TOLD]
        return config

    monkeypatch.setattr(Call, "config_for", lying)
    first, second = place.run().rounds
    assert (first.refused, set(second.refused)) == ({}, {"site-1"})
    assert "site-1" not in second.sites


def test_in_mode_local_the_control_is_of_released_numbers_alone(tmp_path: Path) -> None:
    """It follows from the update that left and from public numbers: here without a look at the data."""
    training = TRAINING.replace("steps_per_round = 4", "steps_per_round = 2")
    place = Place(
        tmp_path, rounds=2, privacy=QUIET, training=training, more=", sites_per_round = 1, quorum = 1"
    )
    outcome = place.run(keep=True)
    first, second = outcome.rounds
    (a,), (b,) = first.sites, second.sites
    assert a != b
    # A's control is -u_A/(K lr) and the shared one a quarter of it; B's is -c - u_B/(K lr).
    of_a, of_b = place.control(a, first.round), place.control(b, second.round)
    layout = Layout.of(place.weights)
    moved = layout.flatten(outcome.weights) - layout.flatten(place.weights)
    np.testing.assert_allclose(moved, -2 * RATE * (of_a + of_b + of_a / 4), atol=1e-5)


def test_on_a_skewed_split_it_comes_to_the_pooled_model_and_fedavg_does_not(tmp_path: Path) -> None:
    sites = _one_class_each(tmp_path / "sites")
    training = '{ learning_rate = 0.3, optimiser = "sgd", batch_size = 64, steps_per_round = 10, weight_decay = 0.3 }'
    study_file = write_study(
        tmp_path / "study.toml", n_sites=3, rounds=30, model=LINEAR, training=training, federation=SCAFFOLD
    )
    study = studies.load(study_file)
    cell = Cell(seed=0, fold=-1, arm="federated")
    start = from_state_dict(models.build(study.model, {"pooled": WIDTH}, N_CLASSES, 0).state_dict())
    layout = Layout.of(start)

    def weights_of(chosen: Study) -> np.ndarray:
        with open_exchange(Execution(), sites, study_file=study_file, states=tmp_path / "states") as exchange:
            return layout.flatten(run(exchange, chosen, cell=cell, weights=start).weights)

    pool(tmp_path / "pooled", site="pooled", parts=[SiteData.open(folder) for folder in sites.values()])
    with open_exchange(Execution(), {"pooled": tmp_path / "pooled"}, study_file=study_file) as exchange:
        pooled = layout.flatten(run_alone(exchange, study, cell=cell, weights=start)["pooled"].weights)
    averaged = replace(study, federation=replace(study.federation, strategy=FedAvg(kind="fedavg")))
    gap = np.linalg.norm(weights_of(averaged) - pooled)
    assert gap > 0.1 * np.linalg.norm(pooled)
    assert np.linalg.norm(weights_of(study) - pooled) < 0.05 * gap


def _one_class_each(folder: Path) -> dict[str, Path]:
    draw, shapes = np.random.default_rng(5), {"pooled": StreamShape(width=WIDTH, n_frames=None)}
    centres = draw.normal(size=(N_CLASSES, WIDTH))
    for label in range(N_CLASSES):
        rows = (centres[label] + 0.7 * draw.normal(size=(8, WIDTH))).astype(np.float32)
        examples = [
            Example(
                key=f"{label}/{i}",
                label=label,
                speaker=f"{label}-{i}",
                patient=f"{label}-{i}",
                groups={},
                features={"pooled": row},
            )
            for i, row in enumerate(rows)
        ]
        SiteData.write(
            folder / f"site-{label + 1}", site=f"site-{label + 1}", shapes=shapes, examples=examples
        )
    return {f"site-{n}": folder / f"site-{n}" for n in range(1, N_CLASSES + 1)}


@pytest.mark.parametrize(
    ("training", "privacy", "more", "wanted"),
    [
        (TRAINING.replace('"sgd"', '"adam"'), NONE, "", "training.optimiser = 'sgd'"),
        (TRAINING.replace("batch_size", "momentum = 0.9, batch_size"), NONE, "", "without momentum"),
        (TRAINING.replace(f", steps_per_round = {STEPS}", ""), NONE, "", "training.steps_per_round"),
        (
            TRAINING,
            NONE,
            ", secure_sum = true, compression = { bits = 8, norm = 1.0 }",
            "no federation.compression",
        ),
    ],
)
def test_a_study_in_which_the_control_would_not_follow_is_refused(
    tmp_path: Path, training: str, privacy: str, more: str, wanted: str
) -> None:
    federation = SCAFFOLD + more
    path = write_study(
        tmp_path / "s.toml",
        n_sites=4,
        model=LINEAR,
        training=training,
        privacy=privacy,
        federation=federation,
    )
    with pytest.raises(StudyError, match="'scaffold' expects") as caught:
        studies.load(path)
    assert wanted in str(caught.value)


def test_a_preview_lists_the_control_and_the_round_that_counted(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (asked,) = (m for m in messages_of(place.study) if m.phase == "train" and m.direction == "to the site")
    records = [(field.record, field.name, field.n_bytes) for field in asked.fields]
    assert ("config", "counted", 8) in records
    sizes = [sum(n for record, _, n in records if record == name) for name in ("arrays", "control")]
    assert sizes[0] == sizes[1] > 0


def test_a_site_that_has_lost_its_control_says_so(tmp_path: Path) -> None:
    state = PersonalState(tmp_path, study_digest="d", seed=0, fold=0)
    with pytest.raises(RunError, match="kept in round 3"):
        state.read(3)
