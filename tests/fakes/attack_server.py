"""A ServerApp in an attacker's hands: it sends whatever a test writes into a folder, to whichever node.

It reads `ask-N.json`, a list of {"node", "kind", "bytes": {record: {name: hex}}, "arrays": {record: {name: [dtype,
shape, stype, hex]}}}, and writes `answer-N.json`, a list of {"error"} or {"keys"}.
"""

import json
import time
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from sottovoce.server.superlink import answer_quickly

app = ServerApp()
PATIENCE_SECONDS = 120.0  # the first message waits for a process that imports; a second otherwise


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Sends what the folder says, until `end` is there."""
    answer_quickly()
    folder, n = Path(str(context.run_config["folder"])), 0
    while not (folder / "end").exists():
        ask = folder / f"ask-{n}.json"
        if ask.exists():
            found = [_sent(grid, one) for one in json.loads(ask.read_bytes())]
            (folder / "answer.part").write_text(json.dumps(found))
            (folder / "answer.part").rename(folder / f"answer-{n}.json")
            n += 1
        time.sleep(0.01)


def _sent(grid: Grid, ask: dict[str, Any]) -> dict[str, Any]:
    message = Message(
        _records(ask), int(ask["node"]), str(ask["kind"]), group_id="attack", ttl=PATIENCE_SECONDS
    )
    keys, end = list(grid.push_messages([message])), time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        for reply in grid.pull_messages(keys):
            return {"error": reply.error.reason} if reply.has_error() else {"keys": sorted(reply.content)}
        time.sleep(0.02)
    return {"error": "nothing came"}


def _records(ask: dict[str, Any]) -> RecordDict:
    records = RecordDict()
    for name, items in ask.get("bytes", {}).items():
        records[name] = ConfigRecord({key: bytes.fromhex(value) for key, value in items.items()})
    for name, items in ask.get("arrays", {}).items():
        made = {
            key: Array(dtype=dtype, shape=tuple(shape), stype=stype, data=bytes.fromhex(data))
            for key, (dtype, shape, stype, data) in items.items()
        }
        records[name] = ArrayRecord(made)
    return records
