"""Reads a ledger's files from any folder: a site's own, an export, a run's extract. Takes no lock, writes nothing.

    found = read_ledger(Path("ledger"))
    verify(found.ledger, head=found.head)

Guarantees:
  - A folder that cannot be written to, or that another process works on, can be read.
  - What is damaged is handed on as it is: judging is `verify`'s.
  - A ledger that grows meanwhile is read where it was acknowledged, if it ever rests for a twentieth of a second.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from sottovoce.common.errors import LedgerError
from sottovoce.common.ledger import checkpoint as checkpoints
from sottovoce.common.ledger.cosignature import MAX_COSIGNED_BYTES, Cosignature, read_cosigned
from sottovoce.common.ledger.entries import Entry
from sottovoce.common.ledger.reader import LineRefused, Reader, lines_of
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE

MAX_LEDGER_BYTES = 1_000_000_000  # a million entries
POLICY_FILES = ("policy.json", "policy.toml")  # as in an export, as in a site's own folder
MAX_HEAD_BYTES = 1_000_000
MOST_NAMED = 6
TRIES, PAUSE_SECONDS = 5, 0.05


@dataclass(frozen=True, kw_only=True)
class LedgerFiles:
    """A ledger's bytes, and what lies beside it: its newest checkpoint, and the file of its policy."""

    ledger: bytes
    head: str | None
    policy_file: Path | None


def read_ledger(folder: Path) -> LedgerFiles:
    """Reads the two files. Raises: LedgerError where there is no ledger; it names those that are further down."""
    found = _read(folder)
    for _ in range(TRIES):
        if _settled(found):
            break
        time.sleep(PAUSE_SECONDS)  # between an entry and its head lie two fsyncs of the process that writes
        found = _read(folder)
    return found


def read_note(path: Path) -> str:
    """Reads a checkpoint that somebody kept, with witnesses below it or without. Raises: LedgerError for any other."""
    return read_seen(path)[0]


def read_seen(path: Path) -> tuple[str, tuple[Cosignature, ...]]:
    """Reads a checkpoint that somebody kept, and what its witnesses signed. Raises: LedgerError for any other file."""
    text = _bytes_of(path, MAX_COSIGNED_BYTES).decode(errors="replace")
    try:
        return read_cosigned(text)
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}") from None


def readable_entries(ledger: bytes) -> tuple[list[Entry], str | None]:
    """Returns the entries up to the first line that cannot be believed, and why it cannot; signatures unchecked."""
    reader, entries = Reader(), list[Entry]()
    for line in lines_of(ledger):
        try:
            entries.append(reader.take(line, check_signature=False))
        except LineRefused as refusal:
            return entries, str(refusal)
    return entries, None if entries else "the ledger is empty"


def newest_checkpoint(found: LedgerFiles) -> str:
    """Returns the newest checkpoint, for others to keep. Raises: LedgerError where it is not of this ledger."""
    reader = Reader()
    try:
        for line in lines_of(found.ledger):
            reader.take(line, check_signature=False)  # the checkpoint signs the root of all of them
        if reader.has(checkpoints.parse(found.head or "")):
            return found.head or ""
    except (LineRefused, LedgerError):
        pass
    raise LedgerError(
        "Expected a ledger whose head is the checkpoint of its entries; this one is damaged or cut. "
        "Look at it with `sottovoce ledger verify`."
    )


def _read(folder: Path) -> LedgerFiles:
    if not (folder / LEDGER_FILE).is_file():
        raise LedgerError(_no_ledger(folder))
    ledger, head = _bytes_of(folder / LEDGER_FILE, MAX_LEDGER_BYTES), folder / HEAD_FILE
    # surrogateescape: an export hands on the very bytes, whatever they are
    text = _bytes_of(head, MAX_HEAD_BYTES).decode(errors="surrogateescape") if head.is_file() else None
    policies = (folder / name for name in POLICY_FILES)
    return LedgerFiles(ledger=ledger, head=text, policy_file=next(filter(Path.is_file, policies), None))


def _settled(found: LedgerFiles) -> bool:
    try:
        return checkpoints.parse(found.head or "").checkpoint.size == len(lines_of(found.ledger))
    except LedgerError:
        return False


def _no_ledger(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: expected a ledger's folder; there is no such folder."
    further = [str(path.parent) for path in islice(_further(folder), MOST_NAMED + 1)]
    if not further:
        return f"{folder}: expected a ledger; there is no {LEDGER_FILE} in this folder."
    more = "\n  …" if len(further) > MOST_NAMED else ""
    named = "\n  ".join(further[:MOST_NAMED])
    return f"{folder}: expected a ledger; there is none in this folder itself. Name one further down:\n  {named}{more}"


def _further(folder: Path) -> Iterator[Path]:
    """A run keeps its ledgers in ledgers/<cell>/<site>."""
    return chain.from_iterable(sorted(folder.glob("*/" * depth + LEDGER_FILE)) for depth in (1, 2, 3))


def _bytes_of(path: Path, most: int) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise LedgerError(f"{path}: expected a file.")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(data) > most:
        raise LedgerError(f"{path}: expected at most {most:,} bytes; this is no such file.")
    return data
