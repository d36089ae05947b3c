"""With `reply_seconds` the moment at which an answer leaves says nothing of how long it took to compute."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sottovoce.client.agent import slot
from sottovoce.client.agent_files import read_status
from sottovoce.client.home import Hospital
from tests.fakes import superlinks
from tests.fakes.superlinks import agent_thread, until

EVERY, LONG = 2.0, 1.2


@given(began=st.floats(0, 1e6), took=st.floats(0, 1e4), every=st.floats(0.1, 1e3))
def test_an_answer_leaves_at_a_whole_number_of_slots_and_never_before_it_is_ready(
    began: float, took: float, every: float
) -> None:
    due = slot(began, began + took, every)
    slots = (due - began) / every
    assert abs(slots - round(slots)) < 1e-3
    assert round(slots) >= 1
    assert due >= began + took - 1e-6
    assert due <= began + max(took, 0) + every + 1e-6


def _other_than(before: Any, now: Any) -> Any:
    return now if now != before else None


def _seconds_of_answers(superlink: superlinks.Superlink, name: str, settings: str) -> list[float]:
    """Returns the seconds from question to answer of a quick one and a long one, by the agent's own clock."""
    hospital: Hospital = superlink.hospital(name, settings=settings)
    run, taken = superlink.echo(), list[float]()
    last: Any = None
    with agent_thread(hospital):
        until(lambda: bool(read_status(hospital.run).get("connected")))
        for seconds in (0.0, 0.0, LONG):  # with the first one the worker is there
            before = last
            run.ask(superlink.nodes[name], config={"sleep": seconds})
            last = until(lambda: _other_than(before, read_status(hospital.run).get("last")))  # noqa: B023 - called here
            taken.append(float(last["seconds"]))
    return taken[1:]


def test_an_answer_that_took_longer_leaves_when_a_quick_one_does(superlink: superlinks.Superlink) -> None:
    settings, over = f"poll_seconds = 0.05\nreply_seconds = {EVERY}\n", EVERY
    for turn in range(5):  # a busy machine may take its time to send; what leaves too early does so each time
        quick, slow = _seconds_of_answers(superlink, f"on-schedule-{turn}", settings)
        assert quick >= EVERY
        # At the end of a slot, be it on a busy machine of a later one: what is over is the sending alone. Without a
        # schedule it would be LONG or more.
        over = max(quick % EVERY, slow % EVERY)
        if over < LONG - 0.1:
            break
    assert over < LONG - 0.1
    # The twin: without a schedule the difference is there to be seen.
    quick, slow = _seconds_of_answers(superlink, "off-schedule", "poll_seconds = 0.05\n")
    assert slow - quick > 0.6
