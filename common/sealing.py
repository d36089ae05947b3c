"""Flower's records in an envelope and out of it, alike at both ends.

    content = records_of(unpack(envelope.body));  body = pack(content_of(reply.content))
    message.content = wrapped(envelope);          envelope = unwrapped(message.content)

On the wire a sealed message is three objects (message, record dict, one record of bytes): each object is a request of
its own on Flower's transport. A large body goes into an array beside it, which Flower cuts into chunks.

Guarantees:
  - `unwrapped` parses nothing: it takes byte strings under known names, and refuses whatever else is there.
  - What of a reply has no place in a body is refused at the sender, not left out.
"""

import numpy as np

from sottovoce.common.envelope import MAX_BODY_BYTES, Envelope
from sottovoce.common.errors import EnvelopeRefused
from sottovoce.common.flower import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
    array_record,
    decode,
    read_weights,
)
from sottovoce.common.records import KINDS, Content, Record

SEALED, BODY = "sealed", "body"
LARGE_BODY_BYTES = 4_000_000

_TYPES = {"arrays": ArrayRecord, "metrics": MetricRecord, "config": ConfigRecord}


def content_of(records: RecordDict) -> Content:
    """Returns what a message says, ready to be packed. Raises: EnvelopeRefused for records that no body carries."""
    content: dict[str, Record] = {}
    for name, record in records.items():
        if name not in KINDS or not isinstance(record, _TYPES[KINDS[name]]):
            raise EnvelopeRefused("content", f"Expected records of {', '.join(KINDS)}; came another.")
        content[name] = read_weights(record) if isinstance(record, ArrayRecord) else dict(record)
    return content


def records_of(content: Content) -> RecordDict:
    """Returns the records of an unpacked body; arrays are those of the content, not copied."""
    records = RecordDict()
    for name, record in content.items():
        match KINDS[name]:
            case "arrays":
                records[name] = array_record(dict(record))  # type: ignore[arg-type]
            case "metrics":
                records[name] = MetricRecord(dict(record))  # type: ignore[arg-type]
            case "config":
                records[name] = ConfigRecord(dict(record))  # type: ignore[arg-type]
    return records


def wrapped(envelope: Envelope) -> RecordDict:
    """Returns the records in which an envelope travels."""
    sealed = ConfigRecord({"header": envelope.header, "signature": envelope.signature})
    if len(envelope.body) <= LARGE_BODY_BYTES:
        sealed[BODY] = envelope.body
        return RecordDict({SEALED: sealed})
    body = array_record({BODY: np.frombuffer(envelope.body, np.uint8)})
    return RecordDict({SEALED: sealed, BODY: body})


def unwrapped(records: RecordDict) -> Envelope:
    """Returns the envelope that came in such records; nothing of it has been looked at. Raises: EnvelopeRefused."""
    sealed = records.get(SEALED)
    parts = dict(sealed) if isinstance(sealed, ConfigRecord) else {}
    if BODY not in parts and BODY in records:
        parts[BODY] = _body_of(records[BODY])
        known = {SEALED, BODY}
    else:
        known = {SEALED}
    header, signature, body = (parts.get(name) for name in ("header", "signature", BODY))
    if (
        not isinstance(header, bytes)
        or not isinstance(signature, bytes)
        or not isinstance(body, bytes)
        or len(parts) != 3
        or set(records.keys()) != known
    ):
        raise _no_frame()
    return Envelope(header=header, signature=signature, body=body)


def with_content(message: Message, records: RecordDict) -> Message:
    """Returns the message with other content; the one that came is left as it is."""
    return Message(metadata=message.metadata, content=records)  # type: ignore[call-overload, no-any-return]


def _body_of(record: object) -> bytes:
    if not isinstance(record, ArrayRecord) or list(record) != [BODY]:
        raise _no_frame()
    array = record[BODY]
    shape = array.shape
    if len(shape) != 1 or not 0 <= shape[0] <= MAX_BODY_BYTES:
        raise _no_frame()
    try:
        return decode(array, (shape[0],), np.uint8).tobytes()
    except ValueError:
        raise _no_frame() from None


def _no_frame() -> EnvelopeRefused:
    return EnvelopeRefused("frame", "Expected an envelope and nothing beside it; came another message.")
