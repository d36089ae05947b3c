"""What the doctor says of one thing that it looked at."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at. `cause` and `mend` are empty where all is well."""

    level: Level
    what: str
    cause: str = ""
    mend: str = ""


Findings = Iterator[Finding]


def ok(what: str) -> Finding:
    """Returns that all is well."""
    return Finding(level="ok", what=what)


def warn(what: str, cause: str, mend: str) -> Finding:
    """Returns what will be in the way, or may be meant."""
    return Finding(level="warn", what=what, cause=cause, mend=mend)


def fail(what: str, cause: str, mend: str) -> Finding:
    """Returns what is in the way of training."""
    return Finding(level="fail", what=what, cause=cause, mend=mend)
