"""What `sottovoce server status` tells: who takes part, which studies were offered, which runs there are."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from sottovoce.common.errors import SottovoceError
from sottovoce.common.processes import read_mark
from sottovoce.server.deployed_run import DeployedRun, State, runs_of
from sottovoce.server.home import MARK, STATUS, CoordinatorHome
from sottovoce.server.registry import Registry


def coordinator_process(home: CoordinatorHome) -> int | None:
    """Returns the number of the coordinator's process, if one runs here."""
    found = read_mark(home.run / MARK)
    return None if found is None else found[0]


def standing(home: CoordinatorHome) -> dict[str, Any]:
    """Returns plain facts: names, counts and times."""
    registry = Registry.open(home.registry)
    return {
        "name": home.settings.name,
        "running": coordinator_process(home) is not None,
        "public_key": home.key.public_hex,
        "coordinator": _said(home),
        "members": [
            {key: value for key, value in asdict(member).items() if key not in ("node_key_pem", "serial")}
            for member in registry.sites()
        ],
        "studies": [
            {
                "study": one.study,
                "sites": list(one.sites),
                "approved": sorted(set(one.sites) & registry.approved(one.study)),
            }
            for one in registry.offers()
        ],
        "runs": [_run(home, name) for name in runs_of(home)],
    }


def _run(home: CoordinatorHome, name: str) -> dict[str, Any]:
    try:
        run = DeployedRun.open(home, name)
        return {"run": name, "study": run.plan.study_digest, **asdict(run.state)}
    except SottovoceError as error:  # the others are told all the same
        return {"run": name, "study": "", **asdict(State()), "state": "damaged", "reason": str(error)}


def standing_lines(plain: dict[str, Any]) -> Iterator[RenderableType]:
    """Yields what a terminal shows of it."""
    up = "running" if plain["running"] else "NOT RUNNING: start it with `sottovoce server start`"
    yield f"{plain['name']}: {up}"
    for problem in plain["coordinator"].get("problems", ()) if plain["running"] else ():
        yield f"PROBLEM: {problem}"
    yield f"Public key {plain['public_key']}"
    members = _table("who", "role", "certificate ends", "last seen", "")
    for one in plain["members"]:
        gone = f"revoked {_when(one['revoked_at'])}" if one["revoked_at"] else ""
        members.add_row(one["name"], one["role"], _when(one["not_after"]), _when(one["last_seen"]), gone)
    yield members
    studies = _table("study", "approved by", "missing")
    for one in plain["studies"]:
        missing = sorted(set(one["sites"]) - set(one["approved"]))
        studies.add_row(
            one["study"][:16], ", ".join(one["approved"]) or "nobody", ", ".join(missing) or "nobody"
        )
    yield studies
    runs = _table("run", "study", "state", "round", "")
    for one in plain["runs"]:
        runs.add_row(
            one["run"], one["study"][:16], one["state"], f"{one['round']}/{one['rounds']}", one["reason"]
        )
    yield runs


def _when(seconds: int | None) -> str:
    if not seconds:
        return "never"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _said(home: CoordinatorHome) -> dict[str, Any]:
    try:
        found = json.loads((home.run / STATUS).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
