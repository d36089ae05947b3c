"""What an update must be before it meets any arithmetic.

Guarantees:
  - A reply that keeps the contract becomes an `Update`; any other becomes `UpdateRefused` with its reason.
  - No byte of a reply is decoded before its length and header are those of the expected tensor.
  - A refusal quotes names, shapes and sizes; never a value of a tensor.
  - Nothing a site says decides its weight in the sum.

The checks, in order (the code has the same numbers):

  1. the reply is no error
  2. it answers this round and this attempt
  3. it carries one record of arrays and one of metrics, and nothing else; in a private mode also the signed
     checkpoint of the site's ledger
  4. the tensors have exactly the model's names
  5. each has exactly the model's dtype and shape
  6. all numbers are finite
  7. the norm of the update (weights returned minus weights sent) is within the study's bound
  8. the metrics are exactly loss (finite), n-examples and n-steps (counts); in a private mode n-steps alone: a site
     that says more has broken its own promise, and what it says is not used

That a site answers once is not checked here: `flower.exchange` takes one reply for each message, and each
site is sent one. That a reply comes from the site that was asked is `GridExchange`'s, which knows the nodes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import UpdateRefused
from sottovoce.common.flower import Metric, Reply, decode
from sottovoce.common.groups import Tables
from sottovoce.common.weights import Layout
from sottovoce.server.strategies import Vector

Difference = npt.NDArray[np.float64]  # of two float32 numbers: exact
MAX_COUNT = 2**53  # beyond it a count is no exact number in every language


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one site adds: the difference of weights, flat, and what it says of its training."""

    site: str
    difference: Difference
    loss: float | None
    n_examples: int
    n_steps: int
    n_bytes: int
    checkpoint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What the coordinator knows of an update in advance: all of it is public."""

    group: str
    layout: Layout
    sent: Vector
    max_update_norm: float
    private: bool = False

    def check(self, site: str, reply: Reply) -> Update:
        """Returns the update.

        Raises:
            UpdateRefused: with the first check that failed.
        """
        answers(self.group, reply)  # 1, 2
        check_records(reply, private=self.private)  # 3
        if reply.arrays.keys() != set(self.layout.names):  # 4
            raise UpdateRefused(_key_problem(self.layout, reply))
        difference = self._difference(reply)  # 5
        norm = math.sqrt(np.dot(difference, difference))
        if not math.isfinite(norm):  # 6: squares of float32 numbers never overflow here, so it is the numbers
            raise UpdateRefused("expected finite weights; some are not")
        if not norm <= self.max_update_norm:  # 7
            raise UpdateRefused(
                f"expected an update of norm at most {self.max_update_norm:g}; came {norm:.3g}"
            )
        loss, n_examples, n_steps = (_private_metrics if self.private else _training_metrics)(
            reply.metrics
        )  # 8
        return Update(
            site=site,
            difference=difference,
            loss=loss,
            n_examples=n_examples,
            n_steps=n_steps,
            n_bytes=reply.n_bytes,
            checkpoint=reply.checkpoint,
        )

    @cached_property
    def _sent(self) -> Difference:
        return self.sent.astype(np.float64)

    def _difference(self, reply: Reply) -> Difference:
        difference = np.empty(self.layout.size)
        with np.errstate(invalid="ignore"):  # a signalling NaN is refused by the next check
            for name, shape, span in self.layout.spans:
                try:
                    came = decode(reply.arrays[name], shape)
                except ValueError as error:
                    raise UpdateRefused(f"{name}: {error}") from None
                np.subtract(came.reshape(-1), self._sent[span], out=difference[span])
        return difference


def answers(group: str, reply: Reply) -> None:
    """Checks that a reply is no error and answers this round and attempt. Raises: UpdateRefused."""
    if reply.error is not None:
        raise UpdateRefused(f"no answer: {reply.error[:200]}")
    if reply.group != group:
        raise UpdateRefused(f"expected an answer to {group}; came one to {reply.group[:40]!r}")


def check_records(reply: Reply, *, private: bool) -> None:
    """Checks that a reply carries what its mode asks for and nothing else. Raises: UpdateRefused."""
    surplus = [*reply.surplus, *(["ledger"] if reply.checkpoint is not None and not private else [])]
    if surplus:
        raise UpdateRefused(f"expected the records arrays and metrics; came also {_names(surplus)}")
    if private and reply.checkpoint is None:
        raise UpdateRefused("expected the signed checkpoint of the site's ledger; came none")


def confusion_counts(
    group: str, reply: Reply, tables: Tables, *, private: bool = False
) -> npt.NDArray[np.int64]:
    """Returns the counts (table, truth, predicted) of an evaluation reply; noised ones may be below zero.

    Raises:
        UpdateRefused: the reply is anything but as many counts as the tables have, or (without noise) counts more
            recordings in a group than in all.
    """
    answers(group, reply)
    counts = reply.metrics.get("confusion")
    check_records(reply, private=private)
    if set(reply.metrics) != {"confusion"} or reply.arrays:
        raise UpdateRefused("expected confusion counts and nothing else")
    is_count = _is_noised if private else _is_count
    if not isinstance(counts, list) or len(counts) != tables.n_cells or not all(map(is_count, counts)):
        raise UpdateRefused(f"expected {tables.n_cells} confusion counts; came others")
    found = np.asarray(counts, np.int64).reshape(tables.shape)
    if not private and (found[: len(tables.all)] > found[0]).any():
        raise UpdateRefused("expected no group with more recordings than all; came one")
    return found


def _training_metrics(metrics: Mapping[str, Metric]) -> tuple[float, int, int]:
    if set(metrics) != {"loss", "n-examples", "n-steps"}:
        raise UpdateRefused(
            f"expected the metrics loss, n-examples, n-steps; came {_names(metrics) or 'none'}"
        )
    loss, n_examples, n_steps = metrics["loss"], metrics["n-examples"], metrics["n-steps"]
    if not isinstance(loss, float) or not math.isfinite(loss):
        raise UpdateRefused("expected a finite loss; came another")
    if not _is_count(n_examples) or not _is_count(n_steps):
        raise UpdateRefused("expected counts of examples and steps; came others")
    return loss, int(n_examples), int(n_steps)  # type: ignore[arg-type]


def _private_metrics(metrics: Mapping[str, Metric]) -> tuple[None, int, int]:
    if set(metrics) != {"n-steps"}:
        raise UpdateRefused(f"expected the metric n-steps alone; came {_names(metrics) or 'none'}")
    if not _is_count(metrics["n-steps"]):
        raise UpdateRefused("expected a count of steps; came another")
    return None, 0, int(metrics["n-steps"])  # type: ignore[arg-type]


def _is_noised(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -MAX_COUNT < value < MAX_COUNT


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT


def _key_problem(layout: Layout, reply: Reply) -> str:
    missing = [name for name in layout.names if name not in reply.arrays]
    unknown = sorted(reply.arrays.keys() - set(layout.names))
    expected = f"expected the model's {len(layout.names)} tensors"
    return f"{expected}; missing {_names(missing)}; unknown {_names(unknown)}"


def _names(names: object) -> str:
    listed = [repr(str(name)[:40]) for name in list(names)[:3]]  # type: ignore[call-overload]
    return ", ".join(listed) or "none"
