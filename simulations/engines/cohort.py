"""Many small sites at once: linear and MLP heads on pooled features, trained as stacks of matrices.

A thousand sites of sixty recordings are a thousand times three tiny steps; a loop spends its time between
them. Here a step is done for a whole chunk of sites: their weights are stacked to (sites, out, in), and the
gradients, written by hand, are products of stacks that add themselves to the weights.

Guarantees:
  - The weights are those of a loop through `client/train.py`, within 1e-6: the same recordings, the same epoch
    orders from the same streams, the same learning rates, the same public weights in the sum.
  - Equal arguments give equal bits.
  - Updates that are not finite or out of bounds are refused, as everywhere.
  - A study that asks for more than these gradients know is refused with everything that is in the way.

All features of all sites are held in memory: a thousand sites of 60 x 768 are 184 MB.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sottovoce.client.app import withheld
from sottovoce.common.calibration_counts import cells
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import RunError
from sottovoce.common.groups import Tables
from sottovoce.common.model_specs import Linear, Mlp
from sottovoce.common.schedule import learning_rate_at
from sottovoce.common.streams import stream
from sottovoce.common.study import Scaffold, SingleUpdates, Study, Training
from sottovoce.common.training import epochs
from sottovoce.server.exchange import Call, Collected, Evaluated, Share

CHUNK = 50  # sites at once: so many stacked weights and inputs stay in the processor's cache
ROWS_AT_ONCE = 4096  # in evaluation
HIDDEN_WEIGHT, HIDDEN_BIAS = "encoder.hidden.weight", "encoder.hidden.bias"
HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"

Rows = npt.NDArray[np.int64]
Stack = dict[str, Tensor]


def unsupported(study: Study) -> list[str]:
    """Returns what stands between a study and this engine."""
    model, training = study.model, study.training
    problems = []
    if study.privacy.mode != "none":
        problems.append(f"privacy.mode: expected 'none'; came {study.privacy.mode!r}")
    if not isinstance(model, Linear | Mlp):
        problems.append(f"model.kind: expected linear or mlp; came {model.kind!r}")
    if isinstance(model, Mlp) and model.dropout:
        problems.append(f"model.dropout: expected 0; came {model.dropout:g}")
    if study.transfer is not None and study.transfer.kind != "model":
        problems.append(f"transfer.kind: expected 'model'; came {study.transfer.kind!r}")
    if training.optimiser != "sgd":
        problems.append(f"training.optimiser: expected 'sgd'; came {training.optimiser!r}")
    if training.synthetic is not None:
        problems.append("training.synthetic: expected none; this engine adds no rows")
    if training.momentum:
        problems.append(f"training.momentum: expected 0; came {training.momentum:g}")
    strategy = study.federation.strategy
    if isinstance(strategy, Scaffold | SingleUpdates):
        problems.append(f"federation.strategy: expected one of mean updates alone; came {strategy.kind!r}")
    if study.federation.personalisation is not None:
        problems.append("federation.personalisation: expected none")
    if training.group_robust is not None:
        problems.append("training.group_robust: expected none")
    if training.loss != "cross_entropy":
        problems.append(f"training.loss: expected 'cross_entropy'; came {training.loss!r}")
    return problems


@dataclass(frozen=True, kw_only=True)
class _Split:
    """Rows of the feature table: for each site those it trains on, in order, and those withheld."""

    trains: Mapping[str, Rows]
    withheld: Mapping[str, Rows]


class CohortExchange:
    """An exchange that trains its sites itself, instead of asking them."""

    def __init__(self, study: Study, sites: Mapping[str, Path]) -> None:
        if problems := unsupported(study):
            raise RunError(
                f"Expected a study that --engine cohort can train: {'; '.join(problems)}. "
                "Take --engine inprocess or processes."
            )
        self._study = study
        self._index: dict[str, SiteData] = {}
        self._starts: dict[str, int] = {}
        tables, labels, n_rows = [], [], 0
        for site, folder in sorted(sites.items()):
            data = SiteData.open(folder)
            tables.append(data.pooled(study.model.stream))  # type: ignore[union-attr]  # no fusion, as said above
            labels.append(data.labels)
            # Without its maps: each holds a file descriptor, and a process has about a thousand.
            self._index[site] = replace(data, arrays={}, stored_lengths={})
            self._starts[site] = n_rows
            n_rows += len(data)
        self._features = torch.from_numpy(np.concatenate(tables))
        self._labels = torch.from_numpy(np.concatenate(labels))
        self._splits: dict[tuple[int, int, bool], _Split] = {}

    @property
    def sites(self) -> Sequence[str]:
        """Returns the names of all sites."""
        return list(self._index)

    def train(self, call: Call, cohort: Sequence[Share]) -> Collected:
        """Trains the cohort chunk by chunk and returns the sum of its updates."""
        trained = self._split(call).trains
        plans = [
            _plan(self._study.training, call, share, trained[share.site], self._index[share.site].site)
            for share in cohort
        ]
        collected = Collected(total=np.zeros(call.layout.size))
        # Sites of one size stand together, so that nothing is padded where all are alike.
        plans.sort(key=lambda plan: (len(plan.rows), plan.share.site))
        start = {
            name: torch.from_numpy(np.array(a)) for name, a in call.layout.unflatten(call.weights).items()
        }
        with torch.inference_mode():
            for first in range(0, len(plans), CHUNK):
                self._train_chunk(call, plans[first : first + CHUNK], start, collected)
        collected.sites.sort()
        return collected

    def evaluate(self, call: Call, sites: Sequence[str], tables: Tables) -> Evaluated:
        """Counts over the withheld recordings of all sites."""
        hidden = self._split(call).withheld
        rows = torch.from_numpy(np.concatenate([hidden[site] for site in sites]))
        stated = [
            self._index[site].groups[row - self._starts[site]] for site in sites for row in hidden[site]
        ]
        stack = {
            name: torch.from_numpy(np.array(array))[None]
            for name, array in call.layout.unflatten(call.weights).items()
        }
        counts, answers = np.zeros(tables.shape, np.int64), []
        with torch.inference_mode():
            for part in torch.split(rows, ROWS_AT_ONCE):
                _, logits = _forward(stack, self._features[part][None])
                answers.append(logits[0].log_softmax(dim=1).numpy())
        log_probs, labels = np.concatenate(answers), self._labels[rows].numpy()
        each, within = tables.memberships(stated)
        np.add.at(counts, (within, labels[each], log_probs.argmax(axis=1)[each]), 1)
        if tables.confidence_bins:
            beside = cells(log_probs.astype(np.float64), labels, tables.confidence_bins)
            np.add.at(counts.reshape(-1), tables.n_confusions + beside, 1)
        return Evaluated(counts=counts, n_sites=len(sites))

    def _train_chunk(self, call: Call, plans: "Sequence[_Plan]", start: Stack, collected: Collected) -> None:
        # repeat, not expand: for a chunk of one, the latter is the start itself
        stack = {name: tensor.repeat(len(plans), *[1] * tensor.dim()) for name, tensor in start.items()}
        losses = torch.zeros(len(plans))
        for step in _steps(plans):
            inputs = self._features.index_select(0, step.rows.view(-1)).view(*step.rows.shape, -1)
            labels = self._labels[step.rows]
            losses += _descend(stack, start, inputs, labels, step, call, self._study.training)
        _add(stack, start, losses, plans, call, collected)

    def _split(self, call: Call) -> _Split:
        leaks = bool(call.config.get("leaking-split", False))
        key = (call.seed, call.fold, leaks)
        if key not in self._splits:
            self._splits = {key: self._split_anew(*key)}  # one cell at a time
        return self._splits[key]

    def _split_anew(self, seed: int, fold: int, leaks: bool) -> _Split:
        trains, hides = {}, {}
        for site, data in self._index.items():
            hidden = withheld(data, self._study, seed=seed, fold=fold, leaking_split=leaks)
            trains[site] = self._starts[site] + np.flatnonzero(data.trains & ~hidden)
            hides[site] = self._starts[site] + np.flatnonzero(hidden & (data.copies == 0))
        return _Split(trains=trains, withheld=hides)


# --- what each site does when ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One site's round: the rows it takes, in the order that `client/train.py` would, and how many a step."""

    share: Share
    rows: Rows
    sizes: Rows


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One step of a chunk: rows (sites, batch), and which of them count; a site that is done has none."""

    rows: Tensor
    counts: Tensor  # (sites, batch), 1 or 0
    sizes: Tensor  # (sites,), how many count


def _plan(spec: Training, call: Call, share: Share, rows: Rows, site: str) -> _Plan:
    if not len(rows):
        return _Plan(share=share, rows=rows, sizes=np.zeros(0, np.int64))
    orders = list(epochs(len(rows), spec, stream(call.seed, "epoch order", site, call.round)))
    return _Plan(share=share, rows=rows[np.concatenate(orders)], sizes=np.asarray([len(o) for o in orders]))


def _steps(plans: Sequence[_Plan]) -> Iterator[_Step]:
    """Puts the steps of several sites side by side, padded to the longest batch and the longest round."""
    sizes = _padded([plan.sizes for plan in plans])
    rows = _padded([plan.rows for plan in plans])
    starts = np.cumsum(sizes, axis=1) - sizes
    for number in range(sizes.shape[1]):
        own = sizes[:, number]
        places = np.arange(own.max())[None, :]
        columns = np.minimum(starts[:, number, None] + places, rows.shape[1] - 1)
        yield _Step(
            rows=torch.from_numpy(np.take_along_axis(rows, columns, axis=1)),
            counts=torch.from_numpy((places < own[:, None]).astype(np.float32)),
            sizes=torch.from_numpy(own),
        )


def _padded(lists: Sequence[Rows]) -> Rows:
    table = np.zeros((len(lists), max(map(len, lists))), np.int64)
    for place, values in zip(table, lists, strict=True):
        place[: len(values)] = values
    return table


# --- the gradients --------------------------------------------------------------------------------------


def _forward(stack: Stack, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what the head sees, and logits, of inputs (sites, batch, in)."""
    seen = inputs
    if HIDDEN_WEIGHT in stack:
        hidden = torch.baddbmm(stack[HIDDEN_BIAS][:, None, :], inputs, stack[HIDDEN_WEIGHT].mT)
        seen = hidden.relu_()
    return seen, torch.baddbmm(stack[HEAD_BIAS][:, None, :], seen, stack[HEAD_WEIGHT].mT)


def _descend(
    stack: Stack,
    start: Stack,
    inputs: Tensor,
    labels: Tensor,
    step: _Step,
    call: Call,
    spec: Training,
) -> Tensor:
    """Takes one step with each site and returns the sum of its recordings' losses."""
    seen, logits = _forward(stack, inputs)
    losses, slopes = _loss(logits, labels, step, spec)
    slopes_hidden = torch.bmm(slopes, stack[HEAD_WEIGHT]).mul_(seen > 0) if HIDDEN_WEIGHT in stack else None
    rate = learning_rate_at(spec, call.round, call.rounds)
    _pull(stack, start, step, rate, spec.weight_decay, float(call.config.get("proximal-mu", 0.0)))
    stack[HEAD_WEIGHT].baddbmm_(slopes.mT, seen, alpha=-rate)
    stack[HEAD_BIAS].sub_(slopes.sum(dim=1), alpha=rate)
    if slopes_hidden is not None:
        stack[HIDDEN_WEIGHT].baddbmm_(slopes_hidden.mT, inputs, alpha=-rate)
        stack[HIDDEN_BIAS].sub_(slopes_hidden.sum(dim=1), alpha=rate)
    return losses


def _loss(logits: Tensor, labels: Tensor, step: _Step, spec: Training) -> tuple[Tensor, Tensor]:
    """Returns each site's summed loss, and the slope of its mean loss along its logits."""
    log_probs = logits.log_softmax(dim=2)
    smoothing, n_classes = spec.label_smoothing, logits.shape[2]
    at_label = log_probs.gather(2, labels[:, :, None])[:, :, 0]
    losses = -(1.0 - smoothing) * at_label - smoothing * log_probs.mean(dim=2)
    slopes = log_probs.exp_()
    slopes.scatter_add_(2, labels[:, :, None], torch.full_like(slopes[:, :, :1], smoothing - 1.0))
    if smoothing:
        slopes.sub_(smoothing / n_classes)
    weights = step.counts
    if spec.class_weights is not None:
        weights = weights * logits.new_tensor(spec.class_weights)[labels]
    slopes.mul_((weights / step.sizes.clamp(min=1)[:, None])[:, :, None])
    return (losses * weights).sum(dim=1), slopes


def _pull(stack: Stack, start: Stack, step: _Step, rate: float, decay: float, mu: float) -> None:
    """Draws the weights of the sites that learn towards zero (decay) and towards the round's start (FedProx)."""
    if not decay and not mu:
        return
    for name, weights in stack.items():
        learns = rate * (step.sizes > 0).view(-1, *[1] * (weights.dim() - 1))
        pull = decay * weights
        if mu:
            pull = pull + mu * (weights - start[name])
        weights.sub_(learns * pull)


# --- the sum --------------------------------------------------------------------------------------------


def _add(
    stack: Stack, start: Stack, losses: Tensor, plans: Sequence[_Plan], call: Call, collected: Collected
) -> None:
    """Adds a chunk's updates to the sum, those apart that are not finite or out of bounds."""
    squares = torch.zeros(len(plans), dtype=torch.float64)
    for name, weights in stack.items():
        squares += torch.linalg.vector_norm(weights.sub_(start[name]).flatten(1), dim=1).double().square()
    norms = squares.sqrt()
    shares = torch.zeros(len(plans))
    for index, (plan, norm) in enumerate(zip(plans, norms.tolist(), strict=True)):
        site = plan.share.site
        if not norm <= call.max_update_norm:
            collected.refused[site] = f"expected a finite update of norm at most {call.max_update_norm:g}"
            for weights in stack.values():
                weights[index] = 0.0  # nothing times NaN is NaN
            continue
        shares[index] = plan.share.weight
        collected.sites.append(site)
        collected.weight += plan.share.weight
        mean = float(losses[index]) / max(len(plan.rows), 1)
        collected.loss = (collected.loss or 0.0) + plan.share.weight * mean
        collected.n_examples += len(plan.rows)
    for name, _, span in call.layout.spans:
        collected.total[span] += (shares @ stack[name].flatten(1)).double().numpy()
