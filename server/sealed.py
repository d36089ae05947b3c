"""A Flower grid on which every message to a site is sealed, and every reply is opened.

    sealed = SealedGrid(grid, key=home.key, run=study.digest(), sites=trusted, sequence=file, log=print)
    GridExchange(sealed, roster(sealed, n_sites=5, timeout=60))

It stands between the rounds and whatever carries their messages: our own grids, or a SuperLink's. Nothing that carries
is believed: a reply is whose key signed it, to the question whose digest it names.

Guarantees:
  - A message goes to a site that may take part now, under its name: who was revoked since is neither asked nor heard.
  - A reply that is late, of another site, to another question, altered or cut is an error reply with the reason, and
    a line of the log; one that answers nothing that is open is dropped, with a line. Nothing of its body was parsed.
  - Each question is answered once.
  - Errors of Flower's own, and those that a site sends in the place of a reply, stay errors. They are not signed:
    whoever can forge one could as well have dropped the reply.
  - A site has one node, and a node one site, for as long as the grid lives.

Replies need no record of their own against replays: each names the digest of a question, whose sequence number is new.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.common.envelope import (
    COORDINATOR,
    MAX_BODY_BYTES,
    Envelope,
    Sequence,
    header_digest,
    opened,
    seal,
    signed_by,
)
from sottovoce.common.errors import EnvelopeRefused
from sottovoce.common.flower import (
    CONFIG,
    ConfigRecord,
    Grid,
    Message,
    MessageType,
    RecordDict,
    error_reply,
    stamp,
)
from sottovoce.common.keys import SigningKey
from sottovoce.common.records import Content, pack, unpack
from sottovoce.common.sealing import content_of, records_of, unwrapped, with_content, wrapped

GRACE_SECONDS = 60  # a hospital's clock and ours differ; the deadline itself is kept here
FORGET_SECONDS = 3600
MAX_ERROR_CHARS = 300

Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What was asked and is open: the message as it went, and what its answer must say."""

    message: Message
    site: str  # "" where the question is who is there
    round: int
    digest: str
    not_after: float

    @property
    def node(self) -> int:
        return self.message.metadata.dst_node_id

    @property
    def phase(self) -> str:
        return self.message.metadata.message_type


class SealedGrid(Grid):
    """A grid over another one.

    `sites` gives the public keys of those who may take part, and is asked at each message. `nodes` says which node is
    which site's, where that is known beforehand; else a question after names teaches it.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        key: SigningKey,
        run: str,
        sites: Callable[[], Mapping[str, str]],
        sequence: Path,
        log: Log,
        nodes: Mapping[int, str] | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._grid, self._key, self._run_digest = grid, key, run
        self._sites, self._sequence, self._log = sites, Sequence(sequence), log
        self._names = dict(nodes or {})
        self._max_body_bytes = max_body_bytes
        self._open: dict[str, _Question] = {}
        self._unsent: dict[str, Message] = {}
        self._n_unsent = 0

    @property
    def waits(self) -> bool:
        """Says whether `pull_messages` waits for a reply, as our own grids do."""
        return bool(getattr(self._grid, "waits", False))

    def set_run(self, run: Any) -> None:
        """Hands a run on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Returns Flower's run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Returns a message that is not sealed yet."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Returns the nodes that are there."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Any:
        """Returns what Flower knows of the nodes that are there."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Seals messages and sends them; returns their ids. One that no site may have is answered here."""
        self._forget()
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str], *, timeout: float | None = None) -> Iterable[Message]:
        """Returns the replies that are there, opened; refused ones as errors."""
        wanted = list(message_ids)
        if unsent := [self._unsent.pop(key) for key in wanted if key in self._unsent]:
            return unsent
        keys = [key for key in wanted if key in self._open]
        replies = (
            self._grid.pull_messages(keys, timeout=timeout)  # type: ignore[call-arg]
            if self.waits
            else self._grid.pull_messages(keys)
        )
        answers = (self._answer(reply) for reply in replies)
        return [answer for answer in answers if answer is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Returns the replies that come within `timeout` seconds."""
        keys = set(self.push_messages(messages)) - {""}
        end = time.monotonic() + (FORGET_SECONDS if timeout is None else timeout)
        replies: list[Message] = []
        while keys and (left := end - time.monotonic()) > 0:
            found = list(self.pull_messages(keys, timeout=left))
            replies += found
            keys -= {reply.metadata.reply_to_message_id for reply in found}
            if not found and not self.waits:
                time.sleep(min(left, 0.02))
        return replies

    # --- out ---

    def _push(self, message: Message) -> str:
        metadata = message.metadata
        is_query = metadata.message_type == MessageType.QUERY
        site = "" if is_query else self._names.get(metadata.dst_node_id, "")
        if not is_query and site not in self._sites():
            return self._not_sent(message, f"{site!r} may not take part" if site else "a node without a name")
        round, not_after = _round_of(message.content), metadata.created_at + metadata.ttl + GRACE_SECONDS
        try:
            envelope = seal(
                self._key,
                run=self._run_digest,
                round=round,
                phase=metadata.message_type,
                sender=COORDINATOR,
                recipient=site,
                sequence=self._sequence.next(),
                body=pack(content_of(message.content)),
                not_after=not_after,
            )
        except EnvelopeRefused as refusal:
            return self._not_sent(message, str(refusal))
        sealed = Message(
            wrapped(envelope),
            metadata.dst_node_id,
            metadata.message_type,
            ttl=metadata.ttl,
            group_id=metadata.group_id,
        )
        key = next(iter(self._grid.push_messages([sealed])), None) or ""
        if key:
            self._open[key] = _Question(
                message=with_content(sealed, RecordDict()),  # else every open question would keep a model
                site=site,
                round=round,
                digest=header_digest(envelope),
                not_after=not_after,
            )
        return key

    def _not_sent(self, message: Message, reason: str) -> str:
        """Answers a message here: nobody is to have it."""
        self._n_unsent += 1
        key = stamp(message, f"unsent-{self._n_unsent}")
        self._log(f"not asked: {reason}")
        self._unsent[key] = error_reply(message, f"not asked: {reason}")
        return key

    def _forget(self) -> None:
        """Drops questions that nobody waits for any more."""
        long_ago = time.time() - FORGET_SECONDS
        for key in [key for key, question in self._open.items() if question.not_after < long_ago]:
            del self._open[key]

    # --- in ---

    def _answer(self, reply: Message) -> Message | None:
        """Returns what a reply says, or an error in its place; None for one that nobody asked for."""
        question = self._open.pop(reply.metadata.reply_to_message_id, None)
        if question is None:
            self._log("a reply was dropped: it answers no open question (late, or a second time)")
            return None
        if reply.has_error():
            answer = error_reply(question.message, _short(reply.error.reason), reply.error.code)
        else:
            try:
                answer = Message(records_of(self._content(question, reply)), reply_to=question.message)
            except EnvelopeRefused as refusal:
                who = question.site or f"node {question.node}"
                self._log(f"a reply of {who} to {question.phase} was refused ({refusal.reason}): {refusal}")
                answer = error_reply(question.message, f"refused ({refusal.reason}): {refusal}")
        stamp(answer, reply.metadata.message_id)
        return answer

    def _content(self, question: _Question, reply: Message) -> Content:
        """Opens a reply. Raises: EnvelopeRefused for anything but this question's answer by the site that was asked."""
        envelope, trusted = unwrapped(reply.content), self._sites()
        site = question.site or self._signer(envelope, trusted)
        if site not in trusted:
            raise EnvelopeRefused(
                "sender", "Expected a site that may take part; it was revoked, or is unknown."
            )
        header = opened(
            envelope,
            public_key=trusted[site],
            sender=site,
            recipient=COORDINATOR,
            phase=question.phase,
            answers=question.digest,
            now=time.time(),
            max_body_bytes=self._max_body_bytes,
        )
        if (header.run, header.round) != (self._run_digest, question.round):
            raise EnvelopeRefused("answers", "Expected the run and round of the question; came another.")
        content = unpack(envelope.body)
        if not question.site:
            self._learn(question.node, site)
        return content

    def _signer(self, envelope: Envelope, trusted: Mapping[str, str]) -> str:
        """Returns whose key signed: before that nothing that a reply says of its sender is read."""
        found = (
            site
            for site, key in trusted.items()
            if signed_by(envelope, key, max_body_bytes=self._max_body_bytes)
        )
        return next(found, "")

    def _learn(self, node: int, site: str) -> None:
        other = next((known for known, name in self._names.items() if name == site), node)
        if other != node or self._names.get(node, site) != site:
            raise EnvelopeRefused("sender", f"Expected one node for {site!r}; another has answered as it.")
        self._names[node] = site


def _short(reason: str | None) -> str:
    """Nobody signed an error: as much of it as a person reads, and nothing that moves a cursor."""
    return "".join(c for c in (reason or "")[:MAX_ERROR_CHARS] if c.isprintable())


def _round_of(content: RecordDict) -> int:
    config = content.get(CONFIG)
    round = config.get("round") if isinstance(config, ConfigRecord) else None
    return round if isinstance(round, int) else 0
