"""Flower's own SecAgg+ in one process: what a round of it costs, and what it goes along with.

The yardstick of `secagg.py`. Nothing of it is written anew: Flower's `secaggplus_mod` around a legacy client, its
`SecAggPlusWorkflow` inside its `DefaultWorkflow` with its `FedAvg`, over a grid of ours that serialises each message
as Flower's transport does. What is measured is the mod's and the workflow's own work: serialisation and the
strategy's averaging are taken off, quantisation is in.

    found = play(vectors, lost={1: MASK})
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Context, Message
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import FitRes, Parameters, bytes_to_ndarray, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    RECORD_KEY_STATE,
    Key,
    Stage,
)
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    public_key_to_bytes,
)

from sottovoce.common.flower import ErrorCode, Grid, Node, RecordDict, answer, error_reply
from sottovoce.common.secagg.session import threshold_of
from sottovoce.simulations.engines.inprocess import InProcessGrid

Vector = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Forge = Callable[["Wire", str, int, ConfigRecord], None]  # may change what a node is told in a stage

SETUP, SHARE, MASK, UNMASK = STAGES = Stage.all()
EXAMPLES = 1000  # of every site: Flower's largest weight
CLIP, LEVELS, MODULUS = 8.0, 2**22, 2**32  # its defaults
GRAIN = 2 * CLIP / LEVELS


def _honest(wire: "Wire", stage: str, node: int, told: ConfigRecord) -> None:
    """Changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """One round. `mean` is None where the workflow came to none."""

    wire: "Wire"
    mean: Floats | None
    server_seconds: float
    error: str = ""


class Wire(InProcessGrid):
    """Serialises every message, loses the sites that are lost, and sends what the coordinator would forge.

    `log` holds what arrived and what came back, by stage and node.
    """

    def __init__(self, app: ClientApp, n_sites: int, lost: Mapping[int, str], forge: Forge) -> None:
        super().__init__(app, [Node(site=str(number)) for number in range(n_sites)], {})
        self._lost, self._forge = lost, forge
        self.seconds: dict[int, float] = {}
        self.elsewhere_seconds = 0.0
        self.n_bytes: dict[tuple[int, str], int] = {}
        self.log: dict[tuple[str, int], tuple[ConfigRecord, ConfigRecord]] = {}
        self.errors: list[str] = []

    def held_by(self, node: int, *, of: int, kind: str) -> bytes:
        """Returns the share of another node's secret that a node keeps in its state."""
        state = self._contexts[node].state.config_records[RECORD_KEY_STATE]
        owners = cast(list[int], state[f"{kind}_share_dict:K"])
        return cast(list[bytes], state[f"{kind}_share_dict:V"])[owners.index(of)]

    def _answer(self, message: Message) -> Message:
        began = time.process_time()
        node = message.metadata.dst_node_id
        stage = cast(str, message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])
        if node in self._lost and STAGES.index(self._lost[node]) <= STAGES.index(stage):
            return error_reply(message, "lost", ErrorCode.MESSAGE_UNAVAILABLE)
        told = message_from_proto(message_to_proto(message))
        settings = told.content.config_records[RECORD_KEY_CONFIGS]
        self._forge(self, stage, node, settings)
        asked = ConfigRecord(dict(settings))
        started = time.process_time()
        reply = answer(self._app, told, self._contexts[node])
        self.seconds[node] = self.seconds.get(node, 0.0) + time.process_time() - started
        sent = message_to_proto(reply)
        self.n_bytes[node, stage] = sent.ByteSize()
        if reply.has_error():
            self.errors.append(f"{stage}: {reply.error.reason}")
        else:
            self.log[stage, node] = asked, reply.content.config_records[RECORD_KEY_CONFIGS]
        self.elsewhere_seconds += time.process_time() - began
        return message_from_proto(sent)


class _Average(FedAvg):
    """Flower's strategy, on a clock of its own."""

    seconds = 0.0

    def aggregate_fit(
        self, server_round: int, results: list[tuple[Any, FitRes]], failures: list[Any]
    ) -> tuple[Parameters | None, dict[str, Any]]:
        began = time.process_time()
        found = super().aggregate_fit(server_round, results, failures)
        self.seconds += time.process_time() - began
        self.result = found[0]
        return cast(tuple[Parameters | None, dict[str, Any]], found)


def play(
    vectors: Sequence[Vector], *, lost: Mapping[int, str] | None = None, forge: Forge = _honest
) -> Played:
    """Runs one round of all sites, node i + 1 with `vectors[i]`, and the threshold that ours has."""
    n_sites = len(vectors)
    wire = Wire(_client_app(vectors), n_sites, lost or {}, forge)
    strategy = _Average(
        fraction_evaluate=0.0,
        min_fit_clients=n_sites,
        min_available_clients=n_sites,
        initial_parameters=ndarrays_to_parameters([np.zeros_like(vectors[0])]),
    )
    spent = list[float]()
    secure = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=threshold_of(n_sites) / n_sites)

    def fit(grid: Grid, context: Context) -> None:
        began = time.process_time()
        try:
            secure(grid, context)
        finally:
            spent.append(time.process_time() - began)

    context = Context(wire.run.run_id, 0, {}, RecordDict(), {})
    error = ""
    with _silent():
        legacy = LegacyContext(context, ServerConfig(num_rounds=1), strategy)
        try:
            DefaultWorkflow(fit_workflow=fit)(wire, legacy)
        except Exception as raised:  # whatever the workflow dies of is what is asked here
            error = f"{type(raised).__name__}: {raised}"
    result = getattr(strategy, "result", None)
    return Played(
        wire=wire,
        mean=None if result is None else parameters_to_ndarrays(result)[0],
        server_seconds=sum(spent) - wire.elsewhere_seconds - strategy.seconds,
        error=error,
    )


def uploaded(wire: Wire, node: int) -> int:
    """Returns the bytes of all answers of a node, as Flower serialises them."""
    return sum(n_bytes for (who, _), n_bytes in wire.n_bytes.items() if who == node)


def _client_app(vectors: Sequence[Vector]) -> ClientApp:
    class Client(NumPyClient):
        def __init__(self, vector: Vector) -> None:
            self._vector = vector

        def fit(self, parameters: Any, config: Any) -> tuple[list[Vector], int, dict[str, Any]]:
            return [self._vector], EXAMPLES, {}

    def client_fn(context: Context) -> Any:
        return Client(vectors[context.node_id - 1]).to_client()

    return ClientApp(client_fn, mods=[secaggplus_mod])


@contextmanager
def _silent() -> Iterator[None]:
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


# --- what a dishonest coordinator gets ------------------------------------------------------------------

VICTIM, PEER = 1, 2  # nodes


def asked_for_both_shares(vectors: Sequence[Vector]) -> Floats:
    """Returns node 1's update: the message of the last stage named it among the living and among the dead."""

    def forge(wire: Wire, stage: str, node: int, told: ConfigRecord) -> None:
        if stage == UNMASK:
            cast(list[int], told[Key.DEAD_NODE_ID_LIST]).append(VICTIM)

    wire = play(vectors, forge=forge).wire
    own, mask = list[bytes](), list[bytes]()
    for (stage, _), (_, reply) in wire.log.items():
        if stage == UNMASK:
            nodes, shares = cast(list[int], reply[Key.NODE_ID_LIST]), cast(list[bytes], reply[Key.SHARE_LIST])
            own.append(shares[nodes.index(VICTIM)])
            mask.append(shares[-1])  # the dead come last
    return _unmasked(wire, combine_shares(own), combine_shares(mask))


def threshold_of_one(vectors: Sequence[Vector]) -> Floats:
    """Returns node 1's update: sites were told a threshold of 1, and one of them helped the coordinator."""

    def forge(wire: Wire, stage: str, node: int, told: ConfigRecord) -> None:
        if stage == SETUP:
            told[Key.THRESHOLD] = 1

    wire = play(vectors, forge=forge).wire
    own, mask = (wire.held_by(PEER, of=VICTIM, kind=kind) for kind in ("rd_seed", "sk1"))
    return _unmasked(wire, combine_shares([own]), combine_shares([mask]))


def substituted_keys(vectors: Sequence[Vector]) -> Floats:
    """Returns node 1's update: it was shown keys of the coordinator's for everybody else's, and sealed for those."""
    secrets = {node: (generate_key_pairs(), generate_key_pairs()) for node in range(2, len(vectors) + 1)}

    def forge(wire: Wire, stage: str, node: int, told: ConfigRecord) -> None:
        if node == VICTIM and stage == SHARE:
            for peer, pairs in secrets.items():
                told[str(peer)] = [public_key_to_bytes(public) for _, public in pairs]
        if node == VICTIM and stage == MASK:
            # Its peers' letters would not open any more: it gets others.
            peers = cast(list[int], told[Key.SOURCE_LIST])
            told[Key.CIPHERTEXT_LIST] = [
                encrypt(channel(wire, peer), share_keys_plaintext_concat(peer, VICTIM, b"", b""))
                for peer in peers
            ]

    def channel(wire: Wire, peer: int) -> bytes:
        theirs = cast(bytes, wire.log[SETUP, VICTIM][1][Key.PUBLIC_KEY_2])
        return generate_shared_key(secrets[peer][1][0], bytes_to_public_key(theirs))

    wire = play(vectors, forge=forge).wire
    dealt = wire.log[SHARE, VICTIM][1]
    peers, letters = (cast(list[Any], dealt[name]) for name in (Key.DESTINATION_LIST, Key.CIPHERTEXT_LIST))
    opened = [
        share_keys_plaintext_separate(decrypt(channel(wire, peer), letter))
        for peer, letter in zip(peers, letters, strict=True)
    ]
    own, mask = [share for _, _, share, _ in opened], [share for _, _, _, share in opened]
    return _unmasked(wire, combine_shares(own), combine_shares(mask))


ATTACKS: Mapping[str, Callable[[Sequence[Vector]], Floats]] = {
    "one message asks for both shares": asked_for_both_shares,
    "threshold 1 and one helper": threshold_of_one,
    "keys of the coordinator's own": substituted_keys,
}


def _unmasked(wire: Wire, seed: bytes, mask_key: bytes) -> Floats:
    """Takes node 1's masks off its vector, as the workflow does with those of the lost."""
    keys, asked = wire.log[SHARE, VICTIM][0], wire.log[MASK, VICTIM]
    sent = cast(list[bytes], asked[1][Key.MASKED_PARAMETERS])
    factor, vector = (bytes_to_ndarray(data) for data in sent)
    shapes = [factor.shape, vector.shape]
    vector = vector - pseudo_rand_gen(seed, MODULUS, shapes)[1]
    for peer in cast(list[int], asked[0][Key.SOURCE_LIST]):
        public = bytes_to_public_key(cast(list[bytes], keys[str(peer)])[0])
        shared = generate_shared_key(bytes_to_private_key(mask_key), public)
        mask = pseudo_rand_gen(shared, MODULUS, shapes)[1]
        vector = vector - mask if peer < VICTIM else vector + mask
    return dequantize([vector % MODULUS], CLIP, LEVELS)[0]
