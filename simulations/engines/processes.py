"""Sites spread over worker processes on this machine.

    with ProcessGrid("sottovoce.client.app:app", nodes, run_config, workers=2) as grid:
        ...

Guarantees:
  - Drives any Flower `ClientApp` that can be imported by name; a node's `Context.state` follows it from
    worker to worker.
  - The number of workers, their speed and their crashes change no bit of a result: draws are keyed by site
    and round, and replies are put in order by who sums them.
  - A worker that dies (`kill -9`, out of memory) is replaced, and the site it was at work for is asked once
    more in the fresh one. A site whose worker dies twice gets an error reply: it has dropped out.
  - A site that is late is ended: when a message's time is over, its worker is killed and replaced.
  - Memory here is that of the replies that were not pulled yet; `flower.exchange` bounds them.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import wait
from time import monotonic
from types import TracebackType
from typing import Self

from sottovoce.common.flower import (
    FOREVER_SECONDS,
    ErrorCode,
    LocalGrid,
    Message,
    Node,
    Scalar,
    error_reply,
    has_expired,
)
from sottovoce.simulations.engines.worker import Receiver, Sender, serve

MAX_TRIES = 2
# A worker may be sent its next task while it is at work only if that task surely fits the socket's buffer:
# else both sides could wait for each other to read.
PREFETCH_BYTES = 16_384
EXPIRY_CHECK_SECONDS = 0.5
CLOSE_SECONDS = 2.0


class ProcessGrid(LocalGrid):
    """A grid over `workers` spawned processes."""

    def __init__(
        self, app_reference: str, nodes: Sequence[Node], run_config: Mapping[str, Scalar], *, workers: int
    ) -> None:
        super().__init__(nodes, run_config)
        self._app_reference = app_reference
        self._messages: dict[str, Message] = {}  # all that are not answered and pulled
        self._tries: dict[str, int] = {}
        self._queue: deque[str] = deque()
        self._done: dict[str, Message] = {}
        self._workers = [_Worker(app_reference) for _ in range(max(1, min(workers, len(nodes))))]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.close()

    @property
    def worker_ids(self) -> list[int]:
        """Returns the process ids of the workers."""
        return [worker.process_id for worker in self._workers]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queues the messages and hands them to workers with nothing to do."""
        self._forget_expired()
        ids = []
        for message in messages:
            key = self._accept(message)
            ids.append(key)
            self._messages[key], self._tries[key] = message, 0
            self._queue.append(key)
        self._dispatch()
        return ids

    def pull_messages(self, message_ids: Iterable[str], *, timeout: float | None = None) -> Iterable[Message]:
        """Returns the replies that are there; waits for the first one."""
        wanted = list(message_ids)
        end = monotonic() + (FOREVER_SECONDS if timeout is None else timeout)
        while True:
            found = [key for key in wanted if key in self._done]
            open_keys = [key for key in wanted if key in self._messages]
            left = end - monotonic()
            if found or not open_keys or left <= 0:
                return [self._take(key) for key in found]
            self._wait(min(left, EXPIRY_CHECK_SECONDS))

    def _wait(self, seconds: float) -> None:
        by_connection = {worker.connection: worker for worker in self._workers if worker.tasks}
        for connection in wait(list(by_connection), seconds):
            self._read(by_connection[connection])  # type: ignore[index]
        for worker in self._workers:
            if worker.tasks and has_expired(self._messages[worker.tasks[0]]):
                self._replace(worker, late=True)
        self._dispatch()

    def _read(self, worker: "_Worker") -> None:
        try:
            reply, state = worker.receiver.receive()
        except (EOFError, OSError):
            self._replace(worker, late=False)
            return
        key = worker.tasks.popleft()
        if state is not None:
            self._contexts[self._messages[key].metadata.dst_node_id].state = state
        self._done[key] = reply

    def _dispatch(self) -> None:
        """Hands out the queue in its order, to the workers with least to do first."""
        for depth in (0, 1):
            for worker in self._workers:
                if self._queue and len(worker.tasks) == depth:
                    self._hand(worker, self._queue[0])

    def _hand(self, worker: "_Worker", key: str) -> None:
        message = self._messages[key]
        if has_expired(message):
            self._queue.popleft()
            self._fail(key, "the deadline was over", ErrorCode.MESSAGE_UNAVAILABLE)
            return
        frame = worker.sender.frame((message, self._contexts[message.metadata.dst_node_id]))
        if worker.tasks and frame.n_bytes > PREFETCH_BYTES:
            return
        self._queue.popleft()
        worker.tasks.append(key)
        try:
            worker.sender.send(frame)
        except OSError:
            self._replace(worker, late=False)

    def _replace(self, worker: "_Worker", *, late: bool) -> None:
        """Puts a fresh worker in the place of one that died or is late, and its tasks back."""
        worker.kill()
        running, *waiting = worker.tasks
        self._workers[self._workers.index(worker)] = _Worker(self._app_reference)
        self._queue.extendleft(reversed(waiting))
        self._tries[running] += 1
        if late:
            self._fail(
                running, "the site was at work when the deadline was over", ErrorCode.MESSAGE_UNAVAILABLE
            )
        elif self._tries[running] >= MAX_TRIES:
            self._fail(running, "the site's process ended twice", ErrorCode.CLIENT_APP_CRASHED)
        else:
            self._queue.appendleft(running)

    def _fail(self, key: str, reason: str, code: int) -> None:
        self._done[key] = error_reply(self._messages[key], reason, code)

    def _take(self, key: str) -> Message:
        del self._messages[key], self._tries[key]
        return self._finish(self._done.pop(key))

    def _forget_expired(self) -> None:
        """Drops answers that nobody came for: their round went on without them."""
        for key in [key for key in self._done if has_expired(self._messages[key])]:
            self._take(key)


class _Worker:
    """One process, with the keys of what it was sent and has not answered, in order."""

    def __init__(self, app_reference: str) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy locks that other threads hold
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, app_reference), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        self.sender, self.receiver = Sender(self.connection), Receiver(self.connection)
        self.tasks: deque[str] = deque()

    @property
    def process_id(self) -> int:
        return self._process.pid or 0

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()

    def close(self) -> None:
        """Lets an idle worker end by itself, and ends a busy one."""
        if self.tasks:
            self.kill()
            return
        self.connection.close()
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self.kill()
