"""Reads a ledger line by line, and says at which line and why it cannot be believed.

Each line is judged in this order; the numbers are those of `verify.py`:

 1. Form: a line of the one format, whose entry is in its one encoding.
 2. Chain: the next index, naming the hash of the entry before.
 3. Time: never before the entry before (the writer sees to that, whatever its clock does).
 4. Rules: an entry that may come next (`state.py`), signatures of persons and new keys included.
 5. Signature: the site's key in force signed the Merkle root of everything up to here.

Guarantees:
  - A reader never moves on over a line that it refused.
"""

import datetime

from sottovoce.common.keys import verified
from sottovoce.common.ledger.checkpoint import Checkpoint, SignedCheckpoint
from sottovoce.common.ledger.entries import NO_PREVIOUS, Entry, EntryError, Genesis, decode, split
from sottovoce.common.ledger.merkle import Frontier, leaf_hash, root_of
from sottovoce.common.ledger.state import State

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


class LineRefused(ValueError):
    """A line that cannot be believed, with the number of the step that says so."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step = step


class Reader:
    """A ledger up to some line: its state, its tree, and the hash of every entry."""

    def __init__(self) -> None:
        self.state = State()
        self.frontier = Frontier()
        self.hashes: list[bytes] = []
        self.signers: list[str] = []
        self.last_time = ""

    def take(self, line: bytes, *, check_signature: bool = True) -> Entry:
        """Moves on by one line. Raises: LineRefused, and stays where it was."""
        try:  # 1
            leaf, signature = split(line)
            entry = decode(leaf)
        except EntryError as error:
            raise LineRefused(1, str(error)) from None
        self._check_chain(entry)  # 2
        self._check_time(entry)  # 3
        if problem := self.state.problem(entry.body):  # 4
            raise LineRefused(4, f"{entry.body.kind}: {problem}")
        frontier, leaf_digest = self.frontier.copy(), leaf_hash(leaf)
        frontier.add(leaf_digest)
        if check_signature:  # 5
            checkpoint = Checkpoint(instance=self.instance(entry), size=entry.index + 1, root=frontier.root())
            if not verified(self.signer(entry), signature, checkpoint.body()):
                raise LineRefused(5, "expected the signature of the site's key in force")
        self.advance(entry, leaf_digest, frontier)
        return entry

    def has(self, seen: SignedCheckpoint) -> bool:
        """Says whether this ledger contains what a signed checkpoint states, under the key of that time."""
        point = seen.checkpoint
        if not 0 < point.size <= self.state.size or point.instance != self.state.instance:
            return False
        signer = self.signers[point.size - 1]
        return root_of(self.hashes[: point.size]) == point.root and seen.signed_by(signer)

    def advance(self, entry: Entry, leaf_digest: bytes, frontier: Frontier) -> None:
        """Moves on by an entry that is known to be good."""
        self.signers.append(self.signer(entry))
        self.state.apply(entry.index, entry.body)
        self.frontier = frontier
        self.hashes.append(leaf_digest)
        self.last_time = entry.time

    @property
    def previous(self) -> str:
        """What the next entry names as the one before."""
        return self.hashes[-1].hex() if self.hashes else NO_PREVIOUS

    def signer(self, entry: Entry) -> str:
        """The key that signs this line: the one in force before it. A rotation is signed by the old key."""
        return entry.body.public_key if isinstance(entry.body, Genesis) else self.state.public_key

    def instance(self, entry: Entry) -> str:
        """The ledger that this line belongs to."""
        return entry.body.instance if isinstance(entry.body, Genesis) else self.state.instance

    def _check_chain(self, entry: Entry) -> None:
        if entry.index != self.state.size:
            raise LineRefused(
                2, f"expected entry {self.state.size}; came one that calls itself {entry.index}"
            )
        if entry.previous != self.previous:
            raise LineRefused(
                2, "expected the hash of the entry before; an entry was changed, left out or put in"
            )

    def _check_time(self, entry: Entry) -> None:
        if entry.time == self.last_time:
            return
        try:
            written = datetime.datetime.strptime(entry.time, TIME_FORMAT).strftime(TIME_FORMAT)
        except ValueError:
            written = ""
        if written != entry.time:
            raise LineRefused(3, "expected a time of the form 2026-01-31T12:00:00Z")
        if entry.time < self.last_time:
            raise LineRefused(3, f"expected a time not before {self.last_time}; came {entry.time}")


def lines_of(data: bytes) -> list[bytes]:
    """Returns the lines of a ledger with their newlines; the last may be torn and have none."""
    *whole, rest = data.split(b"\n")  # not splitlines: it also cuts at other characters
    return [line + b"\n" for line in whole] + ([rest] if rest else [])
