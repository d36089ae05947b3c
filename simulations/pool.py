"""Cells in several processes at once, one torch thread each. A worker imports what a cell needs, and no more.

Guarantees:
  - A worker ends when the process that started it is gone, however that ended: nobody writes to a run that
    another process goes on with.
  - A worker that dies is an error that says how to go on; nothing it had finished is lost.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import Queue
from queue import Empty

from sottovoce.common.errors import RunError
from sottovoce.common.run_files import CellFacts, RoundFacts
from sottovoce.common.study import load as load_study
from sottovoce.simulations.cells import Job, compute

POLL_SECONDS = 0.1


def computed_at_once(
    jobs: list[Job], workers: int, on_round: Callable[[RoundFacts], None]
) -> Iterator[CellFacts]:
    """Yields cells as they end; tells of their rounds as they come.

    Raises:
        RunError: a worker died. Whatever a cell itself raises comes through.
    """
    context = multiprocessing.get_context("spawn")  # torch and threads do not survive a fork
    told: Queue[RoundFacts] = context.Queue()
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin_worker, initargs=(told, os.getpid())
    )
    try:
        waiting = {pool.submit(_compute_in_worker, job) for job in jobs}
        while waiting:
            done, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
            for record in _drained(told):
                on_round(record)
            yield from map(_result, done)
        for record in _drained(told):
            on_round(record)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[CellFacts]) -> CellFacts:
    try:
        return future.result()
    except BrokenProcessPool:
        raise RunError(
            "A worker process ended before its work was done; perhaps memory ran out. "
            "Nothing is lost: go on with --resume, with fewer --workers."
        ) from None


def _drained(told: "Queue[RoundFacts]") -> Iterator[RoundFacts]:
    while True:
        try:
            yield told.get_nowait()
        except Empty:
            return


_told: "Queue[RoundFacts] | None" = None  # in a worker: where its rounds are told


def _begin_worker(told: "Queue[RoundFacts]", parent: int) -> None:
    global _told
    import torch

    torch.set_num_threads(1)
    _told = told
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: nobody may write to a run that another process goes on with."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


def _compute_in_worker(job: Job) -> CellFacts:
    if _told is None:
        raise RuntimeError("a worker began without its initializer")
    return compute(job, load_study(job.study_file), _told.put)
