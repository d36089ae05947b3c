"""Keys of a site: one Ed25519 key that signs, one HMAC key that hides digests. The door to `cryptography`.

Beside them what secure sums are made of: X25519 agreement, HKDF-SHA256, AES-256-GCM and AES-256-CTR.

Guarantees:
  - A key file is made with mode 0600 and synchronised before its key signs anything; one that others can
    read is refused.
  - A secret is never part of a repr, a log or an error.
  - `verified` answers True or False, whatever was wrong: key, signature, length or encoding.
  - `AgreementKey.shared` and `opened` answer None, whatever was wrong: key, low order, length or tag.
  - Every signed or hashed message opens with its own label, so that none can be taken for another.

>>> key = SigningKey.generate()
>>> signature = key.sign(b"sottovoce/example/1\\nhello")
>>> verified(key.public_hex, signature, b"sottovoce/example/1\\nhello")
True
>>> verified(key.public_hex, signature, b"sottovoce/example/1\\nhallo")
False
"""

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from sottovoce.common.errors import KeyFileError

MAX_KEY_FILE_BYTES = 4096
DIGEST_KEY_BYTES = 32
DIGEST_KEY_FILE = "digest-key"


class SigningKey:
    """An Ed25519 private key. It signs; it prints only its public half."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_hex = private.public_key().public_bytes_raw().hex()

    @classmethod
    def generate(cls) -> "SigningKey":
        """Makes a new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> "SigningKey":
        """Reads a key file. Raises: KeyFileError for one that is missing, readable by others, or no key."""
        data = read_secret(path)
        try:
            private = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise KeyFileError(f"{path.name}: expected an Ed25519 private key in PEM; this file is none.")
        return cls(private)

    def save(self, folder: Path) -> Path:
        """Writes the key as `signing-<start of its public half>.pem` and returns the path."""
        pem = self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = folder / f"signing-{self.public_hex[:16]}.pem"
        write_secret(path, pem)
        return path

    def sign(self, message: bytes) -> bytes:
        """Returns the 64 bytes of the signature. The message's first line must say what it is."""
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey({self.public_hex[:16]}…)"


class DigestKey:
    """The HMAC key under which a site publishes digests of private bytes.

    A plain hash of a patient list can be guessed; under this key it cannot. The key is opened to the auditor
    alone, who checks it against `commitment`, which stands in the ledger's first entry.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != DIGEST_KEY_BYTES:
            raise KeyFileError(f"Expected a digest key of {DIGEST_KEY_BYTES} bytes; came {len(secret)}.")
        self._secret = secret

    @classmethod
    def generate(cls) -> "DigestKey":
        """Makes a new key from the operating system's randomness."""
        return cls(secrets.token_bytes(DIGEST_KEY_BYTES))

    @classmethod
    def load(cls, path: Path) -> "DigestKey":
        """Reads a key file. Raises: KeyFileError for one that is missing, readable by others, or no key."""
        try:
            return cls(bytes.fromhex(read_secret(path).decode("ascii").strip()))
        except ValueError:
            raise KeyFileError(
                f"{path.name}: expected 64 hexadecimal digits; this file has others."
            ) from None

    def save(self, folder: Path) -> Path:
        """Writes the key as `digest-key` and returns the path."""
        path = folder / DIGEST_KEY_FILE
        write_secret(path, self.opened())
        return path

    @property
    def commitment(self) -> str:
        """What may be published of the key: it binds the site to it and tells nothing of it."""
        return hashlib.sha256(b"sottovoce/digest-key/1\n" + self._secret).hexdigest()

    def digest(self, label: str, data: bytes) -> str:
        """Returns the HMAC-SHA256 of labelled bytes, as 64 hexadecimal digits."""
        return hmac.new(self._secret, f"sottovoce/{label}/1\n".encode() + data, hashlib.sha256).hexdigest()

    def opened(self) -> bytes:
        """Returns the key file's contents, for the auditor alone."""
        return self._secret.hex().encode() + b"\n"

    def __repr__(self) -> str:
        return "DigestKey(secret)"


def load_node_key(path: Path) -> tuple[EllipticCurvePrivateKey, EllipticCurvePublicKey]:
    """Reads the key with which a site shows itself to Flower: EC P-384, in OpenSSH's form or PEM.

    Raises:
        KeyFileError: it is missing, readable by others, or another kind of key.
    """
    data = read_secret(path)
    load = load_ssh_private_key if b"OPENSSH" in data else load_pem_private_key
    try:
        private: object = load(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, EllipticCurvePrivateKey) or not isinstance(private.curve, SECP384R1):
        raise KeyFileError(f"{path.name}: expected an EC P-384 private key; this file is none.")
    return private, private.public_key()


def verified(public_hex: str, signature: bytes, message: bytes) -> bool:
    """Says whether `signature` over `message` is of the key `public_hex`."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex)).verify(signature, message)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def same_digest(one: str, other: str) -> bool:
    """Compares two digests in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def new_keys(folder: Path) -> tuple[SigningKey, DigestKey]:
    """Makes a site's two keys in a folder (created with mode 0700).

    Raises:
        KeyFileError: there is a digest key already; a second one would break the ledger's digests.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest_key, signing_key = DigestKey.generate(), SigningKey.generate()
    digest_key.save(folder)
    signing_key.save(folder)
    return signing_key, digest_key


def new_approval_key(folder: Path) -> tuple[Path, str]:
    """Makes a person's key in a folder (created with mode 0700); returns its file and its public half.

    Raises:
        KeyFileError: there is a key already. A second one beside it would be mistaken for the first.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if found := sorted(path.name for path in folder.glob("signing-*.pem")):
        raise KeyFileError(
            f"{folder}: expected a folder without a key; {found[0]} is there. Name another folder."
        )
    key = SigningKey.generate()
    return key.save(folder), key.public_hex


def public_key_from(text: str) -> str:
    """Returns a public key that a person typed. Raises: KeyFileError for anything but 64 hexadecimal digits."""
    key = text.strip().lower()
    if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
        raise KeyFileError(f"Expected a public key of 64 hexadecimal digits; came {len(key)} characters.")
    return key


def load_keys(folder: Path) -> tuple[tuple[SigningKey, ...], DigestKey]:
    """Reads every signing key of a folder and its digest key. The ledger knows which key is in force."""
    signing = tuple(SigningKey.load(path) for path in sorted(folder.glob("signing-*.pem")))
    return signing, DigestKey.load(folder / DIGEST_KEY_FILE)


def write_secret(path: Path, data: bytes) -> None:
    """Makes a key file, mode 0600, synchronised. Raises: KeyFileError where it cannot, or one is there."""
    try:
        # O_EXCL: a key that is there is never written over.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise KeyFileError(f"{path.name}: cannot be made ({error.strerror}).") from None


def read_secret(path: Path) -> bytes:
    """Reads a key file. Raises: KeyFileError for one that is missing, too long, or readable by others."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path.name}: cannot be read ({error.strerror}).") from None
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileError(f"{path.name}: expected mode 0600; others can read this key. Use `chmod 600`.")
    if len(data) > MAX_KEY_FILE_BYTES:
        raise KeyFileError(f"{path.name}: expected at most {MAX_KEY_FILE_BYTES} bytes; this is no key file.")
    return data


def keystream(key: bytes) -> Callable[[int], bytes]:
    """Returns a function that gives the next n bytes of AES-256-CTR under `key`, from a zero nonce.

    A key is for one stream: whoever makes two streams of one key has made the same stream twice.

    >>> keystream(bytes(32))(4).hex()
    'dc95c078'
    """
    cipher = Cipher(AES256(key), CTR(bytes(16))).encryptor()
    return lambda n_bytes: cipher.update(bytes(n_bytes))


class AgreementKey:
    """An X25519 private key, made for one attempt at one sum. It prints nothing of itself."""

    def __init__(self, secret: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(secret)
        self.public = self._private.public_key().public_bytes_raw()

    def shared(self, public: bytes) -> bytes | None:
        """Returns 32 bytes that only the two holders can make; None for what is no key or a point of low order."""
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:  # of another length, or an agreement on all zeros
            return None

    def __repr__(self) -> str:
        return f"AgreementKey({self.public.hex()[:16]}…)"


def derived_key(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """Returns the 32 bytes of HKDF-SHA256 (RFC 5869)."""
    return HKDF(SHA256(), 32, salt, info).derive(secret)


def sealed(key: bytes, plain: bytes, context: bytes) -> bytes:
    """Returns AES-256-GCM of `plain` bound to `context`, from a zero nonce: a key seals one text, ever."""
    return AESGCM(key).encrypt(bytes(12), plain, context)


def opened(key: bytes, cipher: bytes, context: bytes) -> bytes | None:
    """Returns what was sealed under this key for this context, or None."""
    try:
        return AESGCM(key).decrypt(bytes(12), cipher, context)
    except (InvalidTag, ValueError):
        return None
