"""What leaves a site, as somebody on the wire sees it: the weights that were sent and the weights that came back.

Guarantees:
  - Messages and replies are handed on untouched: what is audited is what runs.
  - Nothing is recorded but what a reply holds; the site's folder, ledger and memory are not looked at.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.common.flower import (
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    Message,
    MessageType,
    Node,
    Scalar,
    read_weights,
    reply_of,
)
from sottovoce.common.weights import Array
from sottovoce.simulations.engines.inprocess import InProcessGrid


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One answer of a site to a call for training."""

    site: str
    round: int
    sent: Mapping[str, Array]
    returned: Mapping[str, Array]

    def change(self, name: str) -> npt.NDArray[np.float64]:
        """Returns by how much one tensor was changed."""
        return self.returned[name].astype(np.float64) - self.sent[name]


class TappedGrid(InProcessGrid):
    """A grid with a listener."""

    def __init__(self, app: ClientApp, nodes: Sequence[Node], run_config: Mapping[str, Scalar]) -> None:
        super().__init__(app, nodes, run_config)
        self.seen: list[Seen] = []
        self._calls: dict[str, tuple[int, Mapping[str, Array]]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Notes what is sent."""
        noted = list(messages)
        ids = list(super().push_messages(noted))
        for key, message in zip(ids, noted, strict=True):
            arrays, config = message.content.get("arrays"), message.content.get("config")
            if message.metadata.message_type == MessageType.TRAIN and isinstance(arrays, ArrayRecord):
                number = config["round"] if isinstance(config, ConfigRecord) else 0
                self._calls[key] = int(number), _copies(arrays)  # type: ignore[arg-type]  # rounds are integers
        return ids

    def pull_messages(self, message_ids: Iterable[str], *, timeout: float | None = None) -> Iterable[Message]:
        """Notes what comes back."""
        replies = list(super().pull_messages(message_ids, timeout=timeout))
        for reply in replies:
            opened = reply_of(reply)
            call = self._calls.pop(reply.metadata.reply_to_message_id, None)
            if call is not None and opened.error is None:
                returned = {name: np.array(array.numpy()) for name, array in opened.arrays.items()}
                self.seen.append(
                    Seen(site=self.sites[opened.node_id], round=call[0], sent=call[1], returned=returned)
                )
        return replies


def _copies(record: ArrayRecord) -> dict[str, Array]:
    return {name: np.array(array) for name, array in read_weights(record).items()}
