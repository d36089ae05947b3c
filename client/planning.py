"""What a site's budget leaves for a study, asked before anybody approves it.

Guarantees:
  - The answer is the rule's that the hard stop asks at approval, over everything that the domain has promised.
  - Nothing is written, and no lock is taken.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sottovoce.client.site_ledger import charges_of
from sottovoce.common.errors import LedgerError
from sottovoce.common.ledger.entries import AnyCharge
from sottovoce.common.ledger.reading import read_ledger, readable_entries
from sottovoce.common.ledger.state import fold
from sottovoce.common.privacy.budget import PldAccountant
from sottovoce.common.privacy.planning import Room, misfits, room_in, rounds_left
from sottovoce.common.privacy_specs import Private
from sottovoce.common.study import Study


def room_of(folder: Path, domain: str | None, cap: float | None) -> Room:
    """Reads a ledger's domain: the one named, or the only one.

    Raises:
        LedgerError: the ledger cannot be believed, or it has no such domain, or several and none is named.
    """
    entries, broken = readable_entries(read_ledger(folder).ledger)
    if broken is not None:
        raise LedgerError(f"{folder}: cannot be believed from entry {len(entries)} on: {broken}.")
    state = fold(entries)
    names = list(state.domains)
    if domain is None and len(names) == 1:
        domain = names[0]
    if domain is None or domain not in names:
        came = "none was named" if domain is None else f"came {domain!r}"
        raise LedgerError(
            f"--domain: expected one of {', '.join(names) or 'no domain: none was opened'}; {came}."
        )
    return room_in(state, domain, cap=cap)


def left_for(study: Study, spec: Private, room: Room, *, in_ledger: bool) -> Mapping[str, Any]:
    """Returns how many rounds a study like this may have, and why it might be denied whatever it costs."""

    def charges(rounds: int) -> tuple[AnyCharge, ...]:
        return charges_of(replace(study, federation=replace(study.federation, rounds=rounds)))

    rounds, decision = rounds_left(charges, room, PldAccountant())
    return {
        "rounds": rounds,
        "cap": room.cap,
        "delta": room.opened.delta,
        "decided_by": decision.decided_by,
        "domain": room.opened.domain if in_ledger else None,
        "promised": room.promised_epsilon,
        "misfits": misfits(spec, room.opened) if in_ledger else [],
    }
