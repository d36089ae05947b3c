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


releasing = ClientApp()


@releasing.train()
def release(message: Message, context: Context) -> Message:
    """Releases through this hospital's own ledger; between reserve and commit it trains as long as it is told."""
    from sottovoce.client.home import Hospital
    from sottovoce.client.site_ledger import Ask, Released, SiteLedger
    from sottovoce.common import study as studies

    content: Any = message.content
    asked, hospital = content["config"], Hospital.open(Path(str(context.node_config["home"])))
    (digest,) = (folder.name for folder in hospital.studies.iterdir())
    study = studies.load(hospital.study_file(digest))

    def make(_: frozenset[str]) -> bytes:
        if "touch" in asked:
            Path(asked["touch"]).write_text(str(os.getpid()))
        end = time.monotonic() + float(asked.get("sleep", 0.0))
        while time.monotonic() < end and not Path(asked.get("end", "")).is_file():
            sum(range(10_000))  # at work, not asleep
        return b"an update"

    ask = Ask(what="update", run="0-0", steps=1, round=int(asked["round"]), model="ab" * 32)
    with SiteLedger.open(hospital.ledger) as ledger:
        released = ledger.release(study, ask, manifest=b"", make=make)
    said = released.data if isinstance(released, Released) else b"denied"
    return Message(RecordDict({"config": ConfigRecord({"body": said})}), reply_to=message)
