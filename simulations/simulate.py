"""A study on one machine, from recordings to a report: `sottovoce simulate`.

    run = start_run(Path("study.toml"), Execution(workers=2), data={}, out=None, twins=True)

A study is cells: one federation for each seed, fold and arm (`cells.py`). With `workers` > 1 and the engine
`inprocess`, several cells are computed at once; with the other engines, one after the other, each spread.

Guarantees:
  - The result does not depend on the number of workers, nor on how often the run was interrupted.
  - A finished cell is never computed again; a cell that was interrupted goes on from its last round.
  - If this process dies, the processes it started die too.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from sottovoce.client.app import withheld
from sottovoce.common import predictions, summary
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import CorpusError, RunError
from sottovoce.common.folds import n_folds
from sottovoce.common.generative import figures
from sottovoce.common.generative.added import added_by
from sottovoce.common.generative.added import in_words as added_in_words
from sottovoce.common.predictions import Prediction
from sottovoce.common.privacy import of_study
from sottovoce.common.privacy_specs import NoPrivacy
from sottovoce.common.progress import Note, OnEvent, Step, silent
from sottovoce.common.provenance import machine, now, versions
from sottovoce.common.run_files import (
    CellFacts,
    RoundFacts,
    RunFacts,
    last_of_each,
    read_rounds,
    round_line,
    write_run,
)
from sottovoce.common.study import Execution, Study
from sottovoce.common.study import load as load_study
from sottovoce.common.summarise import summarise
from sottovoce.common.transfer import facts_of, in_words
from sottovoce.server.report import write_report
from sottovoce.server.rounds import Cell
from sottovoce.simulations.cells import FEDERATED, POOLED, Job, arms_of, compute, n_rounds
from sottovoce.simulations.pool import computed_at_once
from sottovoce.simulations.prepare import lay_out, prepare
from sottovoce.simulations.run_folder import (
    Local,
    create,
    locked,
    read_started,
    write_local,
    write_text,
)

STATES = "states"  # what sites keep from round to round; with the checkpoints, until the run is done
WORK = "work"  # a run's own copy of the features, by site; removed when the run is done


def start_run(
    study_file: Path,
    execution: Execution,
    *,
    data: Mapping[str, Path],
    out: Path | None = None,
    twins: bool = False,
    overwrite: bool = False,
    on_event: OnEvent = silent,
) -> Path:
    """Runs a study from its beginning and returns the run's folder.

    Raises:
        StudyError, CorpusError, AudioError, WeightsError, RunError, QuorumError: each says what to mend.
    """
    study = load_study(study_file)
    run = out or Path("runs") / study.name
    execution = resolve(execution)
    initial, added = facts_of(study), added_by(study)  # before anything is made: the files may not be here
    create(run, overwrite=overwrite)
    with locked(run):
        write_text(run / "study.toml", study_file.read_text(encoding="utf-8"))
        write_local(run, Local(twins=twins, data={name: str(path.resolve()) for name, path in data.items()}))
        facts = RunFacts(
            format=1,
            name=run.name,
            study_digest=study.digest(),
            stamp=stamp_of(study),
            started=now(),
            engine=execution.engine,
            workers=execution.workers,
            device=execution.device,
            versions=versions(),
            machine=machine(),
            initial=initial,
            added=added,
        )
        write_run(run / "run.json", facts)
        _go(run, study, facts, execution, data, twins, on_event)
    return run


def resume_run(
    run: Path, execution: Execution, *, data: Mapping[str, Path], on_event: OnEvent = silent
) -> Path:
    """Goes on with a run that was interrupted. Folders are those it began with, unless `data` names others.

    Raises:
        RunError: the folder is no run, is damaged or in use, or its study was changed.
    """
    study, facts, local = read_started(run)
    with locked(run):
        folders = {name: Path(path) for name, path in local.data.items()} | dict(data)
        _go(run, study, facts, resolve(execution), folders, local.twins, on_event)
    return run


def resolve(execution: Execution) -> Execution:
    """Returns the execution with `device = "auto"` decided. Raises: RunError where there is no such device."""
    import torch

    if execution.device == "auto":
        return replace(execution, device="cuda" if torch.cuda.is_available() else "cpu")
    if execution.device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: torch finds no CUDA device here. Use --device auto or cpu.")
    return execution


def stamp_of(study: Study) -> str:
    """Returns what every artefact of a run says of privacy; where noise is secret, also how often it was spent."""
    stamp = of_study.stamp(study)
    n = sum(cell.arm == FEDERATED for cell in cells_of(study, twins=False))
    if n == 1 or isinstance(study.privacy, NoPrivacy) or study.privacy.seeded_noise:
        return stamp
    return f"{stamp}; in one federation: this run made {n}, and a patient of several gave away more"


def cells_of(study: Study, *, twins: bool) -> list[Cell]:
    """Returns the cells of a study, in the order in which they are computed."""
    folds = study.evaluation.only_folds or range(n_folds(study.evaluation.folds))
    return [
        Cell(seed=seed, fold=fold, arm=arm)
        for seed in study.evaluation.seeds
        for arm in arms_of(study, twins=twins)
        for fold in folds
    ]


def _go(
    run: Path,
    study: Study,
    facts: RunFacts,
    execution: Execution,
    data: Mapping[str, Path],
    twins: bool,
    on_event: OnEvent,
) -> None:
    found = prepare(study, data, workers=execution.workers, on_event=on_event)
    on_event(Note(text=facts.stamp))
    for line in in_words(facts.initial) if facts.initial else ():
        on_event(Note(text=line))
    if facts.added:
        on_event(Note(text=added_in_words(facts.added)))
    sites = lay_out(study, found.prepared, run / WORK, on_event)
    _check_scored(study, SiteData.open(run / WORK / POOLED))
    facts = replace(facts, corpora=found.corpora, sites=sites, skipped=found.prepared.skipped)
    write_run(run / "run.json", facts)
    jobs = [_job(run, cell, execution) for cell in cells_of(study, twins=twins)]
    done = _compute_all(run, study, facts, jobs, len(sites), on_event)
    _finish(run, study, replace(facts, cells=done, ended=now()), jobs)
    shutil.rmtree(run / WORK)
    shutil.rmtree(run / STATES, ignore_errors=True)


def _check_scored(study: Study, everybody: SiteData) -> None:
    """Before anything is trained: the folds that are asked for may have nobody to score."""
    folds = study.evaluation.only_folds or range(n_folds(study.evaluation.folds))
    cells = [(seed, fold) for seed in study.evaluation.seeds for fold in folds]
    if not any(withheld(everybody, study, seed=seed, fold=fold).any() for seed, fold in cells):
        raise CorpusError(
            f"evaluation: expected somebody to score; nobody of {len(set(everybody.speakers)):,} speakers is in fold "
            f"{', '.join(map(str, folds))}. Ask for all folds or others (only_folds), or for fewer (k)."
        )


def _job(run: Path, cell: Cell, execution: Execution) -> Job:
    return Job(
        cell=cell,
        study_file=run / "study.toml",
        sites=run / WORK / "sites",
        pooled=run / WORK / "pooled",
        ledgers=run / WORK / "ledgers" / cell.name,
        extracts=run / "ledgers" / cell.name,
        states=run / STATES / cell.name,
        made=run / figures.FOLDER,
        checkpoint=run / "checkpoints" / f"{cell.name}.safetensors",
        rounds=run / "predictions" / f"{cell.name}.rounds.jsonl",
        predictions=run / "predictions" / f"{cell.name}.jsonl",
        execution=execution,
    )


def _compute_all(
    run: Path, study: Study, facts: RunFacts, jobs: list[Job], n_sites: int, on_event: OnEvent
) -> tuple[CellFacts, ...]:
    known = {(cell.seed, cell.fold, cell.arm): cell for cell in facts.cells}
    ready = [job for job in jobs if job.predictions.exists()]
    waiting = [job for job in jobs if not job.predictions.exists()]
    book = _Book(run, study, jobs, n_sites, on_event)
    for job in ready:
        # A worker may have ended a cell that the killed process never heard of.
        for record in read_rounds(job.rounds):
            book.round(record)
        book.finish(job.cell.seed, job.cell.fold, job.cell.arm)
    done = {(job.cell.seed, job.cell.fold, job.cell.arm): _of(known, job) for job in ready}
    for cell in _computed(waiting, study, book.round):
        done[cell.seed, cell.fold, cell.arm] = cell
        book.finish(cell.seed, cell.fold, cell.arm)
        # After each cell, so that its time and digest survive a crash of the next.
        write_run(run / "run.json", replace(facts, cells=tuple(done.values())))
    return tuple(done[job.cell.seed, job.cell.fold, job.cell.arm] for job in jobs)


def _of(known: Mapping[tuple[int, int, str], CellFacts], job: Job) -> CellFacts:
    cell = job.cell
    # A crash between the predictions and run.json leaves a cell without its time: the result is whole all the same.
    return known.get(
        (cell.seed, cell.fold, cell.arm), CellFacts(seed=cell.seed, fold=cell.fold, arm=cell.arm)
    )


def _computed(jobs: list[Job], study: Study, on_round: Callable[[RoundFacts], None]) -> Iterator[CellFacts]:
    if not jobs:
        return
    workers = min(jobs[0].execution.workers, len(jobs))
    if jobs[0].execution.engine != "inprocess" or workers == 1:
        for job in jobs:
            yield compute(job, study, on_round)
    else:
        yield from computed_at_once(jobs, workers, on_round)


class _Book:
    """Keeps rounds.jsonl and tells of progress."""

    def __init__(self, run: Path, study: Study, jobs: list[Job], n_sites: int, on_event: OnEvent) -> None:
        self._path = run / "rounds.jsonl"
        self._on_event = on_event
        self._left = {
            (job.cell.seed, job.cell.fold, job.cell.arm): n_rounds(study, job.cell.arm, n_sites)
            for job in jobs
        }
        self._total = sum(self._left.values())
        self._repair()

    def round(self, record: RoundFacts) -> None:
        """Writes a round down."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(round_line(record))
        cell = (record.seed, record.fold, record.arm.split("@")[0])
        self._left[cell] = max(self._left[cell] - 1, 0)
        loss = "" if record.loss is None else f"  loss {record.loss:.3f}"
        self._tell(f"{record.arm}, seed {record.seed}, fold {record.fold}{loss}")

    def finish(self, seed: int, fold: int, arm: str) -> None:
        """Counts a cell as done, also the rounds that an earlier process computed."""
        if self._left[seed, fold, arm]:
            self._left[seed, fold, arm] = 0
            self._tell(f"{arm}, seed {seed}, fold {fold}: done")

    def _tell(self, detail: str) -> None:
        done = self._total - sum(self._left.values())
        self._on_event(Step(stage="rounds", done=done, total=self._total, detail=detail))

    def _repair(self) -> None:
        """Cuts off a line that a crash left half written."""
        if not self._path.exists():
            self._path.touch()
        data = self._path.read_bytes()
        if not data.endswith(b"\n"):
            write_text(self._path, data[: data.rfind(b"\n") + 1].decode("utf-8"))


def _finish(run: Path, study: Study, facts: RunFacts, jobs: list[Job]) -> None:
    rows: list[Prediction] = []
    for job in jobs:
        rows += predictions.read(job.predictions, n_classes=len(study.labels.classes))
    predictions.write(run / "predictions.jsonl", rows)
    rounds = last_of_each(read_rounds(run / "rounds.jsonl"))
    summary.write(run / "metrics.json", summarise(rows, study, stamp=facts.stamp, rounds=rounds))
    write_text(run / "rounds.jsonl", "".join(map(round_line, rounds)))
    write_run(run / "run.json", facts)
    write_report(run)
