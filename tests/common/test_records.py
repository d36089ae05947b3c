"""Claims of bodies: the same bits again, one form of each, and nothing but refusals for whatever else comes."""

import json
import pickle
import random
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.common.errors import EnvelopeRefused
from sottovoce.common.records import ALIGNMENT, DTYPES, KINDS, MAGIC, Content, pack, unpack

NAN = np.frombuffer(bytes.fromhex("010000000000f8ff"), "<f8")  # one of the many, with its bits
CONTENT: Content = {
    "arrays": {
        "layer.weight": np.arange(12, dtype="f4").reshape(3, 4) / 7,
        "layer.bias": np.array([np.nan, np.inf, -0.0, 1e-45], "f4"),
        "scale": np.asarray(3, "i8"),
        "none": np.zeros((0, 5)),
        "odd": np.frombuffer(b"abc", "u1"),
        "nan": NAN,
    },
    "metrics": {"loss": -0.0, "n": 2**63 - 1, "confusion": [1, 2, 3], "curve": [0.1, 1e300], "empty": []},
    "config": {
        "seed": -(2**63),
        "mu": 5e-324,
        "split": True,
        "text": "ä\n\0\u2028",
        "bytes": b"\x80xyz",
        "none": b"",
    },
    "secagg": {"body": bytes(range(256)), "model": "0" * 64},
    "ledger": {"checkpoint": "line\nline\n"},
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )
    return type(one) is type(other) and repr(one) == repr(other)


def assert_same(content: Content, found: Any) -> None:
    assert list(content) == list(found)
    for name, record in content.items():
        assert list(record) == list(found[name])
        for item, value in record.items():
            assert same(value, found[name][item]), (name, item)


def test_what_was_packed_comes_back_in_the_same_order_with_the_same_bits() -> None:
    body = pack(CONTENT)
    found = unpack(body)
    assert_same(CONTENT, found)
    assert pack(found) == body
    assert_same({}, unpack(pack({})))
    assert_same({"config": {}, "arrays": {}}, unpack(pack({"config": {}, "arrays": {}})))


def test_arrays_are_aligned_views_that_nobody_can_write_to() -> None:
    body = pack(CONTENT)
    for array in unpack(body)["arrays"].values():
        assert isinstance(array, np.ndarray)
        assert array.flags.aligned
        assert not array.flags.writeable
        assert not array.flags.owndata
    assert len(body) % ALIGNMENT == 0


def test_arrays_of_any_layout_are_packed_by_their_numbers() -> None:
    turned = np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3))
    (found,) = unpack(pack({"arrays": {"a": turned[:, ::-1]}}))["arrays"].values()
    np.testing.assert_array_equal(found, turned[:, ::-1])


ITEMS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.binary(max_size=40),
)
NAMED = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=20)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=60, deadline=None)
@given(
    config=st.dictionaries(NAMED, ITEMS, max_size=6),
    metrics=st.dictionaries(NAMED, NUMBERS | st.lists(st.integers(0, 9), max_size=5), max_size=6),
    shapes=st.dictionaries(
        NAMED, st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4))
    ),
    seed=st.integers(0, 99),
)
def test_every_content_survives(config: Any, metrics: Any, shapes: Any, seed: int) -> None:
    draw = np.random.default_rng(seed)
    arrays = {
        name: np.frombuffer(draw.bytes(int(np.prod(shape)) * DTYPES[kind].itemsize), DTYPES[kind]).reshape(
            shape
        )
        for name, (kind, shape) in shapes.items()
    }
    content = {"config": config, "metrics": metrics, "arrays": arrays}
    assert_same(content, unpack(pack(content)))


@pytest.mark.parametrize(
    "content",
    [
        {"more": {"a": 1}},
        {"metrics": {"loss": float("nan")}},
        {"metrics": {"loss": float("inf")}},
        {"metrics": {"loss": [1.0, float("nan")]}},
        {"config": {"mu": float("-inf")}},
        {"metrics": {"loss": True}},
        {"metrics": {"loss": [1, 2.0]}},
        {"metrics": {"loss": [True]}},
        {"metrics": {"loss": [[1]]}},
        {"metrics": {"loss": "low"}},
        {"metrics": {"n": 2**63}},
        {"metrics": {"n": [0] * 70_000}},
        {"config": {"n": -(2**63) - 1}},
        {"config": {"n": [1]}},
        {"config": {"n": None}},
        {"config": {"n": "\ud800"}},
        {"config": {"n": "x" * 100_001}},
        {"config": {"a\nb": 1}},
        {"config": {"": 1}},
        {"config": {"x" * 201: 1}},
        {"config": {str(n): 1 for n in range(10_001)}},
        {"config": {str(n): "x" * 99_000 for n in range(20)}},
        {"arrays": {"a": np.zeros(3, "f2")}},
        {"arrays": {"a": np.zeros(3, "i4")}},
        {"arrays": {"a": np.zeros(3, ">f4")}},
        {"arrays": {"a": np.zeros(3, "O")}},
        {"arrays": {"a": np.zeros(3, "c8")}},
        {"arrays": {"a": np.array(["x"])}},
        {"arrays": {"a": np.zeros((1,) * 9, "f4")}},
        {"arrays": {"a": [1.0]}},
    ],
)
def test_what_a_body_does_not_carry_is_refused_where_it_is_made(content: Any) -> None:
    with pytest.raises(EnvelopeRefused) as refused:
        pack(content)
    assert refused.value.reason == "content"


# --- whatever bytes come ---


def body_of(index: Any, blobs: bytes = b"", *, text: bytes | None = None) -> bytes:
    said = json.dumps(index, separators=(",", ":")).encode() if text is None else text
    head = MAGIC + struct.pack("<I", len(said)) + said
    return head + bytes(-len(head) % ALIGNMENT) + blobs


FLOATS = [["arrays", [["a", ["float32", [4]]]]]]
GOOD = body_of(FLOATS, bytes(16))


def one(said: Any, record: str = "config", blobs: bytes = b"") -> bytes:
    return body_of([[record, [["a", said]]]], blobs)


BAD = {
    "nothing": b"",
    "a pickle": pickle.dumps({"arrays": 1}),
    "another magic": b"sottovoce/records/2\n" + GOOD[len(MAGIC) :],
    "only a head": GOOD[: len(MAGIC) + 2],
    "an index longer than the body": MAGIC + struct.pack("<I", 2**32 - 1) + b"[]",
    "an index above the bound": body_of([["config", [[str(n), "x" * 99_000] for n in range(11)]]]),
    "no JSON": body_of([], text=b"[["),
    "deep nesting": body_of([], text=b"[" * 100_000),
    "a huge number": body_of([], text=b"1" * 100_000),
    "other characters": body_of([], text='["ä"]'.encode()),
    "spaces": body_of([], text=b"[ ]"),
    "not a number": body_of([], text=b'[["metrics",[["a",NaN]]]]'),
    "an infinity": body_of([], text=b'[["metrics",[["a",1e999]]]]'),
    "a map": body_of({}),
    "a name alone": body_of(["arrays"]),
    "three in a pair": body_of([["config", [], 1]]),
    "an unknown record": body_of([["more", []]]),
    "a record twice": body_of([["config", []], ["config", []]]),
    "an item twice": body_of([["config", [["a", 1], ["a", 2]]]]),
    "a name that is a number": body_of([["config", [[1, 1]]]]),
    "an empty name": body_of([["config", [["", 1]]]]),
    "a name with a line end": body_of([["config", [["a\nb", 1]]]]),
    "too many items": body_of([["config", [[str(n), 1] for n in range(10_001)]]]),
    "an unknown dtype": one(["object", [1]], "arrays", bytes(16)),
    "an alias of a dtype": one(["<f4", [1]], "arrays", bytes(16)),
    "no dtype": one([None, [1]], "arrays", bytes(16)),
    "no shape": one(["float32"], "arrays"),
    "a shape that is a number": one(["float32", 4], "arrays", bytes(16)),
    "a size below nothing": one(["float32", [-1]], "arrays"),
    "two sizes below nothing": one(["float32", [-2, -2]], "arrays", bytes(16)),
    "a size that is a float": one(["float32", [4.0]], "arrays", bytes(16)),
    "a size that is true": one(["float32", [True]], "arrays", bytes(16)),
    "a terabyte": one(["float32", [2**38]], "arrays", bytes(16)),
    "sizes whose product wraps round": one(["float32", [2**31, 2**31, 4]], "arrays", bytes(16)),
    "zero times a size out of bounds": one(["float32", [0, 2**40]], "arrays"),
    "nine dimensions": one(["float32", [1] * 9], "arrays", bytes(16)),
    "an array cut off": GOOD[:-1],
    "an array of another length": body_of(FLOATS, bytes(32)),
    "more behind it": GOOD + bytes(16),
    "no zeros between": body_of([["arrays", [["a", ["uint8", [3]]]]]], b"abc" + b"x" * 13),
    "no zeros after the index": GOOD.replace(b"]]\0", b"]]x"),
    "a metric that is text": one("1", "metrics"),
    "a metric that is true": one(True, "metrics"),
    "a metric of lists": one([[1]], "metrics"),
    "a metric of both": one([1, 1.5], "metrics"),
    "a metric of 2^63": one(2**63, "metrics"),
    "a setting that is nothing": one(None),
    "a setting that is a map": one({"a": 1}),
    "bytes of a negative length": one([-1]),
    "bytes of two lengths": one([1, 1], blobs=bytes(32)),
    "bytes that are not there": one([17], blobs=bytes(16)),
    "half a character": body_of([], text=b'[["config",[["a","\\ud800"]]]]'),
}


def test_the_good_ones_among_the_bad_are_good() -> None:
    large = [["config", [[str(n), "x" * 99_000] for n in range(10)]]]
    assert len(unpack(body_of(large))["config"]) == 10
    assert list(unpack(GOOD)["arrays"]) == ["a"]
    assert unpack(one(["float32", [0, 2**39]], "arrays"))["arrays"]["a"].size == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("how", BAD)
def test_other_bytes_are_refused(how: str) -> None:
    with pytest.raises(EnvelopeRefused) as refused:
        unpack(BAD[how])
    assert refused.value.reason == "content"


def test_twenty_thousand_mutations_are_read_or_refused_and_have_one_form() -> None:
    draw, bodies = random.Random(0), [pack(CONTENT), GOOD, one("text"), one([3], blobs=b"abc" + bytes(13))]
    values: tuple[Any, ...] = (0, -1, 2**62, 1e300, True, None, "arrays", [], {}, "float64")
    pieces = [json.dumps(value).encode() for value in values]
    read = 0
    for number in range(20_000):
        data = bytearray(bodies[number % len(bodies)])
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(data) + 1) if draw.random() < 0.3 else draw.randrange(min(len(data), 600))
            match draw.randrange(4):
                case 0:
                    data[at : at + 1] = bytes([draw.randrange(256)])
                case 1:
                    del data[at : at + draw.randrange(1, 20)]
                case 2:
                    data[at:at] = draw.choice(pieces)
                case 3:
                    data[len(MAGIC) : len(MAGIC) + 4] = struct.pack("<I", draw.randrange(len(data)))
        try:
            found = unpack(bytes(data))
        except EnvelopeRefused:
            continue
        read += 1
        assert pack(found) == bytes(data)
    assert read > 100  # numbers within arrays may change: the envelope's digest is for that


def test_the_kinds_are_those_of_the_client_app() -> None:
    assert set(KINDS.values()) == {"arrays", "metrics", "config"}
