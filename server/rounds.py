"""The round loop: what Flower's strategies lack around their arithmetic.

    outcome = run(exchange, study, cell=Cell(seed=0, fold=1, arm="federated"), weights=weights,
                  checkpoint=path, resume=True, on_round=show)

Guarantees:
  - One study, cell and initial weights give one result, to the bit: with any number of workers, over any
    grid, and after any crash and `resume`.
  - A round is applied only when at least `quorum` sites gave an update that keeps the contract; otherwise the
    whole cohort is asked again, at most `ATTEMPTS` times in all, and then `QuorumError` tells why.
  - A refused update adds nothing; the round goes on without that site, and the record says why.
  - After each applied round the checkpoint is on disk before `on_round` is told of it.
  - `init` and `apply` are pure: they change nothing they are given.

Quorum: as the study says; without a word, more than half of the cohort. Asking all of them would let one
hospital's weekend stop a study; asking one would let a single site be the model.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.common import group_weights
from sottovoce.common.errors import QuorumError, RunError
from sottovoce.common.flower import PERSONAL, Scalar
from sottovoce.common.generative_specs import Adversarial, is_generative
from sottovoce.common.privacy_specs import NoPrivacy
from sottovoce.common.run_files import Counted
from sottovoce.common.streams import stream
from sottovoce.common.study import FedAvg, Study
from sottovoce.common.sums import ATTEMPTS, counts_deviation, quorum_of
from sottovoce.common.weights import Array, Layout, Weights, digest
from sottovoce.server import checkpoint as checkpoints
from sottovoce.server import strategies
from sottovoce.server.checkpoint import Checkpoint, Identity
from sottovoce.server.exchange import Beside, Call, Collected, Evaluated, Exchange, Share
from sottovoce.server.strategies import Algorithm, ServerState, Single

ALL_SPEAKERS = -1  # the fold in which nobody is withheld


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One federation of a study: a seed, a fold, an arm."""

    seed: int
    fold: int
    arm: str

    @property
    def name(self) -> str:
        """Returns the cell as a file name.

        >>> Cell(seed=0, fold=1, arm="federated").name
        'seed0-fold1-federated'
        """
        return f"seed{self.seed}-fold{self.fold}-{re.sub(r'[^a-z0-9@]+', '-', self.arm.lower()).strip('-')}"


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One line of `rounds.jsonl`. `refused` gives a reason for each site that added nothing.

    `loss` is None in private modes. `witnessed` holds, in the newest record, the newest signed checkpoint of each
    site's ledger: whoever rolls a ledger back is found out by it.
    """

    seed: int
    fold: int
    arm: str
    round: int
    rounds: int
    attempts: int
    update_norm: float
    sites: tuple[str, ...]
    refused: Mapping[str, str]
    bytes_down: int
    bytes_up: int
    seconds: float
    loss: float | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None
    counted: Counted | None = None
    witnessed: Mapping[str, str] = field(default_factory=dict)

    def as_table(self) -> dict[str, Any]:
        """Returns the record for JSON; what does not apply is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @staticmethod
    def of_table(table: Mapping[str, Any]) -> "RoundRecord":
        """Returns what `as_table` was made from, after JSON."""
        counts, counted = table.get("confusion"), table.get("counted")
        return RoundRecord(
            **{
                **table,
                "sites": tuple(table["sites"]),
                "confusion": None if counts is None else tuple(map(tuple, counts)),
                "counted": None if counted is None else Counted.of_table(counted),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a federation arrived. Resumed rounds are among `rounds`; `others` are the strategy's own vectors."""

    weights: Mapping[str, Array]
    digest: str
    rounds: tuple[RoundRecord, ...]
    others: Mapping[str, Array] = field(default_factory=dict)

    @property
    def refused(self) -> list[tuple[int, str, str]]:
        """Returns (round, site, reason) of every update that was not used."""
        return [(r.round, site, reason) for r in self.rounds for site, reason in r.refused.items()]


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """What a round's sum says of itself: the weighted mean loss, and the norm of the mean update."""

    loss: float | None
    update_norm: float


OnRound = Callable[[RoundRecord], None]


def run(
    exchange: Exchange,
    study: Study,
    *,
    cell: Cell,
    weights: Weights,
    sites: Sequence[str] | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_round: OnRound | None = None,
    client_config: Mapping[str, Scalar] | None = None,
) -> Outcome:
    """Runs a federation from `weights` to its last round; with `resume`, from the checkpoint if there is one.

    `sites` are those that take part (all that are there); `client_config` goes into every message.

    Raises:
        QuorumError: too few sites answered.
        RunError: the checkpoint is damaged or of another study; or, without `resume`, there is one.
    """
    loop = _Loop(exchange, study, cell, Layout.of(weights), sites, client_config or {}, checkpoint)
    state, records = loop.begin(weights, resume)
    while state.round < study.federation.rounds:
        state, record = loop.round(state, records)
        earlier = records[-1].witnessed if records else {}
        record = replace(record, witnessed={**earlier, **record.witnessed})
        records = (*(replace(old, witnessed={}) for old in records), record)
        loop.keep(state, records)
        if on_round is not None:
            on_round(record)
    final = loop.layout.unflatten(state.weights)
    return Outcome(weights=final, digest=digest(final), rounds=records, others=state.others)


def run_alone(
    exchange: Exchange,
    study: Study,
    *,
    cell: Cell,
    weights: Weights,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_round: OnRound | None = None,
    client_config: Mapping[str, Scalar] | None = None,
) -> dict[str, Outcome]:
    """Trains each site alone from the same start: the twin without any mixing.

    It is also the pooled twin, when the one site has everybody's data. `checkpoint` names a family of files:
    one for each site.
    """
    return {
        site: run(
            exchange,
            alone(study),
            cell=replace(cell, arm=f"{cell.arm}@{site}"),
            weights=weights,
            sites=(site,),
            checkpoint=None if checkpoint is None else _beside(checkpoint, site),
            resume=resume,
            on_round=on_round,
            client_config=client_config,
        )
        for site in sorted(exchange.sites)
    }


def alone(study: Study) -> Study:
    """Returns the study as a federation of one: no server optimiser, no pull, no partners."""
    strategy = study.federation.strategy
    federation = replace(
        study.federation,
        n_sites=1,
        strategy=strategy if isinstance(strategy, Adversarial) else FedAvg(kind="fedavg"),
        site_weights=None,
        sites_per_round=None,
        quorum=None,
        secure_sum=False,  # there is nobody to hide among
        compression=None,
        personalisation=None,
    )
    return replace(study, federation=federation)


def init(algorithm: Algorithm, layout: Layout, weights: Weights) -> ServerState:
    """Returns the state before the first round."""
    return algorithm.init(layout.flatten(weights))


def apply(
    algorithm: Algorithm, state: ServerState, collected: Collected, *, share: float = 1.0
) -> tuple[ServerState, Diagnostics]:
    """Returns the state after a round, and what the round says of itself.

    `share` is the part of all sites, by their public weights, whose updates were collected.
    """
    if algorithm.combine is None:
        mean = (collected.total / collected.weight).astype(np.float32)
    else:
        mean = algorithm.combine([Single(change=u.difference, loss=u.loss) for u in collected.updates])
    diagnostics = Diagnostics(
        loss=None if collected.loss is None else collected.loss / collected.weight,
        update_norm=float(np.linalg.norm(mean.astype(np.float64))),
    )
    return algorithm.apply(state, mean, share=share), diagnostics


def share_of(study: Study, sites: Sequence[str], counted: Sequence[str]) -> float:
    """Returns the part of all sites, by their public weights, that `counted` are."""
    ordered = sorted(sites)
    weights = dict(zip(ordered, study.federation.site_weights or (1.0,) * len(ordered), strict=True))
    return sum(weights[site] for site in counted) / sum(weights.values())


def cohort_of(study: Study, sites: Sequence[str], *, seed: int, round: int) -> list[Share]:
    """Returns the sites of a round with their public weights: all, or a public draw of `sites_per_round`.

    Sites are in the order of their names: that of the sums, and of the study's `site_weights`.
    """
    federation = study.federation
    ordered = sorted(sites)
    weights = federation.site_weights or (1.0,) * len(ordered)
    shares = [Share(site=site, weight=weight) for site, weight in zip(ordered, weights, strict=True)]
    if federation.sites_per_round is None or federation.sites_per_round >= len(shares):
        return shares
    random = stream(seed, "cohort", round)
    drawn = random.choice(len(shares), federation.sites_per_round, replace=False)
    return [shares[index] for index in sorted(drawn.tolist())]


@dataclass(frozen=True)
class _Loop:
    """What stays the same from round to round of one federation."""

    exchange: Exchange
    study: Study
    cell: Cell
    layout: Layout
    chosen: Sequence[str] | None
    client_config: Mapping[str, Scalar]
    checkpoint: Path | None

    @property
    def algorithm(self) -> Algorithm:
        return strategies.of(self.study, seed=self.cell.seed)

    @property
    def identity(self) -> Identity:
        return Identity(study_digest=self.study.digest(), cell=self.cell.name)

    @property
    def sites(self) -> list[str]:
        return sorted(self.exchange.sites if self.chosen is None else self.chosen)

    def begin(self, weights: Weights, resume: bool) -> tuple[ServerState, tuple[RoundRecord, ...]]:
        if len(self.sites) != self.study.federation.n_sites:
            raise RunError(
                f"Expected federation.n_sites={self.study.federation.n_sites} sites; came {len(self.sites)}."
            )
        if self.checkpoint is not None and self.checkpoint.exists():
            if not resume:
                raise RunError(
                    f"{self.checkpoint}: expected no checkpoint; there is one. Resume, or remove it."
                )
            found = checkpoints.load(self.checkpoint, self.layout, self.identity)
            return found.state, tuple(map(RoundRecord.of_table, found.records))
        return init(self.algorithm, self.layout, weights), ()

    def keep(self, state: ServerState, records: tuple[RoundRecord, ...]) -> None:
        if self.checkpoint is not None:
            tables = tuple(record.as_table() for record in records)
            checkpoints.save(
                self.checkpoint, Checkpoint(state=state, records=tables), self.layout, self.identity
            )

    def round(self, state: ServerState, earlier: Sequence[RoundRecord]) -> tuple[ServerState, RoundRecord]:
        began = time.monotonic()
        number = state.round + 1
        call, collected = self._collect(state, number, earlier)
        share = share_of(self.study, self.sites, collected.sites)
        state, diagnostics = apply(self.algorithm, state, collected, share=share)
        evaluated = self._evaluate(replace(call, weights=state.weights, beside=None))
        refused = dict(collected.refused)
        if evaluated is not None:
            refused |= {site: f"evaluation: {reason}" for site, reason in evaluated.refused.items()}
        return state, RoundRecord(
            seed=self.cell.seed,
            fold=self.cell.fold,
            arm=self.cell.arm,
            round=number,
            rounds=call.rounds,
            attempts=call.attempt,
            loss=diagnostics.loss,
            update_norm=diagnostics.update_norm,
            sites=tuple(collected.sites),
            refused=refused,
            bytes_down=collected.n_bytes_down + (evaluated.n_bytes_down if evaluated else 0),
            bytes_up=collected.n_bytes_up + (evaluated.n_bytes_up if evaluated else 0),
            seconds=time.monotonic() - began,
            confusion=None if group_weights.steers(self.study, number) else _plain_counts(evaluated),
            counted=self._counted(evaluated),
            witnessed={**collected.checkpoints, **(evaluated.checkpoints if evaluated else {})},
        )

    def _collect(
        self, state: ServerState, number: int, earlier: Sequence[RoundRecord]
    ) -> tuple[Call, Collected]:
        cohort = cohort_of(self.study, self.sites, seed=self.cell.seed, round=number)
        quorum = quorum_of(self.study, len(cohort))
        before: Collected | None = None
        for attempt in range(1, ATTEMPTS + 1):
            call = self._call(state, number, attempt, earlier)
            collected = self.exchange.train(call, cohort)
            if before is not None:  # what an attempt cost, and what sites signed in it, is not forgotten
                collected.n_bytes_up += before.n_bytes_up
                collected.n_bytes_down += before.n_bytes_down
                collected.checkpoints = {**before.checkpoints, **collected.checkpoints}
            if len(collected.sites) >= quorum:
                return call, collected
            before = collected
        reasons = "; ".join(f"{site}: {reason}" for site, reason in list(collected.refused.items())[:5])
        raise QuorumError(
            f"Expected updates of at least {quorum} of {len(cohort)} sites in round {number}; came "
            f"{len(collected.sites)} in attempt {ATTEMPTS} of {ATTEMPTS}. {reasons}. Mend them and resume."
        )

    def _call(self, state: ServerState, number: int, attempt: int, earlier: Sequence[RoundRecord]) -> Call:
        federation, algorithm = self.study.federation, self.algorithm
        # Twins that train alone are of the same study: only a message can say that they have no model of their own.
        personal = {} if federation.personalisation is None else {PERSONAL: True}
        beside = None
        if algorithm.sends is not None:
            counted = {site: record.round for record in earlier for site in record.sites}
            beside = Beside(vector=state.moments[algorithm.sends], counted=counted)
        return Call(
            beside=beside,
            single=algorithm.combine is not None,
            round=number,
            rounds=federation.rounds,
            attempt=attempt,
            seed=self.cell.seed,
            fold=self.cell.fold,
            layout=self.layout,
            weights=state.weights,
            deadline_seconds=federation.deadline_seconds,
            max_update_norm=federation.max_update_norm,
            private=not isinstance(self.study.privacy, NoPrivacy),
            config={
                **self.client_config,
                **algorithm.client_config,
                **personal,
                **self._group_weights(earlier),
            },
        )

    def _group_weights(self, earlier: Sequence[RoundRecord]) -> Mapping[str, Scalar]:
        """Returns the weights of groups where they move: from what was released before, after a resume too."""
        if not group_weights.moves(self.study):
            return {}
        counted = [record.counted for record in earlier if record.counted is not None]
        return {group_weights.TOLD: group_weights.told(group_weights.weights_after(self.study, counted))}

    def _counted(self, evaluated: Evaluated | None) -> Counted | None:
        """Returns the counts as they came, with their noise; None where nothing but answers of all was counted."""
        if evaluated is None or evaluated.counts is None or len(self.study.tables.names) == 1:
            return None
        tables = tuple(tuple(map(tuple, table)) for table in evaluated.counts.tolist())
        return Counted(deviation=counts_deviation(self.study, evaluated.n_sites), tables=tables)

    def _evaluate(self, call: Call) -> Evaluated | None:
        due = call.round % self.study.evaluation.every_rounds == 0 or call.round == call.rounds
        spec = self.study.privacy
        unpaid = not isinstance(spec, NoPrivacy) and spec.counts_noise_multiplier is None
        nobody = call.fold == ALL_SPEAKERS and not group_weights.steers(self.study, call.round)
        if not due or unpaid or nobody or is_generative(self.study):
            return None
        return self.exchange.evaluate(call, self.sites, self.study.tables)


def _plain_counts(evaluated: Evaluated | None) -> tuple[tuple[int, ...], ...] | None:
    """Returns the counts of all; noise takes small sums below zero, and a curve wants none."""
    if evaluated is None or evaluated.counts is None:
        return None
    return tuple(map(tuple, np.maximum(evaluated.counts[0], 0).tolist()))


def _beside(checkpoint: Path, site: str) -> Path:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", site)
    return checkpoint.with_name(f"{checkpoint.stem}@{name}{checkpoint.suffix}")
