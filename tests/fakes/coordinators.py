"""A coordinator's folder with hospitals in its registry, without a process: what `conduct` finds when it is called."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from sottovoce.client.home import Hospital
from sottovoce.common.config import canonical
from sottovoce.common.flower import LocalGrid, Node, load_app
from sottovoce.common.study import load
from sottovoce.server.conduct import NODES
from sottovoce.server.deployed_run import DeployedRun, Plan
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.operations import NEW_SERVER, found
from sottovoce.server.registry import Registry
from sottovoce.simulations.engines.inprocess import InProcessGrid
from tests.fakes.hospitals import make_hospitals
from tests.fakes.sites import write_sites

APP = "sottovoce.client.hospital:app"


class Consortium:
    """A coordinator and its hospitals, ready for one run of a study."""

    def __init__(self, folder: Path, study_file: Path, *, name: str = "pilot") -> None:
        self.study = load(study_file)
        text = NEW_SERVER.format(
            name="Fake consortium", hosts='"localhost"', fleet=1, consortium=2, front=0, metrics=0
        )
        self.home: CoordinatorHome
        self.home, _ = found(folder / "coordinator", text)
        self.data = write_sites(folder / "sites", self.study.federation.n_sites)
        self.hospitals: Mapping[str, Hospital]
        self.hospitals, roster = make_hospitals(
            folder / "hospitals", study_file, self.data, coordinator_key=self.home.key.public_hex
        )
        self.registry = Registry.open(self.home.registry)
        for number, (site, hospital) in enumerate(self.hospitals.items(), start=1):
            self._enrol(number, site, hospital)
        nodes = {site: number for number, site in enumerate(self.hospitals, start=1)}
        (self.home.run / NODES).write_text(json.dumps(nodes))
        plan = Plan(
            format=1,
            name=name,
            study_digest=self.study.digest(),
            seed=self.study.evaluation.seeds[0],
            fold=0,
            sites=tuple(self.hospitals),
        )
        packed = b"" if roster is None else canonical(roster).encode()
        self.run = DeployedRun.create(self.home, study_file.read_text(), plan, packed)

    def grid(self) -> LocalGrid:
        """Returns the hospitals' apps behind the in-process transport."""
        nodes = [Node(site=site, config={"home": str(one.folder)}) for site, one in self.hospitals.items()]
        return InProcessGrid(load_app(APP), nodes, {})

    def _enrol(self, number: int, site: str, hospital: Hospital) -> None:
        until = int(time.time()) + 3600
        self.registry.invite(site, "site", serial=number, not_after=until)
        self.registry.enrolled(
            invitation=number,
            request_sha256=f"{number:064x}",
            identity=hospital.identity.public_hex,
            node_key_pem=f"node key of {site}",
            certificate_pem="none",
            serial=1000 + number,
            not_after=until,
        )
