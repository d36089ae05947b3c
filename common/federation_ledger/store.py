"""A federation's ledger on disk: one process of the coordinator writes it, one durable line at a time.

Guarantees:
  - An entry is durable before the call that makes it returns; one that the rules forbid is never written.
  - A number of an attempt that was opened is never given out again, whatever crash came in between.
  - An attempt that a crash left without an end is lost, and `open` writes that down before it returns.
  - Only a torn last line is ever cut, and in the same step an entry says so; other damage is refused.
  - After a failed write nothing more is written by this object; a second process is refused.
  - Whatever sites send as complaints, the entry can be written: those that nobody signed, or too many, are counted.
"""

import datetime
import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import get_args

from sottovoce.common.errors import LedgerError
from sottovoce.common.federation_ledger.entries import (
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
    decode,
    encode,
)
from sottovoce.common.federation_ledger.rules import Attempt, Federation
from sottovoce.common.keys import SigningKey
from sottovoce.common.ledger.files import DiskFolder, Folder, OpenFile, replace_file, write_all
from sottovoce.common.ledger.reader import TIME_FORMAT, LineRefused, lines_of
from sottovoce.common.privacy.distributed_accountant import DistributedEvent
from sottovoce.common.secagg.complaint import Phase
from sottovoce.common.secagg.session import Roster, Session

Clock = Callable[[], float]


class FederationLedger:
    """An open ledger. Made by `create` or `open`; holds the file's lock until `close`."""

    def __init__(self, folder: Folder, file_name: str, key: SigningKey, clock: Clock) -> None:
        self._folder, self._name, self._key, self._clock = folder, file_name, key, clock
        self._said = Federation(coordinator_key=key.public_hex)
        self._entries: list[Entry] = []
        self._file: OpenFile | None = None
        self.lost: tuple[Attempt, ...] = ()  # what `open` found without an end

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        key: SigningKey,
        roster: Roster,
        study: str,
        name: str,
        simulated: bool = False,
        clock: Clock = time.time,
    ) -> "FederationLedger":
        """Begins a federation's ledger; `study` is the study's digest. Raises: LedgerError where there is one."""
        genesis = Genesis(
            kind="genesis",
            name=name,
            instance=secrets.token_hex(16),
            study=study,
            roster=roster,
            simulated=simulated,
        )
        return cls.create_in(_folder_of(path), path.name, genesis, key=key, clock=clock)

    @classmethod
    def open(cls, path: Path, *, key: SigningKey, clock: Clock = time.time) -> "FederationLedger":
        """Opens a ledger to go on with it; attempts without an end are lost from here on.

        Raises:
            LedgerError: there is none, it is damaged, of another coordinator, or in use.
        """
        if not path.is_file():
            raise LedgerError(f"{path}: expected a federation's ledger; there is no such file.")
        return cls.open_in(_folder_of(path), path.name, key=key, clock=clock)

    @classmethod
    def create_in(
        cls, folder: Folder, file_name: str, genesis: Genesis, *, key: SigningKey, clock: Clock
    ) -> "FederationLedger":
        """Begins a ledger as a file of a folder."""
        ledger = cls(folder, file_name, key, clock)
        with _Locked(ledger):
            if folder.read(file_name) is not None:
                raise LedgerError("Expected a new federation's ledger; there is one already. Open it.")
            ledger._replace(b"", genesis)
        return ledger

    @classmethod
    def open_in(cls, folder: Folder, file_name: str, *, key: SigningKey, clock: Clock) -> "FederationLedger":
        """Opens a file of a folder."""
        ledger = cls(folder, file_name, key, clock)
        with _Locked(ledger):
            ledger._load()
            ledger.lost = tuple(ledger._said.without_end())
            for attempt in ledger.lost:
                ledger._write(Lost(kind="lost", session=attempt.session.digest.hex()))
        return ledger

    def n_attempts(self, run: str, round: int) -> int:
        """Returns the number of the last attempt that was opened at a round, 0 if none was."""
        last = self._said.last_at.get((run, round))
        return 0 if last is None else last.session.attempt

    def opened(self, session: Session, *, what: str, event: DistributedEvent | None) -> None:
        """Writes that an attempt is opened: before its opening is sent. `event` is its cost if it is spent."""
        self._write(Opened(kind="opened", what=what, session=session, event=event))

    def spent(self, session: Session, *, dealers: Sequence[str]) -> None:
        """Writes that an attempt is spent: before a dealer is asked for its vector."""
        self._write(Spent(kind="spent", session=session.digest.hex(), dealers=tuple(sorted(dealers))))

    def summed(
        self,
        session: Session,
        *,
        survivors: tuple[str, ...],
        consents: tuple[bytes, ...],
        complaints: tuple[bytes, ...],
        sum_sha256: str,
        n_bytes_up: int,
        n_bytes_down: int,
    ) -> None:
        """Writes that there is a sum, and whose. The bytes are those of all phases, from and to the sites."""
        kept, left_out = self._kept(session, complaints)
        self._write(
            Summed(
                kind="summed",
                session=session.digest.hex(),
                survivors=survivors,
                consents=tuple(consent.hex() for consent in consents),
                sum_sha256=sum_sha256,
                n_bytes_up=n_bytes_up,
                n_bytes_down=n_bytes_down,
                complaints=kept,
                complaints_left_out=left_out,
            )
        )

    def abandoned(self, session: Session, *, phase: str, reason: str, complaints: tuple[bytes, ...]) -> None:
        """Writes that nothing came of an attempt, and in which phase it ended."""
        kept, left_out = self._kept(session, complaints)
        known = next((one for one in get_args(Phase) if one == phase), None)
        if known is None:
            raise LedgerError(f"Expected a phase of {', '.join(get_args(Phase))}; came {phase!r}.")
        self._write(
            Abandoned(
                kind="abandoned",
                session=session.digest.hex(),
                phase=known,
                reason=_one_line(reason),
                complaints=kept,
                complaints_left_out=left_out,
            )
        )

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Returns every entry so far."""
        return tuple(self._entries)

    @property
    def head(self) -> str:
        """Returns the hash of the last line: whoever keeps it can tell later that lines were taken away."""
        return self._said.previous

    def close(self) -> None:
        """Gives the file back. All that was written is durable already."""
        self._stop_writing()
        self._folder.unlock()

    def __enter__(self) -> "FederationLedger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, body: Body) -> None:
        entry, line = self._next(body)
        self._durably(lambda file: write_all(file, line))
        self._accept(entry, line)

    def _next(self, body: Body) -> tuple[Entry, bytes]:
        """Returns an entry that may come next, and its line, which was read before it is written."""
        entry = Entry(
            label="sottovoce/federation-ledger/1",
            index=self._said.size,
            previous=self._said.previous,
            time=max(self._said.last_time, _text_of(self._clock())),
            body=body,
        )
        try:
            self._said.check(body)
            line = encode(entry, self._key)
            decode(line)  # what could not be read again would end this ledger
        except LineRefused as refusal:
            raise LedgerError(f"The federation's ledger refuses this {body.kind} entry: {refusal}.") from None
        return entry, line

    def _load(self) -> None:
        try:
            data = self._folder.read(self._name)
        except OSError as error:
            raise LedgerError(f"The federation's ledger could not be read ({error.strerror}).") from None
        if not data:
            raise LedgerError("Expected a federation's ledger; there is none. Create one.")
        lines = lines_of(data)
        torn = lines.pop() if _is_torn(lines[-1]) else b""
        for number, line in enumerate(lines):
            try:
                self._entries.append(self._said.take(line))
            except LineRefused as refusal:
                raise LedgerError(
                    f"The federation's ledger is damaged at entry {number}, or of another coordinator: {refusal}. "
                    "Nothing may be summed with it; restore it."
                ) from None
        if not torn:
            self._start_writing()
        elif not lines:
            raise LedgerError(
                "The federation's ledger has no whole entry; nothing was summed. Remove the file."
            )
        else:
            digest = hashlib.sha256(torn).hexdigest()
            self._replace(b"".join(lines), Recovery(kind="recovery", cut_bytes=len(torn), cut_sha256=digest))

    def _replace(self, before: bytes, body: Body) -> None:
        """Writes the file anew with one entry more, in one step: a crash leaves it as it was, or whole."""
        entry, line = self._next(body)
        try:
            replace_file(self._folder, self._name, before + line)
        except OSError as error:
            raise _unwritten(error) from None
        self._start_writing()
        self._accept(entry, line)

    def _start_writing(self) -> None:
        try:
            self._file = self._folder.append(self._name)
        except OSError as error:
            raise _unwritten(error) from None
        # What was read may have been in memory only, never on the disk.
        self._durably(lambda file: file.sync())
        self._durably(lambda file: self._folder.sync())

    def _durably(self, step: Callable[[OpenFile], object]) -> None:
        if self._file is None:
            raise LedgerError("Expected an open ledger; a write has failed, or it was closed. Open it again.")
        try:
            step(self._file)
        except BaseException as error:
            # What is on disk is not known now. Only reading it again can tell, so this object is done.
            self._stop_writing()
            if isinstance(error, OSError):
                raise _unwritten(error) from None
            raise

    def _accept(self, entry: Entry, line: bytes) -> None:
        self._said.accept(entry, line)
        self._entries.append(entry)

    def _kept(self, session: Session, complaints: Sequence[bytes]) -> tuple[tuple[str, ...], int]:
        """Returns the complaints that an entry holds, and how many it does not."""
        kept, room = list[str](), MAX_COMPLAINTS_BYTES
        for complaint in complaints:
            text = complaint.decode(errors="replace")
            if len(kept) < MAX_COMPLAINTS and len(complaint) <= room and self._is_signed(session, text):
                kept.append(text)
                room -= len(complaint)
        return tuple(kept), len(complaints) - len(kept)

    def _is_signed(self, session: Session, text: str) -> bool:
        try:
            self._said.complaint(session, text)
        except LineRefused:
            return False
        return True

    def _stop_writing(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _Locked:
    """Holds a ledger's lock from here on; gives it back if what follows fails."""

    def __init__(self, ledger: FederationLedger) -> None:
        self._ledger = ledger

    def __enter__(self) -> None:
        self._ledger._folder.lock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._ledger.close()


def _folder_of(path: Path) -> DiskFolder:
    return DiskFolder(path.parent, lock_file=f"{path.name}.lock")


def _is_torn(line: bytes) -> bool:
    """Says whether a write was cut off: no newline came, or blocks that never came read as zeros."""
    return not line.endswith(b"\n") or b"\0" in line


def _text_of(now: float) -> str:
    return datetime.datetime.fromtimestamp(now, datetime.UTC).strftime(TIME_FORMAT)


def _one_line(text: str) -> str:
    """Returns a text that any terminal may show, of bounded length: it may have come from a site."""
    return "".join(sign if sign.isprintable() else " " for sign in text)[:300] or "none was given"


def _unwritten(error: OSError) -> LedgerError:
    return LedgerError(
        f"The federation's ledger could not be written ({error.strerror or error}); nothing may be summed. "
        "Make room, then open it again."
    )
