"""Claims about transfer at a site: what stands still, what moves less, and towards what."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sottovoce.client import doctor_weights
from sottovoce.client.features import prepare_site
from sottovoce.client.preview import preview
from sottovoce.client.train import train
from sottovoce.client.train_private import train_private
from sottovoce.client.transferred import Anchored, anchored, head_alone, stepping
from sottovoce.common import models
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import WeightsError
from sottovoce.common.initial import Initial
from sottovoce.common.models.depths import depths
from sottovoce.common.optimiser import FlatParameters, Optimiser
from sottovoce.common.progress import silent
from sottovoce.common.study import Execution, Study, Training, load, loads
from sottovoce.common.training import losses_of
from sottovoce.common.transfer import public_figures, start
from sottovoce.common.transfer_specs import ParameterTransfer
from sottovoce.common.weights import from_state_dict
from sottovoce.server.conduct import initial_weights
from sottovoce.server.rounds import Cell, run
from sottovoce.simulations.engines import open_exchange
from sottovoce.simulations.prepare import lay_out, prepare
from tests.client.test_train import KINDS
from tests.client.test_train_private import ByCall
from tests.fakes.initials import initial_for
from tests.fakes.sites import LOCAL, N_CLASSES, SGD, WIDTH, write_sites, write_study
from tests.fakes.transfers import FEATURE, PARAMETER, bound
from tests.fakes.wards import offer, open_hospital, own_part, study_text, write_corpus

MLP = '{ kind = "mlp", stream = "pooled", hidden = 5, dropout = 0.0 }'
PLAIN_SGD = '{ learning_rate = 0.1, optimiser = "sgd", batch_size = 64, local_epochs = 1 }'
WIDTHS = {"pooled": WIDTH}
BODY = ("encoder.hidden.weight", "encoder.hidden.bias")
HEAD = ("head.weight", "head.bias")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Initial]:
    study = load(write_study(tmp_path / "plain.toml", n_sites=2, model=MLP))
    with initial_for(study, tmp_path / "weights", widths=WIDTHS) as file:
        yield file


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sites(tmp_path_factory.mktemp("sites"), 2)


def a_study(tmp_path: Path, made: Initial, transfer: str, **changes: Any) -> Study:
    return load(bound(tmp_path / "study.toml", made, transfer, model=MLP, **changes))


def federated(study_file: Path, sites: dict[str, Path]) -> dict[str, np.ndarray]:
    study = load(study_file)
    weights = start(study, WIDTHS, seed=0).weights
    with open_exchange(Execution(), sites, study_file=study_file) as exchange:
        return dict(
            run(exchange, study, cell=Cell(seed=0, fold=-1, arm="federated"), weights=weights).weights
        )


@pytest.mark.parametrize(
    "strategy", ["fedavg", "fedadam", "fedprox"], ids=["mean", "server optimiser", "proximal pull"]
)
def test_a_frozen_body_stays_to_the_bit_through_a_federation_and_its_head_moves(
    sites: dict[str, Path], made: Initial, tmp_path: Path, strategy: str
) -> None:
    federation = f'strategy = {{ kind = "{strategy}" }}'
    bound(tmp_path / "study.toml", made, FEATURE, model=MLP, federation=federation)
    ended = federated(tmp_path / "study.toml", sites)
    assert all(ended[name].tobytes() == made.weights[name].tobytes() for name in BODY)
    assert all((ended[name] != made.weights[name]).any() for name in HEAD)
    bound(tmp_path / "all.toml", made, model=MLP, federation=federation)
    ended = federated(tmp_path / "all.toml", sites)
    assert all((ended[name] != made.weights[name]).any() for name in (*BODY, *HEAD))


def test_the_model_of_a_process_is_whole_again_after_its_head_was_trained(
    made: Initial, tmp_path: Path
) -> None:
    study = a_study(tmp_path, made, FEATURE)
    model = models.build(study.model, WIDTHS, N_CLASSES, 0)
    with head_alone(model, study.transfer):
        assert [name for name, p in model.named_parameters() if p.requires_grad] == list(HEAD)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_step_of_a_parameter_transfer_is_the_one_computed_by_hand(
    sites: dict[str, Path], made: Initial, tmp_path: Path
) -> None:
    study = a_study(tmp_path, made, PARAMETER, training=PLAIN_SGD)
    data = SiteData.open(sites["site-1"])
    model = models.build(study.model, WIDTHS, N_CLASSES, seed=4)  # somewhere else than the file
    before = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    batch = data.batch(np.arange(len(data)))
    losses_of(model(batch.inputs, batch.lengths), batch.labels, study.training).mean().backward()  # type: ignore[no-untyped-call]
    gradient = {
        name: p.grad.double().numpy().copy() for name, p in model.named_parameters() if p.grad is not None
    }
    train(model, data, study.training, seed=0, site="s", round=1, rounds=1, transfer=anchored(study, model))
    for name, below in (*((name, 1) for name in BODY), *((name, 0) for name in HEAD)):
        pulled = gradient[name] + 0.1 * (before[name] - made.weights[name])
        wanted = before[name] - 0.1 * 0.5**below * pulled
        np.testing.assert_allclose(model.state_dict()[name].numpy(), wanted, rtol=1e-5, atol=1e-7)


def test_nothing_pulls_to_a_tensor_that_did_not_come_from_the_file(tmp_path: Path) -> None:
    study = load(write_study(tmp_path / "plain.toml", n_sites=2, model=MLP))
    with initial_for(study, tmp_path / "weights", widths=WIDTHS, classes=("a", "b", "c")) as made:
        found = anchored(a_study(tmp_path, made, PARAMETER), models.build(study.model, WIDTHS, N_CLASSES, 0))
    assert found is not None
    assert set(found.anchors) == set(BODY)


@pytest.mark.parametrize(
    "spec",
    [
        Training(learning_rate=0.1, optimiser="sgd", momentum=0.9, weight_decay=0.1),
        Training(learning_rate=0.1, optimiser="adam", weight_decay=0.1),
        Training(learning_rate=0.1, optimiser="adamw", weight_decay=0.1),
    ],
    ids=lambda spec: spec.optimiser,
)
def test_a_share_of_a_step_is_the_step_at_that_share_of_the_rate(spec: Training) -> None:
    gentle, lower = (models.build(KINDS[1], {"stats": 6}, 3, seed=1) for _ in range(2))
    transfer = ParameterTransfer(kind="parameter", initial_sha256="0" * 64, layer_rate_decay=0.25, pull=0.0)
    draw = torch.Generator().manual_seed(0)
    with FlatParameters(gentle) as one, FlatParameters(lower) as other:
        steps = stepping(Optimiser(spec, one.values), gentle, one, Anchored(spec=transfer, anchors={}))
        slow = Optimiser(spec, other.values)
        for _ in range(5):
            gradient = torch.randn(one.values.shape, generator=draw)
            steps.step(one.values, gradient.clone(), spec.learning_rate)
            slow.step(other.values, gradient.clone(), 0.25 * spec.learning_rate)
    for name in ("encoder.hidden.weight", "encoder.hidden.bias"):
        torch.testing.assert_close(gentle.state_dict()[name], lower.state_dict()[name])
    assert not torch.allclose(gentle.state_dict()["head.weight"], lower.state_dict()["head.weight"])


def test_full_rates_and_no_pull_are_the_plain_steps_to_the_bit(
    sites: dict[str, Path], made: Initial, tmp_path: Path
) -> None:
    whole = PARAMETER.replace("0.5", "1.0").replace("0.1", "0.0")
    bound(tmp_path / "model.toml", made, model=MLP)
    bound(tmp_path / "parameter.toml", made, whole, model=MLP)
    one, other = (federated(tmp_path / f"{name}.toml", sites) for name in ("model", "parameter"))
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: f"{spec.kind} {getattr(spec, 'level', '')}".strip())
def test_every_parameter_has_a_depth_and_heads_have_none(spec: object) -> None:
    model = models.build(spec, {"mel": 4, "stats": 6}, 3, seed=0)  # type: ignore[arg-type]
    found = depths(model)
    assert list(found) == [name for name, _ in model.named_parameters()]
    for name, depth in found.items():
        # A weight of a decision fusion stands beside its heads.
        assert (depth == 0) == (".head." in f".{name}" or name == "weights"), name
    assert set(found.values()) == set(range(max(found.values()) + 1))


def test_depths_count_from_the_head_down_to_the_features() -> None:
    cnn = depths(models.build(KINDS[2], {"mel": 4, "stats": 6}, 3, seed=0))
    assert (cnn["encoder.convs.convs.1.weight"], cnn["encoder.convs.norms.0.bias"]) == (1, 2)
    mixed = depths(models.build(KINDS[6], {"mel": 4, "stats": 6}, 3, seed=0))
    order = ["head.weight", "encoder.pooling.score.0.weight", "encoder.recurrent.onward.weight_ih_l0"]
    assert [mixed[name] for name in [*order, "encoder.convs.convs.0.weight"]] == [0, 1, 2, 3]
    attention = depths(models.build(KINDS[5], {"mel": 4, "stats": 6}, 3, seed=0))
    names = ["encoder.norm.weight", "encoder.blocks.1.out.weight", "encoder.blocks.0.out.weight"]
    assert [attention[name] for name in [*names, "encoder.entry.weight"]] == [1, 1, 2, 3]


def test_in_a_private_mode_rates_are_of_what_was_released(
    sites: dict[str, Path], made: Initial, tmp_path: Path
) -> None:
    data = SiteData.open(sites["site-1"])

    def change(transfer: str) -> dict[str, np.ndarray]:
        study = a_study(tmp_path, made, transfer, n_sites=1, privacy=LOCAL, training=SGD)
        model = models.build(study.model, WIDTHS, N_CLASSES, seed=0)
        model.load_state_dict({name: torch.tensor(array) for name, array in made.weights.items()})
        update = train_private(model, data, study, site="s", round=1, source=ByCall())
        flat, ended = (
            torch.from_numpy(np.array(update.values)),
            models.build(study.model, WIDTHS, N_CLASSES, 0),
        )
        torch.nn.utils.vector_to_parameters(flat, ended.parameters())
        return {name: a - made.weights[name] for name, a in from_state_dict(ended.state_dict()).items()}

    plain, slow = (
        change('kind = "model"'),
        change(PARAMETER),
    )  # it starts at the anchor: one step, no pull yet
    for name in BODY:
        np.testing.assert_allclose(slow[name], 0.5 * plain[name], rtol=1e-4, atol=1e-6)
    for name in HEAD:
        np.testing.assert_allclose(slow[name], plain[name], rtol=1e-4, atol=1e-6)


def test_a_deployed_federation_starts_where_a_simulated_one_does(made: Initial, tmp_path: Path) -> None:
    study = load(write_study(tmp_path / "plain.toml", n_sites=2, model=MLP))
    with initial_for(study, tmp_path / "wide", widths={"pooled": 80}) as wide:
        bound_study = a_study(tmp_path, wide, 'kind = "model"')
        begun = initial_weights(bound_study, 0)
    assert all(begun[name].tobytes() == wide.weights[name].tobytes() for name in begun)


def test_whoever_approves_reads_from_what_public_corpus_a_study_starts_and_who_signed(tmp_path: Path) -> None:
    study = load(write_study(tmp_path / "plain.toml", n_sites=2, model=MLP))
    with initial_for(study, tmp_path / "weights", widths={"pooled": 80}) as made:
        shown = preview(load(bound(tmp_path / "study.toml", made, model=MLP)), site="north")
    said = " ".join(shown.starts_from)
    assert "signed by Public Voices Ltd" in said
    assert "voices (manifest abababababababab…, 96 recordings of 12 speakers) alone" in said
    assert "4 tensors that weights begin with (supervised)" in said
    assert preview(study, site="north").starts_from == ()


@pytest.mark.parametrize(
    ("transfer", "needed"), [('kind = "model"', False), (FEATURE, False), (PARAMETER, True)]
)
def test_weights_to_start_from_come_with_the_first_message_and_a_pull_needs_the_file(
    tmp_path: Path, made: Initial, monkeypatch: pytest.MonkeyPatch, transfer: str, needed: bool
) -> None:
    study = a_study(tmp_path, made, transfer)
    monkeypatch.delenv("SOTTOVOCE_WEIGHTS")
    if needed:
        with pytest.raises(WeightsError, match="it is in none"):
            public_figures(study)
    else:
        assert public_figures(study) == (study.normalisation, {})


def test_a_hospital_without_the_file_is_told_so_and_trains_on_nothing_else(tmp_path: Path) -> None:
    text = study_text()
    with initial_for(loads(text), tmp_path / "weights", widths={"frames": 8, "statistics": 80}) as made:
        pass
    hospital = open_hospital(tmp_path / "h", "north", data=None)
    named = f'"medical"\ninitial_signed_by = "{made.public_key}"'
    study = offer(
        hospital,
        text.replace('"medical"', named).replace(
            '"speaker" }', f'"constants", from_initial = "{made.sha256}" }}'
        ),
    )
    (finding,) = doctor_weights.weights(hospital)
    assert (finding.level, made.sha256[:16] in finding.cause) == ("warn", True)
    assert "weights/" in finding.mend
    assert preview(study, site="north").starts_from[0].startswith("NOT HERE: Expected the initial file")
    with pytest.raises(WeightsError, match="it is in none"):
        public_figures(study)
    (tmp_path / "weights").rename(hospital.weights)
    assert list(doctor_weights.weights(hospital)) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("whole"))


def test_public_figures_and_reductions_give_a_hospital_the_bytes_of_the_simulation(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path / "cache"))
    plain = study_text()
    widths = {"frames": 8, "statistics": 80}
    with initial_for(loads(plain), tmp_path / "weights", widths=widths, columns=3) as file:
        reduction = f'reduction = {{ sha256 = "{file.sha256}", columns = 2 }}'
        text = (
            plain.replace('"speaker" }', f'"constants", from_initial = "{file.sha256}" }}')
            .replace('{ kind = "mfcc" }], pooling', f'{{ kind = "mfcc" }}], {reduction}, pooling')
            .replace('"medical"', f'"medical"\ninitial_signed_by = "{file.public_key}"')
        )
        study = loads(text)
        found = prepare(study, {"wards": whole}, workers=1, on_event=silent)
        lay_out(study, found.prepared, tmp_path / "run", silent)
    simulated = tmp_path / "run" / "sites" / "00002"
    assert SiteData.open(simulated).widths == {"frames": 8, "statistics": 2}
    hospital = open_hospital(tmp_path / "h", "north", data=own_part(whole, "north", tmp_path / "data"))
    offer(hospital, text)
    (tmp_path / "weights").rename(hospital.weights)  # where an administrator puts it; nobody else has it now
    alone = prepare_site(hospital, study)
    assert {p.name: p.read_bytes() for p in alone.iterdir()} == {
        p.name: p.read_bytes() for p in simulated.iterdir()
    }
