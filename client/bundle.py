"""The codeless bundle: what a run may bring into a hospital is four small texts, none of them code.

    check(content, sha256=run.fab_hash, app="sottovoce.client.hospital:app")

Guarantees:
  - A bundle is read in memory: nothing of it is written to a disk, imported, or put on a path.
  - It is refused unless it holds exactly the allowed names, each once, within bounds, and names the app that is
    installed here. What is not on the list is refused, whatever it is called.
  - Nothing is unpacked beyond `MAX_FILE_BYTES` a file.
"""

import hashlib
import io
import tomllib
import zipfile
import zlib

from sottovoce.common.errors import DeploymentError

ALLOWED = frozenset({"pyproject.toml", ".info/CONTENT", "LICENSE", "README.md"})
MAX_BUNDLE_BYTES, MAX_FILE_BYTES = 65_536, 65_536
_ENCRYPTED = 0x1


def check(content: bytes, *, sha256: str, app: str) -> None:
    """Returns if a bundle is the codeless one for `app`.

    Raises:
        DeploymentError: it is anything else. The message holds no name that the bundle chose.
    """
    if len(content) > MAX_BUNDLE_BYTES:
        raise _refused(f"at most {MAX_BUNDLE_BYTES} bytes; came {len(content)}")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _refused("the bytes whose digest the run has; came others")
    try:
        _check_texts(_texts(content), app)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RecursionError):
        # tomllib's and Unicode's errors are ValueErrors.
        raise _refused("a readable archive of texts; came none") from None


def _texts(content: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
        names = [info.orig_filename for info in infos]  # as it stands there: `filename` is cut at a zero byte
        if surplus := [name for name in names if name not in ALLOWED]:
            raise _refused(f"none but {', '.join(sorted(ALLOWED))}; came {len(surplus)} other file(s)")
        if len(set(names)) != len(names):
            raise _refused("every file once; came one twice")
        if any(info.flag_bits & _ENCRYPTED or info.file_size > MAX_FILE_BYTES for info in infos):
            raise _refused(f"plain files of at most {MAX_FILE_BYTES} bytes; came others")
        return {info.orig_filename: _text(archive, info) for info in infos}


def _text(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    with archive.open(info) as file:
        data = file.read(MAX_FILE_BYTES + 1)  # what a header says of a size binds nobody
    if len(data) > MAX_FILE_BYTES:
        raise _refused(f"files of at most {MAX_FILE_BYTES} bytes; one is longer than it says")
    return data.decode()


def _check_texts(texts: dict[str, str], app: str) -> None:
    described: object = tomllib.loads(texts.get("pyproject.toml", ""))
    for key in ("tool", "flwr", "app", "components", "clientapp"):
        described = described.get(key) if isinstance(described, dict) else None
    if described != app:
        raise _refused(f"the installed app {app}; the bundle names another, or none")


def _refused(sentence: str) -> DeploymentError:
    return DeploymentError(f"Refused the run's bundle: expected {sentence}.", reason="bundle")
