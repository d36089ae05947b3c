"""Variables of a CTranslate2 file: as its own converter writes them, and nothing beyond the file's bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.common.encoders.ctranslate2_file import read_variables
from sottovoce.common.errors import WeightsError
from tests.fakes.whispers import Arrays, write_model

SOME: Arrays = {
    "decoder/x": np.arange(3, dtype=np.int32),
    "encoder/a": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "encoder/b": np.linspace(-1, 1, 4).astype(np.float16),
}


def read(path: Path) -> dict[str, Any]:
    return read_variables(path, prefix="encoder/", specification="WhisperSpec")


def test_variables_under_the_prefix_come_out_as_float32(tmp_path: Path) -> None:
    found = read(write_model(tmp_path / "m", SOME, aliases={"encoder/c": "encoder/a"}))
    assert set(found) == {"a", "b", "c"}
    assert all(values.dtype == np.float32 for values in found.values())
    assert np.array_equal(found["a"], SOME["encoder/a"])
    assert np.array_equal(found["c"], found["a"])
    assert np.array_equal(found["b"], SOME["encoder/b"].astype(np.float32))


def test_eight_bit_rows_and_sixteen_bit_wholes_are_divided_by_their_scales(tmp_path: Path) -> None:
    quantised: Arrays = {
        "encoder/rows": np.array([[127, -127], [64, 0]], np.int8),
        "encoder/rows_scale": np.array([127.0, 32.0], np.float32),
        "encoder/whole": np.array([[512, -1024]], np.int16),
        "encoder/whole_scale": np.array(1024.0, np.float32),
    }
    found = read(write_model(tmp_path / "m", quantised))
    assert set(found) == {"rows", "whole"}
    assert np.array_equal(found["rows"], [[1, -1], [2, 0]])
    assert np.array_equal(found["whole"], [[0.5, -1]])


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "m", SOME).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            read(tmp_path / "cut")


@pytest.mark.parametrize(
    ("place", "content", "expected"),
    [
        (0, b"\x05", "binary version 5"),
        (6, b"X", "specification 'XhisperSpec'"),
        (22, b"\xff\xff\xff\xff", "4294967295 came where at most 10000"),  # so many variables
        (26, b"\xff\xff", "65535 came where at most 500"),  # so long a name
        (38, b"\x09", "9 came where at most 4"),  # so many axes
        (39, b"\xff\xff\xff\x7f", "not that of its shape"),  # so long an axis
        (43, b"\x05", "5 came where at most 4"),  # a type that is not read
    ],
)
def test_a_size_is_held_against_the_file_before_anything_is_allocated(
    tmp_path: Path, place: int, content: bytes, expected: str
) -> None:
    damaged = bytearray(write_model(tmp_path / "m", SOME).read_bytes())
    damaged[place : place + len(content)] = content
    (tmp_path / "m").write_bytes(damaged)
    with pytest.raises(WeightsError, match=expected):
        read(tmp_path / "m")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not finite"):
        read(write_model(tmp_path / "m", {"encoder/a": np.array([np.nan], np.float32)}))
