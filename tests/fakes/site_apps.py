"""ClientApps for a site's agent: one that echoes and does what a message asks of it, by reference `module:app`."""

import os
import time
from pathlib import Path
from typing import Any

from sottovoce.common.flower import ClientApp, ConfigRecord, Context, Message, RecordDict

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Sends back what came, and how often this run asked; sleeps, dies or fails when told to."""
    content: Any = message.content
    asked = content["config"]
    if "touch" in asked:
        Path(asked["touch"]).write_text(str(os.getpid()))
    if "sleep" in asked:
        time.sleep(float(asked["sleep"]))
    if "kill" in asked:
        os.kill(os.getpid(), 9)
    if "fail" in asked:
        raise ValueError("secret feature 0.123")
    calls: Any = context.state.setdefault("calls", ConfigRecord({"n": 0}))
    calls["n"] += 1
    config = ConfigRecord({"body": asked["body"], "n": calls["n"]})
    if "environment" in asked:
        config["environment"] = sorted(name for name in os.environ if name in asked["environment"].split())
    records = {"config": config} | {name: content[name] for name in content if name == "arrays"}
    return Message(RecordDict(records), reply_to=message)
