"""A ServerApp that does what a test writes into a folder: `superlinks.py` is the other end.

It runs in the process that a SuperLink starts for a run, and reads `ask-N.json`.
"""

import json
import time
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid, ServerApp

from sottovoce.server.superlink import answer_quickly

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Asks what the folder says, until `end` is there: looks for replies each `pause` seconds, once `gate` is there."""
    answer_quickly()
    folder, n = Path(str(context.run_config["folder"])), 0
    while not (folder / "end").exists():
        ask = folder / f"ask-{n}.json"
        if ask.exists():
            write(folder / f"answer-{n}.json", answers(grid, json.loads(ask.read_bytes())))
            n += 1
        time.sleep(0.01)


def write(path: Path, content: Any) -> None:
    path.with_suffix(".part").write_text(json.dumps(content))
    path.with_suffix(".part").rename(path)


def answers(grid: Grid, ask: dict[str, Any]) -> Any:
    if ask["kind"] == "nodes":
        return sorted(grid.get_node_ids())
    began = time.monotonic()
    ids = grid.push_messages([message(ask, node) for node in ask["nodes"]])
    # By whom was asked: a SuperLink that answers in a node's place names itself as the sender.
    waiting = dict(zip(ids, ask["nodes"], strict=True))
    found: dict[int, Any] = {}
    while "gate" in ask and not Path(ask["gate"]).exists():
        time.sleep(0.01)
    while waiting and time.monotonic() < began + ask["patience"]:
        for reply in grid.pull_messages(list(waiting)):
            found[waiting.pop(reply.metadata.reply_to_message_id)] = said(reply)
        time.sleep(ask.get("pause", 0.01))
    return {"seconds": time.monotonic() - began, "replies": found}


def message(ask: dict[str, Any], node: int) -> Message:
    import numpy as np

    if "sealed" in ask:  # what a coordinator sealed elsewhere, as it is
        packed = ProtoRecordDict.FromString(bytes.fromhex(ask["sealed"]))
        return Message(recorddict_from_proto(packed), node, ask["kind"], ttl=ask["ttl"])
    content = RecordDict({"config": ConfigRecord({"body": bytes(ask["bytes"]), **ask["config"]})})
    if ask["floats"]:
        content["arrays"] = ArrayRecord([np.arange(ask["floats"], dtype=np.float32)])
    return Message(content, node, ask["kind"], ttl=ask["ttl"], group_id="round 1 attempt 0")


def said(reply: Message) -> dict[str, Any]:
    if reply.has_error():
        return {"error": reply.error.reason}
    content: Any = reply.content
    if "config" not in content:
        return {"sealed": recorddict_to_proto(content).SerializeToString().hex()}
    config = {
        key: value.hex() if isinstance(value, bytes) else value for key, value in content["config"].items()
    }
    arrays = {name: array.data.hex() for name, array in content.get("arrays", {}).items()}
    return {"config": config, "arrays": arrays}
