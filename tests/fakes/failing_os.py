"""The operating system's calls that write, as several processes would have them, in one process of a test.

    with FailingOs() as machine:
        machine.plan("site-1", {17: "kill_after"})
        with machine.acting("site-1"):
            ...                       # the 17th write of site-1 happens, and then the process is gone: `Killed`

What a dead process would still write, in handlers of the exception that stands for its end, is not written.
Calls of SQLite and of buffered files go past this: a kill lies between them, never within one.
"""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Self
from unittest.mock import patch

Trouble = Literal["kill_before", "kill_after", "torn", "full"]
TROUBLES: tuple[Trouble, ...] = ("kill_before", "kill_after", "torn", "full")
NOBODY = ""


class Killed(BaseException):
    """The process is gone: no handler of the code under test may swallow this."""

    def __init__(self, who: str) -> None:
        super().__init__(who)
        self.who = who


class FailingOs:
    """Counts the writing calls of each process, and lets planned ones fail."""

    def __init__(self) -> None:
        self._plans: dict[str, dict[int, Trouble]] = {}
        self._actor = NOBODY
        self._stack = ExitStack()
        self.calls: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self.dead: set[str] = set()

    def plan(self, who: str, troubles: Mapping[int, Trouble]) -> None:
        """Says what goes wrong at which writing call of a process, counted from its first."""
        self._plans[who] = dict(troubles)

    def calm(self) -> None:
        """Nothing goes wrong any more."""
        self._plans.clear()

    @contextmanager
    def acting(self, who: str) -> Iterator[None]:
        """What is written within is written by this process."""
        before, self._actor = self._actor, who
        try:
            yield
        finally:
            self._actor = before

    def killed(self, who: str) -> Killed:
        """Returns the end of a process; from now on it writes nothing."""
        self.dead.add(who)
        return Killed(who)

    def start(self, who: str) -> None:
        """A new process of this name."""
        self.dead.discard(who)

    def __enter__(self) -> Self:
        for name in ("open", "write", "fsync", "ftruncate", "replace"):
            self._stack.enter_context(patch.object(os, name, self._failing(name, getattr(os, name))))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self._actor == NOBODY or (name == "open" and not _writes(*arguments[1:2])):
                return real(*arguments, **named)
            trouble = self._next()
            if trouble == "kill_before":
                raise self.killed(self._actor)
            if trouble == "full" and name in ("open", "write", "fsync"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if trouble == "torn":
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise self.killed(self._actor)
            result = real(*arguments, **named)
            if trouble == "kill_after":
                if name == "open":
                    os.close(result)
                raise self.killed(self._actor)
            return result

        return call

    def _next(self) -> Trouble | None:
        who = self._actor
        if who in self.dead:
            raise Killed(who)
        self.calls[who] += 1
        trouble = self._plans.get(who, {}).get(self.calls[who])
        if trouble is not None:
            self.met[trouble] += 1
        return trouble


def _writes(flags: int = 0) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
