"""A site's place for secure sums: its identity, the rosters its approvers pinned, and what it has answered.

    identity = SecureFolder.create(folder)              # once; the public half goes into the study's roster
    place = SecureFolder(folder)
    place.pin(study_digest, roster)                     # with the approval, which records the roster's digest

    signing-*.pem   rosters/<study>.json   answered.json

Guarantees:
  - A phase that was answered once is never answered again, after a crash or from another process: the mark is on disk
    before `record` returns True, and marks of a run only ascend.
  - A roster is read as it was pinned: canonical bytes, and nothing else.
  - No secret of an attempt is ever written here: those live in memory alone.
"""

import json
from dataclasses import asdict
from pathlib import Path

from sottovoce.common.config import canonical
from sottovoce.common.errors import KeyFileError, LedgerError
from sottovoce.common.files import lock_file, write_whole
from sottovoce.common.keys import SigningKey
from sottovoce.common.rosters import roster_from
from sottovoce.common.secagg.journal import Mark
from sottovoce.common.secagg.session import Roster

ROSTERS, ANSWERED, LOCK = "rosters", "answered.json", "answered.lock"


class SecureFolder:
    """An existing folder. It is also the `Journal` of its site's participants."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @staticmethod
    def create(folder: Path) -> str:
        """Makes a site's identity and returns its public half, for rosters.

        Raises:
            KeyFileError: there is one already.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(folder.glob("signing-*.pem")):
            raise KeyFileError(f"{folder}: expected a folder without an identity; there is one.")
        (folder / ROSTERS).mkdir(exist_ok=True, mode=0o700)
        key = SigningKey.generate()
        key.save(folder)
        return key.public_hex

    @property
    def key(self) -> SigningKey:
        """The site's identity. Raises: KeyFileError where there is none, or several."""
        found = sorted(self._folder.glob("signing-*.pem"))
        if len(found) != 1:
            raise KeyFileError(
                f"{self._folder}: expected one identity for secure sums; there are {len(found)}."
            )
        return SigningKey.load(found[0])

    def pin(self, study: str, roster: Roster) -> None:
        """Keeps the roster of a study, by the study's digest."""
        write_whole(self._roster_file(study), canonical(roster).encode())

    def roster(self, study: str) -> Roster:
        """Returns the roster that was pinned for a study. Raises: LedgerError where none was, or it is damaged."""
        path = self._roster_file(study)
        if not path.exists():
            raise LedgerError(
                "Expected a roster for this study: which sites take part, under which keys. Approve it with "
                "`sottovoce study approve --roster FILE`."
            )
        return roster_from(path.read_bytes())

    def has_roster(self, study: str) -> bool:
        """Says whether one was pinned for a study."""
        return self._roster_file(study).exists()

    def record(self, mark: Mark) -> bool:
        """Makes a mark durable, unless this or a later one of its run is there."""
        with lock_file(self._folder / LOCK, wait=True):
            marks = self._marks()
            if not mark.after(marks.get(mark.run)):
                return False
            marks[mark.run] = mark
            text = json.dumps([asdict(one) for one in marks.values()], sort_keys=True)
            write_whole(self._folder / ANSWERED, text.encode())
            return True

    def _marks(self) -> dict[str, Mark]:
        path = self._folder / ANSWERED
        if not path.exists():
            return {}
        try:
            marks = [Mark(**row) for row in json.loads(path.read_bytes())]
        except (ValueError, TypeError):
            raise LedgerError(
                f"{ANSWERED} of this site is damaged; restore it, or take part in new runs only. Nothing was answered."
            ) from None
        return {mark.run: mark for mark in marks}

    def _roster_file(self, study: str) -> Path:
        return self._folder / ROSTERS / f"{study}.json"
