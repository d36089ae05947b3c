"""What a run says of the rows that its model made: one small file for each cell, beside the rows.

    write(folder, figures)
    found = read(folder)

Guarantees:
  - `read` returns what was written, by name of the cell, or says which file is damaged.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from sottovoce.common.config import as_plain, build
from sottovoce.common.errors import RunError
from sottovoce.common.files import write_whole

FOLDER = "synthetic"  # of a run
SUFFIX = ".figures.json"
MAX_BYTES = 100_000


@dataclass(frozen=True, kw_only=True)
class MadeFigures:
    """Made rows against those who were trained on and those who were withheld.

    `distance` is the mean over classes of the squared Frechet distance to withheld recordings, `distance_of_real` that
    of the training recordings. `copies` is the share of made rows nearer to a training recording than to a withheld
    one; `membership` how well nearness to made rows tells who was trained on (0.5: not at all). `uar` is that of a
    plain softmax head taught by made rows alone and asked about withheld recordings, `uar_of_real` that of one taught
    by the training recordings.
    """

    cell: str
    file: str
    n_rows: int
    copies: float
    membership: float
    distance: float | None = None
    distance_of_real: float | None = None
    uar: float | None = None
    uar_of_real: float | None = None


def write(folder: Path, figures: MadeFigures) -> None:
    """Writes a cell's figures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{figures.cell}{SUFFIX}", json.dumps(as_plain(figures), sort_keys=True).encode())


def read(folder: Path) -> tuple[MadeFigures, ...]:
    """Reads all figures of a folder; none where there is no such folder. Raises: RunError where one is damaged."""
    return tuple(_one(path) for path in sorted(folder.glob(f"*{SUFFIX}")))


def _one(path: Path) -> MadeFigures:
    problems: list[str] = []
    try:
        table = json.loads(path.read_bytes()[:MAX_BYTES])
    except (OSError, ValueError, RecursionError):
        raise RunError(
            f"{path.name}: expected figures of made rows; it cannot be read. Run the study anew."
        ) from None
    found = build(MadeFigures, table, path.name, problems)
    if found is None:
        raise RunError(f"{problems[0]} Run the study anew.")
    return found
