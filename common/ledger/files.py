"""The few operations on files that a ledger needs, so that a test can fail, tear or forget any one of them.

`DiskFolder` is the production side; `tests/fakes/faulty_disk.py` is a disk that lies.

Guarantees:
  - Two processes (or two objects in one process) never hold one folder's lock.
  - The lock ends with its process, however that ends.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Protocol

from sottovoce.common.errors import LedgerError

LOCK_FILE = "lock"
LOCK_SECONDS = 1.0  # a look at a ledger takes milliseconds: a message to a site shall not fail for it
RETRY_SECONDS = 0.02
MACHINE_ID = Path("/etc/machine-id")


class OpenFile(Protocol):
    """A file that grows at its end."""

    def write(self, data: bytes) -> int:
        """Appends, and returns how many bytes were taken; fewer than all is no error."""

    def sync(self) -> None:
        """Returns once everything written is durable. After an error nothing is known."""

    def truncate(self, size: int) -> None:
        """Cuts the file to `size` bytes."""

    def close(self) -> None:
        """Closes the file; synchronises nothing."""


class Folder(Protocol):
    """A folder of a few files, with a lock."""

    def lock(self) -> None:
        """Takes the lock. Raises: LedgerError where another holds it."""

    def unlock(self) -> None:
        """Gives the lock back."""

    def read(self, name: str) -> bytes | None:
        """Returns a file's bytes; None where there is no such file."""

    def append(self, name: str) -> OpenFile:
        """Opens a file to write at its end; makes it where it is not there."""

    def create(self, name: str) -> OpenFile:
        """Opens a file as an empty one."""

    def rename(self, old: str, new: str) -> None:
        """Puts a file in another's place, in one step."""

    def remove(self, name: str) -> None:
        """Removes a file; one that is not there is no error."""

    def sync(self) -> None:
        """Returns once names made, changed and removed are durable."""

    def place(self) -> str:
        """Returns what is different wherever a copy of this folder may come to lie."""


class DiskFile:
    """A real file."""

    def __init__(self, path: Path, flags: int) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)

    def write(self, data: bytes) -> int:
        return os.write(self._descriptor, data)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        os.close(self._descriptor)


class DiskFolder:
    """A real folder, on a local disk: network file systems may lie about locks and about fsync."""

    def __init__(self, path: Path, *, lock_file: str = LOCK_FILE) -> None:
        self.path = path
        self._lock_file = path / lock_file
        self._lock: int | None = None

    def lock(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be used as a ledger folder ({error.strerror}).") from None
        end = time.monotonic() + LOCK_SECONDS
        while not _try_lock(descriptor):
            if time.monotonic() > end:
                os.close(descriptor)
                raise LedgerError(f"{self.path}: expected to be alone; another process works on this ledger.")
            time.sleep(RETRY_SECONDS)
        self._lock = descriptor

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def append(self, name: str) -> OpenFile:
        return DiskFile(self.path / name, os.O_APPEND)

    def create(self, name: str) -> OpenFile:
        return DiskFile(self.path / name, os.O_TRUNC | os.O_APPEND)

    def rename(self, old: str, new: str) -> None:
        (self.path / old).replace(self.path / new)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def sync(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def place(self) -> str:
        """The machine, where it has an id, and the folder's lock file, whose inode no copy keeps."""
        machine = MACHINE_ID.read_text().strip() if MACHINE_ID.is_file() else ""
        return f"{machine}/{self._lock_file.stat().st_ino}"


def write_all(file: OpenFile, data: bytes) -> None:
    """Writes all of the data, in as many calls as it takes, and synchronises it. Raises: OSError."""
    rest = memoryview(data)
    while rest:
        taken = file.write(bytes(rest))
        if taken <= 0:
            raise OSError("the disk takes no more bytes")
        rest = rest[taken:]
    file.sync()


def replace_file(folder: Folder, name: str, data: bytes) -> None:
    """Puts new contents in a file's place: a crash leaves the old or the new, whole. Raises: OSError."""
    part = f"{name}.part"  # one name: what a crash left behind is written over
    file = folder.create(part)
    try:
        write_all(file, data)
    finally:
        file.close()
    folder.rename(part, name)
    folder.sync()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
