"""Finds and reads what an audit looks at: one ledger's folder, or a run with the ledgers of all its sites.

    LEDGER/  ledger.jsonl  head  [policy.json or policy.toml]
    RUN/     run.json  [metrics.json]  ledgers/<cell>/<site>/{ledger.jsonl, head, policy.json}

Guarantees:
  - Nothing but these files is opened, and no key is.
  - A file that is damaged or missing is a problem to be shown, never an exception; only a folder that is neither a
    ledger nor a run, or a checkpoint that cannot be read, is an error.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sottovoce.common import run_files
from sottovoce.common.config import canonical
from sottovoce.common.errors import LedgerError, PolicyError, RunError
from sottovoce.common.ledger import reading
from sottovoce.common.ledger.store import LEDGER_FILE
from sottovoce.common.ledger.terms import policy_from
from sottovoce.common.run_files import RunFacts

LEDGERS, RUN_FILE = "ledgers", "run.json"
COORDINATOR_SAW = "seen.txt"  # in a run: the newest checkpoint that came with an update
MAX_POLICY_BYTES = 100_000


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A checkpoint that somebody kept, and the name that people know it by."""

    name: str
    note: str


@dataclass(frozen=True, kw_only=True)
class LedgerFiles:
    """One ledger as it lay on disk. `policy` is canonical text, or the file's own where it is no policy."""

    name: str
    ledger: bytes
    head: str | None = None
    policy: str | None = None
    cell: str | None = None
    folder: str | None = None
    seen: tuple[Seen, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunSource:
    """A run's ledgers and what run.json states. `facts` is None where run.json cannot be used."""

    name: str
    facts: RunFacts | None
    uar: tuple[float, float | None, float | None] | None
    ledgers: tuple[LedgerFiles, ...]
    problems: tuple[str, ...] = ()


def find(path: Path) -> LedgerFiles | RunSource:
    """Reads a ledger's folder (or its ledger.jsonl), or a run's. Raises: LedgerError where it is neither."""
    path = folder_of(path)
    if (path / LEDGER_FILE).exists():
        return read_ledger(path, name=path.resolve().name)
    if (path / RUN_FILE).exists() or any(path.glob(f"{LEDGERS}/*/*/{LEDGER_FILE}")):
        return _read_run(path)
    raise LedgerError(
        f"{path}: expected a ledger's folder ({LEDGER_FILE}) or a run's ({RUN_FILE}, {LEDGERS}/); came neither."
    )


def folder_of(path: Path) -> Path:
    """Returns the folder that is meant: that of a ledger.jsonl, or the path itself."""
    return path.parent if path.name == LEDGER_FILE and path.is_file() else path


def read_ledger(folder: Path, *, name: str) -> LedgerFiles:
    """Reads the files of one ledger. Raises: LedgerError where there is none."""
    found = reading.read_ledger(folder)
    policy = None if found.policy_file is None else _policy(found.policy_file)
    return LedgerFiles(name=name, ledger=found.ledger, head=found.head, policy=policy)


def read_seen(paths: Sequence[Path]) -> list[Seen]:
    """Reads checkpoints that others kept. Raises: LedgerError for a file that is none."""
    return [Seen(name=path.name, note=reading.read_note(path)) for path in paths]


def _read_run(folder: Path) -> RunSource:
    problems: list[str] = []
    facts = None
    try:
        facts = run_files.read_run(folder / RUN_FILE)
    except RunError as error:
        problems.append(str(error))
    root = folder / LEDGERS
    places = [site for cell in _folders(root) for site in _folders(cell)]
    return RunSource(
        name=folder.resolve().name,
        facts=facts,
        uar=_uar(folder),
        ledgers=tuple(map(_of_run, places)),
        problems=tuple(problems),
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _uar(folder: Path) -> tuple[float, float | None, float | None] | None:
    """The accuracy that the privacy was paid for, where the run has it. No part of the verdict rests on it."""
    from sottovoce.common import summary

    try:
        figures = summary.read(folder / "metrics.json")
    except RunError:
        return None
    uar = figures.arm(figures.headline).uar
    return uar.value, uar.low, uar.high


def _of_run(folder: Path) -> LedgerFiles:
    """A ledger that cannot be read is an empty one with a problem: the others are judged all the same."""
    name, cell = folder.name, folder.parent.name
    problems: tuple[str, ...] = ()
    seen: list[Seen] = []
    try:
        files = read_ledger(folder, name=name)
    except (LedgerError, OSError) as error:
        files, problems = LedgerFiles(name=name, ledger=b""), (_without(folder, error),)
    if (folder / COORDINATOR_SAW).exists():
        try:
            seen = read_seen([folder / COORDINATOR_SAW])
        except LedgerError as error:
            problems = (*problems, _without(folder, error))
    return replace(files, cell=cell, folder=f"{LEDGERS}/{cell}/{name}", seen=tuple(seen), problems=problems)


def _without(folder: Path, error: Exception) -> str:
    """An error's words without the machine's own paths."""
    return str(error).replace(f"{folder}/", "").replace(str(folder), folder.name)


def _policy(path: Path) -> str:
    """The canonical text of a policy: of JSON as it stands, of TOML as it would be recorded."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_POLICY_BYTES).decode(errors="replace")
    except OSError:
        return ""  # no policy: step 9 says that it is not the one in force
    if path.suffix == ".json":
        return text
    try:
        return canonical(policy_from(tomllib.loads(text)))
    except (tomllib.TOMLDecodeError, PolicyError, RecursionError):
        return text
