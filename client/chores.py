"""What an agent does beside training, now and then: renew its certificate, hand in checkpoints, fetch offers.

    chores = Chores([Chore(name="renew", period_seconds=3600, work=renew)])
    chores.start(); ...; chores.report(); chores.close()

Guarantees:
  - Chores run in a thread of their own, one after the other: whatever they raise, and however long they hang, training
    goes on, and what went wrong is one sentence in the report.
  - After a failure a chore is tried again sooner than its period, but never more often than every `RETRY_SECONDS`.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sottovoce.client.agent_files import now
from sottovoce.common.errors import SottovoceError

RETRY_SECONDS = 30.0

_log = logging.getLogger("sottovoce.client.agent")


@dataclass(frozen=True, kw_only=True)
class Chore:
    """A piece of work without arguments. It ends by itself: it has timeouts of its own."""

    name: str
    period_seconds: float
    work: Callable[[], object]


@dataclass
class _Past:
    due: float = 0.0
    last: str = ""
    n_done: int = 0
    n_failed: int = 0
    error: str = ""


@dataclass
class Chores:
    """Chores under way."""

    chores: Sequence[Chore]
    _past: dict[str, _Past] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _changed: Callable[[], None] = lambda: None

    def start(self, changed: Callable[[], None] = lambda: None) -> None:
        """Begins; `changed` is called after each chore."""
        self._changed = changed
        self._past = {chore.name: _Past() for chore in self.chores}
        if self.chores:
            # A daemon: a consortium service that hangs does not hold up the end of the agent.
            threading.Thread(target=self._run, name="chores", daemon=True).start()

    def close(self) -> None:
        """Ends after the chore that is under way."""
        self._stop.set()

    def report(self) -> dict[str, dict[str, Any]]:
        """Returns when each chore was last done, how often, and its last error."""
        return {
            name: {"last": past.last, "done": past.n_done, "failed": past.n_failed, "error": past.error}
            for name, past in self._past.items()
        }

    def _run(self) -> None:
        while not self._stop.is_set():
            for chore in self.chores:
                if time.monotonic() >= self._past[chore.name].due and not self._stop.is_set():
                    self._do(chore, self._past[chore.name])
            nearest = min(past.due for past in self._past.values())
            self._stop.wait(max(0.05, nearest - time.monotonic()))

    def _do(self, chore: Chore, past: _Past) -> None:
        try:
            chore.work()
            past.error, past.n_done, pause = "", past.n_done + 1, chore.period_seconds
        except Exception as error:
            said = str(error) if isinstance(error, SottovoceError) else f"a defect: {type(error).__name__}"
            if said != past.error:
                _log.warning(
                    "%s: %s", chore.name, said, exc_info=not isinstance(error, SottovoceError | OSError)
                )
            past.error, past.n_failed = said, past.n_failed + 1
            pause = min(chore.period_seconds, RETRY_SECONDS)
        past.last, past.due = now(), time.monotonic() + pause
        self._changed()
