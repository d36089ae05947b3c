"""Claims of common/flower.py, and what it takes for granted of the pinned Flower."""

import pickle
import time
from collections.abc import Iterable

import flwr
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from sottovoce.common import flower
from sottovoce.common.errors import RunError
from sottovoce.common.flower import (
    LazyArray,
    Node,
    array_record,
    config_record,
    decode,
    exchange,
    instruction,
    reply_of,
)
from sottovoce.simulations.engines.inprocess import InProcessGrid
from tests.fakes.clock import Clock
from tests.fakes.federations import honest_app, nodes_of, reply, weights_of

SAMPLES = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asarray(2.5, np.float32),
    np.zeros((0, 3), np.float32),
    np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    np.arange(3, dtype=np.int64),
]


def test_flower_is_the_pinned_version() -> None:
    assert flwr.__version__ == flower.VERSION == "1.41.0"


@pytest.mark.parametrize("ndarray", SAMPLES, ids=lambda a: f"{a.dtype}{a.shape}")
def test_a_lazy_array_is_flowers_array_to_the_byte(ndarray: np.ndarray) -> None:
    lazy, own = LazyArray(ndarray), Array(ndarray)
    assert (lazy.dtype, lazy.shape, lazy.stype, lazy.data) == (own.dtype, own.shape, own.stype, own.data)
    assert lazy.object_id == own.object_id
    assert isinstance(lazy, Array)
    np.testing.assert_array_equal(lazy.numpy(), own.numpy())


@pytest.mark.parametrize("ndarray", SAMPLES, ids=lambda a: f"{a.dtype}{a.shape}")
def test_a_lazy_array_survives_flowers_wire_as_flowers_own(ndarray: np.ndarray) -> None:
    lazy = LazyArray(ndarray)
    again = Array.inflate(lazy.deflate(), lazy.children)
    assert type(again) is Array
    np.testing.assert_array_equal(again.numpy(), ndarray)


def test_a_lazy_array_is_not_serialised_by_a_round_trip_through_torch() -> None:
    record = array_record(weights_of())
    state = record.to_torch_state_dict()
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert all("data" not in array.__dict__ for array in record.values())


def test_what_a_receiver_does_to_its_tensors_is_seen_by_nobody() -> None:
    weights = weights_of()
    record = array_record(weights)
    for tensor in record.to_torch_state_dict().values():
        tensor.zero_()
    for array in record.values():
        array.numpy().fill(7.0)
    for name, array in record.items():
        np.testing.assert_array_equal(array.numpy(), weights[name])


def test_a_message_may_be_spoiled_without_spoiling_the_next() -> None:
    grid = InProcessGrid(honest_app, nodes_of(2), {})
    record = array_record(weights_of())
    first = instruction("train", 1, record, config_record({"round": 1}), group="g", ttl=9)
    del first.content["arrays"]["scale"]
    second = instruction("train", 2, record, config_record({"round": 1}), group="g", ttl=9)
    assert "scale" in second.content["arrays"]
    assert len(list(grid.get_node_ids())) == 2


def test_pickled_lazy_arrays_stay_lazy_and_equal() -> None:
    buffers: list[pickle.PickleBuffer] = []
    ndarray = np.arange(1000, dtype=np.float32)
    stream = pickle.dumps(LazyArray(ndarray), protocol=5, buffer_callback=buffers.append)
    assert len(stream) < 300
    again = pickle.loads(stream, buffers=buffers)
    assert isinstance(again, LazyArray)
    np.testing.assert_array_equal(again.numpy(), ndarray)


def test_a_lazy_array_that_was_assigned_to_says_what_was_assigned() -> None:
    lazy = LazyArray(np.zeros(2, np.float32))
    lazy.dtype, lazy.shape, lazy.stype = "float32", (3,), "numpy.ndarray"
    lazy.data = Array(np.ones(3, np.float32)).data
    np.testing.assert_array_equal(lazy.numpy(), np.ones(3))
    np.testing.assert_array_equal(decode(lazy, (3,)), np.ones(3))


@pytest.mark.parametrize("lazy", [True, False])
def test_decode_gives_what_was_sent(lazy: bool) -> None:
    for ndarray in weights_of().values():
        array = LazyArray(ndarray) if lazy else Array(np.array(ndarray))
        np.testing.assert_array_equal(decode(array, ndarray.shape), ndarray)


def test_messages_of_our_version_of_flower_name_their_question() -> None:
    grid = InProcessGrid(honest_app, nodes_of(1), {})
    question = instruction(
        "train", 1, array_record(weights_of()), config_record({"round": 1}), group="g", ttl=9
    )
    (key,) = grid.push_messages([question])
    (answer,) = grid.pull_messages([key])
    assert answer.metadata.reply_to_message_id == key
    assert (answer.metadata.group_id, answer.metadata.src_node_id) == ("g", 1)


def test_reply_of_believes_nothing_and_never_raises() -> None:
    InProcessGrid(honest_app, nodes_of(1), {})
    question = instruction("train", 1, array_record({}), config_record({}), group="g", ttl=9)
    strange = Message(RecordDict({"arrays": ConfigRecord({"a": 1}), "x": MetricRecord()}), reply_to=question)
    opened = reply_of(strange)
    assert (opened.arrays, opened.metrics, opened.surplus) == ({}, {}, ("x",))
    assert reply_of(reply(question, weights_of())).n_bytes == 40


def test_flowers_own_fedavg_runs_unmodified_on_our_grid() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: flower.Context) -> Message:
        state = message.content.array_records["arrays"].to_torch_state_dict()
        changed = {name: tensor + context.node_id for name, tensor in state.items()}
        metrics = MetricRecord({"num-examples": 1, "loss": 1.0})
        return Message(RecordDict({"arrays": ArrayRecord(changed), "metrics": metrics}), reply_to=message)

    grid = InProcessGrid(app, nodes_of(3), {})
    strategy = FedAvg(fraction_evaluate=0.0)
    result = strategy.start(grid, ArrayRecord({"w": Array(np.zeros(2, np.float32))}), num_rounds=2)
    np.testing.assert_allclose(result.arrays["w"].numpy(), [4.0, 4.0])  # two rounds of the mean of 1, 2, 3


class BackwardGrid(InProcessGrid):
    """Answers in the opposite order, and each answer twice."""

    def pull_messages(self, message_ids: Iterable[str], *, timeout: float | None = None) -> list[Message]:
        for key in reversed(list(message_ids)):
            if found := list(super().pull_messages([key])):
                return found * 2
        return []


def _asked(
    grid: flower.Grid, nodes: Iterable[int], *, window: int, timeout: float = 60.0
) -> list[int | None]:
    record = array_record(weights_of())
    questions = (
        instruction("train", node, record, config_record({"round": 1}), group="g", ttl=timeout)
        for node in nodes
    )
    replies = exchange(grid, questions, window=window, timeout=timeout)
    return [None if reply is None else reply.metadata.src_node_id for reply in replies]


@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_replies_come_in_the_order_of_the_questions_and_once(window: int) -> None:
    grid = BackwardGrid(honest_app, nodes_of(7), {})
    assert _asked(grid, range(1, 8), window=window) == list(range(1, 8))


class CountingGrid(InProcessGrid):
    """Counts how many questions are open at once."""

    most = 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        keys = list(super().push_messages(messages))
        self.most = max(self.most, len(self._pending))
        return keys


def test_no_more_than_the_window_is_in_flight() -> None:
    grid = CountingGrid(honest_app, nodes_of(9), {})
    assert _asked(grid, range(1, 10), window=3) == list(range(1, 10))
    assert grid.most == 3


class DeafGrid(InProcessGrid):
    """Node 2 never answers."""

    def pull_messages(self, message_ids: Iterable[str], *, timeout: float | None = None) -> Iterable[Message]:
        open_keys = [
            k for k in message_ids if k in self._pending and self._pending[k].metadata.dst_node_id != 2
        ]
        if not open_keys:
            time.sleep(1.0)  # of a `Clock`
        return super().pull_messages(open_keys)


def test_what_does_not_come_in_time_is_none_and_the_rest_is_kept() -> None:
    grid = DeafGrid(honest_app, nodes_of(4), {})
    with Clock():
        assert _asked(grid, [1, 2, 3, 4], window=4, timeout=30.0) == [1, None, 3, 4]


class BusyGrid(InProcessGrid):
    """A polled grid that is busy with node 1 until after the deadline; the others have answered meanwhile."""

    waits = False
    n_pulls = 0

    def pull_messages(self, message_ids: Iterable[str], *, timeout: float | None = None) -> Iterable[Message]:
        self.n_pulls += 1
        if self.n_pulls == 1:
            replies = [
                *super().pull_messages(list(message_ids)[1:]),
                *super().pull_messages(list(message_ids)[2:]),
            ]
            self.late = replies
            time.sleep(30.0)  # of a `Clock`
            return []
        return self.late


def test_what_came_in_time_is_kept_also_if_the_grid_was_busy_until_after_the_deadline() -> None:
    grid = BusyGrid(honest_app, nodes_of(4), {})
    with Clock():
        assert _asked(grid, [1, 2, 3, 4], window=3, timeout=20.0) == [None, 2, 3, None]
    assert grid._n_messages == 3 + 2  # three questions and two replies: the fourth was not asked any more


def test_after_the_deadline_nothing_more_is_sent() -> None:
    grid = DeafGrid(honest_app, nodes_of(4), {})
    with Clock():
        assert _asked(grid, [2, 1, 3, 4], window=1, timeout=10.0) == [None, None, None, None]
    assert grid._n_messages == 1


def test_an_exception_is_named_by_type_and_place_and_not_quoted() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: flower.Context) -> Message:
        raise ValueError("secret feature 0.123")

    grid = InProcessGrid(app, nodes_of(1), {})
    (answer,) = grid.send_and_receive([Message(RecordDict(), 1, "train")])
    assert "ValueError in common/test_flower.py:" in (answer.error.reason or "")
    assert "secret" not in (answer.error.reason or "")


def test_our_own_errors_are_quoted_since_they_name_no_person() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: flower.Context) -> Message:
        raise RunError("Expected a folder.")

    (answer,) = InProcessGrid(app, nodes_of(1), {}).send_and_receive([Message(RecordDict(), 1, "train")])
    assert answer.error.reason == "Expected a folder."


def test_a_message_to_no_node_is_refused() -> None:
    with pytest.raises(RunError, match="Expected a node of 1 to 2"):
        InProcessGrid(honest_app, nodes_of(2), {}).push_messages([Message(RecordDict(), 9, "train")])


def test_an_app_that_is_none_is_refused() -> None:
    with pytest.raises(RunError, match="Expected a Flower ClientApp"):
        flower.load_app("tests.fakes.federations:study_of")


def test_site_names_are_asked_of_grids_that_do_not_know_them() -> None:
    class Foreign(flower.Grid):
        def __init__(self) -> None:
            self._inner = InProcessGrid(honest_app, [*nodes_of(2), Node(site="mute")], {})

        def __getattribute__(self, name: str):  # type: ignore[no-untyped-def]
            own = ("_inner", "__class__")
            return object.__getattribute__(self, name) if name in own else getattr(self._inner, name)

    Foreign.__abstractmethods__ = frozenset()  # what is abstract is passed on
    names = flower.site_names(Foreign(), timeout=60.0)  # type: ignore[abstract]
    assert names == {1: "site-1", 2: "site-2"}
