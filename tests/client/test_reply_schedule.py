"""With `reply_seconds` the moment at which an answer leaves says nothing of how long it took to compute."""

import time

from hypothesis import given
from hypothesis import strategies as st

from sottovoce.client.agent import slot
from sottovoce.client.agent_files import read_status
from sottovoce.client.home import Hospital
from tests.fakes import superlinks
from tests.fakes.superlinks import agent_thread, until

EVERY = 1.5


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


def _seconds_of_answers(superlink: superlinks.Superlink, name: str, settings: str) -> list[float]:
    hospital: Hospital = superlink.hospital(name, settings=settings)
    run, taken = superlink.echo(), []
    with agent_thread(hospital):
        until(lambda: bool(read_status(hospital.run).get("connected")))
        run.ask(superlink.nodes[name])  # the worker is there from now on
        for seconds in (0.0, 0.6):
            began = time.monotonic()
            run.ask(superlink.nodes[name], config={"sleep": seconds})
            taken.append(time.monotonic() - began)
    return taken


def test_an_answer_that_took_longer_leaves_when_a_quick_one_does(superlink: superlinks.Superlink) -> None:
    quick, slow = _seconds_of_answers(
        superlink, "on-schedule", f"poll_seconds = 0.05\nreply_seconds = {EVERY}\n"
    )
    assert quick >= EVERY
    assert abs(slow - quick) < 0.4
    # The twin: without a schedule the difference is there to be seen.
    quick, slow = _seconds_of_answers(superlink, "off-schedule", "poll_seconds = 0.05\n")
    assert slow - quick > 0.4
