"""What a site keeps of its own from round to round: SCAFFOLD's control, the personal parts of a model. Never sent.

    kept = PersonalState(folder, study_digest=digest, seed=0, fold=1)
    kept.write(3, {"head.weight": array}, oldest=2)
    kept.read(3)

    FOLDER/DIGEST/seed0-fold1/round-000003.safetensors

FOLDER is the node's `state-folder`: in a hospital inside of its home, in a simulation inside of the run.

Guarantees:
  - What a round left is there in full after a crash, in any process, or it is not there; a damaged file is refused.
  - An attempt at a round starts from what an earlier round left, so that a repeated attempt gives the same bits.
  - A round that is answered again after a coordinator went back removes what later rounds had left.
"""

import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sottovoce.common.errors import RunError
from sottovoce.common.files import write_whole
from sottovoce.common.weights import Array, Weights, digest

_NAME = re.compile(r"round-(\d{6})\.safetensors")


class PersonalState:
    """The state of one site in one federation: a file for each round that may still be needed."""

    def __init__(
        self, folder: Path, *, study_digest: str, seed: int, fold: int, synchronised: bool = True
    ) -> None:
        self._place = folder / study_digest / f"seed{seed}-fold{fold}"
        self._synchronised = (
            synchronised  # a simulation outlives its processes alone, and does it 100 times faster
        )

    def read(self, round: int) -> dict[str, Array]:
        """Returns what this site left in a round.

        Raises:
            RunError: it left nothing, or the file is damaged.
        """
        path = self._file(round)
        try:
            with safe_open(path, framework="np") as file:
                tensors = {name: np.array(file.get_tensor(name)) for name in sorted(file.keys())}
                seal = (file.metadata() or {}).get("sha256")
        except (SafetensorError, OSError, ValueError) as error:
            raise RunError(
                f"{path}: expected what this site kept in round {round}; {type(error).__name__} on reading it. "
                "Go on from a round whose file is there, or start the federation anew."
            ) from None
        if seal != digest(tensors):
            raise RunError(f"{path}: expected a whole file; this one is damaged. Start the federation anew.")
        return tensors

    def before(self, round: int) -> int | None:
        """Returns the last round before `round` in which this site left something."""
        return max((number for number in self._rounds() if number < round), default=None)

    def write(self, round: int, tensors: Weights, *, oldest: int) -> None:
        """Keeps what a round left, and drops what is older than `oldest` or of a later round."""
        self._place.mkdir(parents=True, exist_ok=True, mode=0o700)
        ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
        data = save(ordered, {"sha256": digest(ordered)})
        write_whole(self._file(round), data, mode=0o600, synchronised=self._synchronised)
        for number in self._rounds():
            if number > round or number < min(oldest, round):
                self._file(number).unlink(missing_ok=True)

    def _rounds(self) -> list[int]:
        if not self._place.is_dir():
            return []
        return [int(found[1]) for path in self._place.iterdir() if (found := _NAME.fullmatch(path.name))]

    def _file(self, round: int) -> Path:
        return self._place / f"round-{round:06d}.safetensors"
