"""A round of Flower as its users have it: stock arrays, `FedAvg`, the Ray backend. The yardstick of `rounds.py`.

python -m sottovoce.simulations.bench.flower_on_ray STUDY SITES     (in an environment with flwr[simulation])
"""

import sys
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from sottovoce.client.train import train as train_locally
from sottovoce.common import models
from sottovoce.common.dataset import SiteData
from sottovoce.common.study import Study, load
from sottovoce.simulations.bench.fixtures import N_CLASSES
from sottovoce.simulations.bench.timing import answer_rounds
from sottovoce.simulations.engines.ray import open_ray_grid

WORKERS = 2
app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains as the examples in Flower's documentation do: a new module for each message."""
    study = _study(str(context.run_config["study-file"]))
    folder = Path(str(context.run_config["sites-folder"])) / f"{int(context.node_config['partition-id']):06d}"
    data = _data(folder)
    model = build(study, data)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]
    result = train_locally(model, data, study.training, seed=0, site=data.site, round=1, rounds=1)
    metrics = MetricRecord({"loss": result.loss, "num-examples": result.n_examples})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


def build(study: Study, data: SiteData) -> nn.Module:
    """Returns the study's network."""
    return models.build(study.model, data.widths, N_CLASSES, 0)


@lru_cache(maxsize=1)
def _study(path: str) -> Study:
    return load(Path(path))


@lru_cache(maxsize=200)
def _data(folder: Path) -> SiteData:
    return SiteData.open(folder)


def main(study_file: str, sites: str) -> None:
    """Does rounds until the input ends."""
    torch.set_num_threads(1)
    folders = {folder.name: folder for folder in sorted(Path(sites).iterdir())}
    model = build(load(Path(study_file)), SiteData.open(next(iter(folders.values()))))
    with open_ray_grid(app, folders, {"study-file": study_file}, workers=WORKERS) as (grid, _):
        strategy = FedAvg(fraction_evaluate=0.0)
        arrays = ArrayRecord(model.state_dict())

        def round() -> None:
            questions = strategy.configure_train(1, arrays, ConfigRecord(), grid)
            replies = list(grid.send_and_receive(questions))
            if failed := [reply.error for reply in replies if reply.has_error()]:
                raise RuntimeError(failed[0].reason)
            strategy.aggregate_train(1, replies)

        answer_rounds(round)


if __name__ == "__main__":
    # By its own name: actors look functions up in their module, and theirs is another `__main__`.
    flower_on_ray = import_module("sottovoce.simulations.bench.flower_on_ray")
    flower_on_ray.main(*sys.argv[1:3])
