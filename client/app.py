"""What runs at a site: Flower's `ClientApp`, with handlers for train, evaluate and query.

A node finds its data and study in its own configuration, `site-folder` and `study-file`; or, where nodes have
none (Flower's simulation), in the run's: `sites-folder`, of whose subfolders, in order of name, it takes the
one that `partition-id` counts to from 0.

Guarantees:
  - Equal messages to equal sites give equal replies, to the bit, in whatever process and in whatever order.
  - The speakers whom a fold withholds are worked out here, are never trained on, and are never sent.
  - A reply holds weights and counts; never a feature, a label, a key or a name other than the site's.
  - What is cached in a process (opened sites without their pages, one model) is bounded.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from sottovoce.client.evaluate import confusion
from sottovoce.client.train import TrainResult
from sottovoce.client.train import train as train_locally
from sottovoce.common import models
from sottovoce.common import study as studies
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import RunError
from sottovoce.common.flower import array_record, read_weights
from sottovoce.common.folds import fold_of, leaking_random_fold, n_folds
from sottovoce.common.study import HashFolds, Study
from sottovoce.common.weights import ModelWeights

CACHE_SITES = 128  # each holds a file descriptor, of which a process has about a thousand

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains the weights of the message on the speakers who are not withheld."""
    visit = _visit(message, context)
    allowed = visit.data.trains & ~visit.withheld
    data = visit.data if allowed.all() else visit.data.select(allowed)
    visit.weights.write(read_weights(_arrays(message)))
    result = _train(visit, data)
    visit.data.release()
    metrics = MetricRecord({"loss": result.loss, "n-examples": result.n_examples, "n-steps": result.n_steps})
    arrays = array_record(visit.weights.copy())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Counts (truth, predicted) over the speakers who are withheld, as one flat list."""
    visit = _visit(message, context)
    visit.weights.write(read_weights(_arrays(message)))
    data = visit.data.select(visit.withheld).originals()
    counts = confusion(visit.model, data, len(visit.study.labels.classes), visit.device)
    visit.data.release()
    metrics = MetricRecord({"confusion": counts.reshape(-1).tolist()})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Says the name of the site."""
    name = ConfigRecord({"site": _opened(_site_folder(context)).site})
    return Message(RecordDict({"config": name}), reply_to=message)


@dataclass(frozen=True, kw_only=True)
class _Visit:
    """One message's view of this process: what to do, with which data and model."""

    study: Study
    data: SiteData
    withheld: npt.NDArray[np.bool_]
    model: nn.Module
    weights: ModelWeights
    seed: int
    round: int
    rounds: int
    proximal_mu: float
    device: str


def _visit(message: Message, context: Context) -> _Visit:
    config = dict(message.content["config"].items())
    study = _study(_setting(context, "study-file"))
    data = _opened(_site_folder(context))
    seed, fold = int(config["seed"]), int(config["fold"])  # type: ignore[arg-type]
    device = str(context.node_config.get("device", context.run_config.get("device", "cpu")))
    model, weights = _model(_setting(context, "study-file"), tuple(data.widths.items()), device)
    leaks = bool(config.get("leaking-split", False))
    return _Visit(
        study=study,
        data=data,
        withheld=withheld(data, study, seed=seed, fold=fold, leaking_split=leaks),
        model=model,
        weights=weights,
        seed=seed,
        round=int(config["round"]),  # type: ignore[arg-type]
        rounds=int(config["rounds"]),  # type: ignore[arg-type]
        proximal_mu=float(config["proximal-mu"]),  # type: ignore[arg-type]
        device=device,
    )


def withheld(
    data: SiteData, study: Study, *, seed: int, fold: int, leaking_split: bool = False
) -> npt.NDArray[np.bool_]:
    """Returns the mask of the examples that `fold` withholds at this site; fold -1 withholds nobody.

    A pooled twin has several homes, and withholds whom each of them would. `leaking_split` deals utterances
    instead of speakers: for the column that nobody should quote.
    """
    mask = np.zeros(len(data), np.bool_)
    if fold < 0:
        return mask
    for home in sorted(set(data.homes)):
        rows = np.flatnonzero([name == home for name in data.homes])
        if leaking_split:
            labels, k = data.labels[rows].tolist(), n_folds(study.evaluation.folds)
            mask[rows] = leaking_random_fold(seed=seed, site=home, labels=labels, k=k) == fold
        else:
            # By patient where the spec says so: whoever has two speaker ids is withheld with both.
            ids = data.patients if isinstance(study.evaluation.folds, HashFolds) else data.speakers
            people = [ids[row] for row in rows]
            folds = fold_of(study.evaluation.folds, seed, home, people)
            mask[rows] = [folds[person] == fold for person in people]
    return mask


def _train(visit: _Visit, data: SiteData) -> TrainResult:
    if len(data) == 0:  # all of the site's speakers are withheld: the weights go back as they came
        return TrainResult(loss=0.0, n_examples=0, n_steps=0)
    return train_locally(
        visit.model,
        data,
        visit.study.training,
        seed=visit.seed,
        site=data.site,
        round=visit.round,
        rounds=visit.rounds,
        proximal_mu=visit.proximal_mu,
        device=visit.device,
        frames=visit.study.frames,
    )


def _arrays(message: Message) -> ArrayRecord:
    arrays = message.content["arrays"]
    if not isinstance(arrays, ArrayRecord):
        raise RunError("Expected weights in the record 'arrays' of a message; came another record.")
    return arrays


def _setting(context: Context, name: str) -> str:
    value = context.node_config.get(name, context.run_config.get(name))
    if not isinstance(value, str):
        raise RunError(f"Expected {name!r} in the node's or the run's configuration; came nothing.")
    return value


def _site_folder(context: Context) -> str:
    if "site-folder" in context.node_config:
        return _setting(context, "site-folder")
    folders = sorted(path for path in Path(_setting(context, "sites-folder")).iterdir() if path.is_dir())
    number = int(context.node_config["partition-id"])
    if not 0 <= number < len(folders):
        raise RunError(f"Expected a partition-id below {len(folders)}, the number of sites; came {number}.")
    return str(folders[number])


@lru_cache(maxsize=4)
def _study(path: str) -> Study:
    return studies.load(Path(path))


@lru_cache(maxsize=2)
def _model(
    study_file: str, widths: tuple[tuple[str, int], ...], device: str
) -> tuple[nn.Module, ModelWeights]:
    """Returns the one model of this process. Its initial weights do not matter: every message brings all."""
    study = _study(study_file)
    model = models.build(study.model, dict(widths), len(study.labels.classes), seed=0).to(device)
    return model, ModelWeights(model)


_sites: OrderedDict[str, SiteData] = OrderedDict()


def _opened(folder: str) -> SiteData:
    """Opens a site, or takes it from the `CACHE_SITES` used last."""
    if (found := _sites.get(folder)) is None:
        found = _sites[folder] = SiteData.open(Path(folder))
        if len(_sites) > CACHE_SITES:
            _sites.popitem(last=False)
    _sites.move_to_end(folder)
    return found
