"""What a site must remember across restarts so that it never answers one phase twice.

Secrets of an attempt are never on disk, so a site that restarts in mid-attempt has lost it; all it keeps is how
far it had answered. A mark is made durable before the answer leaves, so the answer that a crash swallowed is never
given anew with other coins.

Guarantees:
  - Marks of a run that a journal took are strictly ascending by (round, attempt, phase).
  - All attempts at one round are of one model: a site masks for no other, with which two sums could be compared.
"""

from dataclasses import dataclass
from typing import Protocol

from sottovoce.common.secagg.complaint import Phase

PHASES: tuple[Phase, ...] = ("advert", "deal", "mask", "consent", "reveal")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """That a phase of an attempt was answered, for which model, and with what: the SHA-256 of the reply's bytes.

    `model_digest` is "" in marks of before it was kept.
    """

    run: str
    round: int
    attempt: int
    phase: str
    reply_sha256: str
    model_digest: str = ""

    def after(self, last: "Mark | None") -> bool:
        """Says whether this mark may follow the last one of its run."""
        if last is None:
            return True
        is_other = bool(last.model_digest) and self.model_digest != last.model_digest
        return self._place() > last._place() and not (self.round == last.round and is_other)

    def _place(self) -> tuple[int, int, int]:
        return self.round, self.attempt, PHASES.index(self.phase)


class Journal(Protocol):
    """Where marks are kept: durable storage, of which the protocol knows this much."""

    def record(self, mark: Mark) -> bool:
        """Makes the mark durable (fsync) and returns True; returns False, storing nothing, unless
        `mark.after(last)` for the last mark of `mark.run` that is stored. Whatever it raises ends the attempt."""
        ...
