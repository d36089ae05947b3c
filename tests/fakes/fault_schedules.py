"""Whole runs by the production coordinator and hospitals over a lossy network, and what must hold afterwards.

    told = run_schedule(17, folder)         # raises Broken, with the claim that does not hold

Sites and coordinator are killed between any two of their writes, disks fill up, messages are lost, doubled, late,
reordered, altered, swapped and replayed. After a while the storm is over, as operators mend things. Then

 1. the run ends, after a bounded number of messages: done, or stopped because budgets are spent;
 2. its weights are what its survivors' updates come to, to the bit, worked out without any of this; where every site
    was in every round, they are those of the simulation without faults; each sum in the record has the digest of its
    own survivors' numbers;
 3. every site's ledger verifies, with all checkpoints that left, and recomputes; each vector, update or count that left
    is of a committed release; nothing was computed without a reservation;
 4. the coordinator's record verifies and agrees with every site's ledger; each round has one line.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sottovoce.client.hospital import app as hospital_app
from sottovoce.client.site_ledger import SiteLedger
from sottovoce.common import models
from sottovoce.common.errors import QuorumError, SottovoceError
from sottovoce.common.flower import ClientApp
from sottovoce.common.study import Study
from sottovoce.common.weights import from_state_dict
from sottovoce.server import conduct
from sottovoce.server.operations import take_up
from tests.fakes.clock import Clock
from tests.fakes.coordinators import Consortium
from tests.fakes.failing_os import TROUBLES, FailingOs, Killed, Trouble
from tests.fakes.fault_claims import RUN, Broken, World, check, check_exhausted, is_whole
from tests.fakes.lossy_grid import CALM, COORDINATOR, Endless, LossyGrid, Weather
from tests.fakes.secure_rounds import CELL, LOCAL
from tests.fakes.sites import DISTRIBUTED, LINEAR, MLP, N_CLASSES, NONE, SGD, WIDTH, write_study

MOST_LIVES = 60
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of study that schedules are played with."""

    name: str
    privacy: str
    secure: bool = False
    n_sites: int = 4
    rounds: int = 3

    @property
    def federation(self) -> str:
        """What stands in the study's table of the federation."""
        secure = "" if "distributed" in self.privacy else f", secure_sum = {str(self.secure).lower()}"
        return f"deadline_seconds = {DEADLINE_SECONDS}{secure}"


def _spare(privacy: str, rounds: int) -> str:
    return privacy.replace("mode = ", f"spare_rounds = {rounds}, mode = ", 1)


KINDS = (
    Kind(name="local", privacy=_spare(LOCAL, 60), n_sites=3),
    Kind(name="local, secure sums", privacy=_spare(LOCAL, 60), secure=True, n_sites=5, rounds=2),
    Kind(name="distributed", privacy=_spare(DISTRIBUTED, 60)),
    Kind(name="distributed, three sites", privacy=_spare(DISTRIBUTED, 60), n_sites=3, rounds=2),
    Kind(name="local, one round to spare", privacy=_spare(LOCAL, 1), n_sites=3, rounds=2),
    Kind(name="distributed, two rounds to spare", privacy=_spare(DISTRIBUTED, 2), rounds=2),
    Kind(name="none", privacy=NONE, n_sites=3),
    Kind(name="none, secure sums", privacy=NONE, secure=True, rounds=2),
)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a schedule came to."""

    kind: str
    done: bool
    whole: bool  # every site was in every round
    n_messages: int
    n_site_deaths: int
    n_coordinator_deaths: int
    n_stops: int
    faults: Mapping[str, int]


def run_schedule(
    seed: int,
    folder: Path,
    *,
    kind: Kind | None = None,
    weather: Weather | None = None,
    app: ClientApp = hospital_app,
    troubles: bool = True,
    storm_messages: int | None = None,
    most_messages: int = 5_000,
    before_check: Callable[[World], None] = lambda world: None,
) -> Told:
    """Plays one schedule in an empty folder and checks it. Raises: Broken."""
    draw = random.Random(seed)
    kind = kind or KINDS[seed % len(KINDS)]
    world = make_world(folder, kind)
    with Clock() as clock, FailingOs() as machine, _watching(world):
        for who in (COORDINATOR, *world.hospitals) if troubles else ():
            machine.plan(who, _troubles(draw, 400 if who == COORDINATOR else 150))
        grid = LossyGrid(
            app,
            {site: str(one.folder) for site, one in world.hospitals.items()},
            clock=clock,
            machine=machine,
            draw=draw,
            weather=Weather.drawn(draw) if weather is None else weather,
            storm_messages=draw.randint(40, 160) if storm_messages is None else storm_messages,
            most_messages=most_messages,
            deadline_seconds=DEADLINE_SECONDS,
            on_left=world.saw,
        )
        deaths, stops = _live(world, grid, clock, machine, draw)
    before_check(world)
    check(world)
    outcome = world.outcome
    return Told(
        kind=kind.name,
        done=outcome is not None,
        whole=outcome is not None and is_whole(world, outcome),
        n_messages=grid.n_messages,
        n_site_deaths=grid.n_deaths,
        n_coordinator_deaths=deaths,
        n_stops=stops,
        faults=dict(grid.met + machine.met),
    )


def make_world(folder: Path, kind: Kind) -> World:
    """Makes hospitals and a coordinator with everything in their folders, and a run that may begin."""
    folder.mkdir(parents=True, exist_ok=True)
    study_file = write_study(
        folder / "study.toml",
        n_sites=kind.n_sites,
        rounds=kind.rounds,
        privacy=kind.privacy,
        model=MLP if kind.privacy == NONE else LINEAR,
        training=SGD,
        federation=kind.federation,
    )
    made = Consortium(folder, study_file, name=RUN)
    model = models.build(made.study.model, {"pooled": WIDTH}, N_CLASSES, CELL.seed)
    return World(made=made, study_file=study_file, weights=from_state_dict(model.state_dict()))


def _troubles(draw: random.Random, n_calls: int) -> dict[int, Trouble]:
    """Returns which writing calls fail, and how: none, one or a few."""
    n = draw.choice([0, 1, 1, 3])
    return {draw.randint(1, n_calls): draw.choice(TROUBLES) for _ in range(n)}


@contextmanager
def _watching(world: World) -> Iterator[None]:
    """Counts, from outside, how often a site computes something that is to leave; gives the tiny sites' weights."""
    real = SiteLedger.release

    def release(self: SiteLedger, study: Study, ask: Any, *, manifest: bytes, make: Any) -> Any:
        def counted(withdrawn: frozenset[str]) -> bytes:
            world.began[self.budget.state.site, ask.what] += 1
            made: bytes = make(withdrawn)
            return made

        return real(self, study, ask, manifest=manifest, make=counted)

    # The study names features of another width than the made-up ones have.
    with (
        patch.object(SiteLedger, "release", release),
        patch.object(conduct, "initial_weights", lambda study, seed: world.weights),
    ):
        yield


def _take_up(world: World) -> None:
    """Lets a run go on, as its operator does; one that was killed at its last write is looked at once more."""
    run = world.made.run
    if run.state.state == "done":
        run.change(lambda state: replace(state, state="running"))
    else:
        take_up(run)


def _live(
    world: World, grid: LossyGrid, clock: Clock, machine: FailingOs, draw: random.Random
) -> tuple[int, int]:
    """Conducts the run until it ends; says how often the coordinator died, and how often it stopped."""
    deaths = stops = 0
    for _ in range(MOST_LIVES):
        machine.start(COORDINATOR)
        _take_up(world)
        n_full, was_calm = machine.met["full"], grid.weather is CALM
        try:
            with machine.acting(COORDINATOR):
                world.outcome = conduct.conduct(world.home, RUN, grid)
            return deaths, stops
        except Killed as killed:
            if killed.who != COORDINATOR:
                raise Broken(f"the end of {killed.who} reached the coordinator") from None
            deaths += 1
            clock.advance(draw.uniform(0, 30))
            if draw.random() < 0.5:
                grid.lose_all()
        except Endless as endless:
            raise Broken(f"1: {endless}") from None
        except QuorumError as error:
            stops += 1
            if was_calm:
                check_exhausted(world, error)
                return deaths, stops
            if draw.random() < 0.5:
                grid.calm()  # "Mend them and resume." An operator may do the second alone.
        except (SottovoceError, OSError) as error:
            if machine.met["full"] == n_full:
                raise Broken(f"1: the run cannot go on: {error}") from error
            stops += 1
    raise Broken(f"1: no end after {MOST_LIVES} starts")
