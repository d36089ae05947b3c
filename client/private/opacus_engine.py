"""The same rows by Opacus' hooks: the reference engine, and the yardstick of our own (simulations/bench).

    engine = OpacusHooks(model, per_example)

Opacus refuses nn.LSTM and nn.RNN, so the hooks run on a twin of the model that shares its parameters, with
Opacus' own recurrent layers in their place. The one file, beside `common/privacy/prv.py`, that imports opacus.

Guarantees: those of `client.private`; a model with low-rank adapters is refused.
"""

import copy
import warnings
from collections.abc import Iterator

import torch
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from opacus.layers import DPLSTM, DPRNN
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sottovoce.client.private import Chunk, LossOf, Patients
from sottovoce.client.private.bookkeeping import MAX_FLOATS, dropout, take
from sottovoce.client.private.rows import Rows
from sottovoce.client.private.sink import Sink, spans
from sottovoce.common.dataset import Batch
from sottovoce.common.models.encoders import Inputs, Lengths
from sottovoce.common.models.fusion import DecisionFusion


class OpacusHooks:
    """`GradientEngine` by `GradSampleModule`, summed up patient by patient."""

    def __init__(self, model: nn.Module, loss: LossOf, *, max_floats: int = MAX_FLOATS) -> None:
        self._loss = loss
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self._trained:
            raise ValueError("Expected a model with trainable parameters; came one that is all frozen.")
        self._twin = GradSampleModule(_twin(model), batch_first=True, loss_reduction="sum")
        self._columns = spans(self._trained)
        self._max_patients = max(1, max_floats // self.n_parameters)

    @property
    def n_parameters(self) -> int:
        """Returns the number of columns."""
        return sum(parameter.numel() for parameter in self._trained)

    def chunks(
        self, batch: Batch, patients: Patients, *, secret_dropout_seed: int | None = None
    ) -> Iterator[Chunk]:
        """Yields every patient of the batch once; see `GradientEngine`."""
        for number, rows in enumerate(Rows.of(patients).parts(self._max_patients)):
            seed = None if secret_dropout_seed is None else (secret_dropout_seed + number) % 2**63
            with dropout(self._twin, seed, self._trained[0].device):
                gradients = self._gradients(batch, rows)
            yield Chunk(patients=rows.patients, gradients=gradients)

    def _gradients(self, batch: Batch, rows: Rows) -> Tensor:
        own = take(batch, rows.order)
        before = [parameter.grad for parameter in self._trained]
        matrix = self._trained[0].new_empty(len(rows.patients), self.n_parameters, requires_grad=False)
        sink = Sink(matrix, self._columns, rows)
        for module in self._twin.modules():
            module.training |= not isinstance(
                module, nn.Dropout
            )  # the hooks are deaf in a model that evaluates
        for parameter in self._trained:
            parameter.grad = None  # or autograd would add to the tensors that are put back below
        try:
            losses = self._loss(self._twin(own.inputs, own.lengths), own.labels)
            with warnings.catch_warnings():
                # that the first layer's input, which is data, wants no gradient
                warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients")
                torch.autograd.backward((losses * torch.from_numpy(rows.shares).to(losses)).sum())
            with torch.no_grad():
                for parameter in self._trained:
                    each: Tensor | None = getattr(parameter, "grad_sample", None)
                    if each is not None:
                        sink.total(parameter, each)
                sink.finish()
        finally:
            for parameter, gradient in zip(self._trained, before, strict=True):
                parameter.grad = gradient
                parameter.grad_sample = None  # type: ignore[attr-defined]
        return matrix


class _Vote(nn.Module):
    """Decision fusion's average as a layer of its own: Opacus cannot hook a module that takes mappings."""

    def __init__(self, weights: nn.Parameter) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, logits: Tensor) -> Tensor:
        return (logits * self.weights.softmax(0)).sum(-1)


class _DecisionFusion(nn.Module):
    def __init__(self, module: DecisionFusion) -> None:
        super().__init__()
        self.branches, self.vote = module.branches, _Vote(module.weights)

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        logits = [branch(inputs, lengths) for branch in self.branches]
        return self.vote(torch.stack(logits, dim=-1))  # type: ignore[no-any-return]


@register_grad_sampler(_Vote)  # type: ignore[untyped-decorator]
def _vote_gradient(layer: _Vote, activations: list[Tensor], slopes: Tensor) -> dict[nn.Parameter, Tensor]:
    shares = layer.weights.detach().softmax(0)
    each = (slopes[:, :, None] * activations[0]).sum(1)
    return {layer.weights: shares * (each - (each @ shares)[:, None])}


def _twin(model: nn.Module) -> nn.Module:
    """Returns a copy that shares the model's parameters, of layers that Opacus can hook."""
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise ValueError("Expected a model without low-rank adapters; came one with. Use BookKeeping.")
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    if isinstance(twin, DecisionFusion):
        twin = _DecisionFusion(twin)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LSTM | nn.RNN):
                setattr(module, name, _recurrent(child))
    return twin


def _recurrent(cell: nn.LSTM | nn.RNN) -> nn.Module:
    kind = DPLSTM if isinstance(cell, nn.LSTM) else DPRNN
    result: nn.Module = kind(cell.input_size, cell.hidden_size, batch_first=True)
    for name, inside in (("ih", result.l0.ih), ("hh", result.l0.hh)):  # type: ignore[union-attr]
        inside.weight = getattr(cell, f"weight_{name}_l0")  # type: ignore[union-attr]
        inside.bias = getattr(cell, f"bias_{name}_l0")  # type: ignore[union-attr]
    return result
