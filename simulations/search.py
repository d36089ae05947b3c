"""The nested search of `make results`: for each outer fold, settings chosen on that fold's training speakers alone.

    python -m sottovoce.simulations.search --ravdess DIR [--out runs/results/search.json]

For outer fold f the other folds are its inner folds: each is scored once by a head that has heard neither it nor f. The
setting with the best UAR over all of them is chosen for f; where settings are equal, the first of the list, which is
the simplest. A head is the optimum that the study's federated rounds go to (`softmax.py`), so that what is compared is
the setting and not where training stopped. With five folds, a head that has heard neither a nor b serves both a and b:
ten heads for each setting, none of which is ever scored on an outer fold's test speakers for that fold's choice.

Guarantees:
  - No test speaker's features or labels change the setting that is chosen for the fold that tests them.
  - Every setting that was compared is in the result, with its inner figure; and how many met the outer folds by this.
  - Features are normalised by the code of a real run; recordings that enrol are neither trained on nor scored.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import combinations, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.common import metrics
from sottovoce.common.config import build
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import SottovoceError
from sottovoce.common.folds import fold_of, n_folds
from sottovoce.common.progress import show_progress
from sottovoce.common.study import Study, loads
from sottovoce.simulations.cells import POOLED
from sottovoce.simulations.prepare import lay_out, prepare
from sottovoce.simulations.results_studies import COLUMNS, Column, Setting, study_text
from sottovoce.simulations.run_folder import write_text
from sottovoce.simulations.softmax import fit_head

Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A setting with the rows that it makes of all recordings that may be trained on."""

    setting: Setting
    rows: Rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Recordings:
    """What the recordings are, and in which outer fold their speakers are tested. `weights` are by class, public."""

    labels: Labels
    folds: Labels
    weights: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen for an outer fold, and the inner UAR of every setting, in the order of the grid."""

    fold: int
    setting: Setting
    inner_uar: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The search of one column. `digest` is of the column's study as it was searched."""

    column: str
    digest: str
    compared: tuple[Setting, ...]
    choices: tuple[Choice, ...]


def choices_of(
    candidates: Sequence[Candidate], recordings: Recordings, *, workers: int = 1
) -> tuple[Choice, ...]:
    """Returns the choice for each outer fold: the same for any number of workers."""
    if workers == 1:
        inner = [_inner_uars(candidate, recordings) for candidate in candidates]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            inner = list(pool.map(_inner_uars, candidates, repeat(recordings)))
    folds = sorted(set(recordings.folds.tolist()))
    return tuple(
        Choice(
            fold=fold,
            setting=candidates[int(np.argmax([uars[fold] for uars in inner]))].setting,
            inner_uar=tuple(uars[fold] for uars in inner),
        )
        for fold in folds
    )


def _inner_uars(candidate: Candidate, recordings: Recordings) -> dict[int, float]:
    """Returns a setting's UAR on the training speakers of each outer fold, over its inner folds pooled."""
    n_classes = len(recordings.weights)
    folds = sorted(set(recordings.folds.tolist()))
    counts = dict.fromkeys(folds, metrics.Confusion.zero(n_classes))
    for one, other in combinations(folds, 2):
        seen = ~np.isin(recordings.folds, (one, other))
        head = fit_head(
            candidate.rows[seen],
            recordings.labels[seen],
            n_classes=n_classes,
            decay=candidate.setting.decay,
            weights=recordings.weights[recordings.labels[seen]],
        )
        for outer, inner in ((one, other), (other, one)):
            scored = recordings.folds == inner
            answers = head.predict(candidate.rows[scored])
            counts[outer] += metrics.Confusion.of(recordings.labels[scored], answers, n_classes=n_classes)
    return {fold: count.uar for fold, count in counts.items()}


def search(column: Column, ravdess: Path, *, workers: int = 1) -> Found:
    """Searches a column's grid. Raises: CorpusError, AudioError, WeightsError."""
    first = _study(column, column.grid[0])
    made = list(_candidates(column, ravdess, workers))
    recordings = made[0][1]
    found = choices_of([candidate for candidate, _ in made], recordings, workers=workers)
    return Found(column=column.title, digest=first.digest(), compared=column.grid, choices=found)


def _study(column: Column, setting: Setting) -> Study:
    return loads(study_text(column, setting, folds=range(5), n_seeds=1))


def _candidates(column: Column, ravdess: Path, workers: int) -> Iterator[tuple[Candidate, Recordings]]:
    """Yields each setting's rows, prepared and normalised as a run would."""
    data: dict[tuple[float | None, str], SiteData] = {}
    with tempfile.TemporaryDirectory() as folder, show_progress(quiet=False) as on_event:
        for number, setting in enumerate(column.grid):
            study = _study(column, setting)
            heard = (setting.shrinkage, setting.scale)
            if heard not in data:
                prepared = prepare(study, {"ravdess": ravdess}, workers=workers, on_event=on_event).prepared
                place = Path(folder) / str(number)
                lay_out(study, prepared, place, on_event)
                data[heard] = SiteData.open(place / POOLED)
            mine = data[heard]
            usable = mine.select(mine.trains & ~mine.enrols & (mine.copies == 0))
            yield (
                Candidate(setting=setting, rows=np.array(usable.pooled(setting.stream))),
                _recordings(study, usable),
            )


def _recordings(study: Study, data: SiteData) -> Recordings:
    homes = sorted(set(data.homes))
    where = {
        speaker: fold
        for home in homes
        for speaker, fold in fold_of(
            study.evaluation.folds,
            0,
            home,
            [one for one, at in zip(data.speakers, data.homes, strict=True) if at == home],
        ).items()
    }
    if sorted(set(where.values())) != list(range(n_folds(study.evaluation.folds))):
        raise SottovoceError(f"Expected speakers in every fold of {study.name}; some fold has none.")
    return Recordings(
        labels=data.labels,
        folds=np.array([where[speaker] for speaker in data.speakers], np.int64),
        weights=np.asarray(study.training.class_weights or [1.0] * len(study.labels.classes)),
    )


def write(path: Path, found: Sequence[Found]) -> None:
    """Writes the search as JSON, with how many settings were compared and how many met the outer folds."""
    columns = [asdict(one) for one in found]
    counts = {
        "compared_by_inner_folds": sum(len(one.compared) for one in found),
        "met_outer_folds": sum(len({choice.setting for choice in one.choices}) for one in found),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"counts": counts, "columns": columns}, indent=1) + "\n")


def read(path: Path) -> list[Found]:
    """Reads what `write` wrote. Raises: SottovoceError where it is something else."""
    problems: list[str] = []
    table: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found = [build(Found, column, "columns", problems) for column in table.get("columns", [])]
    if problems or not found:
        raise SottovoceError(f"{path}: expected the result of a search; {' '.join(problems) or 'came none.'}")
    return [one for one in found if one is not None]


def search_all(ravdess: Path, out: Path, *, workers: int = 1) -> list[Found]:
    """Searches every column that has not been searched with this study and grid; the rest is read."""
    known = {one.digest: one for one in read(out)} if out.exists() else {}
    found = []
    for column in COLUMNS:
        old = known.get(_study(column, column.grid[0]).digest())
        if old is not None and old.compared == column.grid:
            found.append(old)
        else:
            found.append(search(column, ravdess, workers=workers))
        write(out, found)
    return found


def main() -> None:
    """Searches and prints."""
    parser = argparse.ArgumentParser(description="Choose settings inside training speakers.")
    parser.add_argument("--ravdess", type=Path, required=True, help="folder of the RAVDESS speech corpus")
    parser.add_argument("--out", type=Path, default=Path("runs/results/search.json"))
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    for one in search_all(arguments.ravdess, arguments.out, workers=arguments.workers):
        for choice in one.choices:
            print(
                f"{one.column}, fold {choice.fold}: {choice.setting.label} ({100 * max(choice.inner_uar):.1f})"
            )


if __name__ == "__main__":
    main()
