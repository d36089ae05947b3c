"""Files that are whole or are not there: the one way in which a run's files are written.

Guarantees:
  - A crash at any moment, `kill -9` included, leaves the old file or the new one: written beside, synchronised,
    renamed, folder synchronised.
  - What an earlier crash left behind is written over, so nothing gathers.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, data: bytes, *, mode: int = 0o666, synchronised: bool = True) -> None:
    """Writes a file in one step that cannot be seen half done. Its folder must be there.

    Not `synchronised`, it outlives any crash of a process, and not one of the machine.
    """
    partial = path.with_name(path.name + ".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        if synchronised:
            os.fsync(file.fileno())
    partial.replace(path)
    if not synchronised:
        return
    synchronise(path.parent)  # or the rename itself may be lost with the machine


def synchronise(path: Path) -> None:
    """Returns once a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock_file(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock for this process; it goes with the process, however that ends. With `wait` it waits its turn.

    Raises:
        BlockingIOError: another process holds it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
