"""Joining a consortium: an invitation becomes a certificate, and the coordinator is pinned.

Every step can be repeated, and is, when the same invitation is used again after a crash: keys that were made stay,
the same request is sent, and the coordinator answers it with the same certificate.

 1. The invitation is for this name and role, is not over, and is of the coordinator pinned before, if there is one.
 2. The authority's certificate is kept: from here on the connection is with nobody else.
 3. Keys are made and stay here: of the connection, and of the node (a site's).
 4. The identity signs for all of them; the coordinator answers with a certificate.
 5. The certificate is of that authority, for this name, role and key; the pair is put in force.
 6. The coordinator is pinned.
"""

import time
from pathlib import Path
from typing import Protocol

from sottovoce.client.home import COORDINATOR_FILE, Coordinator
from sottovoce.client.tls_folder import Pending, TlsFolder
from sottovoce.common.consortium import consortium_pb2 as schema
from sottovoce.common.consortium.channel import Connection
from sottovoce.common.consortium.invitation import Invitation, read_invitation
from sottovoce.common.consortium.statements import EnrolmentStatement, sha256, signed
from sottovoce.common.errors import DeploymentError
from sottovoce.common.files import lock_file, write_whole
from sottovoce.common.keys import SigningKey
from sottovoce.common.pki import Peer, belongs_to, new_node_key, node_public_key, verified_peer

AUTHORITY, NODE_KEY, LOCK = "ca.crt", "node.key", "lock"


class Place(Protocol):
    """The folder of a hospital, or of a person who takes part (`client/operator.py`)."""

    @property
    def folder(self) -> Path:
        """All of it."""

    @property
    def site(self) -> str:
        """The name under which it takes part."""

    @property
    def tls(self) -> Path:
        """Certificates and keys of connections."""

    @property
    def run(self) -> Path:
        """What is kept from one start to the next."""

    @property
    def identity(self) -> SigningKey:
        """The key that signs."""

    @property
    def coordinator(self) -> Coordinator:
        """Whom it enrolled with. Raises: DeploymentError where it has not."""

    def pin(self, coordinator: Coordinator) -> None:
        """Keeps whom it enrolled with."""


def enrol(place: Place, invitation_file: Path, *, persons: bool, patience_seconds: float) -> Peer:
    """Joins by an invitation; the same invitation again goes on where a crash ended it, or does nothing.

    Raises:
        DeploymentError, CertificateError, KeyFileError: the invitation is not for here, or the coordinator says no.
    """
    invitation = read_invitation(invitation_file)
    place.tls.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with lock_file(place.tls / LOCK):
            return _enrolled(place, invitation, persons, patience_seconds)
    except BlockingIOError:
        raise DeploymentError(f"{place.folder}: another process enrols or renews here now. Wait.") from None
    except OSError as error:
        raise DeploymentError(f"{place.folder}: cannot be written ({error.strerror}).") from None


def _enrolled(place: Place, invitation: Invitation, persons: bool, patience_seconds: float) -> Peer:
    tls, purpose = TlsFolder(place.tls), f"invitation {sha256(invitation.text().encode())}"
    _check(place, invitation, persons)  # 1
    pair = tls.current()
    if pair is None or tls.purpose(pair) != purpose:
        if invitation.not_after < time.time():
            raise DeploymentError(
                "Expected an invitation that is not over; ask the coordinator for a new one."
            )
        write_whole(place.tls / AUTHORITY, invitation.authority.encode())  # 2
        pending, node_key = tls.begin(purpose), "" if persons else _node_key(place.tls / NODE_KEY)  # 3
        certificate = _asked(place, invitation, pending, node_key, patience_seconds)  # 4
        _check_certificate(certificate, invitation, pending)  # 5
        tls.adopt(pending, certificate)
        pair = tls.current()
    if pair is None:
        raise DeploymentError(f"{place.tls}: the certificate was written and is gone. Look at the disk.")
    place.pin(_coordinator(invitation))  # 6
    return pair.peer


def _check(place: Place, invitation: Invitation, persons: bool) -> None:
    if invitation.name != place.site:
        raise DeploymentError(
            f"Expected an invitation for {place.site!r}; this one is for {invitation.name!r}. Ask for another, or set "
            "that name."
        )
    if (invitation.role != "site") != persons:
        raise DeploymentError(
            f"Expected an invitation for {'a person' if persons else 'a site'}; this one is for role {invitation.role}."
        )
    if not (place.folder / COORDINATOR_FILE).exists():
        return
    pinned = place.coordinator.public_key  # a damaged file is an error: whom it named must not be forgotten
    if pinned != invitation.public_key:
        raise DeploymentError(
            f"{place.folder}: this folder is enrolled with another coordinator ({pinned[:16]}…); nothing was changed. "
            "Use a new folder for another consortium."
        )


def _node_key(key_file: Path) -> str:
    if not key_file.exists():
        made = key_file.with_name(f"{key_file.name}.new")
        made.unlink(missing_ok=True)  # a crash may have left half of one
        new_node_key(made)
        made.replace(key_file)
    return node_public_key(key_file)


def _asked(
    place: Place, invitation: Invitation, pending: Pending, node_key: str, patience_seconds: float
) -> str:
    said = EnrolmentStatement(
        name=invitation.name,
        certificate_request=pending.request,
        node_key=node_key,
        identity=place.identity.public_hex,
    )
    with Connection(
        invitation.consortium,
        authority=invitation.authority,
        certificate=invitation.certificate,
        key=invitation.key,
        patience_seconds=patience_seconds,
    ) as connection:
        request = schema.EnrolRequest(**vars(said), signature=signed(place.identity, said))
        return str(connection.call("Enrol", request).certificate)


def _check_certificate(certificate: str, invitation: Invitation, pending: Pending) -> None:
    peer = verified_peer(certificate, invitation.authority)
    ours = belongs_to(certificate, pending.key_file)
    if (peer.name, peer.role) != (invitation.name, invitation.role) or not ours:
        raise DeploymentError(
            f"Expected a certificate for {invitation.name!r}, {invitation.role}, of the key made here; came another. "
            "Tell the coordinator."
        )


def _coordinator(invitation: Invitation) -> Coordinator:
    return Coordinator(
        format=1,
        name=invitation.coordinator,
        public_key=invitation.public_key,
        fleet=invitation.fleet,
        consortium=invitation.consortium,
    )
