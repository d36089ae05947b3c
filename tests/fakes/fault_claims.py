"""What must hold after a run, whatever happened in it: see `fault_schedules.py`, whose numbers these are."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.client.home import Hospital
from sottovoce.client.site_ledger import SiteLedger
from sottovoce.common.errors import LedgerError, QuorumError
from sottovoce.common.federation_ledger import Report, read_federation
from sottovoce.common.federation_ledger.compare import compare_with_site
from sottovoce.common.federation_ledger.entries import Summed
from sottovoce.common.flower import Message
from sottovoce.common.ledger.reading import read_ledger
from sottovoce.common.ledger.recompute import recompute
from sottovoce.common.ledger.verify import entries_of, verify
from sottovoce.common.privacy.budget import PldAccountant
from sottovoce.common.privacy_specs import DistributedPrivacy, NoPrivacy
from sottovoce.common.records import unpack
from sottovoce.common.sealing import unwrapped
from sottovoce.common.study import Execution, Study
from sottovoce.common.sums import COUNTS, UPDATE, quorum_of
from sottovoce.common.weights import Layout, Weights, digest
from sottovoce.server.deployed_run import ROUNDS
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.rounds import Outcome
from sottovoce.server.rounds import run as run_rounds
from sottovoce.simulations import site_ledgers
from sottovoce.simulations.engines import open_exchange
from tests.fakes.coordinators import Consortium
from tests.fakes.lossy_grid import Site
from tests.fakes.plain_rounds import PlainRounds
from tests.fakes.secure_rounds import CELL

RUN = "run"


class Broken(AssertionError):
    """A schedule after which something that must hold does not."""


@dataclass(frozen=True, kw_only=True)
class Left:
    """What left a site: under which phase, in answer to what, saying what."""

    site: str
    phase: str
    round: int
    asked: Mapping[str, Any]
    said: Mapping[str, Any]

    @property
    def what(self) -> str:
        """Of which charge it must be a release."""
        return UPDATE if self.phase.startswith("train") else COUNTS


@dataclass(kw_only=True)
class World:
    """A federation in folders, and what was seen of it from outside."""

    made: Consortium
    study_file: Path
    weights: Weights
    left: list[Left] = field(default_factory=list)
    began: Counter[tuple[str, str]] = field(default_factory=Counter)
    outcome: Outcome | None = None

    @property
    def study(self) -> Study:
        """What is run."""
        return self.made.study

    @property
    def hospitals(self) -> Mapping[str, Hospital]:
        """The sites' folders."""
        return self.made.hospitals

    @property
    def home(self) -> CoordinatorHome:
        """The coordinator's folder."""
        return self.made.home

    @property
    def sites(self) -> Mapping[str, Path]:
        """The sites' data."""
        return self.made.data

    def saw(self, site: Site, question: Message, reply: Message) -> None:
        """Takes down what leaves a site."""
        if not reply.has_content():
            return
        header = json.loads(unwrapped(reply.content).header)
        self.left.append(
            Left(
                site=site.name,
                phase=header["phase"],
                round=header["round"],
                asked=unpack(unwrapped(question.content).body),
                said=unpack(unwrapped(reply.content).body),
            )
        )


def check(world: World) -> None:
    """Raises: Broken."""
    for site in world.hospitals:
        _check_ledger(world, site)
    if world.outcome is not None:
        _check_weights(world, world.outcome)
    _check_record(world)


def _check_weights(world: World, outcome: Outcome) -> None:
    plain = PlainRounds(world.study, world.sites, world.weights, seed=CELL.seed, fold=CELL.fold)
    survivors = [record.sites for record in outcome.rounds]
    if [record.round for record in outcome.rounds] != list(range(1, world.study.federation.rounds + 1)):
        raise Broken("2: a round is missing, or there twice")
    if any(len(set(sites)) != len(sites) for sites in survivors):
        raise Broken("2: a site was counted twice")
    if plain.digest(plain.after(survivors)) != outcome.digest:
        raise Broken("2: the weights are not what these survivors come to")
    if is_whole(world, outcome) and outcome.digest != _simulated(world):
        raise Broken("2: all sites were in all rounds, and the simulation ends in other weights")
    _check_sums(world, plain, survivors)
    lines = (world.home.runs / RUN / ROUNDS).read_text().splitlines()
    if [json.loads(line)["round"] for line in lines] != list(range(1, len(survivors) + 1)):
        raise Broken(f"4: {ROUNDS} has not one line for each round")


def _check_sums(world: World, plain: PlainRounds, survivors: list[tuple[str, ...]]) -> None:
    if not world.study.sums_are_secure:
        return
    states = {plain.digest(state): state for state in plain.states(survivors)}
    for attempt in _record(world).attempts:
        if isinstance(attempt.end, Summed):
            flat, number = states[attempt.session.model_digest], attempt.session.round
            total = plain.summed(flat, number, attempt.end.survivors, attempt.what)
            if hashlib.sha256(total.astype("<i8").tobytes()).hexdigest() != attempt.end.sum_sha256:
                raise Broken(f"2: a sum of {attempt.what} in round {number} is not that of its survivors")


def is_whole(world: World, outcome: Outcome) -> bool:
    """Says whether every site was in every round."""
    return all(len(record.sites) == len(world.hospitals) for record in outcome.rounds)


_SIMULATED: dict[str, str] = {}


def _simulated(world: World) -> str:
    """Returns the digest that the study ends in without any fault, in the in-process simulation."""
    study = world.study.digest()
    if study not in _SIMULATED:
        folder = world.home.folder.parent / "simulated"
        _SIMULATED[study] = _simulate(world, folder).digest
        shutil.rmtree(folder, ignore_errors=True)
    return _SIMULATED[study]


def _simulate(world: World, folder: Path) -> Outcome:
    study, study_file = world.study, world.study_file
    private = not isinstance(study.privacy, NoPrivacy)
    if private:
        site_ledgers.open_all(folder, study, world.sites)
    elif study.sums_are_secure:
        site_ledgers.identities(folder, study, world.sites)
    with open_exchange(
        Execution(engine="inprocess", workers=1),
        world.sites,
        study_file=study_file,
        ledgers=folder if private else None,
        secure=None if private or not study.sums_are_secure else folder,
    ) as exchange:
        if not study.sums_are_secure:
            return run_rounds(exchange, study, cell=CELL, weights=world.weights)
        with site_ledgers.coordinated(folder, study, exchange) as secured:  # type: ignore[arg-type]
            return run_rounds(secured, study, cell=CELL, weights=world.weights)


def _check_ledger(world: World, site: str) -> None:
    hospital, left = world.hospitals[site], [one for one in world.left if one.site == site]
    with suppress(LedgerError), SiteLedger.open(hospital.ledger):
        pass  # a start mends what a crash left half written; what it cannot mend is found below
    files = read_ledger(hospital.ledger)
    notes = [one.said["ledger"]["checkpoint"] for one in left if "ledger" in one.said]
    verdict = verify(files.ledger, head=files.head, seen=notes)
    if not verdict.ok:
        raise Broken(f"3: the ledger of {site}: {verdict.findings[0].what}")
    if not recompute(entries_of(files.ledger), PldAccountant())["ok"]:
        raise Broken(f"3: the figures of {site} are others when computed again")
    with SiteLedger.open(hospital.ledger) as ledger:
        reserved = Counter(one.reserve.what for one in ledger.budget.state.releases.values())
        for what in (UPDATE, COUNTS):
            if world.began[site, what] > reserved[what]:
                raise Broken(
                    f"3: {site} computed {world.began[site, what]} {what}, and reserved {reserved[what]}"
                )
        for one in left:
            if not _is_released(ledger, world.study, one):
                raise Broken(f"3: {one.phase} of round {one.round} left {site} without a committed release")


def _is_released(ledger: SiteLedger, study: Study, left: Left) -> bool:
    """Says whether what left, if it was computed from data, is of a committed release."""
    masked = left.said.get("secagg", {}).get("body") if left.phase.endswith(".mask") else None
    if "secagg" in left.said and masked is None:
        return True  # keys, shares, signatures, or a complaint
    model = left.asked["secagg"]["model"] if masked is not None else _digest(left.asked["arrays"])
    releases = ledger.budget.state.releases.items()
    committed = [
        key
        for key, one in releases
        if one.released is not None
        and (one.reserve.what, one.reserve.round, one.reserve.model_in) == (left.what, left.round, model)
    ]
    if masked is not None and not isinstance(study.privacy, DistributedPrivacy):
        return bool(committed)  # under a mask; the sum is held to the bits by the coordinator's record
    data = _released_bytes(study, left) if masked is None else masked
    return any(ledger.budget.may_resend(key, data) for key in committed)


def _released_bytes(study: Study, left: Left) -> bytes:
    """Returns the bytes that the ledger must have the HMAC of."""
    if left.what == COUNTS:
        return np.asarray(left.said["metrics"]["confusion"], "<i8").tobytes()
    arrays = {name: np.asarray(array) for name, array in left.said["arrays"].items()}
    flat = Layout.of(arrays).flatten(arrays).astype("<f4").tobytes()
    if not isinstance(study.privacy, NoPrivacy):
        return flat
    metrics = {name: left.said["metrics"][name] for name in ("loss", "n-examples", "n-steps")}
    return json.dumps(metrics).encode() + b"\n" + flat


def _digest(arrays: Mapping[str, Any]) -> str:
    return digest({name: np.asarray(array) for name, array in arrays.items()})


def _record(world: World) -> Report:
    path = world.home.federations / f"{world.study.digest()}.jsonl"
    return read_federation(path.read_bytes(), coordinator_key=world.home.key.public_hex)


def _check_record(world: World) -> None:
    if not world.study.sums_are_secure:
        return
    try:
        report = _record(world)
    except LedgerError as error:
        raise Broken(f"4: the coordinator's record: {error}") from None
    if isinstance(world.study.privacy, NoPrivacy):
        return
    for site, one in world.hospitals.items():
        if problems := compare_with_site(report, entries_of(read_ledger(one.ledger).ledger)):
            raise Broken(f"4: the coordinator's record and {site}: {problems[0]}")


def check_exhausted(world: World, error: QuorumError) -> None:
    """A run may stop for good where so many sites' ledgers say no that a quorum cannot be."""
    if isinstance(world.study.privacy, NoPrivacy):
        raise Broken(f"1: nothing is paid for, everything is mended, and it stopped: {error}")
    spent = [site for site, one in world.hospitals.items() if _is_spent(one, world.study)]
    if len(world.hospitals) - len(spent) >= quorum_of(world.study, len(world.hospitals)):
        raise Broken(f"1: enough sites have a budget, and it stopped: {error}")


def _is_spent(hospital: Hospital, study: Study) -> bool:
    with SiteLedger.open(hospital.ledger) as ledger:
        grant = ledger.budget.state.grants[ledger.grant(study)]
        return any(grant.drawn.get(charge.what, 0) >= charge.steps for charge in grant.approval.charges)
