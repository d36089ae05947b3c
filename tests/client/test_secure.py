"""A site's answers in secure sums, one at a time; and what site and coordinator must make of one study alike."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.client import app as client_app
from sottovoce.client import secure
from sottovoce.client.releases import UNDER_MASKS_ONLY, Called, Refusal, release_part
from sottovoce.client.secure import Answer, Mask, answered
from sottovoce.client.secure_folder import SecureFolder
from sottovoce.client.site_ledger import OUTBOX, Ask, Released, SiteLedger
from sottovoce.common import models
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import PrivacyError, QuorumError, RunError
from sottovoce.common.federation_ledger.compare import compare_with_site
from sottovoce.common.groups import Tables
from sottovoce.common.keys import SigningKey
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.privacy import distributed
from sottovoce.common.secagg.complaint import Phase, read_complaint
from sottovoce.common.secagg.coordinator import Coordinator, SecureSum
from sottovoce.common.secagg.journal import PHASES
from sottovoce.common.secagg.session import Member, Session
from sottovoce.common.study import Study, load
from sottovoce.common.sums import COUNTS, UPDATE, run_name, terms_of
from sottovoce.common.weights import Layout, digest
from sottovoce.server.exchange import Call, Share
from sottovoce.server.rounds import Outcome, run
from tests.fakes import secure_rounds
from tests.fakes.secagg import World
from tests.fakes.secure_rounds import CELL, Federation
from tests.fakes.sites import DISTRIBUTED, LINEAR, N_CLASSES, SGD, WIDTH, write_study

# --- one site's five answers, and the same questions again ---


@dataclass
class Played:
    """One attempt of three sites with folders; what the first one was asked in each phase, and what it held."""

    folder: Path
    world: World = field(default_factory=lambda: World(3))
    bodies: dict[Phase, bytes] = field(default_factory=dict)
    held: dict[Phase, bytes] = field(default_factory=dict)
    n_vectors: int = 0

    def __post_init__(self) -> None:
        for number, key in enumerate(self.world.keys):
            (self.folder / str(number)).mkdir()
            key.save(self.folder / str(number))
        coordinator = Coordinator(self.world.session(), key=self.world.coordinator_key)
        sites = {self.world.site(number): number for number in range(3)}
        bodies, held = dict.fromkeys(sites, coordinator.opening()), dict.fromkeys(sites, b"")
        for phase in PHASES:
            self.bodies[phase], self.held[phase] = bodies[self.world.site(0)], held[self.world.site(0)]
            for site, number in sites.items():
                said = self.ask(phase, bodies[site], held[site], number=number)
                held[site] = said.held
                coordinator.receive(site, said.body)
            bodies = dict(coordinator.advance())
        assert coordinator.finish().values.tolist() == [3] * self.world.length

    def ask(self, phase: Phase, body: bytes, held: bytes, *, number: int = 0) -> Answer:
        """Asks a site as another process would: all that it has is its folder, and the bytes that were held."""
        return answered(
            phase,
            body,
            agreement=self.world.agreement,
            site=self.world.site(number),
            place=SecureFolder(self.folder / str(number)),
            held=held,
            vector=self._vector,
        )

    def _vector(self, session: Session, mask: Mask) -> tuple[bytes, str]:
        self.n_vectors += 1
        return mask(np.ones(self.world.length, np.int64)), ""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return Played(tmp_path_factory.mktemp("played"))


@pytest.mark.parametrize("phase", PHASES)
def test_no_phase_is_answered_twice_whichever_process_is_asked(played: Played, phase: Phase) -> None:
    again = played.ask(phase, played.bodies[phase], played.held[phase])
    assert (again.body, again.held) == (b"", b"")
    assert read_complaint(again.complaint, played.world.roster).reason == "phase"


@pytest.mark.parametrize("due", [phase for phase in PHASES if phase != "mask"])
def test_no_vector_is_computed_before_or_after_its_turn(played: Played, due: Phase) -> None:
    before = played.n_vectors
    assert played.ask("mask", played.bodies["mask"], played.held[due]).complaint
    assert played.n_vectors == before, "what is computed may be charged"


# --- what leaves a site, and what its ledger says of it ---


@pytest.mark.parametrize("mode", ["none", "local", "distributed"])
def test_neither_an_update_nor_counts_leave_in_the_clear_where_sums_are_secure(
    tmp_path: Path, mode: str
) -> None:
    place = Federation(tmp_path, mode)
    layout = Layout.of(place.weights)
    call = Call(
        round=1, rounds=2, attempt=1, seed=0, fold=0, layout=layout, weights=layout.flatten(place.weights),
        deadline_seconds=60.0, max_update_norm=1e4, private=mode != "none",
    )  # fmt: skip
    with place.exchange() as (grid, _):
        update = grid.train(call, [Share(site=site) for site in grid.sites])
        counts = grid.evaluate(call, grid.sites, Tables(n_classes=N_CLASSES))
    for refused in (update.refused, counts.refused):
        assert refused.keys() == set(place.sites)
        assert all(UNDER_MASKS_ONLY in reason for reason in refused.values())


def test_an_update_longer_than_the_study_allows_is_not_masked(tmp_path: Path) -> None:
    place = Federation(tmp_path, "none", rounds=1, more="max_update_norm = 1e-3")
    with pytest.raises(QuorumError, match=r"longer than federation\.max_update_norm"):
        place.run()


def test_a_vector_is_made_anew_for_each_attempt_bears_its_number_and_is_never_kept(tmp_path: Path) -> None:
    place, made = Federation(tmp_path, rounds=1), iter([b"first", b"second"])
    with SiteLedger.open(place.places["site-1"]) as site:
        for attempt, data in ((1, b"first"), (2, b"second")):
            ask = Ask(what=UPDATE, run="0-0", steps=1, round=1, model="0" * 64, attempt=attempt)
            released = site.release(place.study, ask, manifest=b"", make=lambda gone: next(made))
            assert isinstance(released, Released)
            assert released.data == data
        names = [name.split(".")[-2:] for name in site.budget.state.releases]
    assert names == [["sum-1", "1"], ["sum-2", "1"]]
    assert [path for path in (place.places["site-1"] / OUTBOX).rglob("*") if path.is_file()] == []


def test_with_another_roster_than_was_approved_no_gradient_is_computed(tmp_path: Path) -> None:
    place = Federation(tmp_path, rounds=1)
    folder, study = place.places["site-1"], place.study
    with SiteLedger.open(folder) as site:
        pinned = site.secure.roster(study.digest())
        stranger = Member(site="site-5", public_key=SigningKey.generate().public_hex)
        site.secure.pin(study.digest(), replace(pinned, members=(*pinned.members[:4], stranger)))
    masked: list[object] = []

    def mask(values: object) -> bytes:
        masked.append(values)
        return b"masked"

    model = models.build(study.model, {"pooled": WIDTH}, N_CLASSES, seed=0)
    called = Called(seed=0, fold=0, round=1, model=digest(place.weights))
    with pytest.raises(Refusal):
        release_part(
            folder, study, model, SiteData.open(place.sites["site-1"]), called, UPDATE, attempt=1, mask=mask
        )
    assert masked == []
    assert place.entries("site-1") == []


# --- what the coordinator records, and what it makes of a sum ---


def test_a_coordinator_that_dies_with_the_vectors_in_its_hands_had_recorded_them_as_spent(
    tmp_path: Path,
) -> None:
    place = Federation(tmp_path, rounds=1)
    with place.exchange() as (_, exchange), pytest.MonkeyPatch.context() as patch:
        ask = exchange._phases.phase

        def dies(kind: str, phase: str, *rest: Any) -> Iterator[object]:
            said = list(ask(kind, phase, *rest))
            if phase == "mask":
                raise KeyboardInterrupt
            return iter(said)

        patch.setattr(exchange._phases, "phase", dies)
        with pytest.raises(KeyboardInterrupt):
            run(exchange, place.study, cell=CELL, weights=place.weights)
    assert place.attempts("update") == [(1, 1, True, ())]
    for site in place.sites:
        assert place.entries(site) == ["reserve", "commit"]
        entries = entries_of((place.places[site] / "ledger.jsonl").read_bytes())
        assert compare_with_site(place.record(), entries) == ()


EVERYBODY = {"sampling_prob": "1.0", "expected_patients": "4.0"}


@pytest.mark.parametrize(
    ("mode", "constants", "of_five", "of_four"),
    [
        ("distributed", EVERYBODY, "", ""),
        ("none", {}, "site_weights = [4.0, 1.0, 1.0, 1.0, 2.0]", "site_weights = [4.0, 1.0, 1.0, 1.0]"),
    ],
)
def test_the_mean_is_over_the_survivors_as_if_the_lost_had_never_been_invited(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    constants: dict[str, str],
    of_five: str,
    of_four: str,
) -> None:
    monkeypatch.setattr(distributed, "discrete_gaussians", lambda variance, n, source: np.zeros(n, np.int64))
    monkeypatch.setattr(client_app, "answered", _away("site-5"))
    found = []
    for n_sites, more in ((5, of_five), (4, of_four)):
        (tmp_path / str(n_sites)).mkdir()
        place = Federation(tmp_path / str(n_sites), mode, n_sites=n_sites, rounds=1, more=more, **constants)
        outcome = place.run()
        assert outcome.rounds[0].sites == ("site-1", "site-2", "site-3", "site-4")
        found.append(_moved(place, outcome))
    assert np.linalg.norm(found[1]) > 0.1
    assert np.linalg.norm(found[0] - found[1]) < 1e-4


def _away(site: str) -> object:
    def said(phase: Phase, body: bytes, **rest: Any) -> Answer:
        if rest["site"] == site:
            raise RunError("this site was away")
        return secure.answered(phase, body, **rest)

    return said


def _moved(place: Federation, outcome: Outcome) -> np.ndarray[Any, Any]:
    layout = Layout.of(place.weights)
    change: np.ndarray[Any, Any] = layout.flatten(outcome.weights) - layout.flatten(place.weights)
    return change


def test_the_coordinator_steps_against_the_gradient_by_the_rate_of_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    for schedule in ("constant", "cosine"):
        (tmp_path / schedule).mkdir()
        monkeypatch.setattr(secure_rounds, "SGD", SGD.replace(" }", f', schedule = "{schedule}" }}'))
        norms.append([record.update_norm for record in Federation(tmp_path / schedule).run().rounds])
    # The same coins in both: half a cosine over two rounds is the whole rate, and then half of it.
    assert norms[1] == pytest.approx([norms[0][0], norms[0][1] / 2], rel=1e-5)


def test_counts_of_fewer_sites_than_the_noise_was_sized_for_are_not_read(tmp_path: Path) -> None:
    place = Federation(tmp_path, rounds=1)

    def total(n_sites: int) -> SecureSum:
        survivors = tuple(place.sites)[:n_sites]
        return SecureSum(
            values=np.zeros(N_CLASSES**2, np.int64), survivors=survivors, consents=(), complaints=()
        )

    with place.exchange() as (_, exchange):
        assert exchange._counts(total(3)).tolist() == [0] * N_CLASSES**2
        with pytest.raises(PrivacyError, match="at least n_min"):
            exchange._counts(total(2))


# --- what both derive from the study ---


def study_of(folder: Path, *, rounds: int = 2, more: str = "", n_min: int = 3) -> Study:
    privacy = DISTRIBUTED.replace("n_min = 3", f"n_min = {n_min}")
    file = folder / f"{rounds}-{n_min}.toml"
    write_study(file, n_sites=5, rounds=rounds, privacy=privacy, model=LINEAR, training=SGD, federation=more)
    return load(file)


def test_a_sum_of_shares_of_noise_needs_as_many_sites_as_they_were_sized_for_whatever_the_quorum(
    tmp_path: Path,
) -> None:
    study = study_of(tmp_path, more="quorum = 3", n_min=5)
    for what in (UPDATE, COUNTS):
        assert terms_of(study, what, n_parameters=21).n_min == 5


def test_runs_of_another_study_seed_fold_or_kind_have_other_names(tmp_path: Path) -> None:
    study, other = study_of(tmp_path), study_of(tmp_path, rounds=3)
    said: dict[str, Any] = {"seed": 0, "fold": 0, "what": UPDATE}
    changes: list[dict[str, Any]] = [{}, {"seed": 1}, {"fold": 1}, {"what": COUNTS}]
    names = [run_name(one, **(said | change)) for one in (study, other) for change in changes]
    assert len(set(names)) == len(names)
