"""The calls of consortium.proto, taken from its descriptor: what both ends serialise, and under which path.

>>> METHODS["FetchModel"].path, METHODS["FetchModel"].streams
('/sottovoce.v1.Consortium/FetchModel', True)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from sottovoce.common.consortium import consortium_pb2

_SERVICE = consortium_pb2.DESCRIPTOR.services_by_name["Consortium"]
SERVICE = str(_SERVICE.full_name)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One call. `streams`: many answers to one request."""

    name: str
    path: str
    request: type[Any]
    response: type[Any]
    streams: bool


METHODS: Mapping[str, Method] = {
    one.name: Method(
        name=one.name,
        path=f"/{SERVICE}/{one.name}",
        request=getattr(consortium_pb2, one.input_type.name),
        response=getattr(consortium_pb2, one.output_type.name),
        streams=one.server_streaming,
    )
    for one in _SERVICE.methods
}


def decoded(kind: type[Any], data: bytes) -> Any | None:
    """Returns the message of these bytes; None for bytes that are none, or have a field that the schema has not.

    protobuf itself keeps unknown fields in silence.
    """
    message = kind()
    try:
        message.ParseFromString(data)
    except (DecodeError, RecursionError):
        return None
    return message if _known(message) else None


def _known(message: Any) -> bool:
    if len(UnknownFieldSet(message)):
        return False
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            inner = value if descriptor.is_repeated else [value]
            if not all(map(_known, inner)):
                return False
    return True


def as_plain(message: Any) -> dict[str, Any]:
    """Returns a message as plain data, fields with their default values too; bytes in hexadecimal."""
    return {field.name: _plain(field, getattr(message, field.name)) for field in message.DESCRIPTOR.fields}


def _plain(field: Any, value: Any) -> Any:
    if field.is_repeated:
        return [_plain_one(one) for one in value]
    return _plain_one(value)


def _plain_one(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return as_plain(value) if hasattr(value, "DESCRIPTOR") else value
