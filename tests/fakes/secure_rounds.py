"""Federations of tiny sites with secure sums: real ledgers, rosters and messages; and an app whose process dies."""

import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sottovoce.client.app import app as client
from sottovoce.common import models
from sottovoce.common import study as studies
from sottovoce.common.federation_ledger import Report, read_federation
from sottovoce.common.federation_ledger.entries import Summed
from sottovoce.common.flower import ClientApp, Context, Message
from sottovoce.common.ledger.entries import Burn, Commit, Reserve
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.secagg.journal import PHASES
from sottovoce.common.study import Execution, Study
from sottovoce.common.weights import Array, from_state_dict
from sottovoce.server.exchange import GridExchange
from sottovoce.server.rounds import Cell, OnRound, Outcome, run
from sottovoce.server.secure import SecureExchange
from sottovoce.simulations import site_ledgers
from sottovoce.simulations.engines import CLIENT_APP, open_exchange
from tests.fakes.sites import DISTRIBUTED, LINEAR, MLP, N_CLASSES, NONE, SGD, WIDTH, write_sites, write_study

CELL = Cell(seed=0, fold=0, arm="federated")
LOCAL = """{ mode = "local", clip_norm = 1.0, noise_multiplier = 1.0, sampling_prob = 0.75, n_patients_public = 8, \
expected_patients = 2.0, steps_per_round = 2, delta = 0.05, small_population = true, seeded_noise = true, \
counts_noise_multiplier = 1.0, counts_utterances = 2 }"""
MODES = {"none": NONE, "local": LOCAL, "distributed": DISTRIBUTED}


class Federation:
    """A study of n sites, what each site needs, and the coordinator's folder beside them."""

    def __init__(
        self,
        folder: Path,
        mode: str = "distributed",
        *,
        n_sites: int = 5,
        rounds: int = 2,
        more: str = "",
        **constants: str,
    ) -> None:
        self.folder = folder
        privacy = MODES[mode]
        for name, value in constants.items():
            privacy, n = re.subn(rf"\b{name} = [^,}}]+", f"{name} = {value}", privacy)
            assert n == 1, name
        self.study_file = write_study(
            folder / "study.toml",
            n_sites=n_sites,
            rounds=rounds,
            privacy=privacy,
            model=MLP if mode == "none" else LINEAR,
            training=SGD,
            federation=more if mode == "distributed" else f"secure_sum = true{', ' if more else ''}{more}",
        )
        self.study: Study = studies.load(self.study_file)
        self.sites = write_sites(folder / "sites", n_sites)
        self.home = folder / "secure"
        made = site_ledgers.identities if mode == "none" else site_ledgers.open_all
        self.places: Mapping[str, Path] = made(self.home, self.study, self.sites)
        self.weights: Mapping[str, Array] = from_state_dict(
            models.build(self.study.model, {"pooled": WIDTH}, N_CLASSES, seed=0).state_dict()
        )

    @contextmanager
    def exchange(
        self, *, engine: str = "inprocess", workers: int = 1, app: str = CLIENT_APP
    ) -> Iterator[tuple[GridExchange, SecureExchange]]:
        """Opens the grid, and secure sums over it."""
        ledgers, secure = (None, self.home) if self.study.privacy.mode == "none" else (self.home, None)
        execution = Execution(engine=engine, workers=workers)  # type: ignore[arg-type]
        with open_exchange(
            execution, self.sites, study_file=self.study_file, ledgers=ledgers, secure=secure, app=app
        ) as grid:
            assert isinstance(grid, GridExchange)
            with site_ledgers.coordinated(self.home, self.study, grid) as exchange:
                yield grid, exchange

    def run(
        self,
        *,
        engine: str = "inprocess",
        workers: int = 1,
        app: str = CLIENT_APP,
        checkpoint: Path | None = None,
        on_round: OnRound | None = None,
    ) -> Outcome:
        """Runs the study to its end."""
        with self.exchange(engine=engine, workers=workers, app=app) as (_, exchange):
            return run(
                exchange,
                self.study,
                cell=CELL,
                weights=self.weights,
                checkpoint=checkpoint,
                resume=checkpoint is not None,
                on_round=on_round,
            )

    def record(self) -> Report:
        """Reads the coordinator's own record."""
        home = self.home / site_ledgers.COORDINATOR
        roster = (home / site_ledgers.ROSTER).read_text()
        key = re.search('"coordinator":"([0-9a-f]{64})"', roster)
        assert key is not None
        return read_federation((home / site_ledgers.FEDERATION).read_bytes(), coordinator_key=key[1])

    def attempts(self, what: str) -> list[tuple[int, int, bool, tuple[str, ...]]]:
        """Returns (round, attempt, spent, survivors) of each attempt at one kind of sum, as the record has it."""
        return [
            (
                one.session.round,
                one.session.attempt,
                one.spent,
                one.end.survivors if isinstance(one.end, Summed) else (),
            )
            for one in self.record().attempts
            if one.what == what
        ]

    def entries(self, site: str) -> list[str]:
        """Returns what a site's ledger says of releases: reserve, commit, burn."""
        found = entries_of((self.places[site] / "ledger.jsonl").read_bytes())
        return [one.body.kind for one in found if isinstance(one.body, Reserve | Commit | Burn)]


DIES_IN = ("mask", "reveal")
dying_app = ClientApp()  # site-2's process is killed in another phase of each round


def _dying(kind: str, phase: str) -> None:
    def answer(message: Message, context: Context) -> Message:
        config = message.content["config"]
        if (
            kind == "train"
            and context.node_config["site-folder"].endswith("site-2")  # type: ignore[union-attr]
            and DIES_IN[int(config["round"]) - 1] == phase  # type: ignore[arg-type]
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        return client(message, context)

    getattr(dying_app, kind)(phase)(answer)


for _phase in PHASES:
    _dying("train", _phase)
    _dying("evaluate", _phase)
