"""All sites in this process, one after the other: the default engine. No daemon, no copies, no polling.

Guarantees:
  - Drives any Flower `ClientApp` unmodified; its `Context.state` is kept from round to round.
  - At most one reply exists at a time: memory does not grow with the number of sites.
  - A message is worked on when its reply is pulled; one whose time is over is answered by an error.

A site that is at work cannot be interrupted: in one process a deadline is looked at between sites.
The engine `processes` ends a site that is late.
"""

from collections.abc import Iterable, Mapping, Sequence

from sottovoce.common.flower import (
    ClientApp,
    ErrorCode,
    LocalGrid,
    Message,
    Node,
    Scalar,
    answer,
    error_reply,
    has_expired,
)


class InProcessGrid(LocalGrid):
    """A grid that calls the app itself."""

    def __init__(self, app: ClientApp, nodes: Sequence[Node], run_config: Mapping[str, Scalar]) -> None:
        super().__init__(nodes, run_config)
        self._app = app
        self._pending: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keeps the messages until they are pulled."""
        ids = []
        for message in messages:
            ids.append(self._accept(message))
            self._pending[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str], *, timeout: float | None = None) -> Iterable[Message]:
        """Works on the first of the messages that is pending and returns its reply."""
        for key in message_ids:
            if (message := self._pending.pop(key, None)) is not None:
                return [self._finish(self._answer(message))]
        return []

    def _answer(self, message: Message) -> Message:
        if has_expired(message):
            return error_reply(message, "the deadline was over", ErrorCode.MESSAGE_UNAVAILABLE)
        return answer(self._app, message, self._contexts[message.metadata.dst_node_id])
