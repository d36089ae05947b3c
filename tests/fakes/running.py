"""A federation of real processes over TLS on the loopback interface, with tiny sites that need no recordings.

with running(folder, study_file, n_sites=3) as place:        # ~6 s: share it by a module-scoped fixture
    place.begin("pilot"); place.wait("pilot")

Founding, inviting, enrolling, offering and approving are done by the functions that the commands call; coordinator,
SuperLink, runs, agents and workers are processes that `sottovoce` starts.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sottovoce.client.consortium import ConsortiumClient
from sottovoce.client.home import Hospital
from sottovoce.client.offered import open_offer
from sottovoce.client.setup import set_up
from sottovoce.common.files import write_whole
from sottovoce.common.model_size import widths_of
from sottovoce.common.study import Study, load
from sottovoce.server.consortium.invitations import invitation
from sottovoce.server.deployed_run import DeployedRun, State
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.operations import NEW_SERVER, begin, found, offer
from sottovoce.simulations.federation import (
    Federation,
    federation,
    free_ports,
    start_coordinator,
    start_hospital,
    wait_for,
)
from tests.fakes.hospitals import approve
from tests.fakes.sites import write_sites
from tests.fakes.superlinks import PYTHONPATH

RUN_SECONDS = 300.0
FOLD = 0


@dataclass(kw_only=True)
class Running:
    """A coordinator that is up, and hospitals by name."""

    made: Federation
    home: CoordinatorHome
    hospitals: dict[str, Hospital] = field(default_factory=dict)
    data: dict[str, Path] = field(default_factory=dict)

    def enrol(self, site: str) -> Hospital:
        """Invites a hospital and lets it enrol; it has approved nothing, and no agent runs."""
        file = self.made.root / f"{site}.invitation"
        write_whole(file, invitation(self.home, site).encode())
        self.hospitals[site] = set_up(self.made.hospital(site), site=site, invitation=file, data={}).hospital
        return self.hospitals[site]

    def offer(self, study_file: Path, sites: Sequence[str]) -> Study:
        """Offers a study to hospitals, which fetch it and have features of it."""
        study, _ = offer(self.home, study_file, sites)
        for site in sites:
            with ConsortiumClient(self.hospitals[site]) as client:
                client.fetch_all()
            shutil.copytree(self.data[site], self.hospitals[site].features(study.digest()))
        return study

    def approve(self, study: Study, sites: Sequence[str]) -> None:
        """A person at each hospital approves a study, and the coordinator is told."""
        for site in sites:
            hospital = self.hospitals[site]
            approve(hospital, study, open_offer(hospital, study.digest()).roster)
            with ConsortiumClient(hospital) as client:
                client.send_approval(study.digest(), "approved")

    def begin(self, study: Study, name: str) -> DeployedRun:
        """Begins a run of a study that everybody has approved."""
        return begin(self.home, study.digest(), name=name, fold=FOLD)

    def wait(self, run: DeployedRun, *, seconds: float = RUN_SECONDS) -> State:
        """Waits for a run's end and returns where it has come to."""
        wait_for(lambda: run.state.is_over, f"the end of {run.plan.name}", seconds)
        return run.state

    def refusals(self, site: str) -> list[dict[str, Any]]:
        """Returns what a hospital wrote down of messages that it refused."""
        path = self.hospitals[site].run / "security.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def nodes(self) -> Mapping[str, int]:
        """Returns Flower's numbers of the sites."""
        found: Mapping[str, int] = json.loads((self.home.run / "nodes.json").read_text())
        return found


@contextmanager
def coordinator(folder: Path, n_sites: int, study_file: Path, *, front: bool = False) -> Iterator[Running]:
    """Starts a coordinator with `n_sites` hospitals that are enrolled; their data fit the study's features."""
    sites = [f"site-{number}" for number in range(1, n_sites + 1)]
    width = widths_of(load(study_file))["pooled"]
    with _importing_tests(), federation(folder, sites, lambda text: None) as made:
        fleet, consortium, port = free_ports(3)
        text = NEW_SERVER.format(
            name="example",
            hosts='"localhost"',
            fleet=fleet,
            consortium=consortium,
            front=port if front else 0,
            metrics=0,
        )
        home, _ = found(made.server, text)
        start_coordinator(made)
        place = Running(made=made, home=home, data=write_sites(folder / "data", n_sites, width=width))
        for site in sites:
            place.enrol(site)
        yield place


@contextmanager
def running(
    folder: Path, n_sites: int, study_file: Path, *, front: bool = False
) -> Iterator[tuple[Running, Study]]:
    """A coordinator and hospitals that have approved a study, with their agents."""
    with coordinator(folder, n_sites, study_file, front=front) as place:
        sites = list(place.hospitals)
        study = place.offer(study_file, sites)
        place.approve(study, sites)
        for site in sites:
            start_hospital(place.made, site)
        yield place, study


@contextmanager
def _importing_tests() -> Iterator[None]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = PYTHONPATH
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
