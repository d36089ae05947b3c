"""Sites that sign whatever they send: honest ones, and one that breaks the contract under its own valid envelope."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.common.envelope import COORDINATOR, header_digest, seal
from sottovoce.common.errors import EnvelopeRefused
from sottovoce.common.flower import (
    Array,
    ArrayRecord,
    ClientApp,
    Context,
    LazyArray,
    Message,
    MetricRecord,
    Node,
    RecordDict,
    error_reply,
)
from sottovoce.common.keys import SigningKey
from sottovoce.common.records import ALIGNMENT, MAGIC, pack, unpack
from sottovoce.common.sealing import content_of, records_of, unwrapped, with_content, wrapped
from sottovoce.server.sealed import SealedGrid
from sottovoce.simulations.engines.inprocess import InProcessGrid
from tests.fakes.federations import honestly, site_names, trained

RUN = "ab" * 32
BAD = "site-2"
Broken = Callable[[Message, dict[str, Any]], Any]


class SigningSites(ClientApp):
    """The app of all sites; the bad one answers with `broken`, or with a body that it wrote itself."""

    def __init__(
        self, keys: Mapping[str, SigningKey], *, broken: Broken | None = None, body: bytes | None = None
    ) -> None:
        self._keys, self._broken, self._body = keys, broken, body

    def __call__(self, message: Message, context: Context) -> Message:
        site, envelope = str(context.node_config["site"]), unwrapped(message.content)
        question = with_content(message, records_of(unpack(envelope.body)))
        reply: Any = honestly(question, context)
        if site == BAD and self._broken is not None:
            reply = self._broken(question, trained(question, context))
        if not isinstance(reply, Message) or reply.has_error():
            return error_reply(message, "nothing to sign")
        body = self._body if site == BAD and self._body is not None else packed_anyhow(reply.content)
        answer = seal(
            self._keys[site],
            run=RUN,
            round=1,
            phase=message.metadata.message_type,
            sender=site,
            recipient=COORDINATOR,
            sequence=1,
            body=body,
            not_after=message.metadata.created_at + 60,
            answers=header_digest(envelope),
        )
        return Message(wrapped(answer), reply_to=message)


def sealed_grid(folder: Path, n_sites: int, log: Callable[[str], None], **how: Any) -> SealedGrid:
    """Returns the coordinator's end of such sites. `how` is the bad one's way."""
    keys = {site: SigningKey.generate() for site in site_names(n_sites)}
    nodes = [Node(site=site, config={"site": site}) for site in keys]
    return SealedGrid(
        InProcessGrid(SigningSites(keys, **how), nodes, {}),
        key=SigningKey.generate(),
        run=RUN,
        sites=lambda: {site: key.public_hex for site, key in keys.items()},
        sequence=folder / "sequence",
        log=log,
        nodes=dict(enumerate(keys, start=1)),
    )


def packed_anyhow(content: RecordDict) -> bytes:
    """Packs records as a site would that keeps no rule of the format but its frame."""
    try:
        return pack(content_of(content))
    except EnvelopeRefused:
        pass
    blobs: list[bytes] = []
    index = [[name, _items(record, blobs)] for name, record in content.items()]
    said = json.dumps(index, separators=(",", ":")).encode()
    head = MAGIC + len(said).to_bytes(4, "little") + said
    return b"".join(
        [head + bytes(-len(head) % ALIGNMENT), *(blob + bytes(-len(blob) % ALIGNMENT) for blob in blobs)]
    )


def _items(record: Any, blobs: list[bytes]) -> list[list[Any]]:
    if isinstance(record, ArrayRecord):
        return [[name, _array(array, blobs)] for name, array in record.items()]
    if isinstance(record, MetricRecord):
        return [[name, value] for name, value in record.items()]
    return [[name, str(value)] for name, value in record.items()]


def _array(array: Array, blobs: list[bytes]) -> list[Any]:
    if isinstance(array, LazyArray) and array.is_lazy:
        blobs.append(np.ascontiguousarray(array.kept).tobytes())
        return [str(array.kept.dtype), list(array.kept.shape)]
    blobs.append(array.data)  # a pickle, a bomb, half of one: as it is
    return [str(array.dtype), list(array.shape)]
