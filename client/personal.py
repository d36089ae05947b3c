"""What a site keeps of its own from round to round: SCAFFOLD's control, the personal parts of a model. Never sent.

    kept = PersonalState(folder, study_digest=digest, seed=0, fold=1)
    kept.write(3, {"head.weight": array}, oldest=2)
    kept.read(3)

    FOLDER/DIGEST/seed0-fold1/round-000003.safetensors             nobody has withdrawn
    FOLDER/DIGEST/seed0-fold1-without-MARK/...                     begun anew when somebody did
    FOLDER/DIGEST/seed0-fold1-released/...                         of numbers that the ledger released, and public ones

FOLDER is the node's `state-folder`: in a hospital inside of its home, in a simulation inside of the run. Where the
hospital seals its features, this is sealed under the same key: AES-256-GCM, a salt and so a key for each file.

Guarantees:
  - What a round left is there in full after a crash, in any process, or it is not there; a damaged file is refused.
  - An attempt at a round starts from what an earlier round left, so that a repeated attempt gives the same bits.
  - A round that is answered again after a coordinator went back removes what later rounds had left.
  - What was kept before somebody withdrew is in no later round, and is removed: by `begin`, and by `forget`.
  - With a key nothing lies open, and what lies there open or was altered is refused; no other user can read any of it.
"""

import json
import re
import secrets
import shutil
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sottovoce.common.errors import RunError
from sottovoce.common.files import synchronise, write_whole
from sottovoce.common.keys import derived_key, opened, sealed
from sottovoce.common.weights import Array, Weights, digest

RELEASED = "released"  # the series of what follows from released and public numbers alone
PLAIN, SEALED = ".safetensors", ".sealed"
SALT_BYTES = 32
_NAME = re.compile(r"round-(\d{6})\.(?:safetensors|sealed)")


class PersonalState:
    """The state of one site in one federation: a file for each round that may still be needed.

    `series` is "" while nobody has withdrawn, then a mark of who did; or `RELEASED`, which no withdrawal ends.
    """

    def __init__(
        self,
        folder: Path,
        *,
        study_digest: str,
        seed: int,
        fold: int,
        series: str = "",
        key: bytes | None = None,
        synchronised: bool = True,
    ) -> None:
        self._name = f"seed{seed}-fold{fold}"
        suffix = f"-{RELEASED}" if series == RELEASED else f"-without-{series}" if series else ""
        self._folder, self._place = folder, folder / study_digest / f"{self._name}{suffix}"
        self._key, self._series = key, series
        self._synchronised = (
            synchronised  # a simulation outlives its processes alone, and does it 100 times faster
        )

    def begin(self) -> None:
        """Removes what this federation kept while others, or more, were still heard."""
        if self._series == RELEASED or not self._place.parent.is_dir():
            return
        whole = (self._name, f"{self._name}-without-")
        for place in self._place.parent.iterdir():
            if place != self._place and (place.name == whole[0] or place.name.startswith(whole[1])):
                _remove(place, synchronised=self._synchronised)

    def begins_anew(self, round: int) -> bool:
        """Says whether somebody has withdrawn since `round`: what it left is gone, and nothing older is there."""
        return self._series not in ("", RELEASED) and self.before(round + 1) is None

    def read(self, round: int) -> dict[str, Array]:
        """Returns what this site left in a round.

        Raises:
            RunError: it left nothing, the file is damaged, or it does not lie as this site's key wants it.
        """
        path = self._file(round)
        try:
            data = self._opened(path, path.read_bytes())
            found = load(data)
            tensors = {name: np.array(found[name]) for name in sorted(found)}
            seal = _metadata(data).get("sha256")
        except (SafetensorError, OSError, ValueError) as error:
            raise RunError(
                f"{path}: expected what this site kept in round {round}; {type(error).__name__} on reading it. "
                f"{self._other_way(path)}Go on from a round whose file is there, or start the federation anew."
            ) from None
        if seal != digest(tensors):
            raise RunError(f"{path}: expected a whole file; this one is damaged. Start the federation anew.")
        return tensors

    def before(self, round: int) -> int | None:
        """Returns the last round before `round` in which this site left something."""
        return max((number for number in self._rounds() if number < round), default=None)

    def write(self, round: int, tensors: Weights, *, oldest: int) -> None:
        """Keeps what a round left, and drops what is older than `oldest` or of a later round."""
        self._make_place()
        ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
        path, data = self._file(round), save(ordered, {"sha256": digest(ordered)})
        write_whole(path, self._closed(path, data), mode=0o600, synchronised=self._synchronised)
        for number in self._rounds():
            if number > round or number < min(oldest, round):
                self._file(number).unlink(missing_ok=True)

    def _rounds(self) -> list[int]:
        if not self._place.is_dir():
            return []
        return [int(found[1]) for path in self._place.iterdir() if (found := _NAME.fullmatch(path.name))]

    def _file(self, round: int) -> Path:
        return self._place / f"round-{round:06d}{PLAIN if self._key is None else SEALED}"

    def _make_place(self) -> None:
        """Makes the folders, for this user alone; each is in its parent after a crash of the machine too."""
        for place in (self._folder, self._place.parent, self._place):
            if not place.is_dir():
                place.mkdir(parents=True, exist_ok=True, mode=0o700)
                if self._synchronised:
                    synchronise(place.parent)

    def _context(self, path: Path) -> bytes:
        """What a sealed file is bound to: its study, federation, series and round."""
        return (
            f"sottovoce/personal state/1\n{path.parent.parent.name}\n{path.parent.name}\n{path.name}".encode()
        )

    def _closed(self, path: Path, data: bytes) -> bytes:
        if self._key is None:
            return data
        salt, context = secrets.token_bytes(SALT_BYTES), self._context(path)
        return salt + sealed(derived_key(self._key, salt=salt, info=context), data, context)

    def _opened(self, path: Path, data: bytes) -> bytes:
        if self._key is None:
            return data
        salt, context = data[:SALT_BYTES], self._context(path)
        found = opened(derived_key(self._key, salt=salt, info=context), data[SALT_BYTES:], context)
        if found is None:  # altered, moved, or under another key: one answer to all of these
            raise ValueError
        return found

    def _other_way(self, path: Path) -> str:
        """Says where the file lies open and a key is set, or the other way round."""
        if not path.with_suffix(PLAIN if self._key else SEALED).exists():
            return ""
        lies, names = ("open", "a") if self._key else ("sealed", "no")
        return (
            f"It lies {lies}, and hospital.toml names {names} features_key: set that back, or remove the study's "
            "folder in state/. "
        )


def forget(folder: Path) -> None:
    """Removes from a `state-folder` all that does not follow from released numbers: somebody has withdrawn.

    Raises:
        OSError: something could not be removed.
    """
    studies = [place for place in folder.iterdir() if place.is_dir()] if folder.is_dir() else []
    for place in [place for study in studies for place in study.iterdir()]:
        if not place.name.endswith(f"-{RELEASED}"):
            _remove(place, synchronised=True)


def _remove(place: Path, *, synchronised: bool) -> None:
    shutil.rmtree(place)
    if synchronised:
        synchronise(place.parent)


def _metadata(data: bytes) -> dict[str, str]:
    """Returns what a safetensors file says of itself; `load` has checked its header."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(header.get("__metadata__", {}))
