"""Settings files of a coordinator and of a hospital: TOML into one frozen tree, with every problem at once."""

import tomllib
from pathlib import Path
from typing import TypeVar

from sottovoce.common.config import build
from sottovoce.common.errors import DeploymentError
from sottovoce.common.files import write_whole

MAX_SETTINGS_BYTES = 100_000

_T = TypeVar("_T")


def read_settings(kind: type[_T], path: Path, *, mend: str) -> _T:
    """Reads a settings file; `mend` says how to make one. Raises: DeploymentError with every problem."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SETTINGS_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DeploymentError(f"{path}: cannot be read ({why}). {mend}") from None
    return settings_from(kind, text, str(path))


def settings_from(kind: type[_T], text: str, name: str) -> _T:
    """Builds settings from TOML text. Raises: DeploymentError with every problem."""
    problems: list[str] = []
    try:
        settings = build(kind, tomllib.loads(text), "", problems)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        settings, problems = None, [f"not TOML: {error}"]
    if settings is None:
        raise DeploymentError("\n  ".join([f"{name} has {len(problems)} problem(s):", *problems]))
    return settings


def make_folders(folder: Path, file: str, text: str, *, inside: tuple[Path, ...]) -> None:
    """Makes a new folder with its settings file and empty folders in it, closed to others.

    Raises:
        DeploymentError: there is one already, or it cannot be made.
    """
    if (folder / file).exists():
        raise DeploymentError(f"{folder}: expected a new folder; {file} is there. Nothing was touched.")
    try:
        for place in (folder, *inside):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(folder / file, text.encode())
    except OSError as error:
        raise DeploymentError(f"{folder}: cannot be made ({error.strerror}).") from None
