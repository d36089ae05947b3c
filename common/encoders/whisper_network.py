"""The encoder of Whisper (Radford et al. 2022) in plain torch, with the weights of a CTranslate2 file.

    encoder = load(sha256, 384, 4)                  # Whisper tiny.en
    encoder(mel[None], layers=(2, 5))[5]            # (1, frames, 384)

A layer is a number: 0 is what the first block reads, 1 to `n_blocks` are the outputs of the blocks, `n_blocks + 1` is
the last block's after the closing layer norm, which is what Whisper's decoder reads.

Guarantees:
  - The frames equal those of CTranslate2, an independent implementation, for the same log-mel input.
  - Weights come from a file with the stated SHA-256; nothing of it is run, and none of them is ever trained.
"""

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from sottovoce.common.encoders.ctranslate2_file import read_variables
from sottovoce.common.errors import WeightsError
from sottovoce.common.pretrained import find

N_MELS = 80
MAX_FRAMES = 1500  # 30 s: as many positions as were learned


class Block(nn.Module):
    """One pre-norm Transformer layer. A mask hides keys; `adapted` adds to queries, keys and values, side by side."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self, values: Tensor, mask: Tensor | None = None, adapted: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        normed = self.norm_attention(values)
        mixed = self.query_key_value(normed)
        if adapted is not None:
            mixed = mixed + adapted(normed)
        values = values + self.out(self._attended(mixed, mask))
        fed: Tensor = self.narrow(functional.gelu(self.widen(self.norm_feed(values))))
        return values + fed

    def _attended(self, mixed: Tensor, mask: Tensor | None) -> Tensor:
        batch, count, columns = mixed.shape
        query, key, value = mixed.view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return seen.transpose(1, 2).reshape(batch, count, columns // 3)


class WhisperEncoder(nn.Module):
    """Log-mel frames in, one vector for every two of them out, of each layer that is asked for."""

    def __init__(self, width: int, n_blocks: int, heads: int) -> None:
        super().__init__()
        self.width, self.n_blocks = width, n_blocks
        self.conv1 = nn.Conv1d(N_MELS, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.empty(MAX_FRAMES, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, mel: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Returns layers of (B, T, 80) by number, each (B, T / 2, width). All frames are valid."""
        hidden = functional.gelu(self.conv1(mel.transpose(1, 2)))
        values = functional.gelu(self.conv2(hidden)).transpose(1, 2)
        values = values + self.positions[: values.shape[1]]
        found = {0: values}
        for number, block in enumerate(self.blocks[: max(layers)], start=1):
            found[number] = block(found[number - 1])
        if self.n_blocks + 1 in layers:
            found[self.n_blocks + 1] = self.norm(found[self.n_blocks])
        return {number: found[number] for number in layers}


@lru_cache(maxsize=3)
def load(sha256: str, width: int, n_blocks: int) -> WhisperEncoder:
    """Returns the encoder with these weights; it is kept, and must not be changed.

    Raises:
        WeightsError: the weights are not on this machine, or not those of an encoder of this size.
    """
    path = find(sha256, what="whisper")
    variables = read_variables(path, prefix="encoder/", specification="WhisperSpec")
    try:
        if any(name.startswith(f"layer_{n_blocks}/") for name in variables):
            raise ValueError("more blocks")
        # Loaded for good, so also for callers that need a gradient; on no device: no memory, and no random number.
        with torch.inference_mode(False), torch.device("meta"):
            encoder = WhisperEncoder(width, n_blocks, heads=int(variables["num_heads"]))
            weights = {name: torch.from_numpy(variables[_stored_name(name)]) for name in encoder.state_dict()}
            encoder.load_state_dict(weights, assign=True)
    except (KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{path.name}: expected the encoder of a Whisper of {width} columns and {n_blocks} blocks; came another "
            f"({str(error).splitlines()[0]}). State the size of the model that has this SHA-256."
        ) from None
    return encoder.eval().requires_grad_(False)


@lru_cache(maxsize=3)
def load_as(sha256: str, width: int, n_blocks: int, like: tuple[torch.dtype, torch.device]) -> WhisperEncoder:
    """Returns the encoder in another precision, or on another device. Raises: WeightsError as `load` does."""
    dtype, device = like
    with torch.inference_mode(False):
        return copy.deepcopy(load(sha256, width, n_blocks)).to(dtype=dtype, device=device)


def _stored_name(name: str) -> str:
    """Returns what CTranslate2 calls a parameter.

    >>> _stored_name("blocks.2.query_key_value.weight"), _stored_name("norm.bias")
    ('layer_2/self_attention/linear_0/weight', 'layer_norm/beta')
    """
    if name == "positions":
        return "position_encodings/encodings"
    *scope, kind = name.split(".")
    modules = {
        "norm": "layer_norm",
        "norm_attention": "self_attention/layer_norm",
        "norm_feed": "ffn/layer_norm",
        "query_key_value": "self_attention/linear_0",
        "out": "self_attention/linear_1",
        "widen": "ffn/linear_0",
        "narrow": "ffn/linear_1",
    }
    if "norm" in scope[-1]:
        kind = {"weight": "gamma", "bias": "beta"}[kind]
    place = [f"layer_{scope[1]}"] if scope[0] == "blocks" else []
    return "/".join([*place, modules.get(scope[-1], scope[-1]), kind])
