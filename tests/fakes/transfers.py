"""The tiny study of `sites.py` bound to an initial file of made-up numbers."""

from pathlib import Path

from sottovoce.common.initial import Initial
from tests.fakes.sites import write_study

MODEL = 'kind = "model"'
FEATURE = 'kind = "feature"'
PARAMETER = 'kind = "parameter", layer_rate_decay = 0.5, pull = 0.1'


def bound(path: Path, made: Initial, transfer: str = MODEL, *, more: str = "", **changes: str | int) -> Path:
    """Writes the study with a transfer; `more` are further lines of its top table."""
    write_study(path, **{"n_sites": 2, "rounds": 2, **changes})  # type: ignore[arg-type]
    own = f'initial_signed_by = "{made.public_key}"\ntransfer = {{ {transfer}, initial_sha256 = "{made.sha256}" }}\n'
    path.write_text(path.read_text() + own + more)
    return path
