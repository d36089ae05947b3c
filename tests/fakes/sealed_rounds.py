"""A federation whose messages are sealed: hospitals in folders, a coordinator's key, and any grid in between."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sottovoce.client.home import Hospital
from sottovoce.common import models
from sottovoce.common import study as studies
from sottovoce.common.federation_ledger import FederationLedger
from sottovoce.common.flower import Grid, LocalGrid, Node, load_app
from sottovoce.common.keys import SigningKey
from sottovoce.common.weights import Array, from_state_dict
from sottovoce.server.exchange import Exchange, GridExchange, roster
from sottovoce.server.rounds import Outcome, run
from sottovoce.server.sealed import SealedGrid
from sottovoce.server.secure import SecureExchange
from sottovoce.simulations.engines.inprocess import InProcessGrid
from tests.fakes.hospitals import make_hospitals
from tests.fakes.secure_rounds import CELL
from tests.fakes.sites import N_CLASSES, WIDTH, write_sites

APP = "sottovoce.client.hospital:app"


class SealedFederation:
    """Hospitals for a study file, by name; `sites` are whom the coordinator trusts now."""

    def __init__(self, folder: Path, study_file: Path) -> None:
        self.folder, self.study_file = folder, study_file
        self.study = studies.load(study_file)
        self.key = SigningKey.generate()
        self.data = write_sites(folder / "sites", self.study.federation.n_sites)
        self.hospitals: Mapping[str, Hospital]
        self.hospitals, self.roster = make_hospitals(
            folder / "hospitals", study_file, self.data, coordinator_key=self.key.public_hex
        )
        self.sites = {site: one.identity.public_hex for site, one in self.hospitals.items()}
        self.log: list[str] = []
        self.weights: Mapping[str, Array] = from_state_dict(
            models.build(self.study.model, {"pooled": WIDTH}, N_CLASSES, seed=0).state_dict()
        )

    def nodes(self) -> list[Node]:
        """Returns a node for each hospital, configured as a SuperNode is."""
        return [Node(site=site, config={"home": str(one.folder)}) for site, one in self.hospitals.items()]

    def grid(self, app: str = APP) -> LocalGrid:
        """Returns the in-process grid of sealed apps."""
        return InProcessGrid(load_app(app), self.nodes(), {})

    def sealed(self, grid: Grid) -> SealedGrid:
        """Returns the coordinator's end."""
        return SealedGrid(
            grid,
            key=self.key,
            run=self.study.digest(),
            sites=lambda: self.sites,
            sequence=self.folder / "sequence",
            log=self.log.append,
        )

    @contextmanager
    def exchange(self, sealed: SealedGrid) -> Iterator[Exchange]:
        """Asks the sites for their names and opens an exchange with them, with secure sums where the study has them."""
        plain = GridExchange(sealed, roster(sealed, n_sites=len(self.sites), timeout=300.0))
        if self.roster is None:
            yield plain
            return
        path = self.folder / "federation.jsonl"
        with FederationLedger.create(
            path,
            key=self.key,
            roster=self.roster,
            study=self.study.digest(),
            name=self.study.name,
            simulated=True,
        ) as record:
            yield SecureExchange(plain, self.study, roster=self.roster, key=self.key, record=record)

    def run(self, grid: Grid | None = None, *, before: Callable[[SealedGrid], None] | None = None) -> Outcome:
        """Runs the study to its end; `before` is called once the sites have said their names."""
        sealed = self.sealed(self.grid() if grid is None else grid)
        with self.exchange(sealed) as exchange:
            if before is not None:
                before(sealed)
            return run(exchange, self.study, cell=CELL, weights=self.weights)
