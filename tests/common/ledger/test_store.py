"""Claims of store.py: durable before acknowledged, and an answer for each thing that happens to a ledger."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce.common.errors import LedgerError
from sottovoce.common.keys import DigestKey, SigningKey, load_keys, new_keys
from sottovoce.common.ledger.entries import Denial, Moved, Recovery, Withdrawal
from sottovoce.common.ledger.files import DiskFolder
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE, Ledger, Move
from sottovoce.common.ledger.verify import entries_of, verify
from tests.fakes.faulty_disk import Fault, FaultyDisk, FaultyFolder, File
from tests.fakes.ledger_schedules import run_fault, run_sigkills
from tests.fakes.ledgers import DOMAIN, PERSON, SITE, START, hospital, lived_in

WITHDRAWAL = Withdrawal(kind="withdrawal", domain=DOMAIN)
MOVE = Move(person=PERSON, reason="new server")


def young(disk: FaultyDisk | None = None) -> FaultyDisk:
    disk = disk or FaultyDisk(draw=random.Random(0))
    hospital().create(FaultyFolder(disk)).close()
    return disk


def put(disk: FaultyDisk, name: str, data: bytes) -> FaultyDisk:
    disk.names[name] = File(data, data)
    return disk


def refuses(disk: FaultyDisk, words: str, **how: object) -> None:
    with pytest.raises(LedgerError, match=words):
        hospital().open(FaultyFolder(disk), **how)  # type: ignore[arg-type]
    assert not disk.locked, "a refused ledger must not stay locked"


def test_a_ledger_goes_on_over_restarts_on_a_real_disk(tmp_path: Path) -> None:
    key, digest_key = new_keys(tmp_path / "keys")
    with Ledger.create(DiskFolder(tmp_path / "l"), site=SITE, key=key, digest_key=digest_key) as ledger:
        note = ledger.checkpoint()
    keys, digest_key = load_keys(tmp_path / "keys")
    with Ledger.open(DiskFolder(tmp_path / "l"), keys, digest_key, seen=[note]) as ledger:
        assert (ledger.state.site, ledger.state.size) == (SITE, 1)
        assert ledger.checkpoint() == note


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    key, digest_key = new_keys(tmp_path / "keys")
    first = Ledger.create(DiskFolder(tmp_path / "l"), site=SITE, key=key, digest_key=digest_key)
    with first, pytest.raises(LedgerError, match="another process"):
        Ledger.open(DiskFolder(tmp_path / "l"), [key], digest_key)
    Ledger.open(DiskFolder(tmp_path / "l"), [key], digest_key).close()


def test_a_real_copy_is_refused_until_a_named_person_declares_the_move(tmp_path: Path) -> None:
    import shutil

    key, digest_key = new_keys(tmp_path / "keys")
    Ledger.create(DiskFolder(tmp_path / "l"), site=SITE, key=key, digest_key=digest_key).close()
    shutil.copytree(tmp_path / "l", tmp_path / "copy")
    with pytest.raises(LedgerError, match="copied or moved"):
        Ledger.open(DiskFolder(tmp_path / "copy"), [key], digest_key)
    with Ledger.open(DiskFolder(tmp_path / "copy"), [key], digest_key, move=MOVE) as ledger:
        assert ledger.state.size == 2
    Ledger.open(DiskFolder(tmp_path / "copy"), [key], digest_key).close()


def test_a_declared_move_is_an_entry_with_its_person() -> None:
    disk = young()
    disk.where = "machine-2/inode-9"
    refuses(disk, "copied or moved")
    hospital().open(FaultyFolder(disk), move=MOVE).close()
    last = entries_of(disk.names[LEDGER_FILE].data)[-1].body
    assert isinstance(last, Moved)
    assert (last.person, last.reason) == (PERSON, "new server")


def test_two_copies_that_both_go_on_are_told_apart_by_a_witness() -> None:
    disk = young()
    copy = disk.copy()
    copy.where = "machine-2/inode-9"
    with hospital().open(FaultyFolder(disk)) as ledger:
        ledger.append(WITHDRAWAL)
        note = ledger.checkpoint()
    hospital().open(FaultyFolder(copy), move=MOVE).close()
    refuses(copy, "rolled back or rewritten", seen=[note])


def test_another_sites_keys_are_refused() -> None:
    disk, at = young(), hospital()
    with pytest.raises(LedgerError, match="signing key"):
        Ledger.open(FaultyFolder(disk), [SigningKey.generate()], at.digest_key)
    with pytest.raises(LedgerError, match="digest key"):
        Ledger.open(FaultyFolder(disk), [at.key], DigestKey.generate())


def test_a_second_ledger_is_never_begun_over_the_first() -> None:
    with pytest.raises(LedgerError, match="there is one already"):
        hospital().create(FaultyFolder(young()))


def test_after_a_rotation_the_new_key_signs_and_the_old_one_alone_opens_nothing() -> None:
    disk, at = young(), hospital()
    with at.open(FaultyFolder(disk)) as ledger:
        ledger.rotate(at.next_key, person=PERSON, reason="yearly")
        ledger.append(WITHDRAWAL)
    with pytest.raises(LedgerError, match="signing key"):
        Ledger.open(FaultyFolder(disk), [at.key], at.digest_key)
    with Ledger.open(FaultyFolder(disk), [at.next_key], at.digest_key) as ledger:
        assert ledger.state.public_key == at.next_key.public_hex


def test_a_clock_that_jumps_back_reorders_nothing_and_is_noted() -> None:
    times = [START, START + 60, START - 86_400, START + 120]
    disk, at = FaultyDisk(), hospital()
    ledger = Ledger.create(
        FaultyFolder(disk), site=SITE, key=at.key, digest_key=at.digest_key, clock=lambda: times.pop(0)
    )
    with ledger:
        for _ in range(3):
            ledger.append(Recovery(kind="recovery", cut_bytes=1))
    entries = entries_of(disk.names[LEDGER_FILE].data)
    assert [entry.clock_behind_seconds for entry in entries] == [None, None, 86_460.0, None]
    assert [entry.time for entry in entries] == sorted(entry.time for entry in entries)
    found = verify(disk.names[LEDGER_FILE].data, head=disk.names[HEAD_FILE].data.decode())
    assert found.ok
    assert any("clock" in finding.what for finding in found.attention)


def test_every_prefix_of_the_last_record_is_a_torn_write_and_loses_nothing_acknowledged() -> None:
    at, disk = hospital(), young()
    before = disk.copy()
    with at.open(FaultyFolder(disk)) as ledger:
        ledger.append(WITHDRAWAL)
    old, new = before.names[LEDGER_FILE].data, disk.names[LEDGER_FILE].data
    for cut in range(len(old), len(new)):
        torn = put(before.copy(), LEDGER_FILE, new[:cut])
        with at.open(FaultyFolder(torn)) as ledger:
            assert ledger.state.size == 4 - 1
            ledger.append(WITHDRAWAL)
        bodies = [entry.body for entry in entries_of(torn.names[LEDGER_FILE].data)]
        recovered = [body.cut_bytes for body in bodies if isinstance(body, Recovery)]
        assert recovered == ([cut - len(old)] if cut > len(old) else [])
    whole = put(before.copy(), LEDGER_FILE, new)  # written, not acknowledged: its spend counts
    with at.open(FaultyFolder(whole)) as ledger:
        assert ledger.state.domains[DOMAIN].withdrawals == 1


def test_damage_to_what_was_acknowledged_is_never_taken_for_a_torn_write() -> None:
    disk = lived_in()
    data = disk.names[LEDGER_FILE].data
    # Signatures before the last are not asked when a site opens its ledger: the head covers every entry.
    entries = [k for k in range(len(data)) if data.rfind(b'"signature"', 0, k) <= data.rfind(b"\n", 0, k)]
    for position in (*entries[::397], len(data) - 1, len(data) - 2):
        damaged = bytearray(data)
        damaged[position] ^= 1
        refuses(put(disk.copy(), LEDGER_FILE, bytes(damaged)), "damaged|changed|not the one")
    refuses(put(disk.copy(), LEDGER_FILE, data[:-1]), "damaged")
    refuses(put(disk.copy(), LEDGER_FILE, data[: data[:-1].rindex(b"\n") + 1]), "rolled back")
    refuses(put(disk.copy(), LEDGER_FILE, b""), "rolled back|damaged")


def test_a_damaged_or_missing_head_is_refused() -> None:
    disk = lived_in()
    head = disk.names[HEAD_FILE].data
    for position in range(len(head)):
        damaged = bytearray(head)
        damaged[position] ^= 1
        refuses(put(disk.copy(), HEAD_FILE, bytes(damaged)), "head|rolled back|not the one")
    without = disk.copy()
    del without.names[HEAD_FILE]
    refuses(without, "no head")


def test_a_ledger_rolled_back_with_its_head_is_found_by_a_checkpoint_held_elsewhere() -> None:
    disk = young()
    older = disk.copy()
    with hospital().open(FaultyFolder(disk)) as ledger:
        ledger.append(WITHDRAWAL)
        note = ledger.checkpoint()
    hospital().open(FaultyFolder(older.copy())).close()  # alone, nobody can tell
    refuses(older, "rolled back or rewritten", seen=[note])


@pytest.mark.parametrize("operation", range(1, 9))
@pytest.mark.parametrize("fault", ["full", "io_error"])
def test_a_full_or_failing_disk_at_any_write_stops_the_ledger_and_loses_nothing(
    fault: Fault, operation: int
) -> None:
    disk = young()
    n_failed = 0

    def fails(n: int, what: str) -> Fault | None:
        return fault if n == operation else None

    with hospital().open(FaultyFolder(disk)) as ledger:
        before = ledger.state.size
        disk.n_operations, disk.fault = 0, fails
        try:
            ledger.append(WITHDRAWAL)
        except LedgerError:
            n_failed = 1
            with pytest.raises(LedgerError, match="Open it again"):
                ledger.append(WITHDRAWAL)
    disk.fault = lambda n, what: None
    with hospital().open(FaultyFolder(disk)) as ledger:
        assert before <= ledger.state.size <= before + 1
        if not n_failed:
            assert ledger.state.size == before + 1


def test_short_writes_are_finished() -> None:
    disk = young()
    disk.fault = lambda n, operation: "short" if n % 2 else None
    with hospital().open(FaultyFolder(disk)) as ledger:
        ledger.append(WITHDRAWAL)
    disk.fault = lambda n, operation: None
    with hospital().open(FaultyFolder(disk)) as ledger:
        assert ledger.state.domains[DOMAIN].withdrawals == 1


def test_a_fault_at_every_operation_of_a_round_loses_no_spend() -> None:
    """19,000 of them in `simulations/bench/ledger.py`."""
    kinds: tuple[Fault, ...] = ("kill_before", "kill_after", "torn", "full", "io_error", "short")
    met = [
        run_fault(kind, operation, seed=operation, power_cut=power_cut)
        for kind in kinds
        for operation in range(1, 25)
        for power_cut in (False, True)
    ]
    assert sum(met) > len(met) / 2


def test_an_fsync_that_lies_is_found_by_a_checkpoint_held_elsewhere_or_the_ledger_refuses() -> None:
    found = lost = 0
    for seed in range(60):
        disk = young()
        disk.draw = random.Random(seed)
        with hospital().open(FaultyFolder(disk)) as ledger:
            disk.sync_lies = True
            for _ in range(3):
                ledger.append(WITHDRAWAL)
            note, size = ledger.checkpoint(), ledger.state.size
        disk.crash(power_cut=True)
        disk.sync_lies = False
        try:
            with hospital().open(FaultyFolder(disk)) as ledger:
                lost += ledger.state.size < size
        except LedgerError:
            found += 1  # the head survived what the ledger did not
            continue
        try:
            hospital().open(FaultyFolder(disk), seen=[note]).close()
        except LedgerError:
            found += 1
        else:
            assert disk.names[LEDGER_FILE].data.count(b"\n") >= size
    assert lost > 0, "this disk lost nothing: the test would prove nothing"
    assert found >= lost


def test_an_entry_that_the_rules_forbid_is_never_written() -> None:
    disk = young()
    size = len(disk.names[LEDGER_FILE].data)
    with hospital().open(FaultyFolder(disk)) as ledger:
        with pytest.raises(LedgerError, match="never opened"):
            ledger.append(replace(WITHDRAWAL, domain="nowhere"))
        for reason in ("a\x1b[2J", "", "x" * 301, "\ud800"):  # it could not be read again
            with pytest.raises(LedgerError, match=r"printable|length"):
                ledger.append(Denial(kind="denial", study="ab" * 32, domain=DOMAIN, reason=reason))
    assert len(disk.names[LEDGER_FILE].data) == size


def test_sigkill_of_a_real_process_loses_nothing(tmp_path: Path) -> None:
    """1,000 of them in `simulations/bench/ledger.py`."""
    met = run_sigkills(tmp_path, 25, seed=1)
    assert met.n_kills == 25
    assert met.n_reserved >= 1  # on a busy machine most kills come before the first; the bench has 900
