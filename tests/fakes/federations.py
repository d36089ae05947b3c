"""Small federations: a study, named weights, and client apps that keep the contract or break it in one way.

The apps are real Flower ClientApps; they train by a formula instead of by examples.
"""

import io
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.common import study as studies
from sottovoce.common.flower import (
    Array,
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    Node,
    RecordDict,
    array_record,
)
from sottovoce.common.streams import stream
from sottovoce.common.study import Study
from sottovoce.common.weights import Weights

N_CLASSES = 2
STUDY = """
format = 1
name = "fake"
purpose = "research"
corpora = [{ name = "none" }]
labels = { classes = ["happy", "sad"] }
streams = [{ name = "pooled", pooling = "statistics", parts = [{ kind = "mfcc" }] }]
normalisation = { scheme = "constants" }
model = { kind = "linear", stream = "pooled" }
training = { learning_rate = 0.1 }
federation = { n_sites = 4, rounds = 5, max_update_norm = 100.0, partition = { kind = "speaker_blocks" } }
privacy = { mode = "none" }
evaluation = { folds = { kind = "by_speaker", k = 2 }, every_rounds = 2 }
"""


def study_of(*, n_sites: int = 4, rounds: int = 5, **federation: Any) -> Study:
    """Returns a study with the given federation."""
    base = studies.loads(STUDY)
    changed = replace(base.federation, n_sites=n_sites, rounds=rounds, **federation)
    return replace(base, federation=changed)


def weights_of(seed: int = 0) -> Weights:
    """Returns three tensors, one of them a scalar."""
    random = np.random.default_rng(seed)
    shapes = {"layer.weight": (3, 2), "layer.bias": (3,), "scale": ()}
    return {name: np.asarray(random.normal(size=shape), np.float32) for name, shape in shapes.items()}


def site_names(n: int) -> list[str]:
    """Returns site-1, site-2, ... (n below 10)."""
    return [f"site-{number}" for number in range(1, n + 1)]


def nodes_of(n: int, folder: Path | None = None) -> list[Node]:
    """Returns nodes; `folder` is where the apps that count or crash leave their marks."""
    more = {} if folder is None else {"folder": str(folder)}
    return [Node(site=name, config={"site": name, **more}) for name in site_names(n)]


def update_of(site: str, round: int, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Returns what an honest site adds to a tensor in a round."""
    return np.asarray(stream(0, "fake update", site, round, name).normal(size=shape), np.float32)


def trained(message: Message, context: Context) -> dict[str, np.ndarray]:
    """Returns an honest site's weights after the round of the message."""
    content: Any = message.content
    site, round = str(context.node_config["site"]), int(content["config"]["round"])
    arrays = {name: array.numpy() for name, array in content["arrays"].items()}
    moved = {name: array + update_of(site, round, array.shape, name) for name, array in arrays.items()}
    return {name: np.asarray(array) for name, array in moved.items()}


def reply(message: Message, arrays: Any, metrics: Any = None) -> Message:
    """Returns an answer to `message`; arrays may be ndarrays or Flower's own."""
    record = arrays if isinstance(arrays, ArrayRecord) else array_record(arrays)
    metrics = MetricRecord({"loss": 0.5, "n-examples": 10, "n-steps": 2} if metrics is None else metrics)
    return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)


def app_of(answer: Callable[[Message, Context], Message]) -> ClientApp:
    """Returns an app that trains with `answer`, and evaluates and says its name honestly."""
    app = ClientApp()
    app.train()(answer)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        counts = MetricRecord({"confusion": [1, 2, 3, 4]})
        return Message(RecordDict({"metrics": counts}), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        name = ConfigRecord({"site": str(context.node_config["site"])})
        return Message(RecordDict({"config": name}), reply_to=message)

    return app


def honestly(message: Message, context: Context) -> Message:
    """Answers as a site should."""
    return reply(message, trained(message, context))


def counting(message: Message, context: Context) -> Message:
    """Answers with how often this site was called, from its own kept state."""
    calls: Any = context.state.setdefault("calls", MetricRecord({"n": 0}))
    calls["n"] += 1
    return reply(message, trained(message, context), {"loss": 0.5, "n-examples": calls["n"], "n-steps": 1})


def crashing_once(message: Message, context: Context) -> Message:
    """Kills its own process at site-2's first call of each round."""
    content: Any = message.content
    round = content["config"]["round"]
    mark = Path(str(context.node_config["folder"])) / f"crashed-{round}"
    if context.node_config["site"] == "site-2" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 9)
    return honestly(message, context)


def crashing_always(message: Message, context: Context) -> Message:
    """Kills its own process whenever site-2 is called."""
    if context.node_config["site"] == "site-2":
        os.kill(os.getpid(), 9)
    return honestly(message, context)


def hanging(message: Message, context: Context) -> Message:
    """Never answers for site-2."""
    if context.node_config["site"] == "site-2":
        time.sleep(600)
    return honestly(message, context)


def slowly(message: Message, context: Context) -> Message:
    """Answers after a moment, so that a test can kill in between."""
    time.sleep(0.01)
    return honestly(message, context)


honest_app = app_of(honestly)
counting_app = app_of(counting)
crashing_once_app = app_of(crashing_once)
crashing_always_app = app_of(crashing_always)
hanging_app = app_of(hanging)
slow_app = app_of(slowly)


# --- one way each of breaking the contract: changes what an honest site would send -----------------------

Arrays = dict[str, Any]


def _with(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Message, Arrays], Message]:
    """Sends the tensor `name` changed; the change may return an ndarray or a Flower array."""

    def answer(message: Message, arrays: Arrays) -> Message:
        record = array_record(arrays)
        changed = change(arrays[name])
        record[name] = changed if isinstance(changed, Array) else Array(changed)
        return reply(message, record)

    return answer


def _first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        changed = np.array(array)
        changed.flat[0] = value
        return changed

    return change


def _raw(array: np.ndarray, **fields: Any) -> Array:
    honest = Array(np.asarray(array))
    own = {"dtype": honest.dtype, "shape": honest.shape, "stype": honest.stype, "data": honest.data}
    return Array(**(own | fields))


def _pickled(array: np.ndarray) -> Array:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return _raw(array, data=buffer.getvalue())


def _bomb(array: np.ndarray) -> Array:
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return _raw(array, data=buffer.getvalue())


def _metrics(**changes: Any) -> Callable[[Message, Arrays], Message]:
    def answer(message: Message, arrays: Arrays) -> Message:
        metrics = {"loss": 0.5, "n-examples": 10, "n-steps": 2} | changes
        return reply(message, arrays, {key: value for key, value in metrics.items() if value is not None})

    return answer


def _keys(change: Callable[[Arrays], Arrays]) -> Callable[[Message, Arrays], Message]:
    return lambda message, arrays: reply(message, change(dict(arrays)))


def _content(change: Callable[[RecordDict], Any]) -> Callable[[Message, Arrays], Message]:
    def answer(message: Message, arrays: Arrays) -> Message:
        answered = reply(message, arrays)
        change(answered.content)
        return answered

    return answer


def _meta(**fields: Any) -> Callable[[Message, Arrays], Message]:
    def answer(message: Message, arrays: Arrays) -> Message:
        answered = reply(message, arrays)
        answered.metadata.__dict__.update(fields)
        return answered

    return answer


def _raises(message: Message, arrays: Arrays) -> Message:
    raise ValueError("secret feature 0.123")


BROKEN: dict[str, tuple[Callable[[Message, Arrays], Any], str]] = {
    "a NaN": (_with("layer.weight", _first(np.nan)), "finite"),
    "an infinity": (_with("layer.bias", _first(np.inf)), "finite"),
    "a negative infinity": (_with("scale", _first(-np.inf)), "finite"),
    "a scalar that would broadcast": (
        _with("layer.weight", lambda a: np.ones((), np.float32)),
        "layer.weight",
    ),
    "one number that would broadcast": (_with("layer.weight", lambda a: a[:1, :1].copy()), "layer.weight"),
    "a row that would broadcast": (_with("layer.weight", lambda a: a[:1].copy()), "layer.weight"),
    "a transposed matrix": (_with("layer.weight", lambda a: a.T.copy()), "layer.weight"),
    "one more axis": (_with("layer.weight", lambda a: a[None].copy()), "layer.weight"),
    "a flat matrix": (_with("layer.weight", lambda a: a.reshape(-1).copy()), "layer.weight"),
    "an empty tensor": (_with("layer.bias", lambda a: a[:0].copy()), "layer.bias"),
    "a vector for a scalar": (_with("scale", lambda a: a.reshape(1).copy()), "scale"),
    "float64": (_with("layer.bias", lambda a: a.astype(np.float64)), "float32"),
    "float16": (_with("layer.bias", lambda a: a.astype(np.float16)), "float32"),
    "integers of the same size": (_with("layer.bias", lambda a: a.astype(np.int32)), "float32"),
    "big-endian floats": (_with("layer.bias", lambda a: a.astype(">f4")), "float32"),
    "complex numbers": (_with("layer.bias", lambda a: a.astype(np.complex64)), "float32"),
    "text": (_with("layer.bias", lambda a: np.array(["a", "b", "c"])), "float32"),
    "a pickled object": (_with("layer.bias", _pickled), "layer.bias"),
    "a header of a terabyte": (_with("layer.bias", _bomb), "layer.bias"),
    "a cut-off tensor": (_with("layer.bias", lambda a: _raw(a, data=Array(a).data[:-1])), "layer.bias"),
    "a tensor with more behind it": (
        _with("layer.bias", lambda a: _raw(a, data=Array(a).data + b"x")),
        "layer.bias",
    ),
    "no bytes at all": (_with("layer.bias", lambda a: _raw(a, data=b"")), "layer.bias"),
    "random bytes": (_with("layer.bias", lambda a: _raw(a, data=bytes(range(140)))), "layer.bias"),
    "another serialisation": (_with("layer.bias", lambda a: _raw(a, stype="pickle")), "serialisation"),
    "fields that lie about the bytes": (
        _with("layer.weight", lambda a: _raw(a, data=Array(a.reshape(2, 3)).data)),
        "layer.weight",
    ),
    "columns first": (_with("layer.weight", np.asfortranarray), "layer.weight"),
    "a missing tensor": (_keys(lambda a: {k: v for k, v in a.items() if k != "scale"}), "missing 'scale'"),
    "an unknown tensor": (_keys(lambda a: a | {"backdoor": np.zeros(3, np.float32)}), "unknown 'backdoor'"),
    "a renamed tensor": (_keys(lambda a: {k.upper(): v for k, v in a.items()}), "missing"),
    "no tensors": (_keys(lambda a: {}), "missing"),
    "an update out of all bounds": (
        _keys(lambda a: {k: np.asarray(v + np.float32(1e6)) for k, v in a.items()}),
        "norm",
    ),
    "an update that overflows": (_with("layer.weight", _first(3e38)), "norm"),
    "no record of arrays": (_content(lambda c: c.pop("arrays")), "missing"),
    "no record of metrics": (_content(lambda c: c.pop("metrics")), "metrics"),
    "metrics in the place of arrays": (
        _content(lambda c: c.update(arrays=MetricRecord({"a": 1}))),
        "missing",
    ),
    "one more record": (_content(lambda c: c.update(more=ConfigRecord({"a": b"x"}))), "'more'"),
    "another round": (_meta(_group_id="round 99 attempt 1"), "expected an answer to"),
    "another attempt": (_meta(_group_id="round 1 attempt 7"), "expected an answer to"),
    "the name of another node": (_meta(_src_node_id=1), "another node"),
    "a loss that is no number": (_metrics(loss=float("nan")), "loss"),
    "a list of losses": (_metrics(loss=[0.1, 0.2]), "loss"),
    "no loss": (_metrics(loss=None), "metrics"),
    "fewer than no examples": (_metrics(**{"n-examples": -5}), "counts"),
    "more examples than can be counted": (_metrics(**{"n-examples": 2**60}), "counts"),
    "half a step": (_metrics(**{"n-steps": 0.5}), "counts"),
    "a metric nobody asked for": (_metrics(weight=1e9), "metrics"),
    "an exception": (_raises, "ValueError in"),
    "nothing": (lambda message, arrays: None, "NoneType"),
}


def broken_app(how: str, site: str = "site-2") -> ClientApp:
    """Returns an app in which one site breaks the contract in one way of `BROKEN`."""

    def answer(message: Message, context: Context) -> Message:
        if context.node_config["site"] == site:
            broken: Message = BROKEN[how][0](message, trained(message, context))
            return broken
        return honestly(message, context)

    return app_of(answer)
