"""A client app that writes down what it is asked and what it answers, as sizes, and is otherwise the real one."""

import math
from dataclasses import dataclass
from typing import Any

from sottovoce.client.app import app as client
from sottovoce.client.traffic import Direction
from sottovoce.common.flower import ArrayRecord, ClientApp, Context, Message, RecordDict

NUMBER_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One message as it was: (record, name) and size of each of its fields; shapes of arrays."""

    site: str
    phase: str
    direction: Direction
    sizes: dict[tuple[str, str], int]
    shapes: dict[str, tuple[int, ...]]


seen: list[Recorded] = []


class _RecordingApp(ClientApp):
    def __call__(self, message: Message, context: Context) -> Message:
        site = str(context.node_config["site-folder"])
        phase = message.metadata.message_type
        seen.append(_recorded(site, phase, "to the site", message.content))
        reply: Message = client(message, context)
        seen.append(_recorded(site, phase, "from the site", reply.content))
        return reply


recording_app = _RecordingApp()


def _recorded(site: str, phase: str, direction: Direction, content: RecordDict) -> Recorded:
    sizes, shapes = {}, {}
    for record_name, record in content.items():
        item: Any
        for name, item in record.items():
            if isinstance(record, ArrayRecord):
                shapes[name] = tuple(item.shape)
                assert item.dtype == "float32"
            sizes[record_name, name] = _size(item)
    return Recorded(site=site, phase=phase, direction=direction, sizes=sizes, shapes=shapes)


def _size(item: object) -> int:
    if isinstance(item, bytes):
        return len(item)
    if isinstance(item, str):
        return len(item.encode())
    if isinstance(item, list):
        return NUMBER_BYTES * len(item)
    if isinstance(item, int | float):
        return NUMBER_BYTES
    return 4 * math.prod(item.shape)  # type: ignore[attr-defined]  # an array of float32
