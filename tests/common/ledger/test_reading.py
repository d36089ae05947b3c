"""Claims of reading: any folder, nothing written, damage handed on, a ledger that grows read where it rests."""

import time
from pathlib import Path

import pytest

from sottovoce.common.errors import LedgerError
from sottovoce.common.ledger.export import export
from sottovoce.common.ledger.reader import lines_of
from sottovoce.common.ledger.reading import (
    MOST_NAMED,
    PAUSE_SECONDS,
    newest_checkpoint,
    read_ledger,
    read_note,
    readable_entries,
)
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE
from sottovoce.common.ledger.verify import verify
from tests.fakes.faulty_disk import FaultyDisk
from tests.fakes.ledgers import lived_in

DISK = lived_in(FaultyDisk())
LEDGER, HEAD = DISK.names[LEDGER_FILE].data, DISK.names[HEAD_FILE].data


def folder_of(path: Path, ledger: bytes = LEDGER, head: bytes | None = HEAD) -> Path:
    path.mkdir(parents=True)
    (path / LEDGER_FILE).write_bytes(ledger)
    if head is not None:
        (path / HEAD_FILE).write_bytes(head)
    return path


def test_reading_writes_nothing_and_takes_no_lock(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "ledger")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    found = read_ledger(folder)
    assert newest_checkpoint(found).encode() == HEAD
    assert verify(found.ledger, head=found.head).ok
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before


def test_damage_is_handed_on_as_it_is(tmp_path: Path) -> None:
    noise = bytes(range(256)) * 3
    folder = folder_of(tmp_path / "ledger", noise, noise)
    found = read_ledger(folder)
    assert found.ledger == noise
    assert not verify(found.ledger, head=found.head).ok
    export(folder, tmp_path / "out")
    assert (tmp_path / "out" / HEAD_FILE).read_bytes() == noise
    with pytest.raises(LedgerError, match="damaged or cut"):
        newest_checkpoint(found)


def test_a_ledger_that_grows_meanwhile_is_read_where_it_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pauses = folder_of(tmp_path / "ledger", LEDGER, b"an older head"), list[float]()

    def pause(seconds: float) -> None:  # another process writes its head in the second one
        pauses.append(seconds)
        if len(pauses) == 2:
            (folder / HEAD_FILE).write_bytes(HEAD)

    monkeypatch.setattr(time, "sleep", pause)
    found = read_ledger(folder)
    assert verify(found.ledger, head=found.head).ok
    assert pauses == [PAUSE_SECONDS] * 2


def test_what_can_be_read_ends_where_belief_does() -> None:
    lines = lines_of(LEDGER)
    entries, broken = readable_entries(b"".join(lines[:4]) + b"{}\n" + b"".join(lines[4:]))
    assert len(entries) == 4
    assert broken is not None
    assert readable_entries(LEDGER)[1] is None
    assert readable_entries(b"") == ([], "the ledger is empty")


def test_a_folder_of_ledgers_is_told_which_to_name(tmp_path: Path) -> None:
    for number in range(MOST_NAMED + 1):
        folder_of(tmp_path / "run" / "ledgers" / "cell" / f"site-{number}")
    with pytest.raises(LedgerError) as caught:
        read_ledger(tmp_path / "run")
    assert str(tmp_path / "run" / "ledgers" / "cell" / "site-0") in str(caught.value)
    assert str(caught.value).endswith("…")


def test_a_note_is_a_checkpoint_or_an_error_that_names_the_file(tmp_path: Path) -> None:
    good, bad, long = tmp_path / "good", tmp_path / "bad", tmp_path / "long"
    good.write_bytes(HEAD)
    bad.write_bytes(b"\xff\xfe")
    long.write_bytes(HEAD * 100)
    assert read_note(good).encode() == HEAD
    for path in (bad, long, tmp_path / "nowhere", tmp_path):
        with pytest.raises(LedgerError, match=str(path)):
            read_note(path)
