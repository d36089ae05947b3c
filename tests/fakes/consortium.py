"""A consortium on the loopback interface: a real coordinator's folder and server, and hospitals that join it.

with consortium(tmp_path) as made:
    hospital = made.join("hospital-a")           # invited, with a ledger, enrolled over mutual TLS
    with ConsortiumClient(hospital) as client: ...
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sottovoce.client.consortium import ConsortiumClient
from sottovoce.client.home import Hospital
from sottovoce.client.operator import Operator
from sottovoce.client.site_ledger import SiteLedger
from sottovoce.client.tls_folder import TlsFolder
from sottovoce.common.config import canonical
from sottovoce.common.consortium.channel import Connection
from sottovoce.common.pki import Authority, Role, new_request, peer_of
from sottovoce.common.secagg.session import Member, Roster
from sottovoce.common.study import Study, loads
from sottovoce.server.consortium.invitations import invitation
from sottovoce.server.consortium.offers import sign_offer
from sottovoce.server.consortium.service import Served, serve
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.registry import Registry
from tests.fakes.wards import study_text

SETTINGS = """
format = 1
name = "Consortium"
hosts = ["127.0.0.1"]
fleet_port = 0
consortium_port = {port}
"""


@dataclass
class Consortium:
    """A coordinator at work."""

    root: Path
    home: CoordinatorHome
    registry: Registry
    authority: Authority
    served: Served
    hospitals: dict[str, Hospital] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.served.port}"

    def invite(self, name: str, *, role: Role = "site", hours: float = 1.0) -> Path:
        """Writes an invitation's file."""
        path = self.root / f"{name}.invitation"
        path.write_text(invitation(self.home, name, role=role, hours=hours))
        return path

    def hospital(self, name: str) -> Hospital:
        """Makes a hospital's folder with a ledger, not enrolled."""
        hospital = Hospital.create(self.root / name, f'format = 1\nsite = "{name}"\n')
        SiteLedger.create(hospital.ledger, site=name)
        return hospital

    def join(self, name: str) -> Hospital:
        """Returns a hospital that has enrolled; the same one when asked again."""
        if name not in self.hospitals:
            hospital = self.hospital(name)
            ConsortiumClient.enrol(hospital, self.invite(name), patience_seconds=5)
            self.hospitals[name] = hospital
        return self.hospitals[name]

    def person(self, name: str, role: Role) -> Operator:
        """Returns a person who has enrolled."""
        person = Operator.create(self.root / name, name=name)
        ConsortiumClient.enrol(person, self.invite(name, role=role), patience_seconds=5)
        return person

    def offer(self, sites: Sequence[str], *, name: str = "wards") -> Study:
        """Offers a study to sites that have joined."""
        text = study_text(n_sites=len(sites)).replace('name = "wards"', f'name = "{name}"', 1)
        study, members = loads(text), {one.name: one for one in self.registry.sites()}
        pinned = tuple(Member(site=site, public_key=members[site].identity) for site in sorted(sites))
        roster = b""
        if len(sites) >= 3:
            roster = canonical(Roster(coordinator=self.home.key.public_hex, members=pinned)).encode()
        signature = sign_offer(
            self.home.key, study=study.digest(), sites=sites, roster=roster, offered_at=1_800_000_000
        )
        self.registry.offer(text, study.digest(), sites, roster, signature, offered_at=1_800_000_000)
        return study

    def connect(self, place: Any) -> Connection:
        """Opens a bare connection with the certificate of a hospital or a person."""
        pair = TlsFolder(place.tls).current()
        assert pair is not None
        return self.connect_with(pair.certificate, pair.key)

    def connect_with(self, certificate: str, key: str, authority: str = "") -> Connection:
        """Opens a bare connection with any certificate."""
        return Connection(
            self.address,
            authority=authority or self.authority.certificate_pem,
            certificate=certificate,
            key=key,
            patience_seconds=0.5,
        )

    def certificate(self, name: str, role: Role, *, recorded: bool = True, **when: float) -> tuple[str, str]:
        """Issues a certificate (and its key) behind the service's back; `recorded` puts it on record."""
        key_file = self.root / f"{len(list(self.root.glob('*.key')))}.key"
        pem = self.authority.issue(new_request(key_file), name=name, role=role, **when)
        leaf = peer_of(pem)
        if recorded:
            self.registry.renewed(name, serial=leaf.serial, not_after=leaf.not_after)
        return pem, key_file.read_text()

    def refusals(self) -> list[tuple[str, str, str]]:
        """Returns who was refused what and how, oldest first."""
        return [
            (event.who, event.facts["call"], event.facts["code"])
            for event in self.registry.events(limit=100_000)
            if event.what == "refused"
        ]


@contextmanager
def consortium(root: Path, *, hours: float = 1.0) -> Iterator[Consortium]:
    """Makes a coordinator and serves until the end of the block. `hours` may be less than settings allow."""
    made = CoordinatorHome.create(root / "coordinator", SETTINGS.format(port=0))
    authority, registry = Authority.create(made.pki, name="Consortium"), Registry.create(made.registry)
    settings = replace(made.settings, certificate_hours=hours)
    served = serve(CoordinatorHome(made.folder, settings), registry, authority)
    # Invitations name the port of the settings; this one was found when the server began.
    home = CoordinatorHome(made.folder, replace(settings, consortium_port=served.port))
    try:
        yield Consortium(root, home, registry, authority, served)
    finally:
        served.stop(0)
        registry.close()
