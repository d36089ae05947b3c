"""Public randomness: same key same stream, other key another."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from sottovoce.common.streams import derive, stream, torch_seed

KEYS = st.lists(st.integers() | st.text(max_size=6), max_size=4)


def test_the_same_key_gives_the_same_stream_in_another_process() -> None:
    code = (
        "from sottovoce.common.streams import stream; print(stream(3, 'folds', 'a', 1).integers(0, 1 << 60))"
    )
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(fresh.stdout) == stream(3, "folds", "a", 1).integers(0, 1 << 60)


@given(KEYS, KEYS)
def test_different_keys_give_different_streams(one: list[str | int], two: list[str | int]) -> None:
    assert (derive(0, "x", *one) == derive(0, "x", *two)) == (
        [repr(k) for k in one] == [repr(k) for k in two]
    )


def test_seed_and_purpose_and_key_type_all_count() -> None:
    keys = [
        derive(0, "a"),
        derive(1, "a"),
        derive(0, "b"),
        derive(0, "a", 1),
        derive(0, "a", "1"),
        derive(0, "a1"),
    ]
    assert len(set(keys)) == len(keys)


def test_torch_seeds_fit_what_torch_takes() -> None:
    assert all(0 <= torch_seed(seed, "x") < 2**63 for seed in range(200))
