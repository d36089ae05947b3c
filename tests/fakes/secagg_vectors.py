"""Writes tests/vectors/secagg/*.json: `PYTHONPATH=src:. python -m tests.fakes.secagg_vectors`.

Transcripts of whole attempts and, one file for all, what must be refused. docs/protocol.md, section 8, says what is
in them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sottovoce.common.errors import SecureSumError
from sottovoce.common.secagg.journal import PHASES
from tests.fakes.secagg import Attempt, World
from tests.fakes.secagg_deviations import DEVIATIONS, Refusal

FOLDER = Path(__file__).parents[1] / "vectors" / "secagg"
TRANSCRIPTS: Mapping[str, tuple[int, Mapping[int, str], Mapping[str, int]]] = {
    "transcript-nobody-lost": (3, {}, {}),
    "transcript-one-lost-before-sharing": (4, {2: "deal"}, {}),
    "transcript-one-lost-before-its-vector": (4, {0: "mask"}, {}),
    "transcript-losses-in-every-phase": (
        15,
        {0: "advert", 4: "deal", 7: "mask", 11: "consent", 13: "reveal"},
        {},
    ),
    "transcript-abandoned": (4, {1: "deal", 3: "mask"}, {}),
    "transcript-ring-of-8-bits": (4, {2: "mask"}, {"ring_bits": 8, "bound": 31, "length": 7}),
    "transcript-ring-of-16-bits": (5, {0: "mask"}, {"ring_bits": 16, "bound": 6553, "length": 7}),
}


def write_vectors(folder: Path) -> list[Path]:
    """Makes every vector anew and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {name: transcript(n_sites, lost, **world) for name, (n_sites, lost, world) in TRANSCRIPTS.items()}
    made["refusals"] = {"refusals": [refusal(deviation.name, deviation.play()) for deviation in DEVIATIONS]}
    paths = []
    for name, table in made.items():
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(table, indent=1) + "\n")
    return paths


def transcript(n_sites: int, lost: Mapping[int, str], **world: Any) -> dict[str, Any]:
    """One attempt, whole."""
    attempt = World(n_sites, **world).attempt()
    table: dict[str, Any] = {
        **_world(attempt),
        "session": attempt.session.encoded.decode(),
        "vectors": [values.tolist() for values in attempt.values],
        "lost": {attempt.world.site(number): phase for number, phase in lost.items()},
    }
    try:
        found = attempt.run(lost)
        table |= {"sum": found.values.tolist(), "survivors": list(found.survivors)}
    except SecureSumError as error:
        table |= {"refused": error.reason}
    return table | {"messages": [_message(*line) for line in attempt.log]}


def refusal(name: str, found: Refusal) -> dict[str, Any]:
    """What one party received, up to what it must refuse."""
    attempt, error = found.attempt, found.error
    party = json.loads(error.complaint)["complaint"]["accuser"]
    site = 0 if party != "coordinator" else None
    sites = [attempt.world.site(number) for number in range(attempt.world.n_sites)]
    table: dict[str, Any] = {
        "name": name,
        "sites": sites,
        "session": attempt.session.encoded.decode(),
        "party": party,
        "reason": error.reason,
        "accused": error.accused,
    }
    if site is None:
        received = [line for line in attempt.log if line[2] == party]
    else:
        received = [line for line in attempt.log if line[2] == party]
        received = [line for line in received if PHASES.index(line[0]) < PHASES.index(found.phase)]
        if name == "consistency-round-left-out":
            received = received[:3]
        elif _asked_twice(attempt, found):
            received += [(found.phase, "coordinator", party, attempt.messages[site])]
        # What an earlier life recorded; marks of this attempt come from answering what was received.
        marks = [] if received else attempt.world.journals[site].marks
        table |= {
            "own": _own(attempt),
            "coins": f"coins of {site} in attempt {attempt.session.attempt}",
            "vector": attempt.values[site].tolist(),
            "journal": [[mark.round, mark.attempt, mark.phase] for mark in marks],
        }
    return table | {
        "received": [_message(*line) for line in received],
        "phase": found.phase,
        "message": found.message.hex(),
    }


def _asked_twice(attempt: Attempt, found: Refusal) -> bool:
    marks = attempt.world.journals[0].marks
    return (
        bool(marks)
        and marks[-1].phase == found.phase
        and marks[-1].attempt == attempt.session.attempt
        and ("once and in its turn" in str(found.error))
    )


def _world(attempt: Attempt) -> dict[str, Any]:
    return {
        "sites": [attempt.world.site(number) for number in range(attempt.world.n_sites)],
        "signing_key_seeds": [f"site {number}" for number in range(attempt.world.n_sites)],
        "coordinator_key_seed": "coordinator",
        "coins": [f"coins of {number} in attempt 1" for number in range(attempt.world.n_sites)],
        "own": _own(attempt),
    }


def _own(attempt: Attempt) -> dict[str, Any]:
    table = asdict(attempt.world.agreement)
    return table | {"coordinator": table.pop("roster")["coordinator"]}


def _message(phase: str, sender: str, to: str, data: bytes) -> dict[str, str]:
    return {"phase": phase, "from": sender, "to": to, "bytes": data.hex()}


if __name__ == "__main__":
    for path in write_vectors(FOLDER):
        print(path.name)
