"""The extractor's compiled loops compute what their Python says, and cost nothing until they are called."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sottovoce.common import features_loops as loops

N_FRAMES = loops.TILE * 2
RANDOM = np.random.default_rng(0)


def block(n_rows: int, n_columns: int = N_FRAMES) -> np.ndarray:
    return RANDOM.normal(size=(n_rows, n_columns)).astype(np.float32)


def spectrum(kind: type) -> np.ndarray:
    return (RANDOM.normal(size=(N_FRAMES, 9)) + 1j * RANDOM.normal(size=(N_FRAMES, 9))).astype(kind)


def fill(value: float, *shape: int) -> np.ndarray:
    return np.full(shape, value, dtype=np.float32)


def counts(value: int = 0) -> np.ndarray:
    return np.full(N_FRAMES, value)


def arguments() -> dict[Callable[..., None], list[Any]]:
    correlation = np.abs(block(12))
    correlation[0] = 20
    bands = np.array([[0, 3], [2, 9]])
    return {
        loops.windowed: [block(1, 900)[0], 7, 16, np.hanning(20), np.zeros((N_FRAMES, 32))],
        loops.squared: [spectrum(np.complex128), fill(0, 9, N_FRAMES)],
        loops.square_in_place: [spectrum(np.complex64)],
        loops.transposed: [block(N_FRAMES, 12), fill(0, 5, N_FRAMES)],
        loops.band_sums: [
            block(9),
            block(9, 3),
            np.array([0, 2, 5]),
            np.array([3, 6, 5]),
            fill(0, 3, N_FRAMES),
        ],
        loops.weighted_sum: [block(1, 60)[0].astype(np.float64), np.arange(3.0), 4, np.zeros(52)],
        loops.difference: [block(11), correlation, fill(0, 11, N_FRAMES)],
        loops.first_trough: [block(9), np.float32(0.1), fill(np.inf, N_FRAMES), counts(), counts(-1)],
        loops.roll_off: [np.abs(block(20)), 0.85, np.zeros(N_FRAMES), np.zeros(N_FRAMES), counts()],
        loops.extremes: [block(9), bands, fill(0, 2, N_FRAMES), fill(0, 2, N_FRAMES)],
        loops.several_extremes: [block(9), fill(np.inf, 3, N_FRAMES), fill(-np.inf, 3, N_FRAMES)],
        loops.vertices: [block(9), RANDOM.integers(0, 9, N_FRAMES), fill(0, N_FRAMES), fill(0, N_FRAMES)],
    }


ARGUMENTS = arguments()


def copies(values: list[Any]) -> list[Any]:
    return [value.copy() if isinstance(value, np.ndarray) else value for value in values]


@pytest.mark.parametrize("loop", ARGUMENTS, ids=lambda loop: loop.__name__)
def test_a_compiled_loop_gives_the_bits_that_its_python_gives(loop: Callable[..., None]) -> None:
    compiled, plain = copies(ARGUMENTS[loop]), copies(ARGUMENTS[loop])
    loop(*compiled)
    loop.__wrapped__(*plain)  # type: ignore[attr-defined]
    for first, second, before in zip(compiled, plain, ARGUMENTS[loop], strict=True):
        np.testing.assert_array_equal(first, second)
        assert type(first) is type(before)
    assert any(not np.array_equal(one, before) for one, before in zip(compiled, ARGUMENTS[loop], strict=True))


def test_every_compiled_loop_is_among_those_compared() -> None:
    found = {value for value in vars(loops).values() if hasattr(value, "__wrapped__")} - {loops._machine_code}
    assert found == set(ARGUMENTS)


def test_several_extremes_are_the_ends_of_the_sorted_values() -> None:
    values, low, high = block(40), fill(np.inf, 3, N_FRAMES), fill(-np.inf, 3, N_FRAMES)
    values[5] = values[9]  # equal ones count each
    loops.several_extremes(values, low, high)
    ordered = np.sort(values, axis=0)
    np.testing.assert_array_equal(low, ordered[:3])
    np.testing.assert_array_equal(high, ordered[:-4:-1])


def test_a_process_that_calls_no_loop_does_not_load_the_compiler() -> None:
    script = "import sys, sottovoce.common.features; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_loop_is_compiled_where_its_machine_code_cannot_be_kept() -> None:
    source: dict[str, Any] = {}
    exec(
        "def double(values):\n    for place in range(len(values)):\n        values[place] *= 2", source
    )  # no file
    values = np.arange(3.0)
    loops.compiled(source["double"])(values)
    np.testing.assert_array_equal(values, [0, 2, 4])
