"""Makes invitations: one file each, with a certificate that can enrol once and do nothing else."""

import tempfile
from pathlib import Path

from sottovoce.common.consortium.invitation import Invitation
from sottovoce.common.consortium.names import member_name
from sottovoce.common.pki import Authority, Role, new_request, peer_of
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.registry import Registry

HOURS = 24.0 * 7


def invitation(
    home: CoordinatorHome,
    name: str,
    *,
    role: Role = "site",
    hours: float = HOURS,
    person: str = "coordinator",
) -> str:
    """Returns the text of an invitation's file; it is recorded, and no copy of its key stays here.

    Raises:
        DeploymentError, CertificateError: the name, the role or the hours cannot be, or another member has the name.
    """
    authority, named = Authority.open(home.pki), member_name(name)
    with tempfile.TemporaryDirectory(dir=home.run) as folder:
        key_file = Path(folder) / "key"
        certificate = authority.issue(new_request(key_file), name=named, role="invitation", hours=hours)
        key = key_file.read_text()
    leaf = peer_of(certificate)
    with Registry.open(home.registry) as registry:
        made = registry.invite(named, role, serial=leaf.serial, not_after=leaf.not_after, person=person)
    return Invitation(
        format=1,
        name=made.name,
        role=role,  # type: ignore[arg-type]  # the registry has refused the other two
        not_after=made.not_after,
        coordinator=home.settings.name,
        public_key=home.key.public_hex,
        fleet=home.fleet_address,
        consortium=home.consortium_address,
        authority=authority.certificate_pem,
        certificate=certificate,
        key=key,
    ).text()
