"""The consortium's own certificate authority, and what sites ask of it. The other door to `cryptography`.

    authority = Authority.create(folder, name="Consortium")             # at the coordinator, once
    request = new_request(tls / "site.key")                             # at a site: the key stays there
    leaf = authority.issue(request, name="hospital-a", role="site", hours=720)
    verified_peer(leaf, authority.certificate_pem)                      # Peer(name='hospital-a', role='site', ...)

    ca.key   ca.crt

Guarantees:
  - A private key never leaves the machine that made it: what travels is a request for a certificate.
  - Name, role and every extension of a certificate are what the authority was told by its caller. What a request says
    of them is ignored; of it only the public key is taken, once it has signed the request.
  - A certificate has one name and one role, in a URI of its own scheme; a hospital's cannot serve, a server's cannot
    ask, and neither can sign another.
  - Serial numbers are random; a certificate issued anew is valid beside the old one, so none is out in between.
  - A key file is made with mode 0600 and synchronised; one that others can read is refused, one that is there is kept.
  - Whatever bytes come, the error is a CertificateError, and it never holds a key.
"""

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurve,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
)
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sottovoce.common.errors import CertificateError, KeyFileError
from sottovoce.common.files import write_whole
from sottovoce.common.keys import read_secret, write_secret

Role = Literal["site", "coordinator", "admin", "auditor", "invitation", "server"]
ROLES: tuple[Role, ...] = get_args(Role)

CA_KEY, CA_CERTIFICATE = "ca.key", "ca.crt"
SCHEME = "sottovoce"
MAX_PEM_CHARS = 16_384
MAX_NAME_CHARS = 64  # X.520's bound for a common name
MAX_HOSTS = 20
LEAF_HOURS = 24.0 * 30
MAX_LEAF_HOURS = 24.0 * 90
AUTHORITY_DAYS = 3650
REVOCATION_LIST_HOURS = 24.0 * 30  # a proxy refuses everybody once its list is over
EARLY_SECONDS = 300  # a site's clock may be behind


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Whom a certificate names. Times are unix seconds."""

    name: str
    role: Role
    serial: int
    not_before: int
    not_after: int


class Authority:
    """An open authority folder."""

    def __init__(self, key: EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key, self._certificate = key, certificate
        self.certificate_pem = certificate.public_bytes(Encoding.PEM).decode()
        self.fingerprint = fingerprint(self.certificate_pem)

    @classmethod
    def create(cls, folder: Path, *, name: str) -> "Authority":
        """Makes the authority's key and its own certificate in a folder (created with mode 0700).

        Raises:
            CertificateError: there is one already, or the folder cannot be written.
        """
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _checked_name(name))])
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if (folder / CA_CERTIFICATE).exists():
                raise CertificateError(f"{folder}: expected a folder without an authority; there is one.")
            key = _new_key(folder / CA_KEY, SECP256R1())
            certificate = _self_signed(key, subject)
            write_whole(folder / CA_CERTIFICATE, certificate.public_bytes(Encoding.PEM))
        except OSError as error:
            raise CertificateError(f"{folder}: an authority cannot be made ({error.strerror}).") from None
        return cls(key, certificate)

    @classmethod
    def open(cls, folder: Path) -> "Authority":
        """Opens a folder made by `create`. Raises: CertificateError where key or certificate are none, or differ."""
        certificate = _certificate(read_pem(folder / CA_CERTIFICATE))
        key = _private_key(folder / CA_KEY)
        if certificate.public_key() != key.public_key():
            raise CertificateError(
                f"{folder}: expected the authority's own certificate; it is of another key."
            )
        return cls(key, certificate)

    def issue(
        self,
        request_pem: str,
        *,
        name: str,
        role: Role,
        hours: float = LEAF_HOURS,
        now: float | None = None,
    ) -> str:
        """Returns a certificate for a request's public key, under the name and role that the caller gives.

        Raises:
            CertificateError: the request is none, its key is not of P-256 or P-384, or name, role or hours are none.
        """
        if role not in ROLES or role == "server":
            raise CertificateError(f"Expected a role of a person or a site; came {str(role)[:40]!r}.")
        return self._leaf(request_pem, name, role, (), hours, now)

    def issue_server(
        self,
        request_pem: str,
        *,
        hosts: Sequence[str],
        hours: float = LEAF_HOURS,
        now: float | None = None,
    ) -> str:
        """Returns a server's certificate for names and addresses. Raises: CertificateError."""
        if not 1 <= len(hosts) <= MAX_HOSTS:
            raise CertificateError(
                f"Expected 1 to {MAX_HOSTS} names or addresses of a server; came {len(hosts)}."
            )
        return self._leaf(request_pem, hosts[0], "server", [_host(host) for host in hosts], hours, now)

    def revocation_list(self, serials: Iterable[int], *, hours: float = REVOCATION_LIST_HOURS) -> str:
        """Returns the signed list (PEM) of certificates that no longer hold, good for `hours`."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - timedelta(seconds=EARLY_SECONDS))
            .next_update(now + timedelta(hours=hours))
            .add_extension(x509.CRLNumber(int(time.time() * 1000)), critical=False)
            .add_extension(_issued_by(self._certificate), critical=False)
        )
        for serial in sorted(set(serials)):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM).decode()

    def _leaf(
        self,
        request_pem: str,
        name: str,
        role: Role,
        hosts: Sequence[x509.GeneralName],
        hours: float,
        now: float | None,
    ) -> str:
        public, named = _requested_key(request_pem), _checked_name(name)
        if not 0 < hours <= MAX_LEAF_HOURS:
            raise CertificateError(f"Expected hours={hours:g} in (0, {MAX_LEAF_HOURS:g}].")
        begin = datetime.fromtimestamp(time.time() if now is None else now, UTC)
        end = begin + timedelta(hours=hours)
        if end > self._certificate.not_valid_after_utc:
            raise CertificateError("Expected an authority that outlives what it issues; make a new one.")
        builder = (
            x509.CertificateBuilder()
            .subject_name(_subject(named, role))
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin - timedelta(seconds=EARLY_SECONDS))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_purpose(role)]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_identity(named, role), *hosts]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(_issued_by(self._certificate), critical=False)
        )
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM).decode()


# --- at a site ----------------------------------------------------------------------------------------


def new_request(key_file: Path) -> str:
    """Makes a P-256 key in a new file and returns a request (PEM) for a certificate of it. Raises: CertificateError."""
    return _request(_new_key(key_file, SECP256R1()))


def request_for(key_file: Path) -> str:
    """Returns a request for the key of a file that is there: after a crash between key and certificate."""
    return _request(_private_key(key_file))


def new_node_key(key_file: Path) -> str:
    """Makes a node's P-384 key (OpenSSH, as `flower-supernode` reads it); returns its public half as PEM."""
    return _public_pem(_new_key(key_file, SECP384R1(), PrivateFormat.OpenSSH).public_key())


def node_public_key(key_file: Path) -> str:
    """Returns the public half of a node's key, as PEM. Raises: CertificateError."""
    return _public_pem(_private_key(key_file).public_key())


def checked_node_key(public_pem: str) -> str:
    """Returns the public half of a node's key, if it is one (P-384). Raises: CertificateError."""
    if len(public_pem) <= MAX_PEM_CHARS:
        try:
            public = load_pem_public_key(public_pem.encode("ascii"))
            if isinstance(public, EllipticCurvePublicKey) and isinstance(public.curve, SECP384R1):
                return public_pem
        except (ValueError, TypeError, UnsupportedAlgorithm):
            pass
    raise CertificateError("Expected a node's public key: EC P-384, in PEM; came another text.")


# --- reading certificates -----------------------------------------------------------------------------


def peer_of(certificate_pem: str) -> Peer:
    """Returns whom a certificate names. It is not verified here: a connection did, or `verified_peer` does.

    Raises:
        CertificateError: it is none, or names nobody, two, or somebody in two ways.
    """
    return _peer(_certificate(certificate_pem))


def verified_peer(certificate_pem: str, authority_pem: str, *, now: float | None = None) -> Peer:
    """Returns whom a certificate names, once it is the authority's own, in force, and for its role's purpose.

    Raises:
        CertificateError: anything else. Whether it was revoked the registry knows.
    """
    leaf, authority = _certificate(certificate_pem), _certificate(authority_pem)
    peer = _peer(leaf)
    at = datetime.fromtimestamp(time.time() if now is None else now, UTC)
    builder = verification.PolicyBuilder().store(verification.Store([authority])).time(at)
    try:
        if peer.role == "server":
            builder.build_server_verifier(_first_host(leaf)).verify(leaf, [])
        else:
            builder.build_client_verifier().verify(leaf, [])
    except (verification.VerificationError, ValueError) as error:
        over = "" if peer.not_before <= at.timestamp() <= peer.not_after else " It is not in force now."
        raise CertificateError(
            f"Expected a certificate of this consortium's authority for {peer.name!r}; came another.{over}"
        ) from error
    return peer


def fingerprint(certificate_pem: str) -> str:
    """Returns the SHA-256 of a certificate, in groups of four that a person can read out. Raises: CertificateError."""
    digest = hashlib.sha256(_certificate(certificate_pem).public_bytes(Encoding.DER)).hexdigest().upper()
    return " ".join(digest[start : start + 4] for start in range(0, 64, 4))


def renewal_due(peer: Peer) -> float:
    """Returns when a certificate is to be renewed: at two thirds of its life."""
    begun = peer.not_before + EARLY_SECONDS
    return begun + (peer.not_after - begun) * 2 / 3


def is_for(certificate_pem: str, hosts: Sequence[str]) -> bool:
    """Says whether a server's certificate is for these names and addresses. Raises: CertificateError."""
    found = _certificate(certificate_pem).extensions
    names = found.get_extension_for_class(x509.SubjectAlternativeName).value
    served = {name for name in names if isinstance(name, x509.DNSName | x509.IPAddress)}
    return served == {_host(host) for host in hosts}


def belongs_to(certificate_pem: str, key_file: Path) -> bool:
    """Says whether a certificate is of the key in a file. Raises: CertificateError where one of them is none."""
    return _certificate(certificate_pem).public_key() == _private_key(key_file).public_key()


def read_pem(path: Path) -> str:
    """Reads a file of one certificate or request. Raises: CertificateError."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_PEM_CHARS + 1).decode("ascii")
    except OSError as error:
        raise CertificateError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise CertificateError(f"{path}: expected PEM; came other bytes.") from None


def _peer(certificate: x509.Certificate) -> Peer:
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = found.get_values_for_type(x509.UniformResourceIdentifier)
        scheme, role, quoted = uri.split(":")
        (named,) = (str(attribute.value) for attribute in names)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        scheme = role = quoted = named = ""
    if scheme != SCHEME or role not in ROLES or not named or quote(named, safe="") != quoted:
        raise CertificateError("Expected a certificate with one name and one role; came another.")
    return Peer(
        name=unquote(quoted),
        role=role,
        serial=certificate.serial_number,
        not_before=int(certificate.not_valid_before_utc.timestamp()),
        not_after=int(certificate.not_valid_after_utc.timestamp()),
    )


def _first_host(certificate: x509.Certificate) -> verification.Subject:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    for host in found:
        if isinstance(host, x509.DNSName | x509.IPAddress):
            return host
    raise CertificateError("Expected a server's certificate with a name or address; came none.")


def _certificate(pem: str) -> x509.Certificate:
    if len(pem) <= MAX_PEM_CHARS:
        try:
            return x509.load_pem_x509_certificate(pem.encode("ascii"))
        except (ValueError, UnsupportedAlgorithm):
            pass
    raise CertificateError("Expected a certificate in PEM; came other text.")


# --- the parts ----------------------------------------------------------------------------------------


def _self_signed(key: EllipticCurvePrivateKey, name: x509.Name) -> x509.Certificate:
    now, public = datetime.now(UTC), key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=EARLY_SECONDS))
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return builder.sign(key, SHA256())


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _purpose(role: Role) -> x509.ObjectIdentifier:
    return ExtendedKeyUsageOID.SERVER_AUTH if role == "server" else ExtendedKeyUsageOID.CLIENT_AUTH


def _subject(name: str, role: Role) -> x509.Name:
    # A proxy sees the subject alone: `server/front.conf.template` reads the role there.
    unit = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role)
    return x509.Name([unit, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _identity(name: str, role: Role) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(f"{SCHEME}:{role}:{quote(name, safe='')}")


def _issued_by(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    found = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found.value)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(_checked_name(host))
    except ValueError:
        raise CertificateError(
            f"Expected a host's name in ASCII, or an address; came {host[:60]!r}."
        ) from None


def _checked_name(name: str) -> str:
    if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable() or name != name.strip():
        raise CertificateError(
            f"Expected a name of 1 to {MAX_NAME_CHARS} printable characters; came {name[:80]!r}."
        )
    return name


def _requested_key(request_pem: str) -> EllipticCurvePublicKey:
    """Returns the public key of a request whose sender holds the private one."""
    if len(request_pem) <= MAX_PEM_CHARS:
        try:
            request = x509.load_pem_x509_csr(request_pem.encode("ascii"))
            public = request.public_key()
            if (
                request.is_signature_valid
                and isinstance(public, EllipticCurvePublicKey)
                and isinstance(public.curve, SECP256R1 | SECP384R1)
            ):
                return public
        except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
            pass
    raise CertificateError("Expected a request for a certificate, signed by its own P-256 or P-384 key.")


def _request(key: EllipticCurvePrivateKey) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM).decode()


def _new_key(
    path: Path, curve: EllipticCurve, form: PrivateFormat = PrivateFormat.PKCS8
) -> EllipticCurvePrivateKey:
    key = generate_private_key(curve)
    try:
        write_secret(path, key.private_bytes(Encoding.PEM, form, NoEncryption()))
    except KeyFileError as error:
        raise CertificateError(str(error)) from None
    return key


def _private_key(path: Path) -> EllipticCurvePrivateKey:
    try:
        data = read_secret(path)
    except KeyFileError as error:
        raise CertificateError(str(error)) from None
    load = load_ssh_private_key if b"OPENSSH" in data[:64] else load_pem_private_key
    try:
        key = load(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise CertificateError(f"{path.name}: expected an elliptic curve key; this file is none.")
    return key


def _public_pem(public: EllipticCurvePublicKey) -> str:
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
