"""Whether a transcript, or a refusal, is what the reference makes of it. Tables are those of `secagg_vectors`."""

import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.fakes import secagg_reference as reference
from tests.fakes.secagg import coins_of


class Disagreement(Exception):
    """The two implementations differ."""


def check_transcript(table: dict[str, Any]) -> int:
    """Replays every message of both sides by the reference and compares bytes; returns how many there were."""
    session = reference.Session(table["session"].encode())
    sites = {name: _site(table, number) for number, name in enumerate(table["sites"])}
    answers: dict[str, dict[int, bytes]] = {phase: {} for phase in reference.PHASES}
    compared = 0
    for line in table["messages"]:
        phase, data = line["phase"], bytes.fromhex(line["bytes"])
        if line["from"] == "coordinator":
            to = session.names.index(line["to"])
            body = reference.asks(session, phase, answers, to)
            expected = reference.envelope(
                reference.ASKS[phase], session.digest, reference.COORDINATOR, body, _key("coordinator")
            )
            asked = data
        else:
            number = session.names.index(line["from"])
            asked = _asked(table, phase, line["from"])
            expected = sites[line["from"]].answer(phase, asked, table["vectors"][number])
            answers[phase][number] = data
        compared += 1
        if expected != data:
            raise Disagreement(f"{phase} from {line['from']} to {line['to']}")
    result = reference.the_sum(session, answers)
    found = (table["survivors"], table["sum"]) if "sum" in table else None
    if (result and ([session.names[j] for j in result[0]], result[1])) != found:
        raise Disagreement("the sum")
    return compared


def check_refusal(table: dict[str, Any]) -> None:
    """The reference's site refuses it too, for the same reason and of the same party."""
    site = _site(table, 0)
    for line in table["received"]:
        site.answer(line["phase"], bytes.fromhex(line["bytes"]), table["vector"])
    try:
        site.answer(table["phase"], bytes.fromhex(table["message"]), table["vector"])
    except reference.Refuse as refused:
        if (refused.reason, refused.accused) != (table["reason"], table["accused"]):
            raise Disagreement(f"{table['name']}: {refused.reason}, {refused.accused}") from None
        return
    raise Disagreement(f"{table['name']}: not refused")


def _asked(table: dict[str, Any], phase: str, site: str) -> bytes:
    lines = [line for line in table["messages"] if (line["phase"], line["to"]) == (phase, site)]
    return bytes.fromhex(lines[0]["bytes"])


def _site(table: dict[str, Any], number: int) -> reference.Site:
    roster = {name: _public(f"site {at}") for at, name in enumerate(table["sites"])}
    coins = table["coins"] if isinstance(table["coins"], str) else table["coins"][number]
    marks = [
        [round_, attempt, reference.PHASES.index(phase)]
        for round_, attempt, phase in table.get("journal", ())
    ]
    return reference.Site(
        table["sites"][number],
        _key(f"site {number}"),
        table["own"],
        roster,
        coins_of(coins),
        marks[-1] if marks else None,
    )


def _key(seed: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(seed.encode()).digest())


def _public(seed: str) -> str:
    return _key(seed).public_key().public_bytes_raw().hex()
