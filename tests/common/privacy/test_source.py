"""Secret words are drawn once, by one process; simulated words say what they are."""

import copy
import inspect
import os
import pickle

import numpy as np
import pytest

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy.source import SecretSource, SimulatedNoise_NotPrivate, Source


def test_the_secret_source_takes_no_seed() -> None:
    assert list(inspect.signature(SecretSource).parameters) == []


def test_two_releases_share_nothing() -> None:
    words = [SecretSource().words(10_000) for _ in range(10)]
    assert len(np.unique(np.concatenate(words))) == 100_000


def test_a_source_never_gives_a_word_twice() -> None:
    source = SecretSource()
    assert len(np.unique(np.concatenate([source.words(n) for n in (1, 7, 5000, 64)]))) == 5072


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_secret_source_is_neither_copied_nor_stored(copied: object) -> None:
    with pytest.raises(PrivacyError, match="neither copied nor stored"):
        copied(SecretSource())  # type: ignore[operator]


def test_a_secret_source_prints_no_key() -> None:
    assert len(repr(SecretSource())) < 100


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_fork_does_not_share_the_stream() -> None:
    source = SecretSource()
    source.words(1)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # no pytest in here
        try:
            source.words(1)
            os.write(writing, b"shared")
        except PrivacyError:
            fresh = SecretSource().words(1)
            os.write(writing, b"refused" if len(fresh) else b"")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    assert os.read(reading, 100) == b"refused"
    os.close(reading)
    source.words(1)  # the parent goes on


def test_simulated_noise_comes_again_and_says_so() -> None:
    def words(**key: object) -> list[int]:
        source: Source = SimulatedNoise_NotPrivate(**({"seed": 1, "site": "a", "round": 3} | key))  # type: ignore[arg-type]
        assert source.simulated
        return [int(word) for word in source.words(4)]

    assert words() == words()
    assert words() != words(round=4)
    assert words() != words(site="b")
    assert words() != words(seed=2)
    assert not SecretSource().simulated
