"""Several branches, joined at one of three levels."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn import functional

from sottovoce.common.models.encoders import Encoder, Inputs, Layers, Lengths


class FeatureFusion(Encoder):
    """The branches' vectors side by side, then one hidden layer."""

    def __init__(self, branches: Sequence[Encoder], width: int, dropout: float) -> None:
        super().__init__("", width)
        self.branches = nn.ModuleList(branches)
        self.norms = nn.ModuleList(nn.LayerNorm(branch.width) for branch in branches)
        self.hidden = nn.Linear(sum(branch.width for branch in branches), width)
        self.dropout = nn.Dropout(dropout)

    def layers(self) -> Layers:
        return [[self.hidden, *self.norms], *_side_by_side(self.branches)]

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        # Each vector is brought to one scale first, or the loudest branch alone would be heard.
        parts = [
            norm(branch(inputs, lengths)) for norm, branch in zip(self.norms, self.branches, strict=True)
        ]
        hidden: Tensor = self.dropout(functional.relu(self.hidden(self.dropout(torch.cat(parts, dim=1)))))
        return hidden


class DeepFusion(Encoder):
    """The branches' vectors gate one another, and meet in products of pairs (low-rank bilinear)."""

    def __init__(self, branches: Sequence[Encoder], width: int, dropout: float) -> None:
        super().__init__("", width)
        self.branches = nn.ModuleList(branches)
        self.norms = nn.ModuleList(nn.LayerNorm(branch.width) for branch in branches)
        self.values = nn.ModuleList(nn.Linear(branch.width, width) for branch in branches)
        self.gates = nn.Linear(len(branches) * width, len(branches) * width)
        self.dropout = nn.Dropout(dropout)

    def layers(self) -> Layers:
        return [[self.gates], [*self.values, *self.norms], *_side_by_side(self.branches)]

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        parts = [
            torch.tanh(value(self.dropout(norm(branch(inputs, lengths)))))
            for value, norm, branch in zip(self.values, self.norms, self.branches, strict=True)
        ]
        gates = torch.sigmoid(self.gates(torch.cat(parts, dim=1))).chunk(len(parts), dim=1)
        gated = [gate * part for gate, part in zip(gates, parts, strict=True)]
        pairs = [gated[i] * gated[j] for i in range(len(gated)) for j in range(i)]
        return self.dropout(torch.stack(gated + pairs).sum(0))  # type: ignore[no-any-return]


def _side_by_side(branches: Iterable[nn.Module]) -> Layers:
    """Returns the layers of several branches, those of one depth together."""
    each = [branch.layers() for branch in branches if isinstance(branch, Encoder)]
    return [[part for parts in level for part in parts] for level in zip_longest(*each, fillvalue=[])]


class DecisionFusion(nn.Module):
    """Each branch classifies; the logits are averaged with learned weights."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.weights = nn.Parameter(torch.zeros(len(branches)))  # of a softmax: equal at first

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        logits = torch.stack([branch(inputs, lengths) for branch in self.branches], dim=-1)
        return (logits * self.weights.softmax(0)).sum(-1)
