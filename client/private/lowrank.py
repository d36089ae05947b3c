"""Low-rank adapters: a frozen weight W plus `up @ down`, of which only `up` and `down` are trained.

    add_low_rank(model, rank=4, seed=0)      # LSTM 96->64: 40,960 trained weights become 2,880
    ...                                      # train, privately or not
    merge_low_rank(model)                    # a plain model again, with the trained weights

Noise is added to every trained parameter, so fewer of them are less noise (Hu et al. 2021; Yu et al. 2022).

Guarantees:
  - The weights in force are the same bits before and after `add_low_rank`: `up` starts at zero.
  - `merge_low_rank` leaves the names, shapes and order of the model's parameters as they were before.
  - The adapters come from the seed alone; torch's global random state is left as it was.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sottovoce.client.private.trainable import freeze_all_but, named
from sottovoce.common.streams import torch_seed

ADAPTED: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Conv1d: ("weight",),
    nn.LSTM: ("weight_ih_l0", "weight_hh_l0"),
    nn.RNN: ("weight_ih_l0", "weight_hh_l0"),
}


class LowRank(nn.Module):
    """The change of one weight: `up` (out, rank) times `down` (rank, in), seen in the weight's shape."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        n_in = weight[0].numel()
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.down = nn.Parameter(torch.randn(rank, n_in).to(weight) / math.sqrt(n_in))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def add_low_rank(model: nn.Module, *, rank: int, seed: int, also: tuple[str, ...] = ("head.",)) -> None:
    """Adapts the body's weights in place and freezes the rest, except parameters whose name starts with `also`.

    Raises:
        ValueError: the rank is below 1, or there is no weight to adapt.
    """
    if rank < 1:
        raise ValueError(f"Expected rank={rank} of at least 1.")
    chosen = [
        (module, name)
        for path, module in model.named_modules()
        for name in ADAPTED.get(type(module), ())
        if not any(named(f"{path}.", prefix) for prefix in also)
    ]
    if not chosen:
        raise ValueError(
            f"Expected weights to adapt outside {also}; came none. Train the head alone instead."
        )
    freeze_all_but(model, also)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "low rank"))
        for module, name in chosen:
            parametrize.register_parametrization(module, name, LowRank(getattr(module, name), rank))


def merge_low_rank(model: nn.Module) -> None:
    """Writes the adapted weights into the model's own parameters, and removes the adapters; all are trained again."""
    for module in list(model.modules()):
        for name in ADAPTED.get(parametrize.type_before_parametrizations(module), ()):
            if parametrize.is_parametrized(module, name):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        _put_first(module, ADAPTED.get(type(module), ()))
    model.requires_grad_(True)


def parts(module: nn.Module, name: str) -> tuple[Tensor, LowRank | None]:
    """Returns a module's own parameter of that name, and its adapter if it has one."""
    if not parametrize.is_parametrized(module, name):
        return getattr(module, name), None
    chain = module.parametrizations[name]  # type: ignore[index]
    adapter = chain[0]
    if not isinstance(adapter, LowRank) or len(chain) != 1:
        raise ValueError(f"Expected {name} to have one low-rank adapter; came another parametrization.")
    return chain.original, adapter  # type: ignore[union-attr]


def _put_first(module: nn.Module, names: tuple[str, ...]) -> None:
    """Restores the order of torch's own layers, weights first: a removed parametrization comes back last."""
    own = module._parameters
    rest = [name for name in own if name not in names]
    for name in [*names, *rest]:
        own[name] = own.pop(name)
