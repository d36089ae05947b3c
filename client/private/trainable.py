"""Fewer trained parameters: noise goes to each of them, so a small head often learns more than a whole model.

    freeze_all_but(model, ("head.",))     # head-only private training

A frozen layer runs no kernel and keeps nothing for a backward pass; below the lowest trained layer there is
no backward pass at all.
"""

from collections.abc import Sequence

from torch import nn


def freeze_all_but(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Trains the parameters whose name starts with one of `prefixes`, and no others.

    A prefix also counts from any dot on, so that `head.` finds the heads within decision fusion's branches.

    Raises:
        ValueError: a prefix names no parameter.
    """
    names = dict(model.named_parameters())
    for prefix in prefixes:
        if not any(named(name, prefix) for name in names):
            raise ValueError(f"Expected a parameter whose name starts with {prefix!r}; came none.")
    for name, parameter in names.items():
        parameter.requires_grad_(any(named(name, prefix) for prefix in prefixes))


def named(name: str, prefix: str) -> bool:
    """Says whether a parameter's name starts with the prefix, or goes on with it after a dot."""
    return f".{prefix}" in f".{name}"
