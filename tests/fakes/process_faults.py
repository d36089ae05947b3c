"""Real processes that are killed in the middle of runs, by one seed; the runs end as if nothing had been.

with killable(folder, n_runs=20, n_sites=3) as place:       # one federation, a run for each seed
    told = run_with_kills(place, seed=7)                    # raises Broken
"""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sottovoce.client import agent_files
from sottovoce.common.ledger.reading import read_ledger
from sottovoce.common.ledger.recompute import recompute
from sottovoce.common.ledger.verify import entries_of, verify
from sottovoce.common.privacy.budget import PldAccountant
from sottovoce.common.processes import read_mark
from sottovoce.common.study import Execution, Study
from sottovoce.server.conduct import initial_weights
from sottovoce.server.deployed_run import ROUNDS, DeployedRun
from sottovoce.server.operations import begin
from sottovoce.server.rounds import run as run_rounds
from sottovoce.simulations import site_ledgers
from sottovoce.simulations.engines import open_exchange
from sottovoce.simulations.federation import start_coordinator, start_hospital, wait_for
from tests.fakes.fault_claims import Broken
from tests.fakes.running import FOLD, Running, running
from tests.fakes.secure_rounds import LOCAL
from tests.fakes.sites import LINEAR, SGD, write_study

ROUNDS_OF_A_RUN = 4
VICTIMS = ("agent", "worker", "coordinator", "superlink")
SECONDS = 600.0
STUDY_FILE = "study.toml"


@dataclass(kw_only=True)
class Killable:
    """A federation, its study with a seed for each run, and where it lies."""

    place: Running
    study: Study
    study_file: Path
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Told:
    """What was killed in a run, and how long it took."""

    killed: tuple[str, ...]
    attempts: int
    seconds: float


@contextmanager
def killable(folder: Path, *, n_runs: int, n_sites: int, secure: bool = False) -> Iterator[Killable]:
    """Starts a federation for so many runs of seeded noise, in which every site is in every round."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = 4 * n_runs * ROUNDS_OF_A_RUN  # a release that a kill interrupts is spent, and made again
    privacy = LOCAL.replace("noise_multiplier = 1.0", "noise_multiplier = 30.0").replace(
        "mode = ", f"spare_rounds = {steps}, mode = ", 1
    )
    study_file = write_study(
        folder / STUDY_FILE,
        n_sites=n_sites,
        rounds=ROUNDS_OF_A_RUN,
        privacy=privacy,
        model=LINEAR,
        training=SGD,
        federation=f"secure_sum = {str(secure).lower()}, quorum = {n_sites}, deadline_seconds = 60.0, "
        "largest_change = 1e4",  # the noise is large, so that so many releases have a finite price
    )
    seeds = ", ".join(map(str, range(n_runs)))
    study_file.write_text(
        study_file.read_text().replace("evaluation = {", f"evaluation = {{ seeds = [{seeds}],")
    )
    with running(folder / "federation", n_sites, study_file) as (place, study):
        yield Killable(place=place, study=study, study_file=study_file, folder=folder)


def run_with_kills(made: Killable, seed: int, *, victims: tuple[str, ...] | None = None) -> Told:
    """Runs the study's cell of this seed, kills `victims` (drawn where none are given) in the middle, and checks."""
    draw, began = random.Random(seed), time.monotonic()
    chosen = victims or tuple(draw.choice(VICTIMS) for _ in range(draw.randint(1, 2)))
    run = begin(made.place.home, made.study.digest(), name=f"seed-{seed}", seed=seed, fold=FOLD)
    killed = [_kill_at(made, run, draw, victim) for victim in chosen]
    wait_for(lambda: run.state.is_over, f"the end of {run.plan.name}", SECONDS)
    return Told(killed=tuple(killed), attempts=_check(made, run, seed), seconds=time.monotonic() - began)


def simulated(made: Killable, seed: int) -> str:
    """Returns the digest of weights that the simulation of this seed ends in."""
    folder, study = made.folder / f"simulated-{seed}", made.study
    site_ledgers.open_all(folder, study, made.place.data)
    with open_exchange(
        Execution(engine="inprocess", workers=1), made.place.data, study_file=made.study_file, ledgers=folder
    ) as exchange:
        cell = DeployedRun.open(made.place.home, f"seed-{seed}").plan.cell
        weights = initial_weights(study, seed)
        if not study.sums_are_secure:
            return run_rounds(exchange, study, cell=cell, weights=weights).digest
        with site_ledgers.coordinated(folder, study, exchange) as secured:  # type: ignore[arg-type]
            return run_rounds(secured, study, cell=cell, weights=weights).digest


def _kill_at(made: Killable, run: DeployedRun, draw: random.Random, victim: str) -> str:
    """Waits for a moment within the run, kills, and has started again what nobody else starts."""
    round = min(run.state.round + draw.randint(0, 1), ROUNDS_OF_A_RUN - 1)
    wait_for(
        lambda: run.state.is_over or (run.state.state == "running" and run.state.round >= round),
        "a round",
        SECONDS,
    )
    time.sleep(draw.uniform(0, 1.0))
    site = draw.choice(sorted(made.place.hospitals))
    match victim:
        case "agent":
            made.place.made.kill(f"{site}.process")
            time.sleep(draw.uniform(0, 1.0))
            start_hospital(made.place.made, site)
        case "worker":
            found = agent_files.processes(made.place.hospitals[site].run)
            for process in found[1:]:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        case "coordinator":
            made.place.made.kill("coordinator.process")
            start_coordinator(made.place.made)
        case _:
            mark = read_mark(made.place.home.run / "superlink.pid")
            if mark is not None:
                os.kill(mark[0], signal.SIGKILL)
    return (
        f"{victim} {site} in round {round + 1}"
        if victim in ("agent", "worker")
        else f"{victim} in round {round + 1}"
    )


def _check(made: Killable, run: DeployedRun, seed: int) -> int:
    state = run.state
    if state.state != "done":
        raise Broken(f"1: seed {seed} ended as {state.state}: {state.reason}")
    if state.weights_sha256 != simulated(made, seed):
        raise Broken(f"2: seed {seed} ended in other weights than the simulation")
    lines = [json.loads(line) for line in (run.folder / ROUNDS).read_text().splitlines()]
    if [line["round"] for line in lines] != list(range(1, ROUNDS_OF_A_RUN + 1)):
        raise Broken(f"4: {ROUNDS} has not one line for each round")
    for site, hospital in made.place.hospitals.items():
        files = read_ledger(hospital.ledger)
        verdict = verify(files.ledger, head=files.head)
        if not verdict.ok or not recompute(entries_of(files.ledger), PldAccountant())["ok"]:
            raise Broken(f"3: the ledger of {site}: {verdict.findings or 'other figures'}")
    return len(lines)
