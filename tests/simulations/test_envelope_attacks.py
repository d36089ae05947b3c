"""Claims of sealed messages end to end; the ten thousand: `python -m sottovoce.simulations.bench faults`."""

import logging
from pathlib import Path

import pytest

from sottovoce.common import envelope
from tests.fakes.envelope_attacks import attack
from tests.fakes.sites import write_study

N = 200


@pytest.fixture
def study(tmp_path: Path) -> Path:
    logging.disable(logging.ERROR)
    return write_study(tmp_path / "study.toml", n_sites=1, rounds=1)


def test_of_altered_and_replayed_envelopes_none_is_acted_upon_and_each_is_logged(
    tmp_path: Path, study: Path
) -> None:
    told = attack(tmp_path / "here", study, n=N, seed=1)
    logging.disable(logging.NOTSET)
    assert (told.n_executed, told.n_refused, told.n_logged) == (0, N, N)


def test_ends_that_check_no_signature_are_noticed(
    tmp_path: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envelope, "signed_by", lambda *_, **__: True)
    told = attack(tmp_path / "here", study, n=N, seed=1)
    logging.disable(logging.NOTSET)
    assert told.n_executed > 0
