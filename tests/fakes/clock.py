"""A clock that stands still until it is told to go on, or somebody sleeps.

with Clock() as clock:
    clock.advance(3600)         # for `time.time`, `time.monotonic`, `time.sleep` and Flower's messages
"""

import datetime
import time
from contextlib import ExitStack
from typing import Self
from unittest.mock import patch

from flwr.app.message import message as flower_message


class Clock:
    """All clocks of this process, while it is entered."""

    def __init__(self) -> None:
        self._began, self._gone = time.time(), 0.0
        self._stack = ExitStack()

    @property
    def now(self) -> float:
        """Seconds since the clock was entered."""
        return self._gone

    def advance(self, seconds: float) -> None:
        """Goes on; never back."""
        self._gone += max(0.0, seconds)

    def __enter__(self) -> Self:
        for name, clock in {
            "time": self._time,
            "monotonic": self._time,
            "time_ns": lambda: int(self._time() * 1e9),
            "sleep": self.advance,
        }.items():
            self._stack.enter_context(patch.object(time, name, clock))
        self._stack.enter_context(patch.object(flower_message, "now", self._date))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _time(self) -> float:
        return self._began + self._gone

    def _date(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._time(), datetime.UTC)
