"""A connection to the consortium's service that keeps its own certificate in force.

Guarantees:
  - A certificate is renewed when two thirds of its life are over, by this object or by another process of this folder,
    without a call that fails; one that cannot be renewed is used as long as it holds.
"""

import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sottovoce.client.enrolment import AUTHORITY, LOCK, Place
from sottovoce.client.tls_folder import Pair, TlsFolder
from sottovoce.common.consortium import consortium_pb2 as schema
from sottovoce.common.consortium.channel import PATIENCE_SECONDS, Connection
from sottovoce.common.errors import DeploymentError, SottovoceError
from sottovoce.common.files import lock_file
from sottovoce.common.pki import Peer, belongs_to, renewal_due, verified_peer

_log = logging.getLogger("sottovoce.client.consortium")


class CertifiedLine:
    """The line of one folder. Not for two threads at once."""

    def __init__(self, place: Place, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.place, self._patience = place, patience_seconds
        self._tls = TlsFolder(place.tls)
        self._open: tuple[Path, Connection] | None = None

    def renew(self, *, now: float | None = None) -> bool:
        """Renews the certificate if two thirds of its life are over; says whether it did.

        Raises:
            DeploymentError, CertificateError: it could not; the old one holds as long as it does.
        """
        pair = self._pair()
        if (time.time() if now is None else now) < renewal_due(pair.peer):
            return False
        try:
            with lock_file(self.place.tls / LOCK):
                if self._pair().folder != pair.folder:  # another process was first
                    return False
                pending = self._tls.begin(f"renewal of {pair.peer.serial}")
                request = schema.RenewRequest(certificate_request=pending.request)
                certificate = str(self.connection(pair).call("Renew", request).certificate)
                self._check(certificate, pair.peer, pending.key_file)
                self._tls.adopt(pending, certificate)
        except BlockingIOError:
            return False
        except OSError as error:
            raise DeploymentError(f"{self.place.tls}: cannot be written ({error.strerror}).") from None
        return True

    def _check(self, certificate: str, before: Peer, key_file: Path) -> None:
        peer = verified_peer(certificate, self._authority())
        if (peer.name, peer.role) != (before.name, before.role) or not belongs_to(certificate, key_file):
            raise DeploymentError(
                f"Expected a certificate for {before.name!r} of the key made here; came another."
            )

    def close(self) -> None:
        """Closes the connection."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, name: str, request: Any) -> Any:
        """Makes a call with a certificate that holds. Raises: DeploymentError."""
        return self.connection(self.fresh()).call(name, request)

    def fresh(self) -> Pair:
        """Returns the pair to call with, renewed if it is time; one that could not be is used as long as it holds."""
        self._pair()  # else nothing is there to be renewed
        try:
            self.renew()
        except SottovoceError as error:
            _log.warning("the certificate could not be renewed: %s", error)
        pair = self._pair()
        if time.time() > pair.peer.not_after:
            raise DeploymentError(
                f"{self.place.tls}: the certificate of {pair.peer.name!r} is over. Ask the coordinator for a new "
                "invitation, and enrol again."
            )
        return pair

    def _pair(self) -> Pair:
        pair = self._tls.current()
        if pair is None:
            raise DeploymentError(
                f"{self.place.folder}: nobody has enrolled here. Use `sottovoce client init --invitation FILE`."
            )
        return pair

    def connection(self, pair: Pair) -> Connection:
        """Returns a connection with this pair, the one that is open if it has it."""
        if self._open is not None and self._open[0] == pair.folder:
            return self._open[1]
        self.close()
        connection = Connection(
            self.place.coordinator.consortium,
            authority=self._authority(),
            certificate=pair.certificate,
            key=pair.key,
            patience_seconds=self._patience,
        )
        self._open = (pair.folder, connection)
        return connection

    def _authority(self) -> str:
        try:
            return (self.place.tls / AUTHORITY).read_text()
        except (OSError, UnicodeDecodeError):
            raise DeploymentError(
                f"{self.place.tls / AUTHORITY}: expected the authority's certificate; it cannot be read. Enrol again."
            ) from None
