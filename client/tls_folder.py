"""Keys and certificates of connections on disk: a pair is swapped in one step, and a crash leaves one that works.

    folder = TlsFolder(hospital.tls)
    pending = folder.begin("renewal")            # a new key and a request for it; the same again after a crash
    folder.adopt(pending, certificate_pem)
    folder.current()                             # both of one pair, whatever happens meanwhile

    pair-000001/{site.key, site.csr, site.crt}   current -> pair-000001   site.key, site.crt -> current/...

Guarantees:
  - `site.key` and `site.crt` are always of one pair: both go through the one link `current`, which is replaced whole.
  - A request that may have reached the coordinator is made again from the same key, as long as it has no answer.
  - The pair before stays until the next swap: who read the one half finds the other.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from sottovoce.common.errors import DeploymentError
from sottovoce.common.files import synchronise, write_whole
from sottovoce.common.pki import Peer, new_request, peer_of

KEY, REQUEST, CERTIFICATE, PURPOSE = "site.key", "site.csr", "site.crt", "purpose"
CURRENT = "current"
_PAIRS = "pair-"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A key with its certificate, as texts."""

    folder: Path
    key: str
    certificate: str

    @property
    def peer(self) -> Peer:
        """Whom the certificate names, and until when."""
        return peer_of(self.certificate)

    def __repr__(self) -> str:
        return f"Pair({self.folder.name!r})"  # not its key


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A key that has no certificate yet, and the request for one."""

    folder: Path
    request: str

    @property
    def key_file(self) -> Path:
        """Where the key lies."""
        return self.folder / KEY


class TlsFolder:
    """The folder `tls/` of a hospital or of a person."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def current(self) -> Pair | None:
        """Returns the pair in force; None where nobody has enrolled."""
        for _ in range(3):  # a swap in between removes the pair that was there two swaps ago
            folder = self._current_folder()
            try:
                key, certificate = (folder / KEY).read_text(), (folder / CERTIFICATE).read_text()
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError) as error:
                raise DeploymentError(f"{folder}: key and certificate cannot be read ({error}).") from None
            return Pair(folder=folder, key=key, certificate=certificate)
        return None

    def purpose(self, pair: Pair) -> str:
        """Returns what a pair was made for; "" where that is not known."""
        path = pair.folder / PURPOSE
        return path.read_text() if path.exists() else ""

    def begin(self, purpose: str) -> Pending:
        """Returns a key with its request: the one that was made for this purpose and has no answer, or a new one.

        Raises:
            CertificateError, OSError: it cannot be written.
        """
        folders = self._pairs()
        newest = folders[-1] if folders else None
        if newest is not None and self._waits(newest, purpose):
            return Pending(folder=newest, request=(newest / REQUEST).read_text())
        number = 1 + (int(newest.name.removeprefix(_PAIRS)) if newest is not None else 0)
        folder = self._folder / f"{_PAIRS}{number:06}"
        folder.mkdir(mode=0o700)
        request = new_request(folder / KEY)
        write_whole(folder / PURPOSE, purpose.encode())
        write_whole(folder / REQUEST, request.encode())  # last: what has a request is whole
        return Pending(folder=folder, request=request)

    def adopt(self, pending: Pending, certificate: str) -> None:
        """Puts a pair in force, durably."""
        before = self._current_folder()
        write_whole(pending.folder / CERTIFICATE, certificate.encode())
        for name in (KEY, CERTIFICATE):  # they lead nowhere yet, the first time
            if not (self._folder / name).is_symlink():
                self._link(name, f"{CURRENT}/{name}")
        self._link(CURRENT, pending.folder.name)
        for folder in self._pairs():
            if folder not in (pending.folder, before):
                shutil.rmtree(folder)

    def _current_folder(self) -> Path:
        link = self._folder / CURRENT
        return self._folder / os.readlink(link) if link.is_symlink() else self._folder

    def _waits(self, folder: Path, purpose: str) -> bool:
        whole = (folder / REQUEST).exists() and (folder / PURPOSE).read_text() == purpose
        return whole and folder != self._current_folder()

    def _pairs(self) -> list[Path]:
        return sorted(path for path in self._folder.glob(f"{_PAIRS}*") if path.is_dir())

    def _link(self, name: str, target: str) -> None:
        beside = self._folder / f"{name}.new"
        beside.unlink(missing_ok=True)
        beside.symlink_to(target)
        beside.replace(self._folder / name)
        synchronise(self._folder)
