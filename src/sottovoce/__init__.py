"""sottovoce: speech emotion recognition learned across hospitals, without moving speech."""

from pathlib import Path

_root = Path(__file__).resolve().parents[2]
if (_root / "pyproject.toml").is_file():  # a checkout: our parts are the repository's top folders
    __path__.append(str(_root))
