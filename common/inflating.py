"""From a message's objects back to the message, without believing what the objects say of themselves.

Guarantees:
  - An object is used only if its bytes have the digest by which it was asked for.
  - An array is put together only if all of its pieces, however often they are named, are within the bound: a few
    bytes that name one piece a million times are refused before anything is allocated.
  - Whatever bytes come, the error is a `DeploymentError`.
"""

import hashlib
import json
from collections.abc import Mapping

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content

from sottovoce.common.errors import DeploymentError
from sottovoce.common.flower import Array, stamp


def inflated(envelope: Message, contents: dict[str, bytes], *, max_bytes: int) -> Message:
    """Returns the message of an envelope from its objects, by their digests.

    Raises:
        DeploymentError: an object is another one, arrays are larger than `max_bytes`, or it is not this message.
    """
    message = unfolded(envelope.metadata.message_id, contents, max_bytes=max_bytes)
    if not _is_of(message, envelope):
        raise _refused("its objects are of another message")
    stamp(message, envelope.metadata.message_id)
    return message


def unfolded(message_id: str, contents: dict[str, bytes], *, max_bytes: int) -> Message:
    """Returns the message of these objects, whatever it is; takes them out of `contents` on the way.

    Raises:
        DeploymentError: an object is another one, arrays are larger than `max_bytes`, or it is no message.
    """
    try:
        for object_id, content in contents.items():
            _check_digest(object_id, content)
            validate_object_content(content)
        _check_arrays(contents, max_bytes)
        message = inflate_object_from_contents(message_id, contents)
    except DeploymentError:
        raise
    except Exception as error:  # Flower's own raise whatever they come upon
        raise _refused(f"its objects cannot be put together ({type(error).__name__})") from None
    if not isinstance(message, Message):
        raise _refused("its objects are of another message")
    return message


def _check_digest(object_id: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != object_id:
        raise _refused("an object is not what its digest says")


def _check_arrays(contents: Mapping[str, bytes], max_bytes: int) -> None:
    n_bytes = 0
    for content in contents.values():
        kind, pieces, _ = get_object_head_values_from_object_content(content)
        if kind != Array.__qualname__:
            continue
        for index in json.loads(get_object_body(content, Array))["arraychunk_ids"]:
            n_bytes += len(contents[pieces[index]])
            if n_bytes > max_bytes:
                raise _refused(f"its arrays have more than {max_bytes} bytes (max_message_bytes)")


def _is_of(message: Message, envelope: Message) -> bool:
    """Says whether what the digests hold is what the SuperLink said beside them."""
    mine, said = message.metadata, envelope.metadata
    return (
        message.has_content()
        and (mine.run_id, mine.dst_node_id, mine.message_type)
        == (said.run_id, said.dst_node_id, said.message_type)
        and (mine.created_at, mine.ttl, mine.group_id) == (said.created_at, said.ttl, said.group_id)
    )


def _refused(why: str) -> DeploymentError:
    return DeploymentError(f"Refused a message: {why}.", reason="message")
