"""Conducts one deployed run over whatever grid the SuperLink gives: sealed messages, rounds, the released model.

Guarantees:
  - What is computed is the round loop of the simulation on the same exchange: same study, same cell, same sites, same
    weights, also when it goes on from its checkpoint after a crash.
  - Two processes never conduct one run: the second waits for the first to be gone, then refuses.
  - A site is believed by the key that it enrolled with. One that is revoked has no say from the next message on.
  - A run that is over, because its operator stopped it, say, is not conducted: not even where its process was started
    before that.
  - Before an attempt is made again, sites that are away have until the study's deadline to come back.
  - The final model is released once, with the coordinator's signature over its digest.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.numpy import save as to_bytes

from sottovoce.common import calibration_counts, fairness_of_runs
from sottovoce.common.config import as_plain
from sottovoce.common.errors import RunError, SottovoceError
from sottovoce.common.federation_ledger import FederationLedger
from sottovoce.common.files import lock_file, write_whole
from sottovoce.common.flower import Grid
from sottovoce.common.groups import Tables
from sottovoce.common.model_size import widths_of
from sottovoce.common.pretrained import looking_in
from sottovoce.common.privacy import of_study
from sottovoce.common.privacy_specs import NoPrivacy
from sottovoce.common.provenance import machine, now, versions
from sottovoce.common.rosters import roster_from
from sottovoce.common.run_files import (
    CellFacts,
    Refused,
    RoundFacts,
    RunFacts,
    read_rounds,
    round_line,
    write_run,
)
from sottovoce.common.secagg.session import Roster
from sottovoce.common.study import Study
from sottovoce.common.transfer import facts_of, in_words, start
from sottovoce.common.weights import Weights
from sottovoce.server.deployed_run import (
    CALIBRATION,
    FAIRNESS,
    MODEL,
    MODEL_FACTS,
    ROSTER,
    ROUNDS,
    DeployedRun,
    State,
    ended,
)
from sottovoce.server.exchange import Call, Collected, Evaluated, Exchange, GridExchange, Share
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.registry import Registry
from sottovoce.server.rounds import Outcome, RoundRecord
from sottovoce.server.rounds import run as run_rounds
from sottovoce.server.sealed import SealedGrid
from sottovoce.server.secure import SecureExchange

NODES, LOCK, SEQUENCE = "nodes.json", ".conducted", "sequence"
LOCK_SECONDS = 30.0
POLL_SECONDS = 0.1
MODEL_LABEL = b"sottovoce/released-model/1\n"

_log = logging.getLogger(__name__)


def conduct(home: CoordinatorHome, name: str, grid: Grid) -> Outcome:
    """Runs a deployed run to its end, from its checkpoint if there is one, and writes what it came to.

    Raises:
        SottovoceError: it cannot go on; its state says why.
    """
    found = DeployedRun.open(home, name)
    with _alone(found.folder):
        found.change(lambda state: replace(_not_over(state), state="running", reason=""))
        try:
            with looking_in(home.weights):
                outcome = _conducted(home, found, grid)
        except SottovoceError as error:
            reason = str(error)
            found.change(lambda state: ended(state, "failed", reason))
            raise
        found.change(lambda state: replace(state, state="done", weights_sha256=outcome.digest))
        return outcome


def initial_weights(study: Study, seed: int) -> Weights:
    """Returns the weights that a cell starts from, as in simulation: by the study's seed and its initial file."""
    return start(study, widths_of(study), seed=seed).weights


def _conducted(home: CoordinatorHome, found: DeployedRun, grid: Grid) -> Outcome:
    facts = _begin(found)
    registry = Registry.open(home.registry)

    def trusted() -> Mapping[str, str]:
        members = [member for member in registry.sites() if member.revoked_at is None]
        return {member.name: member.identity for member in members if member.name in found.plan.sites}

    nodes = {node: site for site, node in nodes_of(home, found.plan.sites).items()}
    sealed = SealedGrid(
        grid,
        key=home.key,
        run=found.plan.study_digest,
        sites=trusted,
        sequence=home.run / SEQUENCE,
        log=lambda reason: registry.log("coordinator", "message refused", reason=reason),
        nodes=nodes,
        max_body_bytes=home.settings.max_message_bytes,
    )
    places = {site: node for node, site in nodes.items()}
    present = _Present(sealed, places, found.study.federation.deadline_seconds)
    with _secured(home, found, GridExchange(sealed, nodes)) as exchange:
        outcome = run_rounds(
            _Patient(exchange, present),
            found.study,
            cell=found.plan.cell,
            weights=initial_weights(found.study, found.plan.seed),
            checkpoint=found.checkpoint,
            resume=True,
            on_round=lambda record: _tell(found, record),
        )
    _finish(home, found, facts, outcome, registry)
    return outcome


@contextmanager
def _secured(home: CoordinatorHome, found: DeployedRun, plain: GridExchange) -> Iterator[Exchange]:
    """Puts secure sums around an exchange where the study has them."""
    if not found.study.sums_are_secure:
        yield plain
        return
    roster = roster_from((found.folder / ROSTER).read_bytes())
    with federation_ledger(home, found.study, roster) as record:
        yield SecureExchange(plain, found.study, roster=roster, key=home.key, record=record)


def federation_ledger(home: CoordinatorHome, study: Study, roster: Roster) -> FederationLedger:
    """Opens the record of a study's sums; begins it where there is none."""
    path = home.federations / f"{study.digest()}.jsonl"
    if path.exists():
        return FederationLedger.open(path, key=home.key)
    simulated = not isinstance(study.privacy, NoPrivacy) and study.privacy.seeded_noise
    return FederationLedger.create(
        path, key=home.key, roster=roster, study=study.digest(), name=study.name, simulated=simulated
    )


def nodes_of(home: CoordinatorHome, sites: Sequence[str]) -> dict[str, int]:
    """Returns Flower's number of each site's node, as the running coordinator registered them. Raises: RunError."""
    try:
        known = {str(site): int(node) for site, node in json.loads((home.run / NODES).read_bytes()).items()}
    except (OSError, ValueError, AttributeError):
        raise RunError(
            f"{home.run / NODES}: expected the nodes of a running coordinator; came none."
        ) from None
    if missing := sorted(set(sites) - known.keys()):
        raise RunError(f"Expected a registered node of every site; {', '.join(missing)} has none.")
    return {site: known[site] for site in sites}


@dataclass(frozen=True)
class _Present:
    """Waits for sites to be there."""

    grid: Grid
    nodes: Mapping[str, int]
    seconds: float

    def wait(self, sites: Sequence[str]) -> None:
        end = time.monotonic() + self.seconds
        wanted = {self.nodes[site] for site in sites}
        while not wanted <= set(self.grid.get_node_ids()) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)


class _Patient:
    """An exchange that lets sites come back before the first round of a start, and before any further attempt."""

    def __init__(self, inner: Exchange, present: _Present) -> None:
        self._inner, self._present, self._began = inner, present, False

    @property
    def sites(self) -> Sequence[str]:
        return self._inner.sites

    def train(self, call: Call, cohort: Sequence[Share]) -> Collected:
        if call.attempt > 1 or not self._began:
            self._present.wait([share.site for share in cohort])
        self._began = True
        return self._inner.train(call, cohort)

    def evaluate(self, call: Call, sites: Sequence[str], tables: Tables) -> Evaluated:
        return self._inner.evaluate(call, sites, tables)


def _begin(found: DeployedRun) -> RunFacts:
    facts = RunFacts(
        format=1,
        name=found.plan.name,
        study_digest=found.plan.study_digest,
        stamp=of_study.stamp(found.study),
        started=now(),
        engine="hospitals",
        versions=versions(),
        machine=machine(),
        initial=facts_of(found.study),
    )
    for line in in_words(facts.initial) if facts.initial else ():
        _log.info("%s", line)
    if not (found.folder / "run.json").exists():
        write_run(found.folder / "run.json", facts)
    return facts


def _tell(found: DeployedRun, record: RoundRecord) -> None:
    with (found.folder / ROUNDS).open("a", encoding="utf-8") as file:
        file.write(_line(record))
    found.change(lambda state: replace(_not_over(state), round=record.round, rounds=record.rounds))


def _not_over(state: State) -> State:
    """Returns the state of a run that goes on. Raises: RunError where it was stopped meanwhile."""
    if state.is_over:
        raise RunError(f"Expected a run that is not over; this one is {state.state}: {state.reason}")
    return state


def _line(record: RoundRecord) -> str:
    """Returns a round's line of `rounds.jsonl`."""
    facts = RoundFacts(
        seed=record.seed,
        fold=record.fold,
        arm=record.arm,
        round=record.round,
        loss=record.loss,
        sites=record.sites,
        refused=tuple(Refused(site=site, reason=reason) for site, reason in record.refused.items()),
        bytes_down=record.bytes_down,
        bytes_up=record.bytes_up,
        seconds=record.seconds,
        confusion=record.confusion,
        counted=record.counted,
    )
    return round_line(facts)


def _finish(
    home: CoordinatorHome, found: DeployedRun, facts: RunFacts, outcome: Outcome, registry: Registry
) -> None:
    """Writes the model, its signed facts and the records, and releases it."""
    data = to_bytes(dict(outcome.weights))
    write_whole(found.folder / MODEL, data)
    model = {
        "run": found.plan.name,
        "study": found.plan.study_digest,
        "sha256": hashlib.sha256(data).hexdigest(),
        "weights_sha256": outcome.digest,
        "stamp": facts.stamp,
    }
    text = json.dumps(model, sort_keys=True).encode()
    signed = {
        **model,
        "signature": home.key.sign(MODEL_LABEL + text).hex(),
        "public_key": home.key.public_hex,
    }
    write_whole(found.folder / MODEL_FACTS, json.dumps(signed, sort_keys=True).encode())
    # A crash between a checkpoint and its line has left one out, or half of one.
    write_whole(found.folder / ROUNDS, "".join(map(_line, outcome.rounds)).encode())
    _keep_figures(found)
    _keep_records(home, found)
    cell = CellFacts(
        seed=found.plan.seed, fold=found.plan.fold, arm="federated", weights_sha256=outcome.digest
    )
    write_run(found.folder / "run.json", replace(facts, ended=now(), cells=(cell,)))
    registry.publish(found.plan.name, model["sha256"], found.folder / MODEL, study=found.plan.study_digest)


def _keep_figures(found: DeployedRun) -> None:
    """Writes what the released counts say of the study's groups and of calibration, where it asked and paid for any."""
    evaluation = found.study.evaluation
    study = replace(found.study, evaluation=replace(evaluation, seeds=(found.plan.seed,)))
    rounds = list(read_rounds(found.folder / ROUNDS))
    figures = {
        FAIRNESS: evaluation.groups and fairness_of_runs.of_rounds(rounds, study, evaluation.groups),
        CALIBRATION: calibration_counts.of_rounds(rounds, study),
    }
    for name, said in figures.items():
        if said is not None:
            text = json.dumps(as_plain(said), indent=1, sort_keys=True, allow_nan=False)
            write_whole(found.folder / name, text.encode())


def _keep_records(home: CoordinatorHome, found: DeployedRun) -> None:
    record = home.federations / f"{found.plan.study_digest}.jsonl"
    out = found.folder / "ledgers"
    out.mkdir(exist_ok=True)
    for source, name in ((record, "federation.jsonl"), (found.folder / ROSTER, ROSTER)):
        if source.exists():
            write_whole(out / name, source.read_bytes())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a run; an earlier process that is about to end has a while to do so."""
    end = time.monotonic() + LOCK_SECONDS
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock_file(folder / LOCK))
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise RunError(f"{folder}: another process conducts this run.") from None
                time.sleep(POLL_SECONDS)
        yield
