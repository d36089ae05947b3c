"""predictions.jsonl: read back equal, in one order, and every damage is named."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.common import predictions
from sottovoce.common.errors import RunError
from sottovoce.common.predictions import LEAKS, Prediction, from_line, log_probs_of, to_line

ROW = Prediction(
    seed=0,
    fold=1,
    arm="federated",
    utterance="a/1.flac",
    speaker="04",
    site="site-1",
    groups={"sex": "female"},
    truth=2,
    log_probs=log_probs_of([0.25, 0.25, 0.5]),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    probs=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
    names=st.tuples(TEXT, TEXT, TEXT),
    groups=st.dictionaries(TEXT, TEXT, max_size=3),
)
def test_a_row_is_read_back_equal(
    probs: list[float], names: tuple[str, str, str], groups: dict[str, str]
) -> None:
    utterance, speaker, site = names
    row = dataclasses.replace(
        ROW, utterance=utterance, speaker=speaker, site=site, groups=groups, log_probs=log_probs_of(probs)
    )
    assert from_line(to_line(row).encode(), n_classes=3) == row


def test_the_bytes_do_not_depend_on_the_order_of_cells(tmp_path: Path) -> None:
    rows = [dataclasses.replace(ROW, utterance=f"{number}", fold=1) for number in range(9)]
    predictions.write(tmp_path / "a", rows)
    predictions.write(tmp_path / "b", rows[::-1])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert predictions.read(tmp_path / "a", n_classes=3) == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_of_equal_probabilities_the_first_class_is_the_answer() -> None:
    assert dataclasses.replace(ROW, log_probs=log_probs_of([0.0, 0.5, 0.5])).predicted == 1


TABLE = json.loads(to_line(ROW))
DAMAGED = {
    "cut short": to_line(ROW).encode()[:-20],
    "empty": b"\n",
    "not an object": b"[1]\n",
    "deep": b"[" * 50_000,
    "not UTF-8": b"\xff\xfe\x00",
    "long": b'"' + b"x" * predictions.MAX_LINE_BYTES + b'"',
    **{
        name: json.dumps(TABLE | change).encode()
        for name, change in {
            "another key": {"label": 1},
            "no such class": {"truth": 3},
            "negative class": {"truth": -1},
            "true is not 1": {"truth": True},
            "half a class": {"truth": 1.0},
            "no speaker": {"speaker": ""},
            "speaker is a number": {"speaker": 4},
            "half a surrogate": {"speaker": "\ud800"},
            "groups is a list": {"groups": ["female"]},
            "group is a number": {"groups": {"age": 30}},
            "too few": {"log_probs": [0.0]},
            "NaN": {"log_probs": [float("nan"), -1.0, -1.0]},
            "infinite": {"log_probs": [float("-inf"), -0.7, -0.7]},
            "huge": {"log_probs": [-(10**400), -0.7, -0.7]},
            "text": {"log_probs": ["0", -0.7, -0.7]},
            "do not add up": {"log_probs": [-1.0, -1.0, -0.5]},
        }.items()
    },
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_line_is_named_and_its_content_is_not_shown(line: bytes) -> None:
    with pytest.raises(RunError, match=r"^predictions.jsonl line 7: expected .*; came ") as caught:
        from_line(line, n_classes=3, number=7)
    assert "female" not in str(caught.value)
    assert "site-1" not in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--resume"):
        predictions.read(tmp_path / "predictions.jsonl", n_classes=3)


OTHER = dataclasses.replace(ROW, utterance="a/2.flac")


@pytest.mark.parametrize(
    ("rows", "claim"),
    [
        ([ROW, ROW], "once per arm and seed"),
        ([ROW, dataclasses.replace(ROW, seed=1, truth=1)], "two that differ"),
        ([ROW, dataclasses.replace(ROW, arm="central", speaker="05")], "two that differ"),
        ([ROW, dataclasses.replace(OTHER, fold=2)], "the split leaks"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(rows: list[Prediction], claim: str) -> None:
    with pytest.raises(RunError, match=claim):
        predictions.check(rows)


def test_a_split_may_leak_only_under_a_name_that_says_so() -> None:
    arm = "federated" + LEAKS
    predictions.check([dataclasses.replace(ROW, arm=arm), dataclasses.replace(OTHER, arm=arm, fold=2)])
    predictions.check([ROW, dataclasses.replace(OTHER, seed=1, fold=2)])  # folds may change with the seed
