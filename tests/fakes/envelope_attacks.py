"""Altered and replayed envelopes against the two ends of sealed messages, with whatever would run if one were believed.

told = attack(folder, study_file, n=1_000, seed=0)
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sottovoce.client import app as client_app
from sottovoce.client.agent_files import SECURITY
from sottovoce.client.hospital import SealedApp
from sottovoce.common.envelope import Envelope
from sottovoce.common.flower import (
    ClientApp,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
    array_record,
    stamp,
)
from sottovoce.common.sealing import unwrapped, wrapped
from sottovoce.server.sealed import SealedGrid
from sottovoce.simulations.engines.inprocess import InProcessGrid
from tests.fakes.carried import altered, carrying
from tests.fakes.sealed_rounds import SealedFederation

REPLAYED = 0.2  # of the spoiled ones; the others are altered


@dataclass(frozen=True, kw_only=True)
class Told:
    """What came of it: how many were sent, were acted upon, came back as refusals, and stand in a log."""

    n_sent: int
    n_executed: int
    n_refused: int
    n_logged: int


class _Inner(ClientApp):
    """What runs at a site once an envelope was believed."""

    n_calls = 0

    def __call__(self, message: Message, context: Context) -> Message:
        self.n_calls += 1
        metrics = MetricRecord({"loss": 0.5, "n-examples": 1, "n-steps": 1})
        return Message(
            RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message
        )


# The first round of the study's own: what has another one is refused for that.
INSTRUCTION = {"round": 1, "rounds": 1, "seed": 0, "fold": -1, "proximal-mu": 0.0}


class _Wire(InProcessGrid):
    """A network in an attacker's hands: questions stop here, and replies are what was put here."""

    question: Message
    reply: Message

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        (self.question,) = messages
        return [self._accept(self.question)]

    def pull_messages(self, message_ids: Iterable[str], *, timeout: float | None = None) -> Iterable[Message]:
        return [self._finish(self.reply)]


class _Attack:
    """One hospital, one coordinator, and who stands between them."""

    def __init__(self, folder: Path, study_file: Path, seed: int) -> None:
        self.draw, self.place, self.inner = (
            random.Random(seed),
            SealedFederation(folder, study_file),
            _Inner(),
        )
        site, self.hospital = next(iter(self.place.hospitals.items()))
        self.context = Context(1, 1, {"home": str(self.hospital.folder)}, RecordDict(), {})
        self.wire = _Wire(ClientApp(), self.place.nodes(), {})
        self.grid: SealedGrid = self.place.sealed(self.wire)
        self.grid._names[1] = site  # as after a question after names
        self.app = SealedApp()
        self.seen: list[Envelope] = []

    def ask(self) -> Message:
        """Returns a question of the coordinator as it is on the wire."""
        content = RecordDict(
            {"arrays": array_record(self.place.weights), "config": ConfigRecord(dict(INSTRUCTION))}
        )
        self.grid.push_messages([Message(content, 1, MessageType.TRAIN, group_id="g", ttl=3600.0)])
        self.seen.append(unwrapped(self.wire.question.content))
        return self.wire.question

    def answer(self, question: Message) -> Message:
        """Has the hospital answer."""
        reply: Message = self.app(question, self.context)
        return reply

    def spoiled(self, genuine: Envelope) -> Envelope:
        """Returns another envelope than the genuine one: an older one, or one that nobody signed."""
        while True:
            old = self.draw.random() < REPLAYED
            other = self.draw.choice(self.seen[:-1]) if old else altered(genuine, self.draw, self.seen)
            if other != genuine:
                return other

    @property
    def n_logged(self) -> int:
        """Lines of both logs."""
        file: Any = self.hospital.run / SECURITY
        return len(self.place.log) + (len(file.read_text().splitlines()) if file.exists() else 0)


def attack(folder: Path, study_file: Path, *, n: int, seed: int) -> Told:
    """Sends `n` spoiled envelopes, half of them to a hospital and half to the coordinator; some honest ones between."""
    made, executed, refused, honest = _Attack(folder, study_file, seed), 0, 0, 0
    with patch.object(client_app, "app", made.inner):
        for _ in range(3):
            made.answer(made.ask())
        honest = made.inner.n_calls
        question = made.ask()
        for _ in range(n // 2):
            spoiled = carrying(question, made.spoiled(made.seen[-1]))
            refused += made.answer(stamped(spoiled)).has_error()
        executed += made.inner.n_calls - honest
        for _ in range(n - n // 2):
            question = made.ask()
            reply = made.answer(question)
            made.seen.append(unwrapped(reply.content))
            made.wire.reply = Message(wrapped(made.spoiled(made.seen[-1])), reply_to=question)
            (answer,) = made.grid.pull_messages([question.metadata.message_id])
            refused += answer.has_error()
            executed += not answer.has_error()
            made.seen = made.seen[-20:]
    if honest != 3:
        raise AssertionError("the honest exchanges failed")
    return Told(n_sent=n, n_executed=executed, n_refused=refused, n_logged=made.n_logged)


def stamped(message: Message) -> Message:
    """Gives a message an id."""
    stamp(message, "attack")
    return message
