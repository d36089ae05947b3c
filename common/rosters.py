"""A roster as a file: who takes part in a study's secure sums, under which keys. Canonical JSON and nothing else."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from sottovoce.common.config import build, canonical
from sottovoce.common.errors import LedgerError
from sottovoce.common.keys import public_key_from
from sottovoce.common.secagg.session import COORDINATOR, MAX_SITES, MIN_SITES, Member, Roster

MAX_ROSTER_BYTES = 65_536


def roster_of(coordinator: str, sites: Sequence[str]) -> Roster:
    """Returns the roster of a coordinator's key and sites as NAME=KEY. Raises: KeyFileError, LedgerError."""
    members = []
    for said in sites:
        name, equals, key = said.partition("=")
        if not equals or not name or not name.isprintable():
            raise LedgerError(f"--site: expected NAME=KEY; came {said[:60]!r}.")
        members.append(Member(site=name, public_key=public_key_from(key)))
    ordered = tuple(sorted(members, key=lambda member: member.site))
    return sound(Roster(coordinator=public_key_from(coordinator), members=ordered))


def read_roster(path: Path) -> Roster:
    """Reads a roster file. Raises: LedgerError where it cannot be read or is none."""
    try:
        with path.open("rb") as file:
            return roster_from(file.read(MAX_ROSTER_BYTES + 1))
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror}).") from None


@lru_cache(maxsize=16)
def roster_from(data: bytes) -> Roster:
    """Returns the roster whose canonical bytes these are. Raises: LedgerError for all other bytes."""
    problems: list[str] = []
    try:
        roster = build(Roster, json.loads(data[: MAX_ROSTER_BYTES + 1].decode("ascii")), "roster", problems)
    except (ValueError, RecursionError):
        roster, problems = None, ["expected JSON in ASCII"]
    if roster is not None and canonical(roster).encode() == data.strip():
        return sound(roster)
    raise LedgerError(
        f"Expected a roster of coordinator and sites; came another file. {' '.join(problems[:2])}"
    )


def sound(roster: Roster) -> Roster:
    """Returns a roster in which every site is one. Raises: LedgerError."""
    members = roster.members
    names, keys = {member.site for member in members}, {member.public_key for member in members}
    if len(names) < len(members) or len(keys | {roster.coordinator}) <= len(members) or COORDINATOR in names:
        raise LedgerError(
            "Expected every site once, each with a key of its own that is not the coordinator's."
        )
    if not MIN_SITES <= len(members) <= MAX_SITES:
        raise LedgerError(f"Expected {MIN_SITES} to {MAX_SITES} sites; came {len(members)}.")
    return roster
