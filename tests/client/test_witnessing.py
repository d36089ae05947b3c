"""Claims of a witness's memory: what a coordinator makes up fills neither the disk nor the memory."""

from pathlib import Path

import pytest

from sottovoce.client import witnessing
from sottovoce.client.witnessing import Fork, Memory, Seen, Shown


def made_up(number: int) -> Shown:
    """A checkpoint that nobody gave a word for."""
    seen = Seen(identity="0" * 64, note="a note\n" * 20, ledger_key="0" * 64, signature="0" * 128)
    return Shown(site=f"site-{number}", newest=seen, steps=(), more=False)


def test_evidence_that_a_coordinator_makes_up_is_bounded_and_the_first_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witnessing, "MAX_FORKS_BYTES", 3_000)
    memory = Memory(tmp_path, known={})
    judged = [memory.judge(made_up(number)) for number in range(20)]
    assert all(isinstance(one, Fork) for one in judged)
    kept = list((tmp_path / witnessing.FORKS).iterdir())
    assert 1 <= len(kept) < 20
    assert sum(path.stat().st_size for path in kept) <= 3_000
    first = judged[0]
    assert isinstance(first, Fork)
    assert first.evidence in kept


def test_only_so_many_sites_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witnessing, "MAX_SITES", 0)
    monkeypatch.setattr(witnessing, "_check_word", lambda site, seen: None)
    judged = Memory(tmp_path, known={}).judge(made_up(1))
    assert isinstance(judged, Fork)
    assert "at most 0 sites" in judged.reason
    assert not (tmp_path / witnessing.MEMORY).exists()
