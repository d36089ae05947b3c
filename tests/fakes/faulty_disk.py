"""A disk in memory with the production file interface that fails, tears, forgets and lies on demand.

It keeps two truths: what a process would read back (the page cache), and what is on the platters. A killed
process loses neither; a power cut loses what was not synchronised, or only part of it, in any order.
"""

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from sottovoce.common.errors import LedgerError

Fault = Literal["kill_before", "kill_after", "torn", "full", "io_error", "short"]


class Killed(BaseException):
    """The process is gone: no handler of the code under test may swallow this."""


@dataclass
class File:
    """A file's bytes as read back, and as they are on the platters."""

    data: bytes = b""
    durable: bytes = b""


@dataclass
class FaultyDisk:
    """A folder's files. `fault(n, operation)` says what goes wrong at the n-th operation."""

    fault: Callable[[int, str], Fault | None] = lambda n, operation: None
    draw: random.Random = field(default_factory=random.Random)
    sync_lies: bool = False
    where: str = "machine-1/inode-7"
    names: dict[str, File] = field(default_factory=dict)
    durable_names: dict[str, File] = field(default_factory=dict)
    n_operations: int = 0
    locked: bool = False
    dead: bool = False

    def copy(self) -> "FaultyDisk":
        """Returns a disk with the same, synchronised files and no faults."""
        other = FaultyDisk(where=self.where)
        other.names = {name: File(file.data, file.data) for name, file in self.names.items()}
        other.durable_names = dict(other.names)
        return other

    def crash(self, *, power_cut: bool) -> None:
        """The process is gone; what survives depends on whether the power is gone as well."""
        self.locked, self.dead = False, False
        if power_cut:
            if self.draw.random() < 0.5:  # names made and moved since the last sync of the folder
                self.names = dict(self.durable_names)
            for file in self.names.values():
                file.data = self._survived(file)
        for file in self.names.values():
            file.durable = file.data
        self.durable_names = dict(self.names)

    def _survived(self, file: File) -> bytes:
        if not file.data.startswith(file.durable):
            return self.draw.choice([file.data, file.durable])
        tail = file.data[len(file.durable) :]
        kept = bytearray(tail[: self.draw.randint(0, len(tail))])
        if kept and self.draw.random() < 0.3:  # sectors reach the platters in any order
            start = self.draw.randrange(len(kept))
            kept[start : start + 16] = bytes(len(kept[start : start + 16]))
        return file.durable + bytes(kept)

    def step(self, operation: str) -> Fault | None:
        """Counts an operation and acts out what can be acted out here."""
        if self.dead:
            raise Killed
        self.n_operations += 1
        fault = self.fault(self.n_operations, operation)
        if fault == "kill_before" or (fault == "torn" and operation != "write"):
            self.kill()
        if fault == "io_error" or (fault == "full" and operation in ("create", "append")):
            raise OSError(errno.EIO if fault == "io_error" else errno.ENOSPC, "injected")
        return fault

    def kill(self) -> None:
        """Ends the process here; every later operation of it ends there too."""
        self.dead = True
        raise Killed


@dataclass
class FaultyFile:
    """An open file of the disk."""

    disk: FaultyDisk
    file: File

    def write(self, data: bytes) -> int:
        fault = self.disk.step("write")
        cut = self.disk.draw.randint(0, len(data) - 1) if fault in ("torn", "full", "short") else len(data)
        if fault == "short":
            cut = max(1, cut)
        self.file.data += data[:cut]
        if fault in ("torn", "kill_after"):
            self.disk.kill()
        if fault == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        return cut

    def sync(self) -> None:
        fault = self.disk.step("sync")
        if not self.disk.sync_lies:
            self.file.durable = self.file.data
        if fault == "kill_after":
            self.disk.kill()

    def truncate(self, size: int) -> None:
        fault = self.disk.step("truncate")
        self.file.data = self.file.data[:size]
        if fault == "kill_after":
            self.disk.kill()

    def close(self) -> None:
        pass


@dataclass
class FaultyFolder:
    """The disk as one process sees it."""

    disk: FaultyDisk
    holds: bool = False

    def lock(self) -> None:
        if self.disk.locked:
            raise LedgerError("Expected to be alone; another process works on this ledger.")
        self.disk.locked = self.holds = True

    def unlock(self) -> None:
        if self.holds and not self.disk.dead:
            self.disk.locked = self.holds = False

    def read(self, name: str) -> bytes | None:
        file = self.disk.names.get(name)
        return None if file is None else file.data

    def append(self, name: str) -> FaultyFile:
        self.disk.step("append")
        return FaultyFile(self.disk, self.disk.names.setdefault(name, File()))

    def create(self, name: str) -> FaultyFile:
        self.disk.step("create")
        file = self.disk.names.setdefault(name, File())
        file.data = b""
        return FaultyFile(self.disk, file)

    def rename(self, old: str, new: str) -> None:
        fault = self.disk.step("rename")
        self.disk.names[new] = self.disk.names.pop(old)
        if fault == "kill_after":
            self.disk.kill()

    def remove(self, name: str) -> None:
        self.disk.step("remove")
        self.disk.names.pop(name, None)

    def sync(self) -> None:
        fault = self.disk.step("sync_folder")
        if not self.disk.sync_lies:
            self.disk.durable_names = dict(self.disk.names)
        if fault == "kill_after":
            self.disk.kill()

    def place(self) -> str:
        return self.disk.where
