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
from contextlib import suppress
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
    load_app,
)
from sottovoce.simulations.engines.worker import Receiver, Sender, serve

MAX_TRIES = 2
EXPIRED = ErrorCode.MESSAGE_UNAVAILABLE
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
        try:
            load_app(
                app_reference
            )  # while they start: an app that is none is told here, not by dying workers
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers."""
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
        busy = {worker.connection: worker for worker in self._workers if worker.task}
        for connection in wait(list(busy), seconds):
            self._read(busy[connection])  # type: ignore[index]
            self._dispatch()  # before anybody looks at the reply: the worker shall not wait
        for worker in self._workers:
            if worker.task and has_expired(self._messages[worker.task]):
                self._fail(worker.task, "the site was at work when the deadline was over", EXPIRED)
                self._replace(worker)
        self._dispatch()

    def _read(self, worker: "_Worker") -> None:
        try:
            reply, state = worker.receiver.receive()
        except (EOFError, OSError):
            self._lost(worker)
            return
        key, worker.task = worker.task, ""
        if state is not None:
            self._contexts[self._messages[key].metadata.dst_node_id].state = state
        self._done[key] = reply

    def _dispatch(self) -> None:
        """Hands out the queue, in its order, one task to a worker.

        A second task would save the fraction of a millisecond that a worker waits for its next one, and would
        wait in vain behind a site that hangs. It could also leave both sides waiting for each other to read.
        """
        for worker in self._workers:
            while self._queue and not worker.task:
                self._hand(worker, self._queue.popleft())

    def _hand(self, worker: "_Worker", key: str) -> None:
        message = self._messages[key]
        if has_expired(message):
            self._fail(key, "the deadline was over", EXPIRED)
            return
        worker.task = key
        context = self._contexts[message.metadata.dst_node_id]
        # A worker that is gone is noticed when it is read from.
        with suppress(OSError):
            worker.sender.send(worker.sender.frame((message, context)))

    def _lost(self, worker: "_Worker") -> None:
        """Puts the task of a worker that died back, or gives it up."""
        key = worker.task
        self._tries[key] += 1
        if self._tries[key] < MAX_TRIES:
            self._queue.appendleft(key)
        else:
            self._fail(key, "the site's process ended twice", ErrorCode.CLIENT_APP_CRASHED)
        self._replace(worker)

    def _replace(self, worker: "_Worker") -> None:
        worker.kill()
        self._workers[self._workers.index(worker)] = _Worker(self._app_reference)

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
    """One process, with the key of what it was sent and has not answered."""

    def __init__(self, app_reference: str) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy locks that other threads hold
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, app_reference), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        self.sender, self.receiver = Sender(self.connection), Receiver(self.connection)
        self.task = ""

    @property
    def process_id(self) -> int:
        return self._process.pid or 0

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()

    def close(self) -> None:
        """Lets an idle worker end by itself, and ends a busy one."""
        if self.task:
            self.kill()
            return
        self.connection.close()
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self.kill()
