"""The caller's end of the worker process: supervised, restarted once for a job, always ended.

Guarantees:
  - A crash, a stall or a kill of the worker never ends the caller: one retry, then one clear error.
  - No process outlives `close()`.
"""

import os
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from sottovoce.common.errors import SynthesisError
from sottovoce.simulations.voices.espeak import MAX_SECONDS
from sottovoce.simulations.voices.worker import Job

ANSWER_SECONDS = 60.0 + MAX_SECONDS
_MAIN = "import sys; from sottovoce.simulations.voices.worker import main; main(int(sys.argv[1]))"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Synthesiser:
    """A worker process that makes recordings, one at a time.

    >>> with Synthesiser() as synthesiser:
    ...     synthesiser.alive
    True
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> "Synthesiser":
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def make(self, job: Job) -> Any:
        """Returns the samples of a job without path, or the size in bytes of the file that was written.

        Raises:
            SynthesisError: the job was refused (the reason is the message), or the worker ended twice.
        """
        for _attempt in range(2):
            answer = self._ask(job)
            if answer is not None:
                break
        else:
            raise SynthesisError(
                "Expected the speech worker to answer; it ended or stalled twice on one recording. "
                "Check memory and that `espeakng-loader` is installed, then run again."
            )
        kind, value = answer
        if kind == "refused":
            raise SynthesisError(value)
        return value

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()  # it keeps nothing: files appear whole or not at all
            self._process.wait()
        self._process = self._connection = None

    def _ask(self, job: Job) -> tuple[str, Any] | None:
        """Returns the worker's answer, or None when it ended or stalled (and is ended now)."""
        if not self.alive:
            self.close()
            self._start()
        connection = self._connection
        if connection is None:
            raise RuntimeError("Expected a started worker.")
        try:
            connection.send(job)
            if connection.poll(ANSWER_SECONDS):
                answer: tuple[str, Any] = connection.recv()
                return answer
        except (EOFError, OSError):
            pass
        self.close()
        return None

    def _start(self) -> None:
        ours, theirs = Pipe()
        # The worker must find this package the way we did, and installed is only one way.
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": paths},
        )
        theirs.close()
        self._connection = ours
