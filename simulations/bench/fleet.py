"""A round among three hospitals over TLS, beside a round of plain Flower among three stock SuperNodes.

Ours is the production path, as `make federation` starts it: coordinator, SuperLink, three agents, sealed envelopes,
each site's ledger, a checkpoint after every round. What is trained is as good as nothing (a linear model on a few dozen
recordings), so that the round is what the transport makes of it. Flower's is its own: `FedAvg.start`, a ClientApp that
sends back 1,000 floats, a process for each message, a poll every three seconds. Both run on this machine, one after
the other, with the same SuperLink, certificates and node authentication.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sottovoce.common.pki import new_node_key
from sottovoce.common.processes import Child
from sottovoce.common.study import load
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.operations import NEW_SERVER, found
from sottovoce.server.superlink import SuperLink, packed
from sottovoce.simulations.bench.timing import Row, report
from sottovoce.simulations.federation import (
    DOMAIN,
    Federation,
    approve,
    embedded_corpus,
    enrol,
    federation,
    free_ports,
    split_by_site,
    start_hospital,
    wait_for,
)
from sottovoce.simulations.federation import found as found_federation

N_SITES, WARM_ROUNDS = 3, 2
ROUNDS_OF_OURS, ROUNDS_OF_FLOWER = 14, 6
BAR_SECONDS = 1.5
FLOWER_SECONDS = 300.0
_STUDY = """\
format = 1
name = "{name}"
purpose = "research"
labels = {{ classes = ["happy", "sad", "angry", "fearful"] }}
streams = [{{ name = "pooled", pooling = "statistics", parts = [{{ kind = "mfcc" }}] }}]
normalisation = {{ scheme = "constants" }}
model = {{ kind = "linear", stream = "pooled" }}
training = {{ learning_rate = 0.01, optimiser = "sgd", batch_size = 100 }}
privacy = {{ mode = "none" }}
evaluation = {{ folds = {{ kind = "by_speaker", k = 2 }}, every_rounds = 100 }}

[[corpora]]
name = "voices"
synthetic = {{ n_speakers = 12, utterances_per_emotion = 1, n_sites = 3 }}

[federation]
n_sites = 3
rounds = {rounds}
partition = {{ kind = "corpus_sites" }}
deadline_seconds = 60.0
secure_sum = {secure}
"""
_FLOWER_PROJECT = """\
[project]
name = "plain"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr==1.41.0"]
[tool.flwr.app]
publisher = "plain"
[tool.flwr.app.components]
serverapp = "plain.server:app"
clientapp = "plain.client:app"
[tool.flwr.app.config]
rounds = "6"
out = ""
"""
_FLOWER_SERVER = """\
import time
import numpy as np
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

@app.main()
def main(grid, context):
    times = []
    def after(number, arrays):
        times.append(time.monotonic())
        return MetricRecord({"n": number})
    FedAvg(min_available_nodes=3, fraction_evaluate=0.0).start(
        grid, ArrayRecord([np.zeros(1000, np.float32)]), num_rounds=int(context.run_config["rounds"]), evaluate_fn=after
    )
    with open(str(context.run_config["out"]), "w") as file:
        file.write(" ".join(str(b - a) for a, b in zip(times, times[1:])))
"""
_FLOWER_CLIENT = """\
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)
"""


def measure() -> dict[str, Any]:
    """Times rounds of both and returns seconds and ratios."""
    with tempfile.TemporaryDirectory(prefix="sottovoce-fleet-") as folder:
        ours, masked = _ours(Path(folder) / "ours")
        flower = _flower(Path(folder) / "flower")
    plain, stock = statistics.median(ours), statistics.median(flower)
    note = f"median of {len(ours)} rounds; least {min(ours):.2f}, most {max(ours):.2f}"
    return report(
        [
            Row(
                what="Flower's own loop, three SuperNodes",
                value=stock,
                note=f"median of {len(flower)} rounds",
            ),
            Row(
                what="a round of ours",
                value=plain,
                ratio=plain / stock,
                against="Flower's own loop",
                bar=f"at most {BAR_SECONDS} s",
                met=plain <= BAR_SECONDS,
                note=note,
            ),
            Row(
                what="a round of ours with secure sums (five phases)",
                value=statistics.median(masked),
                ratio=statistics.median(masked) / stock,
                against="Flower's own loop",
                note=f"median of {len(masked)} rounds",
            ),
        ]
    )


def _ours(folder: Path) -> tuple[list[float], list[float]]:
    """Returns seconds of rounds without and with secure sums."""
    folder.mkdir(parents=True)
    texts = {
        name: _STUDY.format(name=name, rounds=ROUNDS_OF_OURS, secure=str(name == "masked").lower())
        for name in ("plain", "masked")
    }
    files = {name: folder / f"{name}.toml" for name in texts}
    for name, text in texts.items():
        files[name].write_text(text)
    studies = {name: load(file) for name, file in files.items()}
    places = split_by_site(embedded_corpus(studies["plain"]), folder / "recordings")
    with federation(folder / "federation", list(places), lambda text: None) as made:
        found_federation(made)
        for site, place in places.items():
            enrol(made, site, {"voices": place})
        for file in files.values():
            made.do("server", "offer", made.server, file)
        for site in places:
            approve(made, site, {study.digest(): DOMAIN for study in studies.values()}, modes=("none",))
            start_hospital(made, site)
        for file in files.values():
            made.do("server", "run", made.server, file, "--wait", 60)
        return _seconds(made, "plain"), _seconds(made, "masked")


def _seconds(made: Federation, run: str) -> list[float]:
    lines = (made.server / "runs" / run / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line)["seconds"] for line in lines][WARM_ROUNDS:]


def _flower(folder: Path) -> list[float]:
    """Returns seconds of rounds of Flower as its users have it."""
    folder.mkdir(parents=True)
    app = {
        "pyproject.toml": _FLOWER_PROJECT,
        "plain/__init__.py": "",
        "plain/server.py": _FLOWER_SERVER,
        "plain/client.py": _FLOWER_CLIENT,
    }
    fleet, consortium = free_ports(2)
    text = NEW_SERVER.format(
        name="plain", hosts='"localhost"', fleet=fleet, consortium=consortium, front=0, metrics=0
    )
    home, _ = found(folder / "home", text)
    superlink = SuperLink(home).start()
    out = folder / "times"
    try:
        with _supernodes(home, superlink, folder):
            fab = packed({name: text.encode() for name, text in app.items()})
            superlink.control.start_run(fab, {"rounds": str(ROUNDS_OF_FLOWER), "out": str(out)})
            wait_for(out.exists, "the end of Flower's run", FLOWER_SECONDS)
            time.sleep(0.5)
        return [float(one) for one in out.read_text().split()]
    finally:
        superlink.stop()
        superlink.control.close()


@contextmanager
def _supernodes(home: CoordinatorHome, superlink: SuperLink, folder: Path) -> Iterator[None]:
    """Starts three stock SuperNodes that are registered."""
    children = []
    try:
        for number, port in enumerate(free_ports(N_SITES)):
            key = folder / f"node-{number}.key"
            superlink.control.register(new_node_key(key))
            place = folder / f"node-{number}"
            place.mkdir()
            command = [
                str(Path(sys.executable).with_name("flower-supernode")),
                *("--superlink", superlink.address, "--root-certificates", str(home.pki / "ca.crt")),
                *("--auth-supernode-private-key", str(key), "--host", "127.0.0.1", "--port", str(port)),
            ]
            children.append(Child.start("supernode", command, folder=place, extra={"FLWR_HOME": str(place)}))
        yield
    finally:
        for child in children:
            child.stop()
