"""A run's folder: who works in it, and what survives a crash.

    runs/<name>/study.toml run.json rounds.jsonl checkpoints/ predictions/ predictions.jsonl metrics.json report.html

Guarantees:
  - Two processes never work in one folder: the second gets a RunError.
  - A folder that holds anything but a run is never replaced.
  - A study that was changed after its run began is noticed.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sottovoce.common.config import as_plain, build
from sottovoce.common.errors import RunError
from sottovoce.common.files import lock_file, write_whole
from sottovoce.common.run_files import RunFacts, check_is_run, read_run
from sottovoce.common.study import Study, loads


@dataclass(frozen=True, kw_only=True)
class Local:
    """What only this machine needs to know to go on with a run (`local.json`): it is no part of the result."""

    twins: bool
    data: Mapping[str, str] = field(default_factory=dict)


def create(run: Path, *, overwrite: bool) -> None:
    """Makes an empty run folder.

    Raises:
        RunError: the folder holds a run already (and `overwrite` is not said), or something else.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        if not (run / "run.json").is_file():
            raise RunError(f"{run}: expected a new or empty folder; it holds something that is no run.")
        if not overwrite:
            raise RunError(
                f"{run}: holds a run already. Go on with it by --resume {run}, replace it by --overwrite, "
                "or name another folder with --out."
            )
        with locked(run):
            shutil.rmtree(run)
    try:
        for part in ("checkpoints", "predictions"):
            (run / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{run}: cannot be made ({error.strerror}). Name another folder with --out.") from None


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the folder for this process; the lock goes with the process, however it ends."""
    with ExitStack() as held:
        try:
            held.enter_context(lock_file(run / ".lock"))
        except BlockingIOError:
            raise RunError(f"{run}: another process works in it. Wait for it, or stop it first.") from None
        except OSError as error:
            raise RunError(f"{run}: expected a run folder ({error.strerror}).") from None
        yield


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    write_whole(path, text.encode())


def write_local(run: Path, local: Local) -> None:
    """Writes local.json."""
    write_text(run / "local.json", json.dumps(as_plain(local), indent=1) + "\n")


def read_started(run: Path) -> tuple[Study, RunFacts, Local]:
    """Returns what a run began with.

    Raises:
        RunError: no run, a damaged one, or one whose study file was changed since.
    """
    check_is_run(run)
    facts = read_run(run / "run.json")
    try:
        study = loads((run / "study.toml").read_text(encoding="utf-8"))
        table = json.loads((run / "local.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{run}: cannot go on; a file is missing or damaged ({error}). Start a new run."
        ) from None
    problems: list[str] = []
    local = build(Local, table, "", problems)
    if local is None:
        raise RunError(f"{run}/local.json: {problems[0]} Start a new run.")
    if facts.study_digest != study.digest():
        raise RunError(
            f"{run}: study.toml was changed after the run began; its digest is another. "
            "Put the old file back, or start a new run."
        )
    return study, facts, local
