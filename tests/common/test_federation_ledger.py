"""Claims of common/federation_ledger/: what a coordinator writes, what a reader believes, what sites can show."""

import copy
import functools
import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sottovoce.cli import app
from sottovoce.common import keys
from sottovoce.common.errors import LedgerError, SecureSumError
from sottovoce.common.federation_ledger import FederationLedger, Report, entries, read_federation
from sottovoce.common.federation_ledger.compare import compare_with_site
from sottovoce.common.federation_ledger.entries import (
    LABEL,
    MAX_COMPLAINTS,
    MAX_COMPLAINTS_BYTES,
    Abandoned,
    Body,
    Entry,
    Genesis,
    Lost,
    Opened,
    Recovery,
    Spent,
    Summed,
    encode,
    line_hash,
)
from sottovoce.common.federation_ledger.rules import Federation
from sottovoce.common.ledger.entries import Entry as LedgerEntry
from sottovoce.common.ledger.reader import LineRefused, lines_of
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.privacy import distributed_accountant as accountant
from sottovoce.common.privacy.budget import Budget, Granted
from sottovoce.common.privacy.distributed_accountant import DistributedEvent
from sottovoce.common.secagg import complaint, wire
from sottovoce.common.secagg.coordinator import SecureSum
from sottovoce.common.secagg.session import Roster, Session
from sottovoce.common.secagg.wire import Kind, decode_consent, open_message, seal
from sottovoce.common.sums import roster_digest
from tests.fakes import ledgers
from tests.fakes.faulty_disk import Fault, FaultyDisk, FaultyFolder, Killed
from tests.fakes.ledger_mutations import mutations
from tests.fakes.ledgers import SITE, START, STUDY
from tests.fakes.secagg import World, signing_key

FILE = "federation.jsonl"
DELTA = 1e-5


class Hospitals(World):
    """A study whose last site is the hospital of the other ledgers' tests."""

    def site(self, number: int) -> str:
        return SITE if number == self.n_sites - 1 else super().site(number)


WORLD = Hospitals(4)
KEY = WORLD.coordinator_key
SITES = tuple(WORLD.site(number) for number in range(WORLD.n_sites))
EVENT = DistributedEvent(
    squared_norm=2**20,
    variance_numerator=2**24,
    variance_denominator=1,
    n_min=3,
    n_colluding=1,
    n_parameters=WORLD.length,
    sampling_prob=1 / 16,
    steps=1,
    cap=200,
    n_patients=1000,
)


@pytest.fixture(autouse=True, scope="module")
def remembered() -> Iterator[None]:
    """The same signatures are verified thousands of times here: that is most of the time that it would take."""
    patch = pytest.MonkeyPatch()
    for module in (entries, wire, complaint):
        patch.setattr(module, "verified", functools.lru_cache(1 << 16)(keys.verified))
    yield
    patch.undo()


def genesis() -> Genesis:
    return Genesis(
        kind="genesis", name="demo", instance="0" * 32, study=STUDY, roster=WORLD.roster, simulated=False
    )


def created(disk: FaultyDisk) -> FederationLedger:
    return FederationLedger.create_in(FaultyFolder(disk), FILE, genesis(), key=KEY, clock=lambda: START)


def reopened(disk: FaultyDisk) -> FederationLedger:
    return FederationLedger.open_in(FaultyFolder(disk), FILE, key=KEY, clock=lambda: START)


def bytes_of(disk: FaultyDisk) -> bytes:
    return disk.names[FILE].data


def read(data: bytes) -> Report:
    return read_federation(data, coordinator_key=KEY.public_hex)


@functools.cache
def sum_of(number: int, lost: tuple[tuple[int, str], ...] = ()) -> SecureSum:
    return Hospitals(4).attempt(number).run(dict(lost))  # sites of their own, that have answered nothing yet


def sums(ledger: FederationLedger, number: int, lost: tuple[tuple[int, str], ...] = (), **more: Any) -> None:
    """One attempt, from its opening to its sum."""
    session, total = WORLD.session(number), sum_of(number, lost)
    ledger.opened(session, what="update", event=EVENT)
    ledger.spent(session, dealers=SITES)
    changed = {
        "survivors": total.survivors,
        "consents": total.consents,
        "complaints": total.complaints,
        "sum_sha256": hashlib.sha256(total.values.tobytes()).hexdigest(),
        "n_bytes_up": 1000,
        "n_bytes_down": 2000,
        **more,
    }
    ledger.summed(session, **changed)


@functools.cache
def refused() -> bytes:
    """What the coordinator says of a site that answers for another."""
    attempt = Hospitals(4).attempt(4).until("deal")
    with pytest.raises(SecureSumError) as error:
        attempt.give(1, "deal", attempt.answer(0, "deal", attempt.messages[0]))
    return error.value.complaint


def lived(ledger: FederationLedger) -> None:
    """Three attempts at one round, as they may go: lost after it was spent, summed without one, abandoned."""
    ledger.opened(WORLD.session(1), what="update", event=EVENT)
    ledger.spent(WORLD.session(1), dealers=SITES)
    ledger._write(Lost(kind="lost", session=WORLD.session(1).digest.hex()))
    sums(ledger, 2, ((1, "mask"),))
    ledger.opened(WORLD.session(4), what="evaluation_counts", event=None)
    ledger.abandoned(WORLD.session(4), phase="deal", reason="abandoned: too few", complaints=(refused(),))


@functools.cache
def record() -> bytes:
    disk = FaultyDisk()
    with created(disk) as ledger:
        lived(ledger)
    return bytes_of(disk)


def bodies_of(data: bytes) -> list[Body]:
    said = Federation()
    return [said.take(line).body for line in lines_of(data)]


def signed_anyway(
    bodies: Sequence[Body],
    *,
    key: keys.SigningKey = KEY,
    first_index: int = 0,
    times: Sequence[str] = (),
) -> bytes:
    """A dishonest coordinator's record: chained and signed, whatever is in it."""
    lines, previous = list[bytes](), entries.NO_PREVIOUS
    for index, body in enumerate(bodies):
        entry = Entry(
            label="sottovoce/federation-ledger/1",
            index=first_index + index,
            previous=previous,
            time=times[index] if times else "2027-01-15T08:00:00Z",
            body=body,
        )
        lines.append(encode(entry, key))
        previous = line_hash(lines[-1])
    return b"".join(lines)


def refuses(data: bytes, step: int, words: str) -> None:
    with pytest.raises(LedgerError, match=rf"by step {step} .*{words}"):
        read(data)


# --- writing ---


def test_a_record_goes_on_over_restarts_and_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / FILE
    with FederationLedger.create(
        path, key=KEY, roster=WORLD.roster, study=STUDY, name="demo", simulated=True
    ) as ledger:
        sums(ledger, 1)
    with FederationLedger.open(path, key=KEY) as ledger:
        assert (ledger.lost, ledger.n_attempts(WORLD.name, 3), ledger.n_attempts(WORLD.name, 4)) == ((), 1, 0)
        sums(ledger, 2)
        kinds = [entry.body.kind for entry in ledger.entries]
    assert kinds == ["genesis", *("opened", "spent", "summed") * 2]
    report = read(path.read_bytes())
    assert (report.name, report.study, report.simulated, report.pinned) == ("demo", STUDY, True, True)
    assert (report.n_entries, report.head) == (7, ledger.head)
    assert path.stat().st_mode & 0o077 == 0


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    def create(name: str) -> FederationLedger:
        return FederationLedger.create(
            tmp_path / name, key=KEY, roster=WORLD.roster, study=STUDY, name="demo"
        )

    with create(FILE), pytest.raises(LedgerError, match="another process"):
        FederationLedger.open(tmp_path / FILE, key=KEY)
    with pytest.raises(LedgerError, match="there is one already"):
        create(FILE)
    with FederationLedger.open(tmp_path / FILE, key=KEY), create("other"):
        pass  # another record in the same folder has a lock of its own


def test_another_coordinator_cannot_go_on_with_a_record(tmp_path: Path) -> None:
    path = tmp_path / FILE
    FederationLedger.create(path, key=KEY, roster=WORLD.roster, study=STUDY, name="demo").close()
    with pytest.raises(LedgerError, match="of another coordinator"):
        FederationLedger.open(path, key=signing_key("site 0"))
    with pytest.raises(LedgerError, match="no such file"):
        FederationLedger.open(tmp_path / "none", key=KEY)


@pytest.mark.parametrize("spent", [False, True])
def test_an_attempt_without_an_end_is_lost_and_its_number_is_never_given_again(spent: bool) -> None:
    disk = FaultyDisk()
    ledger = created(disk)
    ledger.opened(WORLD.session(1), what="update", event=EVENT)
    if spent:
        ledger.spent(WORLD.session(1), dealers=SITES)
    disk.crash(power_cut=True)
    with reopened(disk) as ledger:
        assert [attempt.session.attempt for attempt in ledger.lost] == [1]
        assert ledger.n_attempts(WORLD.name, 3) == 1
        assert isinstance(ledger.entries[-1].body, Lost)
        with pytest.raises(LedgerError, match="an attempt after 1"):
            ledger.opened(WORLD.session(1), what="update", event=EVENT)
        sums(ledger, 2)
    with reopened(disk) as ledger:
        assert ledger.lost == ()
    figures = read(bytes_of(disk)).figures["update"]
    assert (figures.attempts, figures.lost, figures.summed, figures.spent) == (2, 1, 1, 1 + spent)


def _attempts_until_killed(disk: FaultyDisk) -> list[Body]:
    """Works until the disk fails it; returns what was acknowledged."""
    acknowledged = list[Body]()
    try:
        ledger = reopened(disk) if FILE in disk.names else created(disk)
        acknowledged = [entry.body for entry in ledger.entries]
        for _ in range(2):
            number = ledger.n_attempts(WORLD.name, 3) + 1
            for step in (
                functools.partial(ledger.opened, WORLD.session(number), what="update", event=EVENT),
                functools.partial(ledger.spent, WORLD.session(number), dealers=SITES),
                functools.partial(
                    ledger.abandoned, WORLD.session(number), phase="mask", reason="few", complaints=()
                ),
            ):
                step()
                acknowledged = [entry.body for entry in ledger.entries]
        ledger.close()
    except (Killed, LedgerError):
        pass
    return acknowledged


@pytest.mark.parametrize("fault", ["kill_before", "kill_after", "torn", "full", "io_error", "short"])
@pytest.mark.parametrize("power_cut", [False, True])
def test_what_was_acknowledged_survives_any_fault_at_any_moment(fault: Fault, power_cut: bool) -> None:
    reached = 0
    for at in itertools.count(1):
        draw = random.Random(at)
        disk = FaultyDisk(fault=lambda n, _: fault if n == at else None, draw=draw)  # noqa: B023
        acknowledged = _attempts_until_killed(disk)
        done = disk.n_operations < at
        disk.crash(power_cut=power_cut)
        disk.fault = lambda n, operation: None
        survived = _attempts_until_killed(disk)
        assert survived[: len(acknowledged)] == acknowledged, (at, fault)
        extra = survived[len(acknowledged) :]
        assert sum(isinstance(body, Opened) for body in extra) <= 3, (
            "two new attempts, and one unacknowledged"
        )
        figures = read(bytes_of(disk)).figures["update"]
        assert figures.under_way == 0
        assert figures.attempts == figures.abandoned + figures.lost
        reached += any(isinstance(body, Lost | Recovery) for body in survived)
        if done:
            break
    assert at > 15, "the loop has gone through every operation"
    assert reached or fault == "short", "some of these faults leave something to mend"


def test_a_torn_last_line_is_cut_and_an_entry_says_so() -> None:
    disk = FaultyDisk()
    created(disk).close()
    whole = bytes_of(disk)
    for torn in (b'{"entry":{"body"', b'{"entry":\0\0\0\0}\n'):
        disk.names[FILE].data = whole + torn
        with reopened(disk) as ledger:
            cut = ledger.entries[-1].body
        assert cut == Recovery(
            kind="recovery", cut_bytes=len(torn), cut_sha256=hashlib.sha256(torn).hexdigest()
        )
        assert read(bytes_of(disk)).n_recoveries == 1


@pytest.mark.parametrize("at", [0, 1, -1])
def test_other_damage_than_a_torn_line_is_refused(at: int) -> None:
    lines = lines_of(record())
    lines[at] = lines[at].replace(b"a", b"b", 1)
    disk = FaultyDisk()
    created(disk).close()
    disk.names[FILE].data = b"".join(lines)
    with pytest.raises(LedgerError, match="damaged at entry"):
        reopened(disk)
    assert not disk.locked, "a refused record must not stay locked"
    assert bytes_of(disk) == b"".join(lines)


def test_nothing_more_is_written_after_a_write_has_failed() -> None:
    disk = FaultyDisk()
    ledger = created(disk)
    disk.fault = lambda n, operation: "full" if operation == "write" else None
    with pytest.raises(LedgerError, match="could not be written"):
        ledger.opened(WORLD.session(1), what="update", event=EVENT)
    disk.fault = lambda n, operation: None
    with pytest.raises(LedgerError, match="Open it again"):
        ledger.opened(WORLD.session(1), what="update", event=EVENT)
    ledger.close()
    with reopened(disk) as ledger:
        ledger.opened(WORLD.session(1), what="update", event=EVENT)


def test_what_is_read_at_the_start_is_on_the_disk_before_it_is_believed() -> None:
    disk = FaultyDisk()
    with created(disk) as ledger:
        ledger.opened(WORLD.session(1), what="update", event=EVENT)
        before = bytes_of(disk)
        ledger.abandoned(WORLD.session(1), phase="advert", reason="few", complaints=())
    disk.names[FILE].durable = before  # the process was killed before its last fsync
    with reopened(disk) as ledger:
        assert isinstance(ledger.entries[-1].body, Abandoned)
        assert disk.names[FILE].durable == bytes_of(disk)


def test_a_clock_that_goes_back_changes_no_order() -> None:
    disk, times = FaultyDisk(), iter([START, START - 5000, START + 1])
    with FederationLedger.create_in(
        FaultyFolder(disk), FILE, genesis(), key=KEY, clock=lambda: next(times)
    ) as ledger:
        ledger.opened(WORLD.session(1), what="update", event=EVENT)
        ledger.spent(WORLD.session(1), dealers=SITES)
        written = [entry.time for entry in ledger.entries]
    assert written == ["2027-01-15T08:00:00Z", "2027-01-15T08:00:00Z", "2027-01-15T08:00:01Z"]
    assert read(bytes_of(disk)).last_time == written[-1]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            Opened(kind="opened", what="update", session=WORLD.session(1), event=replace(EVENT, steps=2)),
            "one step",
        ),
        (
            Opened(kind="opened", what="update", session=WORLD.session(1), event=replace(EVENT, cap=None)),
            "cap",
        ),
        (
            Opened(kind="opened", what="update", session=WORLD.session(1), event=replace(EVENT, n_min=4)),
            "n_min",
        ),
        (Opened(kind="opened", what="", session=WORLD.session(1)), "one encoding"),
        (Spent(kind="spent", session=WORLD.session(1).digest.hex(), dealers=SITES), "that was opened"),
    ],
)
def test_what_the_rules_forbid_is_never_written(body: Body, words: str) -> None:
    disk = FaultyDisk()
    with created(disk) as ledger:
        before = bytes_of(disk)
        with pytest.raises(LedgerError, match=words):
            ledger._write(body)
        assert bytes_of(disk) == before
        sums(ledger, 1)  # and the record goes on


def test_complaints_that_nobody_signed_or_too_many_are_counted_and_never_end_a_record() -> None:
    disk, session = FaultyDisk(), WORLD.session(4)
    with created(disk) as ledger:
        ledger.opened(session, what="update", event=None)
        other = WORLD.session(5)  # a complaint of attempt 4 is none of attempt 5
        junk = (b"", b"\xff\xfe", b"{}", refused()[:-1], refused().replace(b"deal", b"mask"))
        ledger.abandoned(
            session, phase="deal", reason="\x1b[31m\n" + "x" * 999, complaints=(*junk, *[refused()] * 100)
        )
        ledger.opened(other, what="update", event=None)
        ledger.abandoned(other, phase="deal", reason="", complaints=(refused(),))
        with pytest.raises(LedgerError, match="Expected a phase of"):
            ledger.abandoned(other, phase="lunch", reason="", complaints=())
    report = read(bytes_of(disk))
    first, second = (attempt.end for attempt in report.attempts)
    assert isinstance(first, Abandoned)
    assert isinstance(second, Abandoned)
    assert (len(first.complaints), first.complaints_left_out) == (
        MAX_COMPLAINTS,
        len(junk) + 100 - MAX_COMPLAINTS,
    )
    assert (second.complaints, second.complaints_left_out, second.reason) == ((), 1, "none was given")
    assert first.reason.startswith(" [31m x")
    assert len(first.reason) == 300
    assert report.complaints_left_out == first.complaints_left_out + 1


def test_long_complaints_fill_no_more_than_their_room() -> None:
    disk, session = FaultyDisk(), WORLD.session(1)
    place = complaint.Place(run=session.run, round=3, attempt=1, session=session.digest.hex(), phase="deal")
    error = SecureSumError("form", "long", accused=SITES[0], evidence=bytes(65_536))
    long = complaint.sign_complaint(error, place, accuser=SITES[1], key=WORLD.keys[1])
    with created(disk) as ledger:
        ledger.opened(session, what="update", event=None)
        ledger.abandoned(session, phase="deal", reason="few", complaints=(long,) * 40)
    n_kept = MAX_COMPLAINTS_BYTES // len(long)
    assert len(read(bytes_of(disk)).complaints) == n_kept < 40 < MAX_COMPLAINTS


# --- reading ---


def test_any_change_of_any_byte_is_found() -> None:
    bodies = [bodies_of(record())[at] for at in (0, 4, 5, 6)]
    bodies.append(Recovery(kind="recovery", cut_bytes=1, cut_sha256="0" * 64))
    said, draw = Federation(coordinator_key=KEY.public_hex), random.Random(1)
    for line in lines_of(signed_anyway(bodies)):
        for place, byte in enumerate(line):
            bit = 5 if chr(byte).isalpha() else draw.randrange(8)  # 5: the other case of a letter
            with pytest.raises(LineRefused):
                said.take(line[:place] + bytes([byte ^ 1 << bit]) + line[place + 1 :])
        said.take(line)
    assert said.size == 5


def test_lines_left_out_put_in_moved_or_cut_are_found_except_at_the_very_end() -> None:
    data, lines = record(), lines_of(record())
    ends = {b"".join(lines[:n]) for n in range(1, len(lines) + 1)}
    for changed, _ in itertools.islice(mutations(data, random.Random(2)), 100):
        if changed not in ends:
            with pytest.raises(LedgerError):
                read(changed)
    refuses(signed_anyway(bodies_of(data), first_index=1), 2, "left out")
    for shorter in ends - {data}:  # which is what an earlier head is for
        assert read(shorter).head != read(data).head


@pytest.mark.parametrize(
    "time", ["2027-01-15T07:59:59Z", "2027-01-15 08:00:01Z", "2027-13-15T08:00:00Z", "2027-01-15T8:00:000Z"]
)
def test_a_time_that_goes_back_or_is_none_is_refused(time: str) -> None:
    bodies: list[Body] = [genesis(), _opened(WORLD.session(1))]
    refuses(signed_anyway(bodies, times=("2027-01-15T08:00:00Z", time)), 2, "expected a time")
    read(signed_anyway(bodies, times=("2027-01-15T08:00:00Z", "2027-01-15T08:00:01Z")))


def test_a_record_is_believed_under_the_coordinators_own_key_alone() -> None:
    stranger = signing_key("stranger")
    bodies = bodies_of(record())
    refuses(signed_anyway(bodies, key=stranger), 3, "coordinator's key")
    theirs = [replace(genesis(), roster=replace(WORLD.roster, coordinator=stranger.public_hex))]
    refuses(signed_anyway(theirs, key=stranger), 3, "coordinator's key")
    refuses(signed_anyway(theirs), 3, "coordinator's key")
    unpinned = read_federation(signed_anyway(theirs, key=stranger), coordinator_key=None)
    assert not unpinned.pinned


@settings(max_examples=40)
@given(st.binary(max_size=400) | st.text(max_size=300).map(str.encode))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    for tried in (data, data + b"\n", record() + data, lines_of(record())[0] + data):
        try:
            read(tried)
        except LedgerError:
            continue
        assert data == b"", "only what ends where a line ends is a record"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70) | st.just("0" * 64),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=80)
@given(st.data())
def test_whatever_the_coordinator_signs_the_reader_refuses_it_or_reports(data: st.DataObject) -> None:
    """One field of one entry is anything, and the line and all after it are chained and signed anew."""
    tables = [json.loads(line)["entry"] for line in lines_of(record())]
    at = data.draw(st.integers(0, len(tables) - 1))
    places = list(_places(tables[at]))
    *way, last = data.draw(st.sampled_from(places))
    inner = functools.reduce(lambda table, key: table[key], way, tables[at])
    inner[last] = data.draw(_JSON | st.sampled_from([_at(tables, place) for place in _all_places(tables)]))
    previous, lines = entries.NO_PREVIOUS, []
    for number, table in enumerate(tables):
        if number != at or [*way, last] != ["previous"]:
            table["previous"] = previous
        text = json.dumps(table, sort_keys=True, separators=(",", ":"))
        signature = KEY.sign(f"{LABEL}\n{text}".encode()).hex()
        lines.append(f'{{"entry":{text},"signature":"{signature}"}}\n'.encode())
        previous = line_hash(lines[-1])
    try:
        report = read(b"".join(lines))
    except LedgerError:
        return
    report.plain(DELTA)
    assert len(report.attempts) == 3


def signed_again(tables: list[Any], *, but: int | None = None) -> bytes:
    """Lines of any tables, chained and signed; `but` keeps the hash that it names."""
    previous, lines = entries.NO_PREVIOUS, list[bytes]()
    for number, table in enumerate(tables):
        if number != but:
            table["previous"] = previous
        text = json.dumps(table, sort_keys=True, separators=(",", ":"))
        signature = KEY.sign(f"{LABEL}\n{text}".encode()).hex()
        lines.append(f'{{"entry":{text},"signature":"{signature}"}}\n'.encode())
        previous = line_hash(lines[-1])
    return b"".join(lines)


def test_a_cost_that_no_accountant_takes_is_refused() -> None:
    tables = [json.loads(line)["entry"] for line in lines_of(record())]
    assert read(signed_again(tables)).figures == read(record()).figures
    tables[1]["body"]["event"]["n_colluding"] = 3
    refuses(signed_again(tables), 1, "one encoding")


def _places(table: Any) -> Iterator[list[Any]]:
    items = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    for key, value in items:
        yield [key]
        yield from ([key, *place] for place in _places(value))


def _all_places(tables: list[Any]) -> list[list[Any]]:
    return list(_places(tables))


def _at(tables: list[Any], place: list[Any]) -> Any:
    return copy.deepcopy(functools.reduce(lambda table, key: table[key], place, tables))


# --- what a dishonest coordinator signs ---


def _changed(**changes: Any) -> bytes:
    """The record with other fields in its sum."""
    bodies = bodies_of(record())
    return signed_anyway([replace(body, **changes) if isinstance(body, Summed) else body for body in bodies])


def _consent(number: int, session: Session, **changes: Any) -> str:
    """A site's signature under something else."""
    first = open_message(
        sum_of(2, ((1, "mask"),)).consents[0], Kind.CONSENT, session=WORLD.session(2), sender=0
    )
    said = replace(decode_consent(first), **changes)
    return seal(Kind.CONSENT, session.digest, number, said.encode(), WORLD.keys[number]).hex()


def _consents(*numbers: int, **changes: Any) -> tuple[str, ...]:
    return tuple(_consent(number, WORLD.session(2), **changes) for number in numbers)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"consents": _consents(0, 2)}, "at least 3 consents; came 2"),
        ({"consents": _consents(0, 2, 2)}, "different survivors"),
        ({"consents": _consents(2, 0, 3)}, "in their order"),
        ({"consents": _consents(0, 1, 2, 3)}, "different survivors"),  # site 1 is none
        ({"consents": _consents(0, 2, 3, survivors=(0, 1, 2, 3))}, "exactly this survivor set"),
        ({"consents": (*_consents(0, 2), *_consents(3, view=b"v" * 32))}, "exactly this survivor set"),
        ({"consents": _consents(0, 2, 3, dealers=(0, 2, 3))}, "those that were asked"),
        ({"consents": _consents(0, 2, 3, dealers=(0, 1, 2))}, "those that were asked"),
        ({"consents": tuple(_consent(n, WORLD.session(5)) for n in (0, 2, 3))}, "of this session"),
        ({"consents": ("00", *_consents(2, 3))}, "a consent"),
        ({"consents": ("zz", *_consents(2, 3))}, "a consent"),
        ({"survivors": SITES}, "exactly this survivor set"),
        ({"survivors": SITES[:2]}, "at least 3 survivors"),
    ],
)
def test_a_sum_that_its_survivors_did_not_sign_for_is_refused(changes: dict[str, Any], words: str) -> None:
    assert read(_changed(consents=_consents(0, 2, 3))).figures["update"].summed == 1, "the twin that passes"
    refuses(_changed(**changes), 6, words)


def test_a_survivor_that_never_dealt_is_refused() -> None:
    consents = _consents(0, 2, 3, dealers=(0, 1, 2))  # and the coordinator says that it asked no others
    bodies = [
        replace(body, consents=consents)
        if isinstance(body, Summed)
        else replace(body, dealers=SITES[:3])
        if isinstance(body, Spent)
        else body
        for body in bodies_of(record())
    ]
    refuses(signed_anyway(bodies), 6, "survivors among the dealers")


def test_a_consent_of_another_key_is_refused() -> None:
    said = decode_consent(
        open_message(sum_of(2, ((1, "mask"),)).consents[0], Kind.CONSENT, session=WORLD.session(2), sender=0)
    )
    forged = seal(Kind.CONSENT, WORLD.session(2).digest, 0, said.encode(), KEY).hex()
    refuses(_changed(consents=(forged, *_consents(2, 3))), 6, "signed by its sender")


def _opened(session: Session, event: DistributedEvent | None = EVENT) -> Opened:
    return Opened(kind="opened", what="update", session=session, event=event)


def _lost(number: int) -> Lost:
    return Lost(kind="lost", session=WORLD.session(number).digest.hex())


def _spent(number: int, dealers: tuple[str, ...] = SITES) -> Spent:
    return Spent(kind="spent", session=WORLD.session(number).digest.hex(), dealers=dealers)


def _fewer_sites(session: Session) -> Session:
    return replace(session, cohort=session.cohort[:2], threshold=2)


STRANGER = replace(WORLD.session(1).cohort[0], public_key=signing_key("stranger").public_hex)


@pytest.mark.parametrize(
    ("bodies", "step", "words"),
    [
        ([_opened(replace(WORLD.session(1), threshold=1))], 4, "threshold=3"),
        ([_opened(_fewer_sites(WORLD.session(1)))], 4, "at least 3 sites"),
        (
            [_opened(replace(WORLD.session(1), cohort=(STRANGER, *WORLD.session(1).cohort[1:])))],
            4,
            "stranger",
        ),
        ([_opened(replace(WORLD.session(1), coordinator=STRANGER.public_key))], 4, "stranger"),
        ([_opened(replace(WORLD.session(1), value_bound=2**30))], 4, "cannot leave"),
        ([_opened(replace(WORLD.session(1), cohort=WORLD.session(1).cohort[::-1]))], 4, "order"),
        ([_opened(WORLD.session(1), replace(EVENT, steps=0))], 4, "one step"),
        ([_opened(WORLD.session(1)), _opened(WORLD.session(1))], 5, "after 1; came 1"),
        ([_opened(WORLD.session(1)), _opened(WORLD.session(2))], 5, "attempt 1 of this round to have ended"),
        ([_opened(WORLD.session(2)), _lost(2), _opened(WORLD.session(1))], 5, "after 2; came 1"),
        ([_lost(1)], 5, "that was opened"),
        ([_opened(WORLD.session(1)), _lost(1), _lost(1)], 5, "has not ended"),
        ([_opened(WORLD.session(1)), _spent(1), _spent(1)], 5, "not spent yet"),
        ([_opened(WORLD.session(1)), _spent(1, SITES[:2])], 5, "at least 3 dealers"),
        ([_opened(WORLD.session(1)), _spent(1, (*SITES[:3], "nobody"))], 5, "of the cohort"),
        ([_opened(WORLD.session(1)), _spent(1, SITES[::-1])], 5, "in its order"),
        ([genesis()], 5, "first, and once"),
        (
            [_opened(WORLD.session(2)), *[body for body in bodies_of(record()) if isinstance(body, Summed)]],
            5,
            "to be spent before",
        ),
    ],
)
def test_sessions_and_an_order_that_no_site_would_follow_are_refused(
    bodies: list[Body], step: int, words: str
) -> None:
    refuses(signed_anyway([genesis(), *bodies]), step, words)
    read(
        signed_anyway([genesis(), _opened(WORLD.session(1)), _spent(1), _lost(1), _opened(WORLD.session(2))])
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": (*WORLD.roster.members, WORLD.roster.members[0])}, "different sites"),
        ({"members": (replace(WORLD.roster.members[0], site="coordinator"),)}, "none called coordinator"),
        ({"members": (replace(WORLD.roster.members[0], public_key=KEY.public_hex),)}, "different key"),
        ({"members": (replace(WORLD.roster.members[0], public_key="G" * 64),)}, "hexadecimal"),
    ],
)
def test_a_roster_that_names_nobody_for_certain_is_refused(changes: dict[str, Any], words: str) -> None:
    refuses(signed_anyway([replace(genesis(), roster=replace(WORLD.roster, **changes))]), 4, words)


def test_a_complaint_that_its_accuser_did_not_sign_is_refused() -> None:
    forged = refused().decode().replace('"reason":"signature"', '"reason":"form"')
    assert forged != refused().decode()
    bodies = [
        replace(body, complaints=(forged,)) if isinstance(body, Abandoned) else body
        for body in bodies_of(record())
    ]
    refuses(signed_anyway(bodies), 7, "signed by a party of the roster")
    refuses(_changed(complaints=(forged,)), 7, "signed by a party of the roster")
    assert read(signed_anyway(bodies_of(record()))).complaints == read(record()).complaints


# --- figures ---


def test_the_figures_are_those_of_the_attempts() -> None:
    report = read(record())
    update, counts = report.figures["update"], report.figures["evaluation_counts"]
    assert (update.attempts, update.spent, update.summed, update.abandoned, update.lost) == (2, 2, 1, 0, 1)
    assert (update.n_bytes_up, update.n_bytes_down) == (1000, 2000)
    assert (counts.attempts, counts.spent, counts.abandoned, counts.under_way) == (1, 0, 1, 0)
    assert report.left_out() == (("study", 3, 3),)
    (judged,) = report.complaints
    assert (judged.attempt, judged.accuser, judged.accused) == (4, "coordinator", SITES[1])
    assert (judged.reason, judged.signed_by_accused) == ("signature", False)


def test_a_complaint_whose_evidence_the_accused_signed_is_proven() -> None:
    disk, attempt = FaultyDisk(), Hospitals(4).attempt(4).until("deal")
    advert = next(data for phase, sender, _, data in attempt.log if (phase, sender) == ("advert", SITES[1]))
    with pytest.raises(SecureSumError) as error:
        attempt.give(1, "deal", advert)
    with created(disk) as ledger:
        ledger.opened(attempt.session, what="update", event=None)
        ledger.abandoned(attempt.session, phase="deal", reason="few", complaints=(error.value.complaint,))
    (judged,) = read(bytes_of(disk)).complaints
    assert (judged.accused, judged.reason, judged.signed_by_accused) == (SITES[1], "form", True)


def test_every_spent_attempt_costs_its_step_and_no_other_does() -> None:
    report = read(record())
    assert report.events() == (replace(EVENT, steps=2),)
    assert report.epsilon(DELTA) == accountant.epsilon([replace(EVENT, steps=2)], DELTA)
    assert report.by_colluding(DELTA) == tuple(
        accountant.epsilon([replace(EVENT, steps=2)], DELTA, n_colluding=count) for count in range(3)
    )
    assert report.by_colluding(DELTA)[1] == report.epsilon(DELTA) < report.by_colluding(DELTA)[2]
    unspent = read(b"".join(lines_of(record())[:2]))
    assert (unspent.events(), unspent.epsilon(DELTA), unspent.by_colluding(DELTA)) == ((), 0.0, ())
    assert unspent.figures["update"].under_way == 1
    larger, cost = Hospitals(4, n_min=4).session(2), replace(EVENT, n_min=4)
    asked = Spent(kind="spent", session=larger.digest.hex(), dealers=SITES)
    first: list[Body] = [genesis(), _opened(WORLD.session(1)), _spent(1), _lost(1)]
    mixed = read(signed_anyway([*first, _opened(larger, cost), asked]))
    assert mixed.events() == (EVENT, cost)
    assert len(mixed.by_colluding(DELTA)) == 3, (
        "more than 2 of the smaller sum cannot collude against the third"
    )


# --- against a site's own ledger ---


def site_ledger(
    disk: FaultyDisk,
    n_reserved: int,
    *,
    model: str = WORLD.agreement.model_digest,
    study: str = STUDY,
    roster: Roster = WORLD.roster,
    mode: Literal["distributed", "none"] = "distributed",
) -> FaultyDisk:
    """The ledger of the last site, with so many reservations for the round's model."""
    at = ledgers.hospital()
    charges = (ledgers.sums_of(n_parameters=WORLD.length),) if mode == "distributed" else ()
    asked = at.request(study=study, mode=mode, facts={"roster": roster_digest(roster)})
    policy = at.policy(modes=(mode,), allow_non_private=mode == "none")
    with at.create(FaultyFolder(disk), policy=policy) as ledger:
        budget = Budget(ledger, ledgers.ACCOUNTANT)
        granted = at.approve(budget, replace(asked, charges=charges))
        assert isinstance(granted, Granted), granted
        for number in range(n_reserved):
            release, attempt = f"1.update.{number}", number + 1
            ledgers.reserve(budget, granted.grant, release, steps=1, round=3, attempt=attempt, model_in=model)
            budget.commit(release, b"masked")
    return disk


def entries_with(n_reserved: int, **how: Any) -> list[LedgerEntry]:
    return entries_of(site_ledger(FaultyDisk(), n_reserved, **how).names["ledger.jsonl"].data)


def coordinators(numbers: Sequence[int], lost: tuple[tuple[int, str], ...] = ()) -> Report:
    disk = FaultyDisk()
    with created(disk) as ledger:
        for number in numbers:
            sums(ledger, number, lost)
    return read(bytes_of(disk))


def test_an_honest_record_agrees_with_a_sites_ledger() -> None:
    assert compare_with_site(coordinators([1, 2]), entries_with(2)) == ()


def test_an_attempt_that_the_coordinator_leaves_out_is_found() -> None:
    (problem,) = compare_with_site(coordinators([1, 3]), entries_with(3))
    assert "update of round 3" in problem
    assert "reserved 3 times, and 2 spent attempts" in problem
    # Of the record alone nobody can tell, except that a number is missing.
    assert coordinators([1, 3]).left_out() == (("study", 3, 2),)


def test_a_sum_that_a_site_is_in_without_a_reservation_is_found() -> None:
    (problem,) = compare_with_site(coordinators([1, 2]), entries_with(1))
    assert "signed for 2 sums with its vector, and reserved 1 times" in problem


def test_a_reservation_for_another_model_explains_nothing() -> None:
    problems = compare_with_site(coordinators([1]), entries_with(1, model="ef" * 32))
    assert len(problems) == 2


@pytest.mark.parametrize("n_reserved", [0, 1])
def test_a_dealer_that_fell_silent_may_have_reserved_or_not(n_reserved: int) -> None:
    report = coordinators([1], lost=((WORLD.n_sites - 1, "mask"),))
    assert compare_with_site(report, entries_with(n_reserved)) == ()
    assert compare_with_site(report, entries_with(2)) != ()


def test_where_the_same_bytes_may_be_sent_again_one_reservation_explains_them() -> None:
    report = coordinators([1, 2])
    assert compare_with_site(report, entries_with(1, mode="none")) == ()
    assert len(compare_with_site(report, entries_with(0, mode="none"))) == 1
    assert len(compare_with_site(report, entries_with(3, mode="none"))) == 1


def test_a_ledger_of_another_study_or_roster_is_none_to_compare_with() -> None:
    (problem,) = compare_with_site(coordinators([1]), entries_with(1, study=ledgers.OTHER_STUDY))
    assert "has approved no study" in problem
    strangers = replace(WORLD.roster, coordinator=signing_key("stranger").public_hex)
    (problem,) = compare_with_site(coordinators([1]), entries_with(1, roster=strangers))
    assert "signed for another roster" in problem


# --- the command ---


def command(*words: object) -> tuple[int, str]:
    """Runs `sottovoce ledger federation`; returns its exit status and what it printed."""
    done = CliRunner().invoke(app, ["ledger", "federation", *map(str, words)], env={"COLUMNS": "80"})
    if isinstance(done.exception, LedgerError):  # one line and exit status 2, in `main`
        return 2, str(done.exception)
    return done.exit_code, done.output


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / FILE
    path.write_bytes(record())
    return path


def test_the_command_says_what_it_proves_and_what_not(file: Path) -> None:
    status, said = command(file, "--coordinator", KEY.public_hex)
    assert status == 0
    words = " ".join(said.split())
    epsilon = accountant.epsilon([replace(EVENT, steps=2)], DELTA)
    assert f"The study's own figure: epsilon {epsilon:.4f} at delta 1e-05" in words
    assert "What it does not: that no attempt is missing." in words
    assert words.endswith("VALID. Whether an attempt is missing, only --site can tell.")
    for to_look_at in ("attempts without an end, 1", "attempt 3 at round 3 of study is not here"):
        assert to_look_at in words
    assert max(map(len, said.splitlines())) <= 80
    assert "only --coordinator can tell" in " ".join(command(file)[1].split())
    simulated = signed_anyway([replace(genesis(), simulated=True), *bodies_of(record())[1:]])
    file.write_bytes(simulated)
    assert "SIMULATED NOISE, NOT PRIVATE; it would cost epsilon" in " ".join(command(file)[1].split())


def test_a_record_without_costs_shows_no_figure(file: Path) -> None:
    file.write_bytes(signed_anyway([genesis(), _opened(WORLD.session(1), None), _spent(1)]))
    status, said = command(file)
    assert status == 0
    assert "No attempt here has a cost of its own" in said
    assert "epsilon" not in said


def test_the_commands_answer_is_no_for_a_record_that_does_not_verify(file: Path) -> None:
    file.write_bytes(record().replace(b"update", b"upbeat", 1))
    status, said = command(file)
    assert (status, said.split(":")[0]) == (1, "NOT VALID")
    status, said = command(file, "--json")
    assert (status, json.loads(said)["ok"]) == (1, False)
    assert command(file, "--coordinator", "ef" * 32)[0] == 1
    assert command(file.with_name("none"))[0] == 2


@pytest.mark.parametrize(("n_reserved", "status", "words"), [(2, 0, "agrees with"), (3, 1, "do not agree")])
def test_the_command_holds_a_record_against_a_sites_ledger(
    file: Path, n_reserved: int, status: int, words: str
) -> None:
    folder = file.parent / "site"
    folder.mkdir()
    for name, kept in site_ledger(FaultyDisk(), n_reserved).names.items():
        (folder / name).write_bytes(kept.data)
    came, said = command(file, "--site", folder)
    assert came == status, said
    assert words in " ".join(said.split()[-12:])
    found = json.loads(command(file, "--site", folder, "--json")[1])
    (compared,) = found["compared"].values()
    assert (compared["site"], compared["spent_here"], compared["reserved_there"]) == (SITE, 2, n_reserved)
    assert found["ok"] == (status == 0)
    (folder / "head").unlink()
    assert "the site's own ledger is not valid" in " ".join(command(file, "--site", folder)[1].split())


def test_the_officers_page_shows_the_command_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compliance.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith("sottovoce ledger federation")]
    status, said = command("--help")
    assert status == 0
    assert not [word for word in line.split() if word.startswith("--") and word not in said]
