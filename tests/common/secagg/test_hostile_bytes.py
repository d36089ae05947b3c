"""No bytes make a decoder or a machine raise anything but the one error, nor answer what was not asked."""

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.common.errors import SecureSumError
from sottovoce.common.secagg import wire
from sottovoce.common.secagg.complaint import read_complaint
from sottovoce.common.secagg.journal import PHASES
from sottovoce.common.secagg.session import decode_session
from sottovoce.common.secagg.wire import Kind
from tests.fakes.secagg import Attempt, World
from tests.fakes.secagg_deviations import BY_COORDINATOR_KIND, body_of, told

QUICK = settings(max_examples=25, deadline=None)
ROSTER = World(3).roster

DECODERS: dict[str, Callable[[bytes], Any]] = {
    "session": decode_session,
    "complaint": lambda data: read_complaint(data, ROSTER),
    "advert": wire.decode_advert,
    "sealed": wire.decode_sealed,
    "consent": wire.decode_consent,
    "reveal": wire.decode_reveal,
    "numbers": wire.decode_numbers,
    "messages": wire.decode_messages,
    **{f"{kind} message": functools.partial(wire.parse, kind=kind, vector_bytes=20) for kind in Kind},
}


@functools.cache
def honest() -> Attempt:
    attempt = World(3).attempt()
    attempt.run()
    return attempt


def bodies() -> dict[str, bytes]:
    """A good text for every decoder."""
    log = honest().log
    of = {kind: next(data for *_, data in log if data.startswith(wire.label(kind))) for kind in (
        Kind.OPENING, Kind.ADVERT, Kind.ADVERTS, Kind.DEALING, Kind.DEALINGS, Kind.MASKED,
        Kind.SURVIVORS, Kind.CONSENT, Kind.CONSENTS, Kind.REVEAL,
    )}  # fmt: skip
    of[Kind.SEALED] = wire.decode_messages(body_of(of[Kind.DEALING], Kind.DEALING))[0]
    broken = World(3).attempt()
    with pytest.raises(SecureSumError) as refused:
        broken.coordinator.receive("hospital-00", b"x")
    return {
        "session": honest().session.encoded,
        "complaint": refused.value.complaint,
        "advert": body_of(of[Kind.ADVERT], Kind.ADVERT),
        "sealed": body_of(of[Kind.SEALED], Kind.SEALED),
        "consent": body_of(of[Kind.CONSENT], Kind.CONSENT),
        "reveal": body_of(of[Kind.REVEAL], Kind.REVEAL),
        "numbers": body_of(of[Kind.SURVIVORS], Kind.SURVIVORS),
        "messages": body_of(of[Kind.ADVERTS], Kind.ADVERTS),
        **{f"{kind} message": of[kind] for kind in Kind},
    }


def changed(data: st.DataObject, good: bytes) -> bytes:
    """A good text with one piece taken out, put in or changed."""
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 8)))
    return good[:start] + data.draw(st.binary(max_size=8)) + good[end:]


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.binary(max_size=300))
@QUICK
def test_no_bytes_make_a_decoder_raise_anything_else(name: str, data: bytes) -> None:
    with suppress(
        SecureSumError
    ):  # a few bytes are a good body of numbers; anything else that is raised fails
        DECODERS[name](data)


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
@QUICK
def test_one_text_has_one_encoding(name: str, data: st.DataObject) -> None:
    good = bodies_once()[name]
    other = changed(data, good)
    try:
        read = DECODERS[name](other)
    except SecureSumError:
        return
    if hasattr(read, "encode"):
        assert read.encode() == other
    elif name == "numbers":
        assert wire.encode_numbers(read) == other
    elif name == "messages":
        assert wire.encode_messages(read) == other
    elif name in ("session", "complaint"):
        assert other == good or read.encoded == other


bodies_once = functools.cache(bodies)


@pytest.mark.parametrize("phase", PHASES)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_no_bytes_make_a_site_raise_anything_else_or_answer(phase: str, data: st.DataObject) -> None:
    attempt = World(3).attempt().until(phase)
    good = attempt.messages[0]
    body = changed(data, body_of(good, BY_COORDINATOR_KIND[phase]))
    forged = data.draw(
        st.sampled_from([changed(data, good), told(attempt, BY_COORDINATOR_KIND[phase], body)])
    )
    if forged != good:
        with pytest.raises(SecureSumError) as refused:
            attempt.answer(0, phase, forged)
        read_complaint(refused.value.complaint, attempt.world.roster)


@pytest.mark.parametrize("phase", PHASES)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_no_bytes_make_the_coordinator_raise_anything_else(phase: str, data: st.DataObject) -> None:
    attempt = World(4).attempt().until(phase)
    good = attempt.answer(0, phase, attempt.messages[0])
    forged = changed(data, good)
    if forged != good:
        with pytest.raises(SecureSumError) as refused:
            attempt.coordinator.receive("hospital-00", forged)
        read_complaint(refused.value.complaint, attempt.world.roster)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 16_000,
        b'{"a":' * 3000,
        b"9" * 16_000,
        b"NaN",
        b'"\\ud800"',
        b"\xff\xfe",
        b'{"run":"a","run":"b"}',
        b"x" * 200_000,
    ],
)
def test_json_that_breaks_parsers_is_refused(data: bytes) -> None:
    with pytest.raises(SecureSumError):
        decode_session(data)
    with pytest.raises(SecureSumError):
        read_complaint(data, ROSTER)


def test_a_stated_length_reserves_no_memory() -> None:
    body = b"\x01\x00" + b"\xff\xff\xff\xff"
    with pytest.raises(SecureSumError):
        wire.decode_messages(body)


@pytest.mark.parametrize("kind", Kind)
def test_a_message_longer_than_its_kind_is_refused_before_it_is_hashed(kind: Kind) -> None:
    with pytest.raises(SecureSumError, match="of at most"):
        wire.parse(bytes(70_000), kind, vector_bytes=20)


def test_a_vector_of_a_byte_too_many_is_refused_before_it_is_hashed() -> None:
    world = World(3, ring_bits=16)
    message = wire.seal(Kind.MASKED, world.session().digest, 0, bytes(11), world.keys[0])
    assert wire.parse(message, Kind.MASKED, vector_bytes=11).body == bytes(11)
    with pytest.raises(SecureSumError, match="at most 10 bytes"):
        wire.sender_of(message, Kind.MASKED, session=world.session())


def test_a_message_of_one_kind_session_or_sender_is_not_taken_for_anothers() -> None:
    attempt = honest()
    session, key = attempt.session, attempt.world.keys[0]
    good = wire.seal(Kind.ADVERT, session.digest, 0, bytes(96), key)
    assert wire.open_message(good, Kind.ADVERT, session=session, sender=0) == bytes(96)
    for kind, sender, other in (
        (Kind.REVEAL, 0, session),
        (Kind.ADVERT, 1, session),
        (Kind.ADVERT, 0, attempt.world.session(2)),
    ):
        with pytest.raises(SecureSumError):
            wire.open_message(good, kind, session=other, sender=sender)
    relabelled = good.replace(wire.label(Kind.ADVERT), wire.label(Kind.REVEAL))
    with pytest.raises(SecureSumError):
        wire.open_message(relabelled, Kind.REVEAL, session=session, sender=0)
