"""What an agent gave back and its coordinator has not fetched yet: it does not leave over it.

    given = Given()
    given.add(reply)                                # after it was sent
    if given.wait_fetched(fleet, seconds=10.0):
        fleet.leave()                               # else it ends without a word, and nothing of it is lost

A SuperLink looks whether a node is online before it looks for the node's reply: a node that left is unavailable, and
the reply that it had given back is deleted. What a hospital computed, and paid for from its privacy budget, was lost
whenever its agent ended before its coordinator's next look. A node that only falls silent stays online for two
heartbeats, which is time enough.

Guarantees:
  - A reply counts as fetched once the SuperLink forgot it, which it does when the coordinator has all of it, or once
    nobody can fetch it any more: its time or its run is over, or the SuperLink is another one.
  - Nothing of a reply is kept here but its id and its time.
"""

import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from sottovoce.common.errors import DeploymentError
from sottovoce.common.flower import Message

REMEMBERED = 16  # a coordinator that asks on has fetched what it asked for before
LOOK_SECONDS = 0.1
NOBODY_WAITS = ("run_over", "server")  # a SuperLink fails (500) over a run that it never heard of


class Holds(Protocol):
    """A line to a SuperLink that says whether a reply still lies there: `Fleet`."""

    def holds(self, run_id: int, reply_id: str) -> bool:
        """Says whether a reply still waits to be fetched. Raises: DeploymentError."""


@dataclass(frozen=True, kw_only=True)
class _Reply:
    run_id: int
    reply_id: str
    until: float  # of this machine's clock


class Given:
    """The last replies of an agent, also those of connections that broke."""

    def __init__(self) -> None:
        self._replies: deque[_Reply] = deque(maxlen=REMEMBERED)

    def add(self, reply: Message) -> None:
        """Remembers a reply that was sent."""
        metadata = reply.metadata
        until = metadata.created_at + metadata.ttl
        self._replies.append(_Reply(run_id=metadata.run_id, reply_id=metadata.message_id, until=until))

    def wait_fetched(self, line: Holds, *, seconds: float) -> bool:
        """Waits until all of them are fetched, at most so many seconds, and says whether they are.

        Raises:
            DeploymentError: the line fails.
        """
        end = time.monotonic() + seconds
        while self._replies:
            if not _waits(line, self._replies[0]):
                self._replies.popleft()
            elif time.monotonic() > end:
                return False
            else:
                time.sleep(LOOK_SECONDS)
        return True


def _waits(line: Holds, reply: _Reply) -> bool:
    if time.time() > reply.until:
        return False
    try:
        return line.holds(reply.run_id, reply.reply_id)
    except DeploymentError as error:
        if error.reason not in NOBODY_WAITS:
            raise
        return False
