"""Stopping a hospital: nothing is trained from here on, and what had already left is named.

    stopped = stop(hospital, now=True)
    stopped.left                     # committed releases, by study: rounds, what, epsilon spent
    allow(hospital)                  # `client start --resume`: takes part again

The steps:
  1 the decision is made durable, so that no restart begins again
  2 the agent is asked to end; with `now` it ends its worker at once, else it finishes the message under way and stays
    until its reply is fetched, 10 s at most
  3 with `now`, whatever of the two still runs after `PATIENCE_SECONDS` is killed
  4 the ledger is opened, which burns reservations that came to nothing, and read

Guarantees:
  - With `now`, training has ended within 5 s of the call, whatever it was at.
  - Only the very processes are killed that wrote their names into the agent's lock; a stranger with the same id is not.
  - A reservation whose training was ended is spent, and the ledger says so.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sottovoce.client import agent_files as files
from sottovoce.client.home import Hospital
from sottovoce.common.errors import DeploymentError

if TYPE_CHECKING:
    from sottovoce.client.site_ledger import SiteLedger

PATIENCE_SECONDS = 3.0
GLANCE_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Left:
    """What of a study had left before the stop. `epsilon` is of all its releases so far; None in mode `none`.

    Where noise was `simulated`, it is what they would have cost: they are not private.
    """

    study: str
    name: str
    what: str
    rounds: tuple[int, ...]
    n_releases: int
    epsilon: float | None
    delta: float | None
    simulated: bool


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A stop, as it went: how the agent ended, how many reservations are burned now, and what had left."""

    agent: str
    seconds: float
    burned: tuple[str, ...]
    left: tuple[Left, ...]


def stop(hospital: Hospital, *, now: bool, within: float | None = None) -> Stopped:
    """Stops a hospital. Without `now` it waits for the message under way, at most `within` seconds.

    Raises:
        DeploymentError: the decision cannot be written, or the agent is still at its message after `within` seconds.
        LedgerError, KeyFileError: training has ended, and the ledger cannot be read.
    """
    began = time.monotonic()
    try:
        files.write_stop(hospital.run, files.Stop(now=now))
    except OSError as error:
        raise DeploymentError(
            f"{hospital.run}: the stop cannot be written ({error.strerror}). Make room, or end the agent's service."
        ) from None
    agent = _end(hospital, now=now, within=within)
    seconds = time.monotonic() - began
    burned, left = _of_ledger(hospital)
    return Stopped(agent=agent, seconds=seconds, burned=burned, left=left)


def allow(hospital: Hospital) -> None:
    """Lets a stopped hospital take part again, from the agent's next start."""
    files.allow(hospital.run)


def _end(hospital: Hospital, *, now: bool, within: float | None) -> str:
    running = files.processes(hospital.run)
    if not running:
        return "was not running"
    _signal(running[:1], signal.SIGTERM)
    limit = PATIENCE_SECONDS if now else within
    end = None if limit is None else time.monotonic() + limit
    while any(one.is_running for one in running):
        if end is not None and time.monotonic() > end:
            if not now:
                raise DeploymentError(
                    f"The agent is still at its message after {limit:.0f} s; it ends after it, and none follows. "
                    "To end it in mid-training use `sottovoce client stop --now`."
                )
            # The agent may have put another worker in its place meanwhile.
            _signal((*running, *files.processes(hospital.run)), signal.SIGKILL)
            _wait_for_death(hospital, running)
            return "was killed"
        time.sleep(GLANCE_SECONDS)
    return "ended"


def _wait_for_death(hospital: Hospital, running: tuple[files.Process, ...]) -> None:
    end = time.monotonic() + 1.0
    while any(one.is_running for one in running) and time.monotonic() < end:
        time.sleep(GLANCE_SECONDS)
    if any(one.is_running for one in running):
        raise DeploymentError(
            f"The agent of {hospital.folder} does not end when it is killed: its disk hangs, or it belongs to another "
            "account. End its service."
        )


def _signal(processes: tuple[files.Process, ...], what: signal.Signals) -> None:
    for one in processes:
        if one.is_running:
            try:
                os.kill(one.pid, what)
            except ProcessLookupError:
                continue
            except PermissionError:
                raise DeploymentError(
                    f"The agent runs as process {one.pid} of another account; stop it as that account."
                ) from None


# --- what had left ------------------------------------------------------------------------------------------


def _of_ledger(hospital: Hospital) -> tuple[tuple[str, ...], tuple[Left, ...]]:
    # The accountant behind a ledger takes a second to import: training ends before that.
    from sottovoce.client.site_ledger import SiteLedger
    from sottovoce.common.ledger.reading import read_ledger, readable_entries
    from sottovoce.common.ledger.state import fold

    if not hospital.ledger.is_dir():
        return (), ()
    entries, _ = readable_entries(read_ledger(hospital.ledger).ledger)
    burned = fold(entries).open_releases()
    with SiteLedger.open(hospital.ledger) as ledger:
        return tuple(burned), tuple(_left(ledger))


def _left(ledger: "SiteLedger") -> Iterator[Left]:
    from sottovoce.common.ledger.state import drawn
    from sottovoce.common.privacy.budget import PldAccountant

    state = ledger.budget.state
    for index, grant in state.grants.items():
        releases = [
            one.reserve for one in state.releases.values() if one.reserve.grant == index and one.released
        ]
        charges = tuple(drawn(grant))
        approval = grant.approval
        for what in sorted({one.what for one in releases}):
            mine = [one for one in releases if one.what == what]
            yield Left(
                study=approval.study,
                name=str(approval.facts.get("study", "")),
                what=what,
                rounds=tuple(sorted({one.round for one in mine})),
                n_releases=len(mine),
                epsilon=PldAccountant().epsilon(charges, approval.delta) if charges else None,
                delta=approval.delta if charges else None,
                simulated=bool(charges) and approval.noise == "seeded",
            )
