"""Claims of how replies are fetched from a SuperLink: quickly, not for ever, and no reply ends a run."""

import functools
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError
from flwr.superlink.grid import http_grid as flowers_grid

from sottovoce.common.flower import ConfigRecord, RecordDict, adopt_task_identity, array_record
from sottovoce.server import superlink

http_grid: Any = flowers_grid  # whose functions we change


def objects_of(n_bytes: int = 10) -> dict[str, bytes]:
    """Returns the objects of a message with an array, by their ids; the message itself comes last."""
    adopt_task_identity()
    array = array_record({"body": np.zeros(n_bytes, np.uint8)})
    message = Message(RecordDict({"sealed": ConfigRecord({"header": b"h"}), "body": array}), 1, "train")
    message.metadata.__dict__["_message_id"] = message.object_id
    return {key: one.deflate() for key, one in get_all_nested_objects(message).items()}


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_grid, "pull_objects", http_grid.pull_objects)  # put back afterwards
    superlink.answer_quickly(max_bytes=100_000)


class Looks:
    """A clock that goes on by a look at something that is not there yet, not by how busy this machine is."""

    def __init__(self) -> None:
        self.now, self.turn = 0.0, threading.Lock()  # Flower looks for several objects at once

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    made = Looks()
    monkeypatch.setattr(superlink, "time", made)
    return made


def pulled(objects: dict[str, bytes], pull: Callable[[str], bytes] | None = None) -> dict[str, bytes]:
    found: dict[str, bytes] = http_grid.pull_objects(
        object_ids=list(objects), pull_object_fn=pull or objects.__getitem__
    )
    return found


def test_a_reply_whose_sender_died_in_the_middle_of_it_is_given_up(looks: Looks) -> None:
    objects = objects_of()

    def pull(object_id: str) -> bytes:
        if object_id == next(iter(objects)):
            return objects[object_id]
        with looks.turn:
            looks.now += superlink.STALL_SECONDS / 10
        raise ObjectUnavailableError(object_id)

    with pytest.raises(ObjectPullError):
        pulled(objects, pull)
    assert looks.now > superlink.STALL_SECONDS


def test_a_reply_on_a_bad_line_is_waited_for_as_long_as_more_of_it_comes(looks: Looks) -> None:
    objects, missed, came = objects_of(), set[str](), list[str]()
    number = {object_id: n for n, object_id in enumerate(objects)}

    def pull(object_id: str) -> bytes:
        """One after the other comes, each at the second look at it."""
        with looks.turn:
            if number[object_id] == len(came) and object_id in missed:
                came.append(object_id)
                return objects[object_id]
            if number[object_id] == len(came):
                missed.add(object_id)
                looks.now += 0.9 * superlink.STALL_SECONDS
            raise ObjectUnavailableError(object_id)

    assert pulled(objects, pull) == objects
    assert looks.now > 2 * superlink.STALL_SECONDS
    assert sorted(came) == sorted(objects)


def test_what_is_there_a_moment_later_is_fetched_before_flower_would_look_again() -> None:
    def seconds() -> float:
        objects, missed, began = objects_of(), set[str](), time.monotonic()

        def pull(object_id: str) -> bytes:
            if object_id not in missed:
                missed.add(object_id)
                raise ObjectUnavailableError(object_id)
            return objects[object_id]

        pulled(objects, pull)
        return time.monotonic() - began

    # Flower's own first pause is 1 s, never less than 0.8 s; on a busy machine one of five is quick.
    assert min(seconds() for _ in range(5)) < 0.7


def _changed(objects: dict[str, bytes], kind: bytes, change: Callable[[bytes], bytes]) -> dict[str, bytes]:
    """Changes the body of one kind of object, and all names on the way up, as a site may."""
    made, names = dict[str, bytes](), dict[str, str]()
    for key, content in objects.items():
        for old, new in names.items():
            content = content.replace(old.encode(), new.encode())
        if content.startswith(kind + b" "):
            head, _, body = content.partition(b"\0")
            body = change(body)
            content = b" ".join((*head.split(b" ")[:2], str(len(body)).encode())) + b"\0" + body
        names[key] = sha256(content).hexdigest()
        made[names[key]] = content
    assert made != objects
    return made


BROKEN = {
    "a record that is none": lambda: _changed(objects_of(), b"ConfigRecord", lambda body: b"\xff\xff\xff"),
    "an array that is none": lambda: _changed(objects_of(), b"Array", lambda body: b"{}"),
    "pieces named a million times": lambda: _changed(
        objects_of(), b"Array", lambda body: body.replace(b"[0]", b"[" + b"0," * 999_999 + b"0]")
    ),
    "a message that is none": lambda: _changed(objects_of(), b"Message", lambda body: b"\xff\xff"),
    "no message at all": lambda: dict(list(objects_of().items())[:-1]),
    "a reply above the bound": lambda: objects_of(1_200_000),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_reply_that_makes_no_message_is_an_error_reply_and_no_end_of_the_run(how: str) -> None:
    # Of this error alone Flower's grid makes an error reply; at any other one its process ends.
    with pytest.raises(ObjectPullError):
        pulled(BROKEN[how]())


def test_grids_of_one_process_are_patched_once() -> None:
    superlink.answer_quickly(max_bytes=5)
    assert isinstance(http_grid.pull_objects, functools.partial)
    assert not isinstance(http_grid.pull_objects.func, functools.partial)
