"""The bytes of releases, kept so that a committed one can be sent again exactly as it was.

A release's bytes are durable here before its commit is in the ledger; bytes without a commit are removed at the
next start, unsent.

Guarantees:
  - `get` returns what `keep` was given, or None; the ledger's HMAC is checked by `budget.py`, not here.
  - A file's name tells nothing of the release id and cannot leave the folder.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from sottovoce.common.errors import LedgerError
from sottovoce.common.ledger.files import DiskFolder, replace_file


class Outbox:
    """A folder of released bytes, one file each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = DiskFolder(path)

    def keep(self, release: str, released: bytes) -> None:
        """Stores the bytes durably. Raises: LedgerError where the disk will not."""
        try:
            replace_file(self._folder, _name(release), released)
        except OSError as error:
            raise LedgerError(
                f"A release could not be stored ({error.strerror}); burn it, nothing was sent."
            ) from None

    def get(self, release: str) -> bytes | None:
        """Returns a release's bytes, if they are there."""
        return self._folder.read(_name(release))

    def forget_all_but(self, releases: Iterable[str]) -> None:
        """Removes every file that is not of one of these releases."""
        names = {_name(release) for release in releases}
        for path in self._path.iterdir():
            if path.name not in names:
                self._folder.remove(path.name)


def _name(release: str) -> str:
    return hashlib.sha256(f"sottovoce/outbox/1\n{release}".encode()).hexdigest()
