"""Claims of the sealed grid: the same bits as without it, and nothing that a carrier does to messages is believed."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sottovoce.client.agent_files import SECURITY
from sottovoce.client.hospital import app as hospital_app
from sottovoce.common.envelope import COORDINATOR, header_digest, seal
from sottovoce.common.errors import QuorumError
from sottovoce.common.flower import (
    ClientApp,
    ConfigRecord,
    Context,
    Grid,
    Message,
    MessageType,
    RecordDict,
    error_reply,
    exchange,
    load_app,
)
from sottovoce.common.keys import SigningKey
from sottovoce.common.records import pack
from sottovoce.common.sealing import unwrapped, wrapped
from sottovoce.common.study import Execution
from sottovoce.server import sealed as sealed_module
from sottovoce.server.exchange import GridExchange, roster
from sottovoce.server.rounds import Outcome, RoundRecord, run
from sottovoce.server.sealed import SealedGrid
from sottovoce.simulations.engines import open_exchange
from sottovoce.simulations.engines.inprocess import InProcessGrid
from sottovoce.simulations.engines.processes import ProcessGrid
from tests.fakes import hospitals as fakes
from tests.fakes.sealed_rounds import SealedFederation
from tests.fakes.secure_rounds import CELL, LOCAL, Federation
from tests.fakes.sites import DISTRIBUTED, LINEAR, MLP, NONE, SGD, write_study

BAD = "site-2"
# Nobody waits for this deadline; a process in the place of one that died imports for half a minute on a busy machine.
QUORUM = "quorum = 3, deadline_seconds = 600.0"


def federation(folder: Path, mode: str = "none", more: str = QUORUM, n_sites: int = 4) -> SealedFederation:
    privacy = {"none": NONE, "local": LOCAL, "distributed": DISTRIBUTED}[mode]
    model = MLP if mode == "none" else LINEAR
    file = write_study(
        folder / "study.toml",
        n_sites=n_sites,
        rounds=2,
        privacy=privacy,
        model=model,
        training=SGD,
        federation=more,
    )
    return SealedFederation(folder, file)


def unsealed(place: SealedFederation) -> Outcome:
    """The same study on the same data, by nodes that say what they are."""
    with open_exchange(
        Execution(), place.data, study_file=place.study_file, without_privacy=True
    ) as exchange:
        return run(exchange, place.study, cell=CELL, weights=place.weights)


def refusals(place: SealedFederation, site: str = BAD) -> list[str]:
    path = place.hospitals[site].run / SECURITY
    return (
        [line.split('"reason": "')[1].split('"')[0] for line in path.read_text().splitlines()]
        if path.exists()
        else []
    )


# --- the same bits ---


def test_sealed_in_mode_none_the_weights_are_the_same_bits(tmp_path: Path) -> None:
    place = federation(tmp_path)
    sealed, plain = place.run(), unsealed(place)
    assert sealed.digest == plain.digest
    assert [record.confusion for record in sealed.rounds] == [record.confusion for record in plain.rounds]
    assert [record.loss for record in sealed.rounds] == [record.loss for record in plain.rounds]
    assert place.log == []


@pytest.mark.parametrize(("mode", "more"), [("distributed", ""), ("none", "secure_sum = true")])
def test_sealed_secure_sums_are_the_same_bits(tmp_path: Path, mode: str, more: str) -> None:
    (tmp_path / "plain").mkdir()
    place, plain = federation(tmp_path, mode, more, 3), Federation(tmp_path / "plain", mode, n_sites=3)
    sealed, other = place.run(), plain.run()
    assert place.study.digest() == plain.study.digest()
    assert sealed.digest == other.digest
    assert place.log == []


def test_sealed_in_mode_local_without_masks_the_weights_are_the_same_bits(tmp_path: Path) -> None:
    from sottovoce.simulations import site_ledgers

    place = federation(tmp_path, "local", "secure_sum = false")
    sealed = place.run()
    site_ledgers.open_all(tmp_path / "ledgers", place.study, place.data)
    with open_exchange(
        Execution(), place.data, study_file=place.study_file, ledgers=tmp_path / "ledgers"
    ) as exchange:
        plain = run(exchange, place.study, cell=CELL, weights=place.weights)
    assert sealed.digest == plain.digest
    assert set(sealed.rounds[-1].witnessed) == set(place.sites)


class Polled(Grid):
    """A SuperLink's ways: nobody waits, replies come on a later pull, and a node that is nobody's is there as well."""

    def __init__(self, inner: InProcessGrid) -> None:
        self._inner, self._pulls = inner, 0

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return self._inner.run

    def create_message(self, *args: Any, **more: Any) -> Message:
        return self._inner.create_message(*args, **more)

    def get_node_ids(self) -> Iterable[int]:
        return [*self._inner.get_node_ids(), 99]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        (message,) = messages
        return [""] if message.metadata.dst_node_id == 99 else self._inner.push_messages([message])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._pulls += 1
        return self._inner.pull_messages(message_ids) if self._pulls % 2 else []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError


def test_over_a_grid_that_does_not_wait_it_is_polled(tmp_path: Path) -> None:
    place = federation(tmp_path)
    inner = place.grid()
    assert isinstance(inner, InProcessGrid)
    assert place.run(Polled(inner)).digest == unsealed(place).digest


# --- what a carrier may do to messages ---


class Carrier(InProcessGrid):
    """Whoever carries messages: it may change, keep, repeat and exchange them. `spoil` is asked for each reply."""

    def __init__(self, place: SealedFederation, spoil: "Spoil", app: ClientApp) -> None:
        super().__init__(app, place.nodes(), {})
        self.place, self.spoil, self.spoils = place, spoil, False
        self.questions: list[Message] = []
        self.replies: list[Message] = []

    def ask(self, question: Message) -> Message:
        """Has the bad site's own app answer."""
        return super()._answer(question)

    def _answer(self, message: Message) -> Message:
        at_bad = self.sites[message.metadata.dst_node_id] == BAD
        reply = self.spoil(self, message) if at_bad and self.spoils else super()._answer(message)
        if at_bad:
            self.questions.append(message)
            self.replies.append(reply)
        return reply


Spoil = Callable[[Carrier, Message], Message]


def with_envelope(message: Message, **changes: bytes) -> RecordDict:
    return wrapped(replace(unwrapped(message.content), **changes))


def changed_question(
    change: Callable[[Carrier, Message], RecordDict],
) -> Spoil:
    def spoil(carrier: Carrier, question: Message) -> Message:
        other = Message(metadata=question.metadata, content=change(carrier, question))  # type: ignore[call-overload]
        answer: Message = carrier.ask(other)
        return answer

    return spoil


def changed_reply(
    change: Callable[[Carrier, Message], RecordDict],
) -> Spoil:
    def spoil(carrier: Carrier, question: Message) -> Message:
        return Message(change(carrier, carrier.ask(question)), reply_to=question)

    return spoil


def _flipped(data: bytes) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


FORGER = SigningKey.generate()


def _forged(carrier: Carrier, reply: Message) -> RecordDict:
    """A reply with the site's own name, to the right question, under a key of the carrier's."""
    facts = {"run": "1" * 64, "round": 1, "phase": "train", "sequence": 1, "not_after": time.time() + 60}
    return wrapped(
        seal(FORGER, sender=BAD, recipient=COORDINATOR, answers="2" * 64, body=pack({}), **facts)  # type: ignore[arg-type]
    )


def _signed_anew(carrier: Carrier, reply: Message, **changes: Any) -> RecordDict:
    """The site's own reply to the question, with another header under its own key."""
    envelope = unwrapped(reply.content)
    facts = {
        name: value
        for name, value in json.loads(envelope.header).items()
        if name not in ("format", "body_sha256")
    }
    return wrapped(seal(carrier.place.hospitals[BAD].identity, body=envelope.body, **facts | changes))


CARRIED: dict[str, tuple[Spoil, str, str]] = {
    # at the site: what it writes down, and what the round says of it
    "a question with a swapped body": (
        changed_question(lambda c, m: with_envelope(m, body=pack({"config": {"round": 1}}))), "body", r"\(body\)",
    ),
    "a question with another bit": (
        changed_question(lambda c, m: with_envelope(m, body=_flipped(unwrapped(m.content).body))), "body", r"\(body\)",
    ),
    "a question with another header": (
        changed_question(lambda c, m: with_envelope(m, header=_flipped(unwrapped(m.content).header))),
        "signature", r"\(signature\)",
    ),
    "a question after names for one to train": (
        changed_question(lambda c, m: c.questions[0].content), "recipient", r"\(recipient\)",
    ),
    "a question twice": (lambda c, q: [c.ask(q), c.ask(q)][1], "replay", r"\(replay\)"),
    "a plain question": (
        changed_question(lambda c, m: RecordDict({"config": ConfigRecord({"round": 1})})), "frame", r"\(frame\)",
    ),
    # at the coordinator
    "a reply with a swapped body": (changed_reply(lambda c, r: with_envelope(r, body=pack({}))), "", r"\(body\)"),
    "a reply that came before": (changed_reply(lambda c, r: c.replies[0].content), "", r"\((phase|answers)\)"),
    "a forged reply": (changed_reply(_forged), "", r"\(signature\)"),
    "a plain reply": (
        changed_reply(lambda c, r: RecordDict({"config": ConfigRecord({"site": BAD})})), "", r"\(frame\)",
    ),
    "a reply of another round by the site itself": (
        changed_reply(lambda c, r: _signed_anew(c, r, round=7)), "", r"\(answers\)",
    ),
    "a reply of another study by the site itself": (
        changed_reply(lambda c, r: _signed_anew(c, r, run="3" * 64)), "", r"\(answers\)",
    ),
    "no records": (changed_reply(lambda c, r: RecordDict()), "", r"\(frame\)"),
    "an error in its place": (
        lambda c, q: error_reply(q, "the node \x1b[2J is gone" + "!" * 5000), "", "no answer: the node",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", CARRIED)
def test_what_was_altered_or_repeated_is_refused_and_the_round_goes_on(tmp_path: Path, how: str) -> None:
    spoil, written, said = CARRIED[how]
    place = federation(tmp_path)
    carrier = Carrier(place, spoil, hospital_app)
    outcome = place.run(carrier, before=lambda _: setattr(carrier, "spoils", True))
    for record in outcome.rounds:
        assert set(record.sites) == set(place.sites) - {BAD}
        assert re.search(said, record.refused[BAD]), record.refused
        assert len(record.refused[BAD]) < 500
        assert record.refused[BAD].isprintable()
    assert (written in refusals(place)) == bool(written)
    if not written and "error" not in how:
        assert all(BAD in line for line in place.log)
        assert len(place.log) == 3  # two updates, and counts


def test_without_the_spoiled_site_the_others_make_the_weights_that_they_would_make(tmp_path: Path) -> None:
    place = federation(tmp_path)
    carrier = Carrier(place, CARRIED["a reply with a swapped body"][0], hospital_app)
    spoiled = place.run(carrier, before=lambda _: setattr(carrier, "spoils", True))

    def silent(message: Message, context: Context) -> Message:
        gone = str(context.node_config["site-folder"]).endswith(BAD)
        return (
            error_reply(message, "gone") if gone else load_app("sottovoce.client.app:app")(message, context)
        )

    app = ClientApp()
    app.train()(silent)
    app.evaluate()(silent)
    with open_exchange(
        Execution(), place.data, study_file=place.study_file, without_privacy=True
    ) as exchange_:
        exchange_._grid._app = app  # type: ignore[attr-defined]
        assert run(exchange_, place.study, cell=CELL, weights=place.weights).digest == spoiled.digest


def test_two_sites_whose_replies_are_exchanged_are_both_refused(tmp_path: Path) -> None:
    place = federation(tmp_path, more="quorum = 2, deadline_seconds = 600.0")

    class Exchanging(InProcessGrid):
        """Gives each of two sites the other's question, and its own place to the other's reply."""

        on = False

        def _answer(self, message: Message) -> Message:
            node = {1: 2, 2: 1}.get(message.metadata.dst_node_id) if self.on else None
            if node is None:
                return super()._answer(message)
            reply = hospital_app(message, self._contexts[node])
            return Message(reply.error if reply.has_error() else reply.content, reply_to=message)

    grid = Exchanging(hospital_app, place.nodes(), {})
    outcome = place.run(grid, before=lambda _: setattr(grid, "on", True))
    assert set(outcome.rounds[0].refused) == {"site-1", "site-2"}
    assert all("(recipient)" in reason for reason in outcome.rounds[0].refused.values())


# --- who may take part ---


def test_a_site_without_an_approval_answers_nothing_and_the_round_goes_on(tmp_path: Path) -> None:
    place = federation(tmp_path)
    other = write_study(tmp_path / "other.toml", n_sites=4, rounds=9, training=SGD)
    fakes.approve(place.hospitals[BAD], fakes.offer(place.hospitals[BAD], other, None))
    outcome = _without_name(place)
    assert BAD in outcome.rounds[0].refused
    assert "study" in refusals(place)


def _without_name(place: SealedFederation) -> Outcome:
    """Runs with nodes that are known beforehand, as a deployed run does: a site that refuses says no name either."""
    grid = place.grid()
    sealed = SealedGrid(
        grid, key=place.key, run=place.study.digest(), sites=lambda: place.sites, sequence=place.folder / "sequence",
        log=place.log.append, nodes=grid.sites,
    )  # fmt: skip
    return run(GridExchange(sealed, grid.sites), place.study, cell=CELL, weights=place.weights)


def test_who_is_revoked_in_the_middle_is_neither_asked_nor_heard_from_then_on(tmp_path: Path) -> None:
    place, told = federation(tmp_path), list[RoundRecord]()

    def revoke(record: RoundRecord) -> None:
        told.append(record)
        place.sites.pop(BAD, None)

    sealed = place.sealed(place.grid())
    with place.exchange(sealed) as exchange_:
        run(exchange_, place.study, cell=CELL, weights=place.weights, on_round=revoke)
    assert told[0].refused == {}
    assert "may not take part" in told[1].refused[BAD]
    assert any("may not take part" in line for line in place.log)
    entries = (place.hospitals[BAD].ledger / "ledger.jsonl").read_text()
    assert entries.count('"reserve"') == 1


def test_who_is_revoked_between_question_and_reply_is_not_heard(tmp_path: Path) -> None:
    place = federation(tmp_path)

    def spoil(carrier: Carrier, question: Message) -> Message:
        reply: Message = carrier.ask(question)
        place.sites.pop(BAD, None)
        return reply

    carrier = Carrier(place, spoil, hospital_app)
    outcome = place.run(carrier, before=lambda _: setattr(carrier, "spoils", True))
    assert "(sender)" in outcome.rounds[0].refused[BAD]


def test_a_node_of_nobody_and_a_second_node_of_a_site_have_no_name(tmp_path: Path) -> None:
    place = federation(tmp_path)
    stranger = fakes.enrolled(tmp_path / "stranger", "site-9", place.key.public_hex)
    fakes.approve(stranger, fakes.offer(stranger, place.study_file, None))
    twin = place.nodes()[0]
    nodes = [*place.nodes(), replace(twin, config={"home": str(stranger.folder)}), twin]
    sealed = place.sealed(InProcessGrid(hospital_app, nodes, {}))
    assert roster(sealed, n_sites=4, timeout=60.0) == {number: f"site-{number}" for number in (1, 2, 3, 4)}
    assert ["(sender)" in line for line in place.log] == [True, True]  # a strange signature; a second node
    with pytest.raises(QuorumError):
        roster(sealed, n_sites=5, timeout=0.5)
    message = Message(RecordDict(), 5, MessageType.TRAIN, ttl=5.0)
    (reply,) = exchange(sealed, [message], window=1, timeout=5.0)
    assert reply is not None
    assert "without a name" in (reply.error.reason or "")


# --- late, twice, and to nothing ---


def asked(place: SealedFederation, grid: InProcessGrid) -> tuple[SealedGrid, str]:
    """A sealed grid with one question after a name that is open."""
    sealed = place.sealed(grid)
    (key,) = sealed.push_messages([Message(RecordDict(), 1, MessageType.QUERY, ttl=30.0)])
    return sealed, key


def test_a_late_reply_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = federation(tmp_path)
    sealed, key = asked(place, InProcessGrid(hospital_app, place.nodes(), {}))
    now = time.time()

    class Later:
        time = staticmethod(lambda: now + 30 + sealed_module.GRACE_SECONDS + 2)

    monkeypatch.setattr(sealed_module, "time", Later)
    (reply,) = sealed.pull_messages([key])
    assert "(expired)" in (reply.error.reason or "")
    assert len(place.log) == 1


def test_each_question_is_answered_once_and_a_reply_to_nothing_is_dropped(tmp_path: Path) -> None:
    place = federation(tmp_path)

    class Twice(InProcessGrid):
        def pull_messages(
            self, message_ids: Iterable[str], *, timeout: float | None = None
        ) -> Iterable[Message]:
            found = list(super().pull_messages(message_ids, timeout=timeout))
            return [*found, *found]

    sealed, key = asked(place, Twice(hospital_app, place.nodes(), {}))
    (reply,) = sealed.pull_messages([key])
    assert dict(reply.content["config"]) == {"site": "site-1"}
    assert "no open question" in place.log[0]
    assert list(sealed.pull_messages([key])) == []


def test_questions_that_nobody_waits_for_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = federation(tmp_path)
    sealed, _ = asked(place, InProcessGrid(hospital_app, place.nodes(), {}))
    monkeypatch.setattr(sealed_module, "FORGET_SECONDS", -10_000)
    list(sealed.push_messages([]))
    assert sealed._open == {}


def test_replies_above_the_coordinator_s_bound_are_refused(tmp_path: Path) -> None:
    place = federation(tmp_path)
    for bound, nodes in ((10, {}), (300, place.grid().sites)):
        sealed = SealedGrid(
            place.grid(), key=place.key, run=place.study.digest(), sites=lambda: place.sites, log=place.log.append,
            sequence=tmp_path / "sequence", nodes=nodes, max_body_bytes=bound,
        )  # fmt: skip
        if nodes:
            with pytest.raises(QuorumError, match=r"refused \(size\)"):
                run(GridExchange(sealed, nodes), place.study, cell=CELL, weights=place.weights)
        else:
            (reply,) = sealed.send_and_receive(
                [Message(RecordDict(), 1, MessageType.QUERY, ttl=30.0)], timeout=9.0
            )
            assert "(size)" in (reply.error.reason or "")


def test_what_cannot_be_sealed_is_answered_here(tmp_path: Path) -> None:
    place = federation(tmp_path)
    sealed = place.sealed(place.grid())
    message = Message(RecordDict({"config": ConfigRecord({"a": [1, 2]})}), 1, MessageType.QUERY, ttl=5.0)
    (reply,) = sealed.send_and_receive([message], timeout=5.0)
    assert "not asked" in (reply.error.reason or "")


def test_a_coordinator_that_was_killed_asks_with_new_numbers(tmp_path: Path) -> None:
    place = federation(tmp_path)
    first = place.run().digest
    assert place.run().digest == first  # a second grid on the same files: nothing is taken for a replay
    assert all(refusals(place, site) == [] for site in place.sites)


def test_a_site_killed_at_work_answers_no_question_twice_and_what_is_held_goes_on_elsewhere(
    tmp_path: Path,
) -> None:
    (tmp_path / "other").mkdir()
    place, other = (
        federation(folder, more=f"secure_sum = true, {QUORUM}") for folder in (tmp_path, tmp_path / "other")
    )
    with ProcessGrid("tests.server.test_sealed:dying_app", place.nodes(), {}, workers=1) as grid:
        outcome = place.run(grid)
    assert "(replay)" in outcome.rounds[0].refused[BAD]  # the process pool asks again what had been opened
    assert outcome.rounds[1].refused == {}
    # Its vector was in the sum by then, and the others' secrets went on in another process.
    assert outcome.digest == other.run().digest


class Dying(ClientApp):
    """The hospital's app, in a process that is killed once one site has answered in the last phase but one."""

    def __call__(self, message: Message, context: Context) -> Message:
        reply = hospital_app(message, context)
        home = Path(str(context.node_config["home"]))
        if (
            message.metadata.message_type == "train.consent"
            and home.name == BAD
            and not (home / "died").exists()
        ):
            (home / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return reply


dying_app = Dying()


def test_the_digest_of_a_question_is_of_its_signed_header(tmp_path: Path) -> None:
    place = federation(tmp_path)
    seen: list[Message] = []

    class Keeping(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            kept = list(messages)
            seen.extend(kept)
            return super().push_messages(kept)

    sealed, key = asked(place, Keeping(hospital_app, place.nodes(), {}))
    assert sealed._open[key].digest == header_digest(unwrapped(seen[0].content))
    assert isinstance(sealed._names, Mapping)
