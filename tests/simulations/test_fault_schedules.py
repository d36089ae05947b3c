"""Claims of a whole federation under faults; all 200 schedules: `python -m sottovoce.simulations.bench faults`."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.client import app as client_app
from sottovoce.client.releases import Called
from sottovoce.client.site_ledger import Released, SiteLedger
from sottovoce.common.ledger.store import LEDGER_FILE
from sottovoce.common.weights import from_state_dict
from sottovoce.server import rounds
from sottovoce.server.exchange import Collected
from tests.fakes.fault_claims import Broken, World
from tests.fakes.fault_schedules import KINDS, Kind, run_schedule
from tests.fakes.lossy_grid import CALM, Weather
from tests.fakes.secure_rounds import LOCAL
from tests.fakes.sites import DISTRIBUTED, NONE

SEEDS = range(12)
PLAIN = Kind(name="none", privacy=NONE, n_sites=3, rounds=2)
CLEAR = Kind(name="local", privacy=LOCAL, n_sites=3, rounds=1)
MASKED = Kind(name="distributed", privacy=DISTRIBUTED, n_sites=3, rounds=1)
SMALL = (PLAIN, CLEAR, PLAIN, MASKED)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_fails_nothing_is_lost_counted_twice_or_waited_for_for_ever(
    tmp_path: Path, seed: int
) -> None:
    told = run_schedule(seed, tmp_path / "here", kind=SMALL[seed % len(SMALL)])
    assert told.n_messages > 0


def test_the_schedules_meet_every_kind_of_study_and_of_fault() -> None:
    assert {kind.secure or "distributed" in kind.privacy for kind in KINDS} == {True, False}
    assert {kind.privacy.partition("mode = ")[2].split('"')[1] for kind in KINDS} == {
        "none", "local", "distributed",
    }  # fmt: skip


def test_without_a_fault_the_run_is_the_simulation(tmp_path: Path) -> None:
    told = run_schedule(0, tmp_path, kind=CLEAR, weather=CALM, troubles=False)
    assert (told.done, told.whole, told.n_site_deaths, told.n_stops) == (True, True, 0, 0)


# --- what each claim would notice -----------------------------------------------------------------------


def calm(folder: Path, kind: Kind, **more: Any) -> None:
    run_schedule(0, folder, kind=kind, weather=CALM, troubles=False, **more)


def test_a_coordinator_that_counts_one_site_twice_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Collected.add

    def twice(self: Collected, update: Any, weight: float) -> None:
        real(self, update, weight)
        if update.site == "site-1":
            self.total += update.difference

    monkeypatch.setattr(Collected, "add", twice)
    with pytest.raises(Broken, match="2: the weights are not"):
        calm(tmp_path, PLAIN)


def test_a_sum_of_others_than_the_record_names_is_noticed(tmp_path: Path) -> None:
    def swap(world: World) -> None:
        assert world.outcome is not None
        first, *others = world.outcome.rounds
        world.outcome = replace(world.outcome, rounds=(replace(first, sites=first.sites[:2]), *others))

    with pytest.raises(Broken, match="2: the weights are not"):
        calm(tmp_path, PLAIN, before_check=swap)


@pytest.mark.parametrize("entry", [-1, -2])
def test_a_ledger_entry_that_was_dropped_is_noticed(tmp_path: Path, entry: int) -> None:
    def drop(world: World) -> None:
        path = world.hospitals["site-2"].ledger / LEDGER_FILE
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for line in lines if line is not lines[entry]))

    with pytest.raises(Broken, match="3: the ledger of site-2"):
        calm(tmp_path, CLEAR, before_check=drop)


def test_a_site_that_answers_past_its_ledger_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freely(folder: Path, study: Any, model: Any, data: Any, called: Called, **_: Any) -> Released:
        flat = np.concatenate([array.reshape(-1) for array in from_state_dict(model.state_dict()).values()])

        with SiteLedger.open(folder) as ledger:
            return Released(data=flat.astype("<f4").tobytes(), checkpoint=ledger.ledger.checkpoint())

    monkeypatch.setattr(client_app, "release_update", freely)
    with pytest.raises(Broken, match="3: train of round 1 left site-1 without"):
        calm(tmp_path, CLEAR)


def test_more_computed_than_reserved_is_noticed(tmp_path: Path) -> None:
    def again(world: World) -> None:
        world.began["site-3", "update"] += 1

    with pytest.raises(Broken, match="3: site-3 computed 2 update, and reserved 1"):
        calm(tmp_path, CLEAR, before_check=again)


def test_an_attempt_that_the_coordinator_left_out_is_noticed(tmp_path: Path) -> None:
    def shorten(world: World) -> None:
        (path,) = world.home.federations.glob("*.jsonl")
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:1]))

    with pytest.raises(Broken, match="4: the coordinator's record and site-1"):
        calm(tmp_path, MASKED, before_check=shorten)


def test_a_coordinator_that_asks_for_ever_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "ATTEMPTS", 10**9)
    with pytest.raises(Broken, match="1: 300 messages"):
        run_schedule(
            0,
            tmp_path,
            kind=PLAIN,
            weather=Weather(dropped=1.0),
            troubles=False,
            storm_messages=0,
            most_messages=300,
        )
