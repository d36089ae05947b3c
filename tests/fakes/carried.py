"""Copies of messages on their way: of another metadata, with another envelope, or with one that nobody signed."""

import copy
import random
from dataclasses import replace
from typing import Any

from sottovoce.common.envelope import Envelope
from sottovoce.common.errors import EnvelopeRefused
from sottovoce.common.flower import Message, error_reply, stamp
from sottovoce.common.sealing import unwrapped, with_content, wrapped


def altered(envelope: Envelope, draw: random.Random, others: list[Envelope]) -> Envelope:
    """Returns an envelope that nobody signed: a byte or a part of it is another, or missing, or more."""
    part = draw.choice(["header", "signature", "body"])
    data: bytes = getattr(envelope, part)
    match draw.randrange(4):
        case 0 if others:
            data = getattr(draw.choice(others), part)
        case 1:
            data = data[: draw.randrange(len(data))] if data else b"x"
        case 2:
            data = data + bytes([draw.randrange(256)])
        case _:
            place = draw.randrange(len(data)) if data else 0
            data = (
                data[:place] + bytes([(data or b"\0")[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]
            )
    return replace(envelope, **{part: data})


def carrying(message: Message, envelope: Envelope) -> Message:
    """Returns a message of the same metadata with another envelope."""
    return with_content(to_node(message, message.metadata.dst_node_id), wrapped(envelope))


def to_node(message: Message, node: int) -> Message:
    """Returns a copy that a SuperLink would hand to a node."""
    return _with_metadata(message, _dst_node_id=node)


def from_node(message: Message, node: int) -> Message:
    """Returns a copy that says it comes of a node."""
    return _with_metadata(message, _src_node_id=node)


def error_reply_of(reply: Message, reason: str) -> Message:
    """Returns an error in the place of a reply."""
    other = error_reply(reply, reason)
    other.__dict__["_metadata"] = copy.copy(reply.metadata)
    return other


def stamped(message: Message, like: Message) -> Message:
    """Gives a message the id of another."""
    stamp(message, like.metadata.message_id)
    return message


def _with_metadata(message: Message, **changes: Any) -> Message:
    other: Message = copy.copy(message)
    metadata = copy.copy(message.metadata)
    metadata.__dict__.update(changes)
    other.__dict__["_metadata"] = metadata
    return other


def envelope_in(message: Message) -> Envelope:
    try:
        return unwrapped(message.content)
    except EnvelopeRefused:
        return Envelope(header=b"", signature=b"", body=b"")
