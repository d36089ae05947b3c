"""Claims about an initial file: whole and signed, or refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from sottovoce.common.errors import WeightsError
from sottovoce.common.initial import Initial, load, save, verify
from sottovoce.common.keys import SigningKey
from sottovoce.common.study import loads
from tests.fakes.initials import KEY, statement_of
from tests.fakes.wards import study_text

STATEMENT = statement_of(loads(study_text()))
TENSORS: dict[str, Any] = {
    "weights": {"head.weight": np.arange(6, dtype=np.float32).reshape(2, 3)},
    "mean": {"statistics": np.arange(4.0)},
    "deviation": {"statistics": np.array([1.0, 0.0, 2.0, 0.1])},
    "reduction": {"statistics": np.eye(4)[:, :2] / 3},
}


def made(path: Path, **changes: Any) -> Initial:
    return save(path, STATEMENT, KEY, **{**TENSORS, **changes})


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"], dict(from_bytes(data))


def test_what_is_read_is_what_was_written_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "voices.initial.safetensors"
    one, again = made(path), load(path)
    assert again.statement == STATEMENT == one.statement
    assert (again.sha256, again.public_key) == (one.sha256, KEY.public_hex)
    for group, arrays in TENSORS.items():
        found = getattr(again, group)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert found[name].tobytes() == array.tobytes()
    verify(again, KEY.public_hex)


def test_a_file_that_another_key_signed_is_not_taken(tmp_path: Path) -> None:
    found = made(tmp_path / "a")
    with pytest.raises(WeightsError, match="Public Voices Ltd"):
        verify(found, SigningKey.generate().public_hex)


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    made(path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    # Every byte of the tensors; of the header every 23rd, JSON's own blanks at its end left out.
    places = [*range(start, len(data)), *range(0, len(data[:start].rstrip()), 23)]
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(WeightsError, match="damaged"):
            load(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("statement", "Somebody Else"), ("signature", ""), ("signature", "zz" * 64), ("public_key", "12" * 32)],
)
def test_a_statement_or_a_signature_that_was_exchanged_is_refused(
    tmp_path: Path, key: str, value: str
) -> None:
    path = tmp_path / "a"
    made(path)
    metadata, tensors = parts(path.read_bytes())
    metadata[key] = metadata[key].replace("Public Voices Ltd", value) if key == "statement" else value
    path.write_bytes(to_bytes(tensors, metadata))
    with pytest.raises(WeightsError, match="a signature over"):
        load(path)


@pytest.mark.parametrize("sign", ["\x9b", "\x1b", "\n"])
def test_a_statement_that_a_terminal_obeys_is_refused(tmp_path: Path, sign: str) -> None:
    with pytest.raises(WeightsError, match="tensors and a statement"):
        save(tmp_path / "a", replace(STATEMENT, signed_by=f"{sign}2J"), KEY, **TENSORS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mean": {}}, "a mean and a deviation"),
        ({"deviation": {"statistics": np.ones(3)}}, "for each column"),
        ({"deviation": {"statistics": -np.ones(4)}}, "at least 0"),
        ({"mean": {"statistics": np.array([0, 0, 0, np.nan])}}, "finite"),
        ({"reduction": {"statistics": np.ones((3, 2))}}, "as many rows"),
        ({"reduction": {"statistics": np.ones((4, 5))}}, "as many rows"),
        ({"reduction": {"frames": np.ones((4, 2))}}, "a mean and a deviation"),
        ({"weights": {"head.weight": np.array([np.inf], np.float32)}}, "finite"),
    ],
)
def test_shapes_that_do_not_fit_one_another_are_never_written(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(WeightsError, match=expected):
        made(tmp_path / "a", **changes)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "data", [b"", b"short", b"\xff" * 64, (2).to_bytes(8, "little") + b"{}", b"\0" * 100]
)
def test_what_is_no_such_file_is_one_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(WeightsError):
        load(tmp_path / "a")


def test_a_file_that_is_missing_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        load(tmp_path / "none")
