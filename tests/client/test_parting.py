"""Claims of an agent's end: what it gave back is not lost by it, and it waits for nobody who will not come."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sottovoce.client import fleet, parting
from sottovoce.client.parting import Given
from sottovoce.common.errors import DeploymentError
from sottovoce.common.flower import Message, RecordDict
from tests.fakes import superlinks


class Line:
    """A SuperLink that holds each reply for so many looks."""

    def __init__(self, looks: int, error: DeploymentError | None = None) -> None:
        self.left, self._error = looks, error

    def holds(self, run_id: int, reply_id: str) -> bool:
        if self._error is not None:
            raise self._error
        self.left -= 1
        return self.left >= 0


def given(*, ttl: float = 600.0, n_replies: int = 1) -> Given:
    metadata = SimpleNamespace(run_id=1, message_id="ab", created_at=time.time(), ttl=ttl)
    made, reply = Given(), cast(Message, SimpleNamespace(metadata=metadata))
    for _ in range(n_replies):
        made.add(reply)
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parting, "LOOK_SECONDS", 0.001)


def test_all_replies_are_waited_for_until_the_superlink_forgot_them() -> None:
    line = Line(looks=3)
    assert given(n_replies=2).wait_fetched(line, seconds=60)
    assert line.left == -2
    assert Given().wait_fetched(Line(looks=10), seconds=0), "who gave nothing waits for nothing"


def test_a_reply_that_nobody_fetches_is_said_and_not_waited_for_for_ever() -> None:
    replies = given()
    assert not replies.wait_fetched(Line(looks=10**6), seconds=0.01)
    assert not replies.wait_fetched(Line(looks=10**6), seconds=0.01), "it is not forgotten by that"


@pytest.mark.parametrize("reason", parting.NOBODY_WAITS)
def test_a_reply_whose_run_is_over_holds_nobody(reason: str) -> None:
    assert given().wait_fetched(Line(looks=10**6, error=DeploymentError("x", reason=reason)), seconds=60)


def test_a_reply_whose_time_is_over_holds_nobody() -> None:
    assert given(ttl=-1.0).wait_fetched(Line(looks=10**6), seconds=60)


def test_a_line_that_fails_is_no_fetched_reply() -> None:
    with pytest.raises(DeploymentError, match="no line"):
        given().wait_fetched(Line(looks=1, error=DeploymentError("no line", reason="network")), seconds=60)


# --- at a real SuperLink ------------------------------------------------------------------------------------


def waits(open_fleet: fleet.Fleet, replies: Given, gate: Path) -> None:
    assert not replies.wait_fetched(open_fleet, seconds=0.0), "nobody has looked yet"
    gate.touch()
    assert replies.wait_fetched(open_fleet, seconds=120.0)
    open_fleet.leave()


def leaves(open_fleet: fleet.Fleet, replies: Given, gate: Path) -> None:
    open_fleet.leave()
    gate.touch()


def falls_silent(open_fleet: fleet.Fleet, replies: Given, gate: Path) -> None:
    open_fleet.close()
    gate.touch()


@pytest.mark.parametrize(
    ("ends", "came"),
    [
        pytest.param(waits, "config", id="fetched"),
        pytest.param(falls_silent, "config", id="silent"),
        pytest.param(leaves, "error", id="lost: why an agent waits"),  # the twin
    ],
)
def test_a_reply_reaches_a_slow_coordinator_unless_its_node_left_before(
    superlink: superlinks.Superlink,
    tmp_path: Path,
    ends: Callable[[fleet.Fleet, Given, Path], None],
    came: str,
) -> None:
    hospital, gate = superlink.hospital(f"parting-{ends.__name__}"), tmp_path / "gate"
    run, replies = superlink.echo(), Given()
    with fleet.connect(hospital) as open_fleet:
        asked = run.start(open_fleet.node_id, gate=str(gate))
        delivery, until = superlinks.until(open_fleet.receive), time.monotonic() + 120
        question: Any = open_fleet.pull(delivery, until=until)
        open_fleet.confirm(delivery, until=until)
        reply = Message(RecordDict({"config": question.content["config"]}), reply_to=question)
        open_fleet.send(reply, until=until)
        replies.add(reply)
        ends(open_fleet, replies, gate)
    assert came in run.wait(asked)["replies"][str(open_fleet.node_id)]
