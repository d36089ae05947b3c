"""Features on a hospital's disk: sealed where there is a key, and opened into memory alone.

    hospital.toml:  features_key = "credential:features"    # or the path of a key file
    folder = open_features(hospital, digest)                # a SiteData folder: on the disk, or in memory

A thief of the disk gets nothing from sealed features as long as the key is not on that disk too: it belongs into
systemd's credentials (`systemd-creds encrypt`, bound to the machine's TPM), or on a medium that is mounted at start.
Whoever can read the memory of the running machine reads features; swap must be encrypted or off.

Each file is cut into chunks; each chunk is AES-256-GCM under a key of its own, HKDF(key, salt of this preparation,
site, study, file, index, whether it is the last).

Guarantees:
  - A changed, swapped, shortened, lengthened or renamed file is refused, and so is one of another site, study or
    preparation; the answer to all of these, and to a wrong key, is the same error.
  - Opened features lie on a file system of memory, or there is an error; no other user can read them.
  - Where a key is set, features that lie there unsealed are refused, never quietly used.
"""

import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from sottovoce.client.home import Hospital
from sottovoce.common.errors import DeploymentError, KeyFileError
from sottovoce.common.keys import derived_key, opened, read_secret, sealed

CHUNK_BYTES = 4_000_000
TAG_BYTES, SALT_BYTES, KEY_BYTES = 16, 32, 32
SALT, SEALED, WHOLE = "salt", ".sealed", "index.json"
CREDENTIAL = "credential:"

AtRest = Literal["missing", "plain", "sealed"]


def features_key(hospital: Hospital) -> bytes | None:
    """Returns the key that `hospital.toml` names, None where it names none. Raises: KeyFileError."""
    named = hospital.settings.features_key
    return None if named is None else key_named(named)


def key_named(named: str) -> bytes:
    """Returns the key of a file, or of a credential of systemd. Raises: KeyFileError."""
    path = Path(named)
    if named.startswith(CREDENTIAL):
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise KeyFileError(
                f"features_key: expected systemd to give the credential {named!r}; CREDENTIALS_DIRECTORY is not set. "
                "Start with the unit of deploy/systemd, or with `systemd-run -p LoadCredentialEncrypted=…`."
            )
        path = Path(folder) / named.removeprefix(CREDENTIAL)
    key = read_secret(path)
    try:
        key = key if len(key) == KEY_BYTES else bytes.fromhex(key.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyFileError(
            f"{path.name}: expected a key of 32 bytes, as they are or as 64 hexadecimal digits; came another file."
        )
    return key


def at_rest(hospital: Hospital, digest: str) -> AtRest:
    """Says how a study's features lie on the disk."""
    folder = hospital.features(digest)
    if (folder / SALT).exists():
        return "sealed"
    return "plain" if (folder / WHOLE).exists() else "missing"


def open_features(hospital: Hospital, digest: str) -> Path:
    """Returns a folder of `SiteData`; sealed features are opened into memory first, once until they are forgotten.

    Raises:
        DeploymentError: there are none, they are not what was sealed, or there is no memory for them.
        KeyFileError: the key that `hospital.toml` names cannot be read.
    """
    key, found = features_key(hospital), at_rest(hospital, digest)
    again = f"Compute them with `sottovoce client prepare {hospital.folder} {digest[:16]}`."
    if found == "missing":
        raise DeploymentError(
            f"Expected this site's features for study {digest[:16]}…; there are none. {again}"
        )
    if found == "plain":
        if key is not None:
            raise DeploymentError(
                f"Expected sealed features: hospital.toml names a key; they lie open. {again}"
            )
        return hospital.features(digest)
    if key is None:
        raise DeploymentError("These features are sealed. Name their key in hospital.toml: features_key = …")
    return _opened(hospital, digest, key)


def forget_opened(hospital: Hospital, digest: str | None = None) -> None:
    """Removes what lies opened in memory: of one study, or of all."""
    if hospital.settings.features_key is None:
        return
    prefix = f"{_prefix(hospital)}-opened-{digest[:16] if digest else ''}"
    for folder in Path(hospital.settings.memory_folder).glob(f"{prefix}*"):
        shutil.rmtree(folder, ignore_errors=True)


def working_memory(hospital: Hospital, name: str) -> Path:
    """Returns the path of a folder in memory for this hospital. Raises: DeploymentError where that is a disk."""
    memory = Path(hospital.settings.memory_folder)
    if _file_system(memory) not in ("tmpfs", "ramfs"):
        raise DeploymentError(
            f"memory_folder: expected a file system of memory (tmpfs); {memory} is on {_file_system(memory)}. "
            "Use /dev/shm, or mount a tmpfs."
        )
    return memory / f"{_prefix(hospital)}-{name}"


def seal(folder: Path, out: Path, key: bytes, *, site: str, study: str) -> None:
    """Writes the files of a folder, sealed, into a new folder."""
    out.mkdir(mode=0o700)
    salt = secrets.token_bytes(SALT_BYTES)
    (out / SALT).write_bytes(salt)
    for path in sorted(folder.iterdir()):
        with path.open("rb") as plain, (out / (path.name + SEALED)).open("wb") as file:
            for index, (chunk, is_last) in enumerate(_chunks(plain, CHUNK_BYTES)):
                context = _context(site, study, path.name, index, is_last)
                file.write(sealed(derived_key(key, salt=salt, info=context), chunk, context))


def _opened(hospital: Hospital, digest: str, key: bytes) -> Path:
    source = hospital.features(digest)
    salt = (source / SALT).read_bytes()
    # Another preparation has another salt, and so another place: what was opened before is never taken for it.
    name = f"opened-{digest[:16]}-{hashlib.sha256(salt).hexdigest()[:16]}"
    place = working_memory(hospital, name)
    if _is_ours(place):
        return place
    beside = place.with_name(f"{place.name}.{secrets.token_hex(4)}")
    beside.mkdir(mode=0o700)
    try:
        for path in sorted(source.glob(f"*{SEALED}")):
            _open_file(path, beside / path.name.removesuffix(SEALED), key, salt, hospital.site, digest)
        beside.rename(place)
    except OSError as error:
        if not _is_ours(place):  # else another process of this hospital was faster
            raise DeploymentError(
                f"{place.parent}: features cannot be opened there ({error.strerror}). They need "
                f"{sum(path.stat().st_size for path in source.iterdir()) >> 20:,} MiB of memory."
            ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return place


def _is_ours(folder: Path) -> bool:
    """Says whether a folder is there that nobody else can have made: a folder of memory is open to all users."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _open_file(path: Path, out: Path, key: bytes, salt: bytes, site: str, study: str) -> None:
    with path.open("rb") as file, out.open("wb") as plain:
        for index, (chunk, is_last) in enumerate(_chunks(file, CHUNK_BYTES + TAG_BYTES)):
            context = _context(site, study, out.name, index, is_last)
            text = opened(derived_key(key, salt=salt, info=context), chunk, context)
            if text is None:
                raise DeploymentError(
                    "Sealed features: expected what this site sealed for this study, under this key; they are not. "
                    "Compute them again with `sottovoce client prepare`."
                )
            plain.write(text)


def _chunks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, bool]]:
    """Yields a file in chunks, each with whether it is the last; an empty file is one empty chunk."""
    chunk = file.read(size)
    while following := file.read(size):
        yield chunk, False
        chunk = following
    yield chunk, True


def _context(site: str, study: str, name: str, index: int, is_last: bool) -> bytes:
    return b"sottovoce/sealed-features/1\n" + json.dumps([site, study, name, index, is_last]).encode()


def _prefix(hospital: Hospital) -> str:
    place = hashlib.sha256(str(hospital.folder.resolve()).encode()).hexdigest()[:16]
    return f"sottovoce-{os.getuid()}-{place}"


def _file_system(folder: Path) -> str:
    """Returns the kind of file system that a folder is on, as the kernel has it."""
    best, kind = "", "no file system"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ", 1)
        mount = before.split()[4]
        if folder.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, after.split()[0]
    return kind
