"""Claims of the consortium's certificate authority; connections are real ones, on the loopback interface."""

import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key, load_ssh_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.common import pki
from sottovoce.common.errors import CertificateError
from sottovoce.common.keys import load_node_key
from sottovoce.common.pki import Authority, Role, new_request, peer_of, verified_peer

HOST = "localhost"


class World:
    """An authority, a server under it, and requests with their keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(folder / "pki", name="Consortium")
        self.server = self.write(
            "server", self.authority.issue_server(self.request("server"), hosts=[HOST, "127.0.0.1"])
        )

    def request(self, name: str) -> str:
        return new_request(self.folder / f"{name}.key")

    def write(self, name: str, pem: str) -> str:
        (self.folder / f"{name}.crt").write_text(pem)
        return pem

    def leaf(self, name: str, role: Role = "site", **more: float) -> str:
        return self.write(name, self.authority.issue(self.request(name), name=name, role=role, **more))

    def connected(self, client: str, server: str = "server", *, revoked: str = "", ca: str = "") -> str:
        """Shakes hands; returns whom the server saw, or what went wrong at either end."""
        root = ca or self.authority.certificate_pem
        return handshake(
            self._context(ssl.PROTOCOL_TLS_SERVER, server, self.authority.certificate_pem, revoked),
            self._context(ssl.PROTOCOL_TLS_CLIENT, client, root, ""),
        )

    def _context(self, protocol: int, name: str, ca: str, revoked: str) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=ca)
        if name:
            context.load_cert_chain(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        if revoked:
            (self.folder / "list.pem").write_text(revoked)
            context.load_verify_locations(self.folder / "list.pem")
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    seen: list[str] = []

    def serve() -> None:
        with listener, listener.accept()[0] as raw:
            raw.settimeout(60)
            try:
                with server.wrap_socket(raw, server_side=True) as wrapped:
                    der = wrapped.getpeercert(binary_form=True)
                    assert der is not None
                    seen.append(peer_of(ssl.DER_cert_to_PEM_cert(der)).name)
                    wrapped.sendall(b"!")
            except OSError as error:
                seen.append(f"server: {error}")

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with (
            socket.create_connection(listener.getsockname(), timeout=60) as raw,
            client.wrap_socket(raw, server_hostname=HOST) as wrapped,
        ):
            wrapped.recv(1)  # with TLS 1.3 a client learns here that it was refused
    except OSError as error:
        thread.join()
        return f"client: {error}; {' '.join(seen)}"
    thread.join()
    return seen[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


# --- what a certificate says ---


def greedy_request(name: str, role: str) -> str:
    """A request for everything: another's name and role, an authority's rights, a server's purpose, a new host."""
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.UniformResourceIdentifier(f"sottovoce:{role}:{name}"),
                    x509.DNSName("coordinator.example"),
                ]
            ),
            critical=False,
        )
    )
    return builder.sign(KEY, SHA256()).public_bytes(Encoding.PEM).decode()


KEY = ec.generate_private_key(ec.SECP256R1())
NAMES = st.text(
    st.characters(categories=["L", "N", "P", "Zs"], max_codepoint=0xFFFF), min_size=1, max_size=40
).filter(lambda text: text.isprintable() and text == text.strip())


@settings(max_examples=60, deadline=None)
@given(name=NAMES, role=st.sampled_from([role for role in pki.ROLES if role != "server"]))
def test_a_request_chooses_neither_name_nor_role_nor_rights(world: World, name: str, role: Role) -> None:
    leaf = world.authority.issue(greedy_request("coordinator", "coordinator"), name=name, role=role, hours=1)
    peer = verified_peer(leaf, world.authority.certificate_pem)
    assert (peer.name, peer.role) == (name, role)
    certificate = x509.load_pem_x509_certificate(leaf.encode())
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert len(list(alternative)) == 1
    assert certificate.public_key() == KEY.public_key()


@pytest.mark.parametrize(
    ("name", "role", "hours"),
    [("", "site", 1), ("x" * 65, "site", 1), ("a\nb", "site", 1), (" a", "site", 1), ("a", "server", 1),
     ("a", "root", 1), ("a", "site", 0), ("a", "site", -1), ("a", "site", 24 * 91), ("a", "site", float("nan"))],
)  # fmt: skip
def test_names_roles_and_hours_out_of_bounds_are_refused(
    world: World, name: str, role: Role, hours: float
) -> None:
    with pytest.raises(CertificateError):
        world.authority.issue(greedy_request("a", "site"), name=name, role=role, hours=hours)


def _requested_with(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256())
    return signed.public_bytes(Encoding.PEM).decode()


def _tampered() -> str:
    der = bytearray(x509.load_pem_x509_csr(greedy_request("a", "site").encode()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    "request_pem",
    ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "\ud800", "ä",
     "A" * 20_000, _tampered(), _requested_with(rsa.generate_private_key(65537, 2048)),
     _requested_with(ec.generate_private_key(ec.SECP521R1())), _requested_with(ed25519.Ed25519PrivateKey.generate())],
)  # fmt: skip
def test_what_is_no_request_with_its_own_signature_is_refused(world: World, request_pem: str) -> None:
    with pytest.raises(CertificateError, match="request for a certificate"):
        world.authority.issue(request_pem, name="a", role="site", hours=1)


def test_serial_numbers_are_random(world: World) -> None:
    request = greedy_request("a", "site")
    serials = {peer_of(world.authority.issue(request, name="a", role="site")).serial for _ in range(30)}
    assert len(serials) == 30
    assert min(serials) > 2**100


def _certificate(subject: str | None, alternatives: list[x509.GeneralName]) -> str:
    attributes = [] if subject is None else [x509.NameAttribute(NameOID.COMMON_NAME, subject)]
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(x509.Name([]))
        .public_key(KEY.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(KEY, SHA256()).public_bytes(Encoding.PEM).decode()


_URI = x509.UniformResourceIdentifier


@pytest.mark.parametrize(
    ("subject", "alternatives"),
    [
        ("a", []),
        ("a", [x509.DNSName("a")]),
        ("a", [_URI("sottovoce:site:b")]),
        ("a", [_URI("sottovoce:root:a")]),
        ("a", [_URI("other:site:a")]),
        ("a", [_URI("sottovoce:site:a"), _URI("sottovoce:admin:a")]),
        ("a", [_URI("sottovoce:site:a:b")]),
        ("a b", [_URI("sottovoce:site:a+b")]),
        (None, [_URI("sottovoce:site:")]),
    ],
)
def test_a_certificate_of_nobody_or_of_two_is_refused(
    subject: str | None, alternatives: list[x509.GeneralName]
) -> None:
    with pytest.raises(CertificateError, match="one name and one role"):
        peer_of(_certificate(subject, alternatives))


@pytest.mark.parametrize(
    "pem", ["", "x", "ä", "A" * 20_000, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_other_text_is_no_certificate(pem: str) -> None:
    for read in (peer_of, pki.fingerprint):
        with pytest.raises(CertificateError, match="certificate in PEM"):
            read(pem)


# --- who may connect ---


def test_a_certificate_of_this_authority_connects_and_is_seen_by_its_name(world: World) -> None:
    world.leaf("hospital-a")
    assert world.connected("hospital-a") == "hospital-a"


def test_without_a_certificate_nobody_connects(world: World) -> None:
    assert "server: " in world.connected("")


def test_an_expired_certificate_neither_verifies_nor_connects(world: World) -> None:
    leaf = world.leaf("late", now=time.time() - 200, hours=0.05)
    with pytest.raises(CertificateError, match="not in force"):
        verified_peer(leaf, world.authority.certificate_pem)
    assert verified_peer(leaf, world.authority.certificate_pem, now=time.time() - 100).name == "late"
    assert "expired" in world.connected("late")


def test_one_of_a_time_to_come_neither_verifies_nor_connects(world: World) -> None:
    leaf = world.leaf("early", now=time.time() + 7200, hours=1)
    with pytest.raises(CertificateError, match="not in force"):
        verified_peer(leaf, world.authority.certificate_pem)
    assert "not yet valid" in world.connected("early")


def test_another_authority_of_the_same_name_neither_verifies_nor_connects(
    world: World, tmp_path: Path
) -> None:
    other = World(tmp_path)
    leaf = other.leaf("hospital-x")
    with pytest.raises(CertificateError, match="this consortium's authority"):
        verified_peer(leaf, world.authority.certificate_pem)
    for ending in ("crt", "key"):
        (world.folder / f"hospital-x.{ending}").write_bytes((tmp_path / f"hospital-x.{ending}").read_bytes())
    assert "server: " in world.connected("hospital-x")
    # and a site does not talk to a server of that other authority
    world.leaf("hospital-y")
    assert "client: " in world.connected("hospital-y", ca=other.authority.certificate_pem)


def test_a_site_s_certificate_cannot_serve_and_a_server_s_cannot_ask(world: World) -> None:
    world.leaf("hospital-b")
    assert "client: " in world.connected("hospital-b", "hospital-b")
    assert "server: " in world.connected("server")


def test_what_a_site_signs_is_no_certificate(world: World) -> None:
    leaf = x509.load_pem_x509_certificate(world.leaf("hospital-c").encode())
    key = load_ssh_or_pem(world.folder / "hospital-c.key")
    forged = Authority(key, leaf)
    pem = forged.issue(world.request("forged"), name="coordinator", role="coordinator", hours=1)
    with pytest.raises(CertificateError):
        verified_peer(pem, world.authority.certificate_pem)
    chain = pem + leaf.public_bytes(Encoding.PEM).decode()
    world.write("forged", chain)
    assert "server: " in world.connected("forged")


def load_ssh_or_pem(path: Path) -> ec.EllipticCurvePrivateKey:
    return pki._private_key(path)


def test_an_authority_signs_no_other_authority(world: World) -> None:
    own = x509.load_pem_x509_certificate(world.authority.certificate_pem.encode())
    constraints = own.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)


def test_a_revoked_certificate_is_refused_at_the_next_connection(world: World) -> None:
    gone, stays = peer_of(world.leaf("gone")), world.leaf("stays")
    revoked = world.authority.revocation_list([gone.serial, gone.serial])
    assert "revoked" in world.connected("gone", revoked=revoked)
    assert world.connected("stays", revoked=revoked) == peer_of(stays).name
    assert world.connected("gone", revoked=world.authority.revocation_list([])) == "gone"


def test_old_and_new_certificate_of_a_rotation_hold_beside_each_other(world: World) -> None:
    old = world.leaf("rotating")
    new = world.authority.issue(pki.request_for(world.folder / "rotating.key"), name="rotating", role="site")
    world.request("rotating-2")
    newer = world.authority.issue(
        pki.request_for(world.folder / "rotating-2.key"), name="rotating", role="site"
    )
    assert len({verified_peer(pem, world.authority.certificate_pem).serial for pem in (old, new, newer)}) == 3
    world.write("rotating-2", newer)
    assert world.connected("rotating") == world.connected("rotating-2") == "rotating"


def test_a_server_is_known_by_its_names_and_addresses(world: World) -> None:
    assert verified_peer(world.server, world.authority.certificate_pem).role == "server"
    for hosts in ([], ["ä"], ["a"] * 21, [""]):
        with pytest.raises(CertificateError):
            world.authority.issue_server(greedy_request("a", "site"), hosts=hosts)


# --- files ---


def test_keys_are_closed_to_others_and_never_written_over(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "pki", name="Consortium")
    request = new_request(tmp_path / "site.key")
    pki.new_node_key(tmp_path / "node.key")
    secrets = [tmp_path / "pki" / "ca.key", tmp_path / "site.key", tmp_path / "node.key"]
    for path in secrets:
        assert path.stat().st_mode & 0o777 == 0o600
        before = path.read_bytes()
        with pytest.raises(CertificateError) as refused:
            new_request(path)
        assert path.read_bytes() == before
        assert before.decode().splitlines()[1] not in str(refused.value) + request + authority.certificate_pem
        path.chmod(0o640)
        with pytest.raises(CertificateError, match="mode 0600"):
            pki.request_for(path)
    with pytest.raises(CertificateError, match="mode 0600"):
        Authority.open(tmp_path / "pki")


def test_a_request_can_be_made_again_from_the_key_that_is_there(tmp_path: Path) -> None:
    new_request(tmp_path / "site.key")
    authority = Authority.create(tmp_path / "pki", name="Consortium")
    leaf = Authority.open(tmp_path / "pki").issue(
        pki.request_for(tmp_path / "site.key"), name="a", role="site"
    )
    assert pki.belongs_to(leaf, tmp_path / "site.key")
    assert not pki.belongs_to(authority.certificate_pem, tmp_path / "site.key")


def test_a_second_authority_and_one_of_two_halves_are_refused(tmp_path: Path) -> None:
    one, other = (Authority.create(tmp_path / name, name="Consortium") for name in ("one", "other"))
    with pytest.raises(CertificateError, match="without an authority"):
        Authority.create(tmp_path / "one", name="Consortium")
    (tmp_path / "one" / "ca.crt").write_text(other.certificate_pem)
    with pytest.raises(CertificateError, match="of another key"):
        Authority.open(tmp_path / "one")
    with pytest.raises(CertificateError, match="cannot be read"):
        Authority.open(tmp_path / "none")
    assert one.fingerprint != other.fingerprint
    assert len(one.fingerprint.split()) == 16


def test_a_node_s_key_is_what_flower_reads(tmp_path: Path) -> None:
    public = pki.new_node_key(tmp_path / "node.key")
    private = load_ssh_private_key((tmp_path / "node.key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp384r1"
    assert (
        private.public_key()
        == load_pem_public_key(public.encode())
        == load_node_key(tmp_path / "node.key")[1]
    )
    assert pki.node_public_key(tmp_path / "node.key") == public


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"-----BEGIN PRIVATE KEY-----\n", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAA", bytes(5000)],
)
def test_other_bytes_are_no_key(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_bytes(data)
    with pytest.raises(CertificateError):
        pki.request_for(tmp_path / "key")
