"""What a site keeps of its own: it begins anew when somebody withdraws, and lies as the features do."""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sottovoce.cli import app as command_line
from sottovoce.client import app as client_app
from sottovoce.client.personal import RELEASED, PersonalState, forget
from sottovoce.client.personalise import train_own
from sottovoce.client.site_ledger import SiteLedger
from sottovoce.common import models
from sottovoce.common import study as studies
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import RunError
from sottovoce.common.flower import PERSONAL, Node
from sottovoce.common.keys import SigningKey
from sottovoce.common.privacy.budget import Granted
from sottovoce.common.weights import Array, Layout, from_state_dict
from sottovoce.server.exchange import Beside, Call, Collected, GridExchange, Share
from sottovoce.simulations.engines.inprocess import InProcessGrid
from sottovoce.simulations.site_ledgers import DOMAIN, PERSON
from tests.fakes.secure_rounds import LOCAL
from tests.fakes.sites import LINEAR, MLP, N_CLASSES, NONE, SGD, WIDTH, write_sites, write_study

SITE, GONE = "site-1", "site-1-speaker-2"
STEPS = '{ learning_rate = 0.1, optimiser = "sgd", batch_size = 4, steps_per_round = 2 }'
OWN = {
    "fedper": 'personalisation = { kind = "fedper" }',
    "ditto": 'personalisation = { kind = "ditto" }',
    "scaffold": 'strategy = { kind = "scaffold" }',
}
POLICY = """\
format = 1
site = "site-1"
version = 1
changed_by = "{person}"
reason = "test"
studies = ["{digest}"]
purposes = ["research"]
modes = ["none", "local"]
max_epsilon_per_study = 1000.0
max_sites_per_patient = 9
allow_non_private = true
domains = [{{ name = "{domain}", n_patients = 8, epsilon_cap = 1000.0, delta = 0.05, small_population = true }}]
approvers = [{{ name = "{person}", public_key = "{key}" }}]
"""


class Home:
    """A hospital of one site with a ledger, whose own models and controls are asked for round by round."""

    def __init__(self, folder: Path, kind: str, *, privacy: str = NONE, without: str = "") -> None:
        folder.mkdir()
        federation = f"secure_sum = false, {OWN[kind]}"
        training, model = (STEPS, LINEAR) if kind == "scaffold" else (SGD, MLP)
        study_file = write_study(
            folder / "study.toml", n_sites=1, privacy=privacy, model=model, training=training, federation=federation
        )  # fmt: skip
        self.study, self.ledger, self.state = studies.load(study_file), folder / "ledger", folder / "state"
        self.data = write_sites(folder / "sites", 1)[SITE]
        if without:  # a site that never had this patient
            data = SiteData.open(self.data)
            kept = data.select(np.array([patient != without for patient in data.patients]))
            self.data = folder / "fewer"
            _write(kept, self.data)
        self._approve()
        config = {
            "site-folder": str(self.data), "study-file": str(study_file), "ledger-folder": str(self.ledger),
            "state-folder": str(self.state),
        }  # fmt: skip
        grid = InProcessGrid(client_app.app, [Node(site=SITE, config=config)], {})
        self.exchange = GridExchange(grid, grid.sites)
        model_ = models.build(self.study.model, {"pooled": WIDTH}, N_CLASSES, seed=0)
        self.start: Mapping[str, Array] = from_state_dict(model_.state_dict())
        self.layout = Layout.of(self.start)

    def _approve(self) -> None:
        key = SigningKey.generate()
        SiteLedger.create(self.ledger, site=SITE)
        policy = POLICY.format(person=PERSON, digest=self.study.digest(), domain=DOMAIN, key=key.public_hex)
        (self.ledger / "first.toml").write_text(policy)
        with SiteLedger.open(self.ledger) as site:
            site.adopt(self.ledger / "first.toml")
            assert isinstance(site.approve(self.study, domain=DOMAIN, person=PERSON, key=key), Granted)

    def round(self, number: int, *, counted: int | None = None) -> Collected:
        """Asks for a round; with `counted` as a study with SCAFFOLD does."""
        weights = self.layout.flatten(self.start)
        beside = None if counted is None else Beside(vector=0.01 + weights, counted={SITE: counted})
        personal = {} if self.study.federation.personalisation is None else {PERSONAL: True}
        call = Call(
            round=number, rounds=3, attempt=1, seed=0, fold=-1, layout=self.layout, weights=weights,
            deadline_seconds=60.0, max_update_norm=1e4, private=self.study.privacy.mode != "none", beside=beside,
            config=personal,
        )  # fmt: skip
        found = self.exchange.train(call, [Share(site=SITE)])
        assert found.refused == {}
        return found

    def withdraw(self) -> None:
        """Somebody withdraws, and nobody calls the command line, which would remove files at once."""
        with SiteLedger.open(self.ledger) as site:
            site.withdraw(DOMAIN, GONE)

    def kept(self) -> dict[str, bytes]:
        """Returns every file of the state, by its path."""
        return {
            str(path.relative_to(self.state / self.study.digest())): path.read_bytes()
            for path in self.state.rglob("*") if path.is_file()
        }  # fmt: skip


def _write(data: SiteData, folder: Path) -> None:
    from sottovoce.common.dataset import _examples

    SiteData.write(folder, site=data.site, shapes=data.shapes, examples=_examples(data))


@pytest.mark.parametrize("kind", ["fedper", "ditto"])
def test_after_a_withdrawal_a_sites_own_model_is_that_of_a_site_that_never_had_the_patient(
    tmp_path: Path, kind: str
) -> None:
    home, other = Home(tmp_path / "home", kind), Home(tmp_path / "other", kind, without=GONE)
    home.round(1)
    (before,) = home.kept()
    assert before == "seed0-fold-1/round-000001.safetensors"
    home.withdraw()
    home.round(2)
    other.round(2)
    (after,), (never) = home.kept().values(), other.kept().values()
    assert [after] == list(never)
    assert before not in home.kept()
    (path,) = home.kept()
    assert re.fullmatch(r"seed0-fold-1-without-[0-9a-f]{32}/round-000002\.safetensors", path)


@pytest.mark.parametrize("kind", ["fedper", "ditto"])
def test_without_a_withdrawal_it_goes_on_from_the_round_before(tmp_path: Path, kind: str) -> None:
    """The twin of the claim above: what is begun anew is not what would have been there anyway."""
    home, other = Home(tmp_path / "home", kind), Home(tmp_path / "other", kind)
    home.round(1)
    home.round(2)
    other.round(2)
    name = "seed0-fold-1/round-000002.safetensors"
    assert home.kept()[name] != other.kept()[name]


def test_what_is_sent_again_after_a_withdrawal_is_not_kept_again(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", "fedper")
    first = home.round(1)
    home.withdraw()
    np.testing.assert_array_equal(home.round(1).total, first.total)  # its release was committed before
    assert home.kept() == {}


def test_a_withdrawal_while_a_model_is_trained_takes_what_was_kept_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, real = Home(tmp_path / "home", "ditto"), train_own

    def interrupted(*arguments: Any) -> None:
        home.withdraw()
        real(*arguments)

    monkeypatch.setattr(client_app, "train_own", interrupted)
    home.round(1)
    assert home.kept() == {}


def test_a_control_without_noise_begins_anew_after_a_withdrawal(tmp_path: Path) -> None:
    home, other = Home(tmp_path / "home", "scaffold"), Home(tmp_path / "other", "scaffold", without=GONE)
    home.round(1, counted=0)
    home.withdraw()
    update = home.round(2, counted=1).total
    (name,) = home.kept()
    assert "without" in name
    # A round without correction: the control is the mean of that round's gradients, of those who are still here.
    state = PersonalState(
        home.state, study_digest=home.study.digest(), seed=0, fold=-1, series=name.split("without-")[1][:32]
    )
    np.testing.assert_allclose(home.layout.flatten(state.read(2)), -update / 0.2, atol=1e-5)
    plain = Home.round(_without_strategy(other, tmp_path), 2)
    np.testing.assert_allclose(update, plain.total, atol=1e-7)
    home.round(3, counted=1)  # its last answer was lost: the same again, and no error


def _without_strategy(home: Home, folder: Path) -> Home:
    """Returns a home of FedAvg over the same data: nobody corrects anything there."""
    federation = "secure_sum = false"
    study_file = write_study(
        folder / "plain.toml", n_sites=1, model=LINEAR, training=STEPS, federation=federation
    )
    config = {"site-folder": str(home.data), "study-file": str(study_file)}
    grid = InProcessGrid(client_app.app, [Node(site=SITE, config=config)], {})
    home.study, home.exchange = studies.load(study_file), GridExchange(grid, grid.sites)
    return home


def test_a_control_of_released_numbers_outlives_a_withdrawal(tmp_path: Path) -> None:
    """It follows from the update that left; beginning anew would put the shared control off for good."""
    quiet = LOCAL.replace(", counts_noise_multiplier = 1.0, counts_utterances = 2", "")
    quiet = quiet.replace("noise_multiplier = 1.0", "noise_multiplier = 8.0").replace(
        "prob = 0.75", "prob = 1.0"
    )
    home = Home(tmp_path / "home", "scaffold", privacy=quiet)
    home.round(1, counted=0)
    home.withdraw()
    home.round(2, counted=1)
    assert set(home.kept()) == {f"seed0-fold-1-{RELEASED}/round-00000{n}.safetensors" for n in (1, 2)}


def state_of(folder: Path, **more: Any) -> PersonalState:
    return PersonalState(folder, study_digest="d", seed=0, fold=1, **more)


ARRAYS = {"b": np.arange(3, dtype=np.float32), "a": np.ones((2, 2), np.float32)}


def test_forgetting_takes_all_but_what_follows_from_released_numbers(tmp_path: Path) -> None:
    for series in ("", "0" * 32, RELEASED):
        state_of(tmp_path, series=series).write(1, ARRAYS, oldest=1)
    forget(tmp_path)
    assert [path.name for path in (tmp_path / "d").iterdir()] == [f"seed0-fold1-{RELEASED}"]
    forget(tmp_path / "none")  # nothing was ever kept


def test_the_command_that_records_a_withdrawal_removes_what_was_trained_with_everybody(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "home", "ditto")
    home.round(1)
    (tmp_path / "home" / "hospital.toml").write_text("")
    assert home.kept() != {}
    arguments = ["ledger", "withdraw", str(home.ledger), "--domain", DOMAIN, "--patient", GONE]
    assert CliRunner().invoke(command_line, arguments).exit_code == 0
    assert home.kept() == {}


def test_nobody_else_on_the_machine_may_look_into_what_is_kept(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state_of(tmp_path / "state").write(1, ARRAYS, oldest=1)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "state").rglob("*") if path.is_dir()}
    assert modes | {(tmp_path / "state").stat().st_mode & 0o777} == {0o700}
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.stat().st_mode & 0o777 == 0o600


def test_with_a_key_nothing_lies_open_and_comes_back_to_the_bit(tmp_path: Path) -> None:
    key = secrets.token_bytes(32)
    state_of(tmp_path, key=key).write(1, ARRAYS, oldest=1)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert ARRAYS["b"].tobytes() not in file.read_bytes()
    assert b"sha256" not in file.read_bytes()
    found = state_of(tmp_path, key=key).read(1)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("deed", ["bit", "cut", "round", "series", "key"])
def test_whatever_was_done_to_sealed_state_it_is_refused(tmp_path: Path, deed: str) -> None:
    key = secrets.token_bytes(32)
    state = state_of(tmp_path, key=key)
    state.write(1, ARRAYS, oldest=1)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    data, n, reader = file.read_bytes(), 1, state
    if deed == "bit":
        file.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    elif deed == "cut":
        file.write_bytes(data[:-1])
    elif deed == "round":
        n = 2
        file.rename(file.with_name("round-000002.sealed"))
    elif deed == "series":
        file.parent.rename(file.parent.with_name(f"seed0-fold1-{RELEASED}"))
        reader = state_of(tmp_path, key=key, series=RELEASED)
    else:
        reader = state_of(tmp_path, key=secrets.token_bytes(32))
    with pytest.raises(RunError, match=f"kept in round {n}; ValueError"):
        reader.read(n)


@pytest.mark.parametrize("first", ["open", "sealed"])
def test_what_lies_open_is_refused_once_a_key_is_set_and_the_other_way_round(
    tmp_path: Path, first: str
) -> None:
    key = secrets.token_bytes(32)
    written, asked = (None, key) if first == "open" else (key, None)
    state_of(tmp_path, key=written).write(1, ARRAYS, oldest=1)
    with pytest.raises(RunError, match=f"It lies {first}"):
        state_of(tmp_path, key=asked).read(1)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    state_of(tmp_path).write(1, ARRAYS, oldest=1)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunError, match="damaged"):
        state_of(tmp_path).read(1)
