"""Claims of entries.py: one entry, one encoding; nothing else is read."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.common.ledger.entries import (
    MAX_LINE_BYTES,
    NO_PREVIOUS,
    Entry,
    EntryError,
    Reserve,
    Withdrawal,
    decode,
    encode,
    join,
    split,
)
from sottovoce.common.ledger.reader import lines_of
from sottovoce.common.ledger.store import LEDGER_FILE
from tests.fakes.ledgers import lived_in

ENTRY = Entry(
    label="sottovoce/ledger/1",
    index=3,
    previous=NO_PREVIOUS,
    time="2026-11-22T00:00:00Z",
    body=Withdrawal(kind="withdrawal", domain="intake"),
)


def bytes_of(**changes: Any) -> bytes:
    table = json.loads(encode(ENTRY)) | changes
    return json.dumps(table, sort_keys=True, separators=(",", ":")).encode()


def test_every_kind_of_entry_comes_back_equal() -> None:
    kinds = set()
    for line in lines_of(lived_in().names[LEDGER_FILE].data):
        leaf, signature = split(line)
        entry = decode(leaf)
        assert encode(entry) == leaf
        assert join(leaf, signature) == line
        kinds.add(entry.body.kind)
    assert len(kinds) >= 9, kinds


@pytest.mark.parametrize(
    "changes",
    [
        {"surplus": 1},
        {"label": "sottovoce/ledger/2"},
        {"index": -1},
        {"index": 3.0},
        {"index": True},
        {"index": 10**30},
        {"time": None},
        {"previous": "00"},
        {"clock_behind_seconds": None},
        {"clock_behind_seconds": 1},
        {"body": {"kind": "withdrawal"}},
        {"body": {"kind": "withdrawal", "domain": "x", "patient": "p-17"}},
        {"body": {"kind": "withdrawal", "domain": "a\x1b[2J"}},
        {"body": {"kind": "withdrawal", "domain": "\ud800"}},
        {"body": {"kind": ["withdrawal"], "domain": "x"}},
        {"body": {"kind": "gift", "domain": "x"}},
        {"body": []},
    ],
)
def test_what_is_no_entry_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(EntryError):
        decode(bytes_of(**changes))


def test_a_second_encoding_of_an_entry_is_refused() -> None:
    data = encode(ENTRY)
    assert decode(data) == ENTRY
    for other in (
        data.replace(b'"index":3', b'"index": 3'),
        data.replace(b'"index":3', b'"index":3,"index":3'),
        data.replace(b"intake", b"int\\u0061ke"),
        b" " + data,
        data + b"\n",
        data.replace(b'"index":3', b'"index":NaN'),
        json.dumps(dict(reversed(list(json.loads(data).items())))).encode(),
    ):
        with pytest.raises(EntryError):
            decode(other)


def test_the_longest_entry_is_far_below_the_limit_and_a_longer_line_is_refused() -> None:
    with pytest.raises(EntryError):
        split(b"x" * (MAX_LINE_BYTES + 1))


@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_but_entry_error(data: bytes) -> None:
    for read in (decode, split):
        with pytest.raises(EntryError):
            read(data)


def test_no_mutation_of_a_line_raises_anything_but_entry_error() -> None:
    draw, lines = random.Random(5), lines_of(lived_in().names[LEDGER_FILE].data)
    for _ in range(1500):
        line = bytearray(draw.choice(lines))
        for _ in range(draw.randint(1, 3)):
            line[draw.randrange(len(line))] = draw.randrange(256)
        try:
            decode(split(bytes(line))[0])
        except EntryError:
            continue


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(EntryError):
        decode(b'{"body":' + b"[" * 60_000 + b"]" * 60_000 + b"}")


def test_no_entry_can_hold_a_person_or_a_path() -> None:
    fields = set(Reserve.__dataclass_fields__) | set(Withdrawal.__dataclass_fields__)
    assert not fields & {"patient", "speaker", "path", "utterance", "label"}
