"""Claims of how replies are fetched from a SuperLink: quickly, and not for ever."""

import time

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError
from flwr.superlink.grid import http_grid

from sottovoce.server import superlink


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_grid, "pull_objects", http_grid.pull_objects)  # put back afterwards
    monkeypatch.setattr(superlink, "STALL_SECONDS", 0.4)
    superlink.answer_quickly()


def test_a_reply_whose_sender_died_in_the_middle_of_it_is_given_up() -> None:
    def pull(object_id: str) -> bytes:
        if object_id == "there":
            return b"1"
        raise ObjectUnavailableError(object_id)

    began = time.monotonic()
    with pytest.raises(ObjectPullError):
        http_grid.pull_objects(object_ids=["there", "missing"], pull_object_fn=pull)
    assert 0.4 < time.monotonic() - began < 5


def test_a_reply_on_a_bad_line_is_waited_for_as_long_as_more_of_it_comes() -> None:
    began, came = time.monotonic(), list[str]()

    def pull(object_id: str) -> bytes:
        if time.monotonic() - began < 0.25 * (int(object_id) + 1):
            raise ObjectUnavailableError(object_id)
        came.append(object_id)
        return object_id.encode()

    ids = [str(number) for number in range(4)]
    assert http_grid.pull_objects(object_ids=ids, pull_object_fn=pull) == {one: one.encode() for one in ids}
    assert time.monotonic() - began > 2 * superlink.STALL_SECONDS
    assert sorted(came) == ids


def test_what_is_there_a_moment_later_is_fetched_within_a_tenth_of_a_second() -> None:
    began = time.monotonic()

    def pull(object_id: str) -> bytes:
        if time.monotonic() - began < 0.02:
            raise ObjectUnavailableError(object_id)
        return b"1"

    http_grid.pull_objects(object_ids=["a"], pull_object_fn=pull)
    assert time.monotonic() - began < 0.6  # Flower's own first pause is 1 s
