"""What a site answers in a private mode: through the ledger or not at all."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sottovoce.client import releases
from sottovoce.client.private import all_rows
from sottovoce.client.private.bookkeeping import BookKeeping
from sottovoce.client.releases import (
    NOTHING_RELEASED,
    Called,
    Refusal,
    contributions,
    release_confusion,
    release_update,
)
from sottovoce.client.site_ledger import WITHDRAWN_FILE, SiteLedger
from sottovoce.client.train_private import train_private
from sottovoce.common import models
from sottovoce.common import study as studies
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import PrivacyError, RunError
from sottovoce.common.flower import Node
from sottovoce.common.groups import Tables
from sottovoce.common.keys import SigningKey
from sottovoce.common.ledger.entries import Burn, Commit, Reserve
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.models.losses import per_example
from sottovoce.common.privacy.budget import Granted
from sottovoce.common.privacy.stages import PrivateUpdate
from sottovoce.common.study import Execution, Study
from sottovoce.common.weights import Layout, from_state_dict
from sottovoce.server.exchange import Call, Collected, GridExchange, Share
from sottovoce.simulations import site_ledgers
from sottovoce.simulations.engines import open_exchange
from sottovoce.simulations.engines.inprocess import InProcessGrid
from tests.fakes.sites import N_CLASSES, WIDTH, private_study, write_sites, write_study

SITE = "site-1"
TABLES = Tables(n_classes=N_CLASSES)


class Place:
    """A site with data, a study, a model and an approved ledger."""

    def __init__(self, folder: Path, **changes: str) -> None:
        self.study_file = private_study(folder / "study.toml", rounds=2, **changes)
        self.study: Study = studies.load(self.study_file)
        self.sites = write_sites(folder / "sites", 1)
        self.data = SiteData.open(self.sites[SITE])
        self.ledgers = folder / "ledgers"
        self.ledger = site_ledgers.open_all(self.ledgers, self.study, [SITE])[SITE]
        self.model: nn.Module = models.build(self.study.model, {"pooled": WIDTH}, N_CLASSES, seed=0)

    def update(self, *, round: int = 1, model: str = "a" * 64) -> bytes:
        called = Called(seed=0, fold=0, round=round, model=model)
        return release_update(self.ledger, self.study, self.model, self.data, called).data

    def kinds(self) -> list[str]:
        entries = entries_of((self.ledger / "ledger.jsonl").read_bytes())
        return [e.body.kind for e in entries if isinstance(e.body, Reserve | Commit | Burn)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def own(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_same_question_gets_the_same_bytes_and_spends_nothing_more(own: Place) -> None:
    first = own.update()
    assert own.update() == first
    assert own.kinds() == ["reserve", "commit"]
    assert own.update(model="b" * 64) is not None  # another model is another release, and is charged
    assert own.kinds() == ["reserve", "commit"] * 2


def test_when_the_grant_is_used_up_the_answer_is_no_before_any_training(
    own: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):  # two rounds and one to spare
        own.update(round=number + 1)
    monkeypatch.setattr(releases, "train_private", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(PrivacyError, match="ledger says no"):
        own.update(round=4)


def test_a_failure_is_burned_and_its_reason_stays_at_the_site(
    own: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PrivacyError("something of patient 17")

    monkeypatch.setattr(releases, "train_private", fail)
    with pytest.raises(Refusal, match="released nothing in this round") as caught:
        own.update()
    assert "17" not in str(caught.value)
    assert "patient 17" in caplog.text
    assert own.kinds() == ["reserve", "burn"]
    monkeypatch.undo()
    own.update()  # the spare round pays for the second try
    assert own.kinds() == ["reserve", "burn", "reserve", "commit"]


def test_weights_that_overflow_for_one_patient_get_an_answer_like_any_other(tmp_path: Path) -> None:
    place = Place(tmp_path, sampling_prob="1.0")
    features = np.array(place.data.arrays["pooled"])
    features[0] = 3e38  # finite, and with these weights its gradient is not
    with torch.no_grad():
        place.model.get_parameter("encoder.hidden.weight").fill_(1e3)
    place.data = replace(place.data, arrays={"pooled": features})
    engine = BookKeeping(place.model, per_example)
    rows = all_rows(engine, place.data.batch(np.arange(1)), np.zeros(1, np.int64))
    assert not torch.isfinite(rows).all()
    assert np.isfinite(np.frombuffer(place.update(), "<f4")).all()
    assert place.kinds() == ["reserve", "commit"]


def test_a_crash_between_reservation_and_commit_is_burned_and_the_next_try_is_charged(
    own: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(releases, "train_private", die)
    monkeypatch.setattr("sottovoce.common.privacy.budget.Budget.burn", lambda *_: None)  # no time for that
    with pytest.raises(Killed):
        own.update()
    monkeypatch.undo()
    assert own.kinds() == ["reserve"]
    own.update()
    assert own.kinds() == ["reserve", "burn", "reserve", "commit"]


def test_without_an_approval_nothing_is_reserved(own: Place, caplog: pytest.LogCaptureFixture) -> None:
    own.study = replace(own.study, name="another")
    with pytest.raises(Refusal):
        own.update()
    assert "Expected an approval of study" in caplog.text
    assert own.kinds() == []


def test_a_patient_who_withdrew_is_out_of_the_next_release(
    own: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[frozenset[str]] = []

    def watched(*arguments: Any, withdrawn: frozenset[str], **more: Any) -> PrivateUpdate:
        seen.append(withdrawn)
        return train_private(*arguments, withdrawn=withdrawn, **more)

    monkeypatch.setattr(releases, "train_private", watched)
    own.update(round=1)
    with SiteLedger.open(own.ledger) as site:
        assert site.withdraw(site_ledgers.DOMAIN, "site-1-speaker-2") == 1
        assert site.withdraw(site_ledgers.DOMAIN, "site-1-speaker-2") == 1  # said twice, gone once
    own.update(round=2)
    assert seen == [frozenset(), {"site-1-speaker-2"}]
    assert b"speaker-2" not in (own.ledger / "ledger.jsonl").read_bytes()


def test_the_ledger_shows_that_what_enrols_was_exchanged_between_two_rounds(own: Place) -> None:
    """It changes every feature, and no key of a recording that is trained on."""
    own.update(round=1)
    own.update(round=2)
    own.data = replace(own.data, enrolled="b" * 64)
    own.update(round=3)
    entries = entries_of((own.ledger / "ledger.jsonl").read_bytes())
    first, second, third = (e.body.manifest for e in entries if isinstance(e.body, Reserve))
    assert first == second != third


def test_a_lost_list_of_withdrawals_stops_every_release(own: Place) -> None:
    with SiteLedger.open(own.ledger) as site:
        site.withdraw(site_ledgers.DOMAIN, "site-1-speaker-2")
    (own.ledger / WITHDRAWN_FILE).unlink()
    with pytest.raises(Refusal, match="says no") as caught:
        own.update()
    assert "withdrawals" not in str(caught.value)  # how many there were is nobody else's


def test_a_patient_counts_at_most_so_many_recordings(place: Place) -> None:
    rows = contributions(place.model, place.data, TABLES, n_most=2)
    assert rows.shape == (4, N_CLASSES**2)
    assert rows.sum(axis=1).tolist() == [2.0] * 4
    every = contributions(place.model, place.data, TABLES, n_most=99)
    assert every.sum() == len(place.data)


def test_counts_are_noised_and_charged(own: Place) -> None:
    called = Called(seed=0, fold=0, round=2, model="a" * 64)
    found = np.frombuffer(release_confusion(own.ledger, own.study, own.model, own.data, called).data, "<i8")
    true = contributions(own.model, own.data, TABLES, n_most=2).sum(axis=0)
    assert (found != true).any()
    assert np.abs(found - true).max() < 2 * 9.4  # noise 1.0 x 2 recordings
    assert own.kinds() == ["reserve", "commit"]


def call_of(place: Place, *, private: bool, config: dict[str, bool] | None = None) -> Call:
    weights = from_state_dict(place.model.state_dict())
    return Call(
        round=1, rounds=2, attempt=1, seed=0, fold=-1, layout=Layout.of(weights),
        weights=Layout.of(weights).flatten(weights), deadline_seconds=60.0, max_update_norm=1e4, private=private,
        config=config or {},
    )  # fmt: skip


def exchanged(place: Place, *, config: dict[str, bool] | None = None, **engine: object) -> dict[str, str]:
    call = call_of(place, private=True, config=config)
    with open_exchange(Execution(), place.sites, study_file=place.study_file, **engine) as exchange:  # type: ignore[arg-type]
        return exchange.train(call, [Share(site=SITE)]).refused


def test_no_word_in_a_message_turns_privacy_off(own: Place) -> None:
    assert exchanged(own, ledgers=own.ledgers, config={"without-privacy": True}) == {}
    assert own.kinds() == ["reserve", "commit"]
    (reason,) = exchanged(own, ledgers=own.ledgers, config={"leaking-split": True}).values()
    assert "no split by recording in a private mode" in reason


def test_a_site_with_a_ledger_asks_it_before_mode_none_too(own: Place, tmp_path: Path) -> None:
    from sottovoce.client import app

    bare_file = write_study(tmp_path / "bare.toml", n_sites=1)
    bare, weights = studies.load(bare_file), from_state_dict(own.model.state_dict())
    settings = {
        "site-folder": str(own.sites[SITE]), "ledger-folder": str(own.ledger), "study-file": str(bare_file),
    }  # fmt: skip
    grid = InProcessGrid(app.app, [Node(site=SITE, config=settings)], {})
    call = call_of(own, private=False)

    def ask() -> Collected:
        return GridExchange(grid, grid.sites).train(call, [Share(site=SITE)])

    assert ask().refused == {SITE: f"no answer: {NOTHING_RELEASED}"}
    bare_counts = GridExchange(grid, grid.sites).evaluate(replace(call, fold=0), [SITE], TABLES)
    assert bare_counts.refused == {SITE: f"no answer: {NOTHING_RELEASED}"}
    assert own.kinds() == []
    allow_everything(own, bare)
    first, again = ask(), ask()
    assert first.refused == {}
    assert first.total.any()
    np.testing.assert_array_equal(first.total, again.total)
    assert own.kinds() == ["reserve", "commit"]
    assert first.total.size == sum(array.size for array in weights.values())


def test_a_hospital_s_node_takes_no_setting_from_the_run(own: Place, tmp_path: Path) -> None:
    from sottovoce.client import app

    settings = {"site-folder": str(own.sites[SITE]), "ledger-folder": str(own.ledger)}
    bare = str(write_study(tmp_path / "bare.toml", n_sites=1))
    grid = InProcessGrid(app.app, [Node(site=SITE, config=settings)], {"study-file": bare})
    found = GridExchange(grid, grid.sites).train(call_of(own, private=False), [Share(site=SITE)])
    assert found.refused == {SITE: f"no answer: {NOTHING_RELEASED}"}


def test_an_error_of_a_hospital_names_no_person_no_path_and_no_count(
    own: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sottovoce.client import app

    def fail(*_: object, **__: object) -> None:
        raise RunError("/data/Anna-1961: expected 17 recordings")

    monkeypatch.setattr(app, "withheld", fail)
    assert exchanged(own, ledgers=own.ledgers) == {SITE: f"no answer: {NOTHING_RELEASED}"}


def test_weights_in_another_order_mean_what_their_names_say(own: Place) -> None:
    call = call_of(own, private=True)
    weights = call.layout.unflatten(call.weights)
    turned = dict(reversed(list(weights.items())))
    other = replace(call, layout=Layout.of(turned), weights=Layout.of(turned).flatten(turned))
    found = []
    for asked in (call, other):
        with open_exchange(
            Execution(), own.sites, study_file=own.study_file, ledgers=own.ledgers
        ) as exchange:
            found.append(
                asked.layout.unflatten(exchange.train(asked, [Share(site=SITE)]).total.astype(np.float32))
            )
    for name in weights:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    assert own.kinds() == ["reserve", "commit"]  # it was one question, asked twice


def allow_everything(place: Place, study: Study) -> None:
    """Adopts a second policy that lets mode none run, and approves the study."""
    key = SigningKey.generate()
    text = (place.ledger / "policy.toml").read_text()
    text = text.replace("version = 1", "version = 2").replace(
        'modes = ["local"]', 'modes = ["local", "none"]'
    )
    text = text.replace(place.study.digest(), study.digest())
    text = re.sub(r'public_key = "\w+"', f'public_key = "{key.public_hex}"', text)
    text = text.replace('purposes = ["research"]', f'purposes = ["{study.purpose}"]')
    (place.ledger / "second.toml").write_text(text)
    with SiteLedger.open(place.ledger) as site:
        site.adopt(place.ledger / "second.toml")
        granted = site.approve(study, domain=site_ledgers.DOMAIN, person=site_ledgers.PERSON, key=key)
    assert isinstance(granted, Granted), granted


def test_a_private_study_without_a_ledger_trains_nothing(place: Place) -> None:
    (reason,) = exchanged(place).values()
    assert "ledger-folder" in reason


def test_a_site_that_answers_without_privacy_is_refused_by_the_coordinator_too(place: Place) -> None:
    (reason,) = exchanged(place, without_privacy=True).values()
    assert "expected the signed checkpoint of the site's ledger" in reason


def test_only_a_node_s_own_configuration_makes_it_a_twin_and_never_beside_a_ledger() -> None:
    from sottovoce.client import app

    config = {"without-privacy": True, "ledger-folder": "x"}
    both = SimpleNamespace(node_config=config, run_config={})
    assert app._is_twin(SimpleNamespace(node_config={"without-privacy": True}, run_config={}))  # type: ignore[arg-type]
    of_the_run = SimpleNamespace(node_config={}, run_config={"without-privacy": True})
    assert not app._is_twin(of_the_run)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="came both"):
        app._is_twin(both)  # type: ignore[arg-type]
