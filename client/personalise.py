"""A site's own model: where it starts a round from, what of it stays here, and with which weights the site is scored.

FedPer: Arivazhagan, Aggarwal, Singh, Choudhary: "Federated learning with personalization layers", 2019 (arXiv
1912.00818). FedRep: Collins, Hassani, Mokhtari, Shakkottai: "Exploiting shared representations for personalized
federated learning", ICML 2021, algorithm 1. Ditto: Li, Hu, Beirami, Smith: "Ditto: fair and robust federated learning
through personalization", ICML 2021, algorithm 1.

Guarantees:
  - What is a site's own is in its `PersonalState` and in no message: a head that stays here goes back as it came.
  - Ditto and fine-tuning change no bit of what leaves.
  - Equal messages give equal bits, in any process: a round starts from what the round before it left.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from sottovoce.client.personal import PersonalState
from sottovoce.client.private.trainable import freeze_all_but, named
from sottovoce.client.train import TrainResult, train
from sottovoce.client.transferred import anchored, head_alone
from sottovoce.common.dataset import SiteData
from sottovoce.common.personal_specs import Ditto, FedRep, FineTuning, PersonalHead, Personalisation
from sottovoce.common.streams import derive
from sottovoce.common.study import Study
from sottovoce.common.weights import Array, Weights, from_state_dict

HEAD = "head."


@dataclass(frozen=True, kw_only=True)
class Round:
    """Which round of which federation, at which site."""

    study: Study
    site: str
    seed: int
    round: int
    device: str = "cpu"


def is_head(name: str) -> bool:
    """Says whether a tensor belongs to a model's head, or to one of its branches' heads."""
    return named(name, HEAD)


def started(state: PersonalState, sent: Weights, round: int) -> dict[str, Array]:
    """Returns the weights that were sent, with this site's own head where it has one."""
    last = state.before(round)
    return dict(sent) if last is None else {**sent, **state.read(last)}


def keep_head(state: PersonalState, trained: Weights, round: int) -> None:
    """Keeps the head that a round left."""
    own = {name: array for name, array in trained.items() if is_head(name)}
    state.write(round, own, oldest=state.before(round) or round)


def without_head(trained: Weights, sent: Weights) -> dict[str, Array]:
    """Returns the weights as they leave: with the head that came."""
    return {name: sent[name] if is_head(name) else array for name, array in trained.items()}


def train_in_turn(model: nn.Module, data: SiteData, spec: FedRep, now: Round) -> TrainResult:
    """Trains the head for its epochs, then the body for the study's; both in place."""
    names = [name for name, _ in model.named_parameters()]
    head = [name for name in names if is_head(name)]
    body = [name for name in names if not is_head(name)]
    try:
        freeze_all_but(model, head)
        _train(model, data, now, "fedrep head", epochs=spec.head_epochs)
        freeze_all_but(model, body)
        return _train(model, data, now, "")
    finally:
        model.requires_grad_(True)


def train_own(
    model: nn.Module, data: SiteData, spec: Ditto, state: PersonalState, sent: Weights, now: Round
) -> None:
    """Trains this site's own model beside the shared one (Ditto), and keeps it. `model` is left with its weights."""
    last = state.before(now.round)
    _write(model, sent if last is None else state.read(last))
    if len(data):
        with head_alone(model, now.study.transfer):
            _train(model, data, now, "ditto", pull=spec.pull, anchor=sent)
    state.write(now.round, from_state_dict(model.state_dict()), oldest=last or now.round)


def scored_weights(
    model: nn.Module, data: SiteData, spec: Personalisation, state: PersonalState, sent: Weights, now: Round
) -> dict[str, Array]:
    """Returns the weights with which this site scores those who are withheld, after the round.

    `data` are the recordings that may be trained on: fine-tuning trains on them, in the last round alone. `sent` is
    the shared model; a site that has never trained has no other. `model` is left with weights that nobody relies on.
    """
    if isinstance(spec, FineTuning):
        if now.round < now.study.federation.rounds or len(data) == 0:
            return dict(sent)
        _write(model, sent)
        with head_alone(model, now.study.transfer):
            _train(model, data, now, "fine-tuning", epochs=spec.epochs, pull=spec.pull, anchor=sent)
        return dict(from_state_dict(model.state_dict()))
    last = state.before(now.round + 1)
    own = {} if last is None else state.read(last)
    return {name: own.get(name, array) for name, array in sent.items()}


def keeps_head(spec: Personalisation | None) -> bool:
    """Says whether the head of the shared model is each site's own."""
    return isinstance(spec, PersonalHead)


def _train(
    model: nn.Module,
    data: SiteData,
    now: Round,
    purpose: str,
    *,
    epochs: int | None = None,
    pull: float = 0.0,
    anchor: Weights | None = None,
) -> TrainResult:
    spec = now.study.training
    if epochs is not None:
        spec = replace(spec, local_epochs=epochs, steps_per_round=None)
    transfer = anchored(now.study, model)
    return train(
        model,
        data,
        spec,
        seed=derive(now.seed, purpose) if purpose else now.seed,
        site=now.site,
        round=now.round,
        rounds=now.study.federation.rounds,
        proximal_mu=pull,
        anchor=anchor,
        transfer=transfer,
        device=now.device,
        frames=now.study.frames,
    )


def _write(model: nn.Module, weights: Weights) -> None:
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(np.array(weights[name])))
