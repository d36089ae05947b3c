"""The site's ledger on disk: one process writes it, one durable step at a time.

    with Ledger.open(DiskFolder(path), keys, digest_key) as ledger:
        ledger.append(Withdrawal(kind="withdrawal", domain="2026-intake"))

Two files: `ledger.jsonl` grows by a line; then `head`, the newest signed checkpoint, is replaced. An append is
acknowledged when both are durable, so at a restart

 - what `head` covers was acknowledged: damage there, or less than that, is never mended; the ledger refuses;
 - what lies beyond was not: nothing was trained or sent for it. A whole line is kept (its spend counts), anything
   else is cut away, and the next entry says how much was.

Guarantees:
  - An entry is durable before `append` returns, and an entry that the rules forbid is never written.
  - After a failed write or fsync (a full disk among them) nothing more is written by this object.
  - A clock that jumps back never reorders entries; it is noted in them.
  - A copy elsewhere, another site's key, a second process and a ledger that is shorter than a checkpoint which
    others hold are refused.
"""

import datetime
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import TracebackType

from sottovoce.common.errors import LedgerError
from sottovoce.common.keys import DigestKey, SigningKey
from sottovoce.common.ledger import checkpoint as checkpoints
from sottovoce.common.ledger.checkpoint import Checkpoint, SignedCheckpoint
from sottovoce.common.ledger.entries import (
    Body,
    Entry,
    EntryError,
    Genesis,
    KeyRotation,
    Moved,
    Recovery,
    decode,
    encode,
    join,
    split,
)
from sottovoce.common.ledger.files import Folder, OpenFile, replace_file, write_all
from sottovoce.common.ledger.merkle import leaf_hash
from sottovoce.common.ledger.reader import TIME_FORMAT, LineRefused, Reader, lines_of
from sottovoce.common.ledger.state import State, rotation_statement

LEDGER_FILE = "ledger.jsonl"
HEAD_FILE = "head"

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Move:
    """A named person says that the ledger lives here from now on, and nowhere else."""

    person: str
    reason: str


class Ledger:
    """An open ledger. Made by `create` or `open`; holds its folder's lock until `close`."""

    def __init__(
        self,
        folder: Folder,
        keys: Sequence[SigningKey],
        digest_key: DigestKey,
        clock: Clock,
    ) -> None:
        self._folder, self._clock = folder, clock
        self._keys = {key.public_hex: key for key in keys}
        self._reader = Reader()
        self._file: OpenFile | None = None
        self._head: SignedCheckpoint | None = None
        self._unacknowledged: list[bytes] = []
        self._acknowledged_bytes = 0
        self._cut_bytes = 0
        self.digest_key = digest_key

    @classmethod
    def create(
        cls, folder: Folder, *, site: str, key: SigningKey, digest_key: DigestKey, clock: Clock = time.time
    ) -> "Ledger":
        """Begins a site's ledger. Raises: LedgerError where there is one already, or it cannot be written."""
        ledger = cls(folder, [key], digest_key, clock)
        folder.lock()
        try:
            if ledger._load():
                raise LedgerError("Expected a folder without a ledger; there is one already. Open it.")
            genesis = Genesis(
                kind="genesis",
                site=site,
                instance=secrets.token_hex(16),
                public_key=key.public_hex,
                digest_key_commitment=digest_key.commitment,
                place=ledger._place(),
                software=f"sottovoce {metadata.version('sottovoce')}",
            )
            ledger._start_writing()
            ledger._write(genesis)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def open(
        cls,
        folder: Folder,
        keys: Sequence[SigningKey],
        digest_key: DigestKey,
        *,
        clock: Clock = time.time,
        move: Move | None = None,
        seen: Sequence[str] = (),
    ) -> "Ledger":
        """Opens a site's ledger to go on with it.

        `seen` are checkpoints of this ledger that others hold; `move` declares that it was moved or restored.

        Raises:
            LedgerError: it is damaged, shorter than it was, a copy, another site's, or in use.
        """
        ledger = cls(folder, keys, digest_key, clock)
        folder.lock()
        try:
            if not ledger._load():
                raise LedgerError("Expected a ledger; there is none in this folder. Create one.")
            ledger._check_identity(move)
            for note in seen:
                ledger._check_seen(checkpoints.parse(note))
            ledger._start_writing()
            if move is not None and ledger.state.place != ledger._place():
                ledger.append(
                    Moved(kind="moved", place=ledger._place(), person=move.person, reason=move.reason)
                )
        except BaseException:
            ledger.close()
            raise
        return ledger

    def append(self, body: Body) -> Entry:
        """Writes one entry; it is durable when this returns.

        Raises:
            LedgerError: the rules forbid it (nothing was written), or the disk failed (open the ledger again).
        """
        if self._cut_bytes and self._file is not None:
            cut, self._cut_bytes = self._cut_bytes, 0
            self._write(Recovery(kind="recovery", cut_bytes=cut))
        return self._write(body)

    def rotate(self, key: SigningKey, *, person: str, reason: str) -> Entry:
        """Puts a new signing key in force. Its file must be on disk already: a crash may come right after."""
        self._keys[key.public_hex] = key
        statement = rotation_statement(self.state.instance, self.state.public_key, key.public_hex)
        return self.append(
            KeyRotation(
                kind="key_rotation",
                public_key=key.public_hex,
                proof=key.sign(statement).hex(),
                person=person,
                reason=reason,
            )
        )

    @property
    def state(self) -> State:
        """What the ledger says now."""
        return self._reader.state

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The hash of every entry, for proofs to witnesses."""
        return tuple(self._reader.hashes)

    def checkpoint(self) -> str:
        """Returns the newest signed checkpoint: what is sent along with every update."""
        if self._head is None:
            raise LedgerError("Expected a ledger with an entry; this one has none.")
        return self._head.text()

    def close(self) -> None:
        """Gives the folder back. All that was acknowledged is durable already."""
        self._stop_writing()
        self._folder.unlock()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, body: Body) -> Entry:
        if self._file is None:
            raise LedgerError("Expected an open ledger; a write has failed, or it was closed. Open it again.")
        if problem := self.state.problem(body):
            raise LedgerError(f"The ledger refuses this {body.kind} entry: {problem}.")
        entry = self._next(body)
        try:
            leaf = encode(entry)
            decode(
                leaf
            )  # what could not be read again would end this ledger: ranges, lengths, odd characters
        except EntryError as error:
            raise LedgerError(f"The ledger refuses this {body.kind} entry: {error}") from None
        frontier = self._reader.frontier.copy()
        frontier.add(leaf_hash(leaf))
        checkpoint = Checkpoint(
            instance=self._reader.instance(entry), size=entry.index + 1, root=frontier.root()
        )
        head = checkpoints.sign(checkpoint, self._keys[self._reader.signer(entry)])
        self._make_durable(join(leaf, head.signature), head)
        self._reader.advance(entry, leaf_hash(leaf), frontier)
        return entry

    def _make_durable(self, line: bytes, head: SignedCheckpoint) -> None:
        if self._file is None:
            raise LedgerError("Expected an open ledger; it was closed.")
        try:
            write_all(self._file, line)
            replace_file(self._folder, HEAD_FILE, head.text().encode())
        except OSError as error:
            # What is on disk is not known now. Only reading it again can tell, so this object is done.
            self._stop_writing()
            raise LedgerError(
                f"The ledger could not be written ({error.strerror or error}); nothing may be trained or sent. "
                "Make room, then open it again."
            ) from None
        except BaseException:
            self._stop_writing()
            raise
        self._head = head

    def _next(self, body: Body) -> Entry:
        now = self._clock()
        text = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime(TIME_FORMAT)
        behind = None
        if text < self._reader.last_time:
            last = datetime.datetime.strptime(self._reader.last_time, TIME_FORMAT).replace(
                tzinfo=datetime.UTC
            )
            text, behind = self._reader.last_time, last.timestamp() - now
        return Entry(
            label="sottovoce/ledger/1",
            index=self.state.size,
            previous=self._reader.previous,
            time=text,
            body=body,
            clock_behind_seconds=behind,
        )

    def _load(self) -> bool:
        """Reads what is there; says whether there is a ledger. Raises: LedgerError for one that is damaged."""
        try:
            data, note = self._folder.read(LEDGER_FILE), self._folder.read(HEAD_FILE)
        except OSError as error:
            raise LedgerError(f"The ledger could not be read ({error.strerror}).") from None
        lines = lines_of(data or b"")
        self._head = _parse_head(note)
        acknowledged = self._head.checkpoint.size if self._head else 0
        kept = 0
        for line in lines:
            # Beyond the head no signature was ever checked by anyone: check it. Before, the head covers all.
            try:
                self._reader.take(line, check_signature=kept >= acknowledged)
            except LineRefused as refusal:
                if kept < acknowledged:
                    raise LedgerError(
                        f"The ledger is damaged at entry {kept}: {refusal}. Nothing is released from it; "
                        "`sottovoce ledger verify` tells more."
                    ) from None
                break
            kept += 1
        self._check_head()
        self._cut_bytes = sum(map(len, lines[kept:]))
        if not self._head and kept > 1:
            raise LedgerError("The ledger has no head file; expected the newest checkpoint beside it.")
        self._unacknowledged = lines[acknowledged:kept]
        self._acknowledged_bytes = sum(map(len, lines[:acknowledged]))
        return kept > 0

    def _check_head(self) -> None:
        if self._head is None:
            return
        size = self._head.checkpoint.size
        if size > self.state.size:
            raise LedgerError(
                f"The ledger has {self.state.size} entries, and had {size}: it was cut or rolled back. "
                "Nothing is released from it."
            )
        if not self._reader.has(self._head):
            raise LedgerError(
                f"The ledger is not the one that its head signed at {size} entries: one of them was changed. "
                "Nothing is released from it."
            )

    def _check_identity(self, move: Move | None) -> None:
        if self.state.public_key not in self._keys:
            raise LedgerError(
                f"Expected the ledger's signing key {self.state.public_key[:16]}…; it is not among the keys given."
            )
        if self.digest_key.commitment != self.state.digest_key_commitment:
            raise LedgerError("Expected the digest key that this ledger began with; came another.")
        if move is None and self.state.place != self._place():
            raise LedgerError(
                "This ledger was copied or moved: it lives elsewhere. If it was moved, and the original is gone, "
                "a named person declares it with `sottovoce ledger move`."
            )

    def _check_seen(self, seen: SignedCheckpoint) -> None:
        if seen.checkpoint.instance != self.state.instance:
            raise LedgerError("Expected checkpoints of this ledger; came one of another.")
        if not self._reader.has(seen):
            raise LedgerError(
                f"The ledger was rolled back or rewritten, or the checkpoint is forged: one of {seen.checkpoint.size} "
                f"entries was shown, and this ledger of {self.state.size} does not contain it. "
                "Nothing is released from it."
            )

    def _start_writing(self) -> None:
        """Makes what is kept durable: what was read may have been in memory only, never on the disk."""
        try:
            self._file = self._folder.append(LEDGER_FILE)
            if self._unacknowledged or self._cut_bytes:
                self._file.truncate(self._acknowledged_bytes)
                self._file.sync()
                for line in self._unacknowledged:
                    write_all(self._file, line)
            self._folder.sync()
        except OSError as error:
            self._stop_writing()
            raise LedgerError(f"The ledger could not be opened to write ({error.strerror}).") from None
        if self._unacknowledged:
            self._acknowledge()

    def _acknowledge(self) -> None:
        """Puts the last kept line's own signature into the head."""
        checkpoint = Checkpoint(
            instance=self.state.instance, size=self.state.size, root=self._reader.frontier.root()
        )
        hint = checkpoints.key_hint(self.state.instance, self._reader.signers[-1])
        _, signature = split(self._unacknowledged[-1])
        head = SignedCheckpoint(checkpoint=checkpoint, key_hint=hint, signature=signature)
        try:
            replace_file(self._folder, HEAD_FILE, head.text().encode())
        except OSError as error:
            self._stop_writing()
            raise LedgerError(f"The ledger could not be written ({error.strerror}). Make room.") from None
        self._head = head

    def _stop_writing(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _place(self) -> str:
        return self.digest_key.digest("place", self._folder.place().encode())


def _parse_head(note: bytes | None) -> SignedCheckpoint | None:
    if note is None:
        return None
    try:
        return checkpoints.parse(note.decode())
    except (LedgerError, UnicodeDecodeError):
        raise LedgerError("The ledger's head file is damaged; expected its newest checkpoint.") from None
