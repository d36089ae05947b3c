"""One exchange with a cohort: weights out; updates in, each checked, each added, in a fixed order.

Guarantees:
  - Updates are added in the order of the cohort, whatever order they arrive in: the sum's bits do not depend
    on workers, machines or luck.
  - Sums are float64 and are rounded to float32 once, when the round ends; memory is that of the model.
  - A reply that breaks the contract adds nothing, and its reason is kept.
  - Weights in the sum are the study's public constants.
  - Single updates are kept, of one round, only where the study's strategy must see each one.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sottovoce.common import counted, group_weights
from sottovoce.common.errors import QuorumError, RunError, UpdateRefused
from sottovoce.common.flower import (
    COUNTED,
    ArrayRecord,
    Grid,
    Message,
    MessageType,
    Reply,
    Scalar,
    SumReply,
    array_record,
    config_record,
    exchange,
    instruction,
    reply_of,
    site_names,
    sum_message,
    sum_reply_of,
)
from sottovoce.common.groups import Tables
from sottovoce.common.weights import Layout, digest_beside
from sottovoce.server.contract import Contract, Update, confusion_counts
from sottovoce.server.strategies import Vector

Counts = npt.NDArray[np.int64]
WINDOW = (
    32  # so many sites ahead of the sum: more than workers on one machine, and never 1,000 models at once
)
SHORTEST_TTL_SECONDS = 1e-3  # Flower takes 0 for its default of 12 hours
ROSTER_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What a strategy sends beside the weights: a vector of its state, and to each site the last round in which

    its update was used (0: none yet), which the site itself cannot know.
    """

    vector: Vector
    counted: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Call:
    """What the sites of one attempt are told. All of it is public."""

    round: int
    rounds: int
    attempt: int
    seed: int
    fold: int
    layout: Layout
    weights: Vector
    deadline_seconds: float
    max_update_norm: float
    private: bool = False
    config: Mapping[str, Scalar] = field(default_factory=dict)
    beside: Beside | None = None
    single: bool = False

    @property
    def model(self) -> str:
        """Returns the digest of all numbers that the sites begin from."""
        beside = None if self.beside is None else self.layout.unflatten(self.beside.vector)
        model = digest_beside(self.layout.unflatten(self.weights), beside)
        model = counted.bound_to(model, self.config.get(counted.TOLD))
        return group_weights.bound_to(model, self.config.get(group_weights.TOLD))

    @property
    def n_bytes(self) -> int:
        """Returns the size of all numbers that one site is sent."""
        return self.weights.nbytes + (0 if self.beside is None else self.beside.vector.nbytes)

    @property
    def group(self) -> str:
        """Returns what ties an answer to its question."""
        return f"round {self.round} attempt {self.attempt}"

    @property
    def message_config(self) -> dict[str, Scalar]:
        """Returns what `client/app.py` reads. The attempt is not in it: no draw may depend on one."""
        return {
            "round": self.round,
            "rounds": self.rounds,
            "seed": self.seed,
            "fold": self.fold,
            "proximal-mu": 0.0,
            **self.config,
        }

    def config_for(self, site: str) -> dict[str, Scalar]:
        """Returns the configuration of the message to one site."""
        if self.beside is None:
            return self.message_config
        return {**self.message_config, COUNTED: self.beside.counted.get(site, 0)}

    @property
    def arrays(self) -> ArrayRecord:
        """Returns the record of the weights."""
        return array_record(self.layout.unflatten(self.weights))

    @property
    def control(self) -> ArrayRecord | None:
        """Returns the record of what goes beside the weights, if anything does."""
        return None if self.beside is None else array_record(self.layout.unflatten(self.beside.vector))


@dataclass(frozen=True, kw_only=True)
class Share:
    """One site's place in a cohort: its name and its public weight."""

    site: str
    weight: float = 1.0


@dataclass(kw_only=True)
class Collected:
    """The running sum of one attempt, and what is known of it; `updates` where the call asks for single ones."""

    total: npt.NDArray[np.float64]
    weight: float = 0.0
    loss: float | None = 0.0
    n_examples: int = 0
    sites: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    n_bytes_down: int = 0
    n_bytes_up: int = 0
    updates: list[Update] = field(default_factory=list)

    def add(self, update: Update, weight: float) -> None:
        """Adds one update with its public weight."""
        self.total += update.difference if weight == 1.0 else weight * update.difference
        self.weight += weight
        # In a private mode no site states a loss: it would be one more release.
        self.loss = None if self.loss is None or update.loss is None else self.loss + weight * update.loss
        if update.checkpoint is not None:
            self.checkpoints[update.site] = update.checkpoint
        self.n_examples += update.n_examples
        self.sites.append(update.site)
        self.n_bytes_up += update.n_bytes


@dataclass(kw_only=True)
class Evaluated:
    """Confusion counts (table, truth, predicted) summed over the `n_sites` that answered; with noise below zero too."""

    counts: Counts | None
    n_sites: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    n_bytes_up: int = 0
    n_bytes_down: int = 0


class Exchange(Protocol):
    """How a round's updates are obtained: over a grid, or from the vectorised cohort engine."""

    @property
    def sites(self) -> Sequence[str]:
        """Returns the sites that can be asked."""

    def train(self, call: Call, cohort: Sequence[Share]) -> Collected:
        """Returns the sum of the updates of a cohort."""

    def evaluate(self, call: Call, sites: Sequence[str], tables: Tables) -> Evaluated:
        """Returns confusion counts over the speakers whom the fold withholds."""


class GridExchange:
    """Sites behind a Flower grid: ours, Ray's, or a SuperLink's."""

    def __init__(self, grid: Grid, sites: Mapping[int, str]) -> None:
        self._grid = grid
        self._names = dict(sites)
        self._nodes = {site: node for node, site in sites.items()}
        if len(self._nodes) != len(sites):
            twice = sorted({name for name in sites.values() if list(sites.values()).count(name) > 1})
            raise RunError(f"Expected one node for each site; {twice[0]!r} is the name of two.")

    @property
    def sites(self) -> Sequence[str]:
        """Returns the names of all sites behind the grid."""
        return list(self._nodes)

    def train(self, call: Call, cohort: Sequence[Share]) -> Collected:
        """Sends the weights, checks and adds each update in the order of the cohort."""
        contract = Contract(
            group=call.group,
            layout=call.layout,
            sent=call.weights,
            max_update_norm=call.max_update_norm,
            private=call.private,
        )
        collected = Collected(total=np.zeros(call.layout.size), n_bytes_down=call.n_bytes * len(cohort))
        replies = self._ask(MessageType.TRAIN, call, [share.site for share in cohort])
        for share, reply in zip(cohort, replies, strict=True):
            try:
                update = contract.check(share.site, self._from(share.site, reply))
            except UpdateRefused as refusal:
                collected.refused[share.site] = str(refusal)
            else:
                collected.add(update, share.weight)
                if call.single:
                    collected.updates.append(update)
        return collected

    def evaluate(self, call: Call, sites: Sequence[str], tables: Tables) -> Evaluated:
        """Sends the weights and sums the counts."""
        counts = np.zeros(tables.shape, np.int64)
        evaluated = Evaluated(counts=counts)
        for site, reply in zip(sites, self._ask(MessageType.EVALUATE, call, sites), strict=True):
            try:
                said = self._from(site, reply)
                counts += confusion_counts(call.group, said, tables, private=call.private)
                evaluated.n_sites += 1
                if said.checkpoint is not None:
                    evaluated.checkpoints[site] = said.checkpoint
            except UpdateRefused as refusal:
                evaluated.refused[site] = str(refusal)
        return evaluated

    def phase(
        self, kind: str, phase: str, call: Call, model: str, bodies: Mapping[str, bytes]
    ) -> Iterator[tuple[str, SumReply]]:
        """Sends each site its body of a phase of a secure sum, and yields what each said, in that order.

        The weights go along in phase `mask`, in which they are needed. A reply of another node, or to another
        question, is an error.
        """
        arrays, control = (call.arrays, call.control) if phase == "mask" else (None, None)
        group = f"{call.group} {phase}"
        end = time.monotonic() + call.deadline_seconds
        messages = (
            sum_message(
                f"{kind}.{phase}",
                self._nodes[site],
                body,
                model,
                config_record(call.config_for(site)),
                arrays=arrays,
                control=control,
                group=group,
                ttl=max(end - time.monotonic(), SHORTEST_TTL_SECONDS),
            )
            for site, body in bodies.items()
        )
        replies = exchange(self._grid, messages, window=WINDOW, timeout=call.deadline_seconds)
        for site, reply in zip(bodies, replies, strict=True):
            yield site, self._said(site, group, reply)

    def _said(self, site: str, group: str, reply: Message | None) -> SumReply:
        if reply is None:
            return SumReply(node_id=0, group=group, error="no answer within the deadline")
        said = sum_reply_of(reply)
        if said.node_id != self._nodes[site] or said.group != group:
            return SumReply(
                node_id=0, group=group, error="expected the answer of the site that was asked, to this"
            )
        return said

    def _from(self, site: str, reply: Message | None) -> Reply:
        """Opens a reply that comes from the site that was asked. Raises: UpdateRefused."""
        if reply is None:
            raise UpdateRefused("no answer within the deadline")
        opened = reply_of(reply)
        if opened.node_id != self._nodes[site]:
            raise UpdateRefused("expected the answer of the site that was asked; another node answered")
        return opened

    def _ask(self, kind: str, call: Call, sites: Sequence[str]) -> Iterator[Message | None]:
        arrays, control = call.arrays, call.control
        end = time.monotonic() + call.deadline_seconds
        messages = (
            instruction(
                kind,
                self._nodes[site],
                arrays,
                config_record(call.config_for(site)),
                control=control,
                group=call.group,
                ttl=max(end - time.monotonic(), SHORTEST_TTL_SECONDS),
            )
            for site in sites
        )
        return exchange(self._grid, messages, window=WINDOW, timeout=call.deadline_seconds)


def roster(grid: Grid, *, n_sites: int, timeout: float) -> dict[int, str]:
    """Returns node id and site name of all sites, once `n_sites` of them are there.

    Raises:
        QuorumError: they are not within `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while len(sites := site_names(grid, timeout=max(end - time.monotonic(), SHORTEST_TTL_SECONDS))) < n_sites:
        if time.monotonic() > end:
            raise QuorumError(f"Expected {n_sites} sites within {timeout:g} s; came {len(sites)}.")
        time.sleep(ROSTER_POLL_SECONDS)
    return sites
