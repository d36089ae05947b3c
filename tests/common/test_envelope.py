"""Claims of sealed messages: 10,000 altered ones, numbers that survive a `kill -9`, and two processes at once."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from sottovoce.common import envelope as envelopes
from sottovoce.common.config import canonical
from sottovoce.common.envelope import (
    COORDINATOR,
    LABEL,
    MAX_AHEAD_SECONDS,
    REASONS,
    Envelope,
    Header,
    Replays,
    Sequence,
    header_digest,
    opened,
    seal,
    signed_header,
)
from sottovoce.common.errors import DeploymentError, EnvelopeRefused
from sottovoce.common.keys import SigningKey
from sottovoce.common.secagg.session import COORDINATOR as OF_SECURE_SUMS

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
NOW = 1_800_000_000.0
RUN, BODY = hashlib.sha256(b"study").hexdigest(), b"weights" * 20
FACTS: dict[str, Any] = {
    "run": RUN, "round": 3, "phase": "train.mask", "sender": COORDINATOR, "recipient": "hospital-a", "sequence": 17,
    "body": BODY, "not_after": NOW + 60,
}  # fmt: skip


def sealed(key: SigningKey = KEY, **changes: Any) -> Envelope:
    return seal(key, **(FACTS | changes))


def read(envelope: Envelope, **changes: Any) -> Header:
    expected: dict[str, Any] = {
        "public_key": KEY.public_hex, "sender": COORDINATOR, "recipient": "hospital-a", "phase": "train.mask",
        "now": NOW,
    }  # fmt: skip
    return opened(envelope, **(expected | changes))


def signed(header: bytes, key: SigningKey = KEY, body: bytes = BODY) -> Envelope:
    """An envelope whose sender's key is in the wrong hands: whatever header, well signed."""
    return Envelope(header=header, signature=key.sign(LABEL + header), body=body)


def test_what_was_sealed_is_opened_with_what_it_says() -> None:
    header = read(sealed())
    assert (header.run, header.round, header.sequence, header.not_after) == (RUN, 3, 17, NOW + 60)
    assert header.body_sha256 == hashlib.sha256(BODY).hexdigest()


def test_the_coordinator_has_one_name() -> None:
    assert COORDINATOR == OF_SECURE_SUMS


# --- each refusal has its word, in the order of the table ---

_SEALED = signed_header(sealed(), KEY.public_hex)
assert _SEALED is not None
HEADER = asdict(_SEALED)


def changed(**changes: Any) -> bytes:
    return json.dumps(HEADER | changes, sort_keys=True, separators=(",", ":")).encode()


REFUSED: dict[str, tuple[Callable[[], Envelope], str]] = {
    "no header": (lambda: replace(sealed(), header=b""), "size"),
    "a long header": (lambda: signed(changed(sender="x" * 5000)), "size"),
    "a short signature": (lambda: replace(sealed(), signature=b"x" * 63), "size"),
    "a long signature": (lambda: replace(sealed(), signature=b"x" * 65), "size"),
    "a signature of another key": (lambda: sealed(OTHER), "signature"),
    "a signature without the label": (
        lambda: replace(sealed(), signature=KEY.sign(sealed().header)),
        "signature",
    ),
    "a signature under another label": (
        lambda: replace(sealed(), signature=KEY.sign(b"sottovoce/other/1\n" + sealed().header)),
        "signature",
    ),
    "another's header and signature": (lambda: replace(sealed(OTHER), body=BODY), "signature"),
    "no JSON": (lambda: signed(b"not json"), "header"),
    "a list": (lambda: signed(b"[]"), "header"),
    "a number": (lambda: signed(b"1"), "header"),
    "other characters": (lambda: signed("ä".encode()), "header"),
    "deep nesting": (lambda: signed(b"[" * 2000), "header"),
    "a missing field": (lambda: signed(changed().replace(b'"round":3,', b"")), "header"),
    "a missing field with a default": (lambda: signed(changed().replace(b'"format":1,', b"")), "header"),
    "an unknown field": (lambda: signed(changed(extra=1)), "header"),
    "a field twice": (lambda: signed(changed().replace(b'"round":3', b'"round":2,"round":3')), "header"),
    "spaces": (lambda: signed(changed().replace(b":", b": ")), "header"),
    "another order": (lambda: signed(json.dumps(HEADER, separators=(",", ":")).encode() + b" "), "header"),
    "another format": (lambda: signed(changed(format=2)), "header"),
    "a true format": (lambda: signed(changed(format=True)), "header"),
    "a round that is a float": (lambda: signed(changed(round=3.0)), "header"),
    "a round that is text": (lambda: signed(changed(round="3")), "header"),
    "a round below nothing": (lambda: signed(changed(round=-1)), "header"),
    "a round that is true": (lambda: signed(changed(round=True)), "header"),
    "an endless sequence": (lambda: signed(changed(sequence=2**63)), "header"),
    "a huge number": (
        lambda: signed(changed().replace(b'"sequence":17', b'"sequence":1' + b"0" * 900)),
        "header",
    ),
    "not a number": (lambda: signed(changed().replace(b'"round":3', b'"round":NaN')), "header"),
    "a run that is no digest": (lambda: signed(changed(run="g" * 64)), "header"),
    "a run in capitals": (lambda: signed(changed(run=RUN.upper())), "header"),
    "a phase of none": (lambda: signed(changed(phase="shell")), "header"),
    "a phase with a path": (lambda: signed(changed(phase="train.../../x")), "header"),
    "a name with a line end": (lambda: signed(changed(recipient="hospital\na")), "header"),
    "nobody's": (lambda: signed(changed(sender="")), "header"),
    "another sender": (lambda: sealed(sender="hospital-b"), "sender"),
    "another recipient": (lambda: sealed(recipient="hospital-b"), "recipient"),
    "everybody": (lambda: sealed(recipient=""), "recipient"),
    "another phase": (lambda: sealed(phase="train"), "phase"),
    "an answer in the place of a question": (lambda: sealed(answers="0" * 64), "answers"),
    "one that is over": (lambda: sealed(not_after=NOW - 1), "expired"),
    "one for next week": (lambda: sealed(not_after=NOW + MAX_AHEAD_SECONDS + 1), "expired"),
    "another body": (lambda: replace(sealed(), body=b"poison" * 20), "body"),
    "a body with more": (lambda: replace(sealed(), body=BODY + b"x"), "body"),
    "a body cut off": (lambda: replace(sealed(), body=BODY[:-1]), "body"),
    "no body": (lambda: replace(sealed(), body=b""), "body"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_it_is_refused_with_its_word(how: str) -> None:
    make, reason = REFUSED[how]
    with pytest.raises(EnvelopeRefused) as refused:
        read(make())
    assert refused.value.reason == reason
    assert reason in REASONS
    assert "weights" not in str(refused.value)


def test_a_body_above_the_receiver_s_bound_is_not_even_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    envelope = sealed()
    monkeypatch.setattr(envelopes, "hashlib", None)
    with pytest.raises(EnvelopeRefused) as refused:
        read(envelope, max_body_bytes=len(BODY) - 1)
    assert refused.value.reason == "size"


def test_nothing_is_parsed_before_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    forged = sealed(OTHER)
    monkeypatch.setattr(envelopes, "json", None)
    with pytest.raises(EnvelopeRefused) as refused:
        read(forged)
    assert refused.value.reason == "signature"
    assert signed_header(forged, KEY.public_hex) is None


def test_an_answer_is_to_the_question_that_was_asked_and_to_no_other() -> None:
    question, another = sealed(), sealed(sequence=18)
    answer = sealed(sender="hospital-a", recipient=COORDINATOR, answers=header_digest(question))
    ends = {"sender": "hospital-a", "recipient": COORDINATOR}
    assert read(answer, answers=header_digest(question), **ends).answers == header_digest(question)
    for other in (header_digest(another), ""):
        with pytest.raises(EnvelopeRefused) as refused:
            read(answer, answers=other, **ends)
        assert refused.value.reason == "answers"


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "x"},
        {"round": -1},
        {"phase": "shell"},
        {"sender": ""},
        {"sequence": -1},
        {"answers": "x"},
        {"not_after": -5},
    ],
)
def test_nothing_is_sealed_that_nobody_would_open(changes: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeRefused, match="header"):
        sealed(**changes)


# --- ten thousand altered ones ---

CONTEXTS: list[dict[str, Any]] = [
    {"recipient": "hospital-b"}, {"phase": "evaluate.mask"}, {"sender": "hospital-c"}, {"answers": "1" * 64},
    {"public_key": OTHER.public_hex}, {"now": NOW + 61}, {"now": NOW - MAX_AHEAD_SECONDS - 61},
]  # fmt: skip


def altered(draw: random.Random, good: Envelope, others: list[Envelope]) -> tuple[Envelope, dict[str, Any]]:
    """One alteration of an envelope, or of where it is opened."""
    part = draw.choice(["header", "signature", "body"])
    data = getattr(good, part)
    other = draw.choice(others)
    match draw.randrange(7):
        case 0:  # one bit of one part
            at = draw.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        case 1:
            data = data[: draw.randrange(len(data))]
        case 2:
            data = data + draw.randbytes(draw.randrange(1, 9))
        case 3:
            data = draw.randbytes(len(data))
        case 4:  # a part of another envelope that the same key signed, or another
            data = getattr(other, part)
        case 5:  # all of it, where it is not for
            return good, draw.choice(CONTEXTS)
        case 6:  # the same facts under another key
            return replace(good, signature=OTHER.sign(LABEL + good.header)), {}
    return replace(good, **{part: data}), {}


def test_of_ten_thousand_altered_or_repeated_ones_none_is_accepted(tmp_path: Path) -> None:
    draw = random.Random(0)
    good = sealed()
    others = [
        sealed(body=b"other" * 9, sequence=18), sealed(round=4, sequence=19, body=b"x"),
        sealed(OTHER, body=b"theirs"), sealed(sender="hospital-a", recipient=COORDINATOR, body=b"reply"),
    ]  # fmt: skip
    replays, reasons = Replays(tmp_path / "replays"), dict[str, int]()
    replays.accept(KEY.public_hex, read(good).sequence)
    for number in range(10_000):
        envelope, where = (good, {}) if number % 40 == 0 else altered(draw, good, others)
        with pytest.raises(EnvelopeRefused) as refused:
            replays.accept(KEY.public_hex, read(envelope, **where).sequence)
        reasons[refused.value.reason] = reasons.get(refused.value.reason, 0) + 1
    assert set(reasons) == {
        "size",
        "signature",
        "sender",
        "recipient",
        "phase",
        "answers",
        "expired",
        "body",
        "replay",
    }
    replays.accept(KEY.public_hex, read(sealed(sequence=18)).sequence)  # it was not deaf


def test_whatever_header_the_right_key_signed_is_canonical_or_refused() -> None:
    draw, header = random.Random(1), sealed().header
    for _ in range(1500):
        at, data = draw.randrange(len(header)), bytearray(header)
        data[at] = draw.randrange(128)
        try:
            found = read(signed(bytes(data)))
        except EnvelopeRefused:
            continue
        assert canonical(found).encode() == bytes(data)


# --- numbers on disk ---


def test_numbers_ascend_over_restarts_and_clocks_that_jump_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Sequence(tmp_path / "sequence").next()
    monkeypatch.setattr("sottovoce.common.envelope.time.time_ns", lambda: 5)
    later = [Sequence(tmp_path / "sequence").next() for _ in range(3)]
    assert later == [first + 1, first + 2, first + 3]
    monkeypatch.undo()
    (tmp_path / "sequence").unlink()
    assert Sequence(tmp_path / "sequence").next() > later[-1]  # a file that was lost: the clock is above it


# Programs of their own: each prints every number that it got, as soon as it has it.
TAKE = """
import sys; from pathlib import Path; from sottovoce.common.envelope import Sequence
sequence = Sequence(Path(sys.argv[1]))
for _ in range(int(sys.argv[2])): print(sequence.next(), flush=True)
"""
ACCEPT = """
import sys; from pathlib import Path; from sottovoce.common.envelope import EnvelopeRefused, Replays
for number in range(1, int(sys.argv[2])):
    try: Replays(Path(sys.argv[1])).accept("key", number)
    except EnvelopeRefused: continue
    print(number, flush=True)
"""


def started(program: str, path: Path, n: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", program, str(path), str(n)], stdout=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.parametrize("program", [TAKE, ACCEPT])
def test_two_processes_never_have_the_same_number(tmp_path: Path, program: str) -> None:
    both = [started(program, tmp_path / "numbers", 120) for _ in range(2)]
    had = [int(line) for process in both for line in process.communicate()[0].splitlines()]
    assert len(had) == len(set(had))
    assert len(had) == (240 if program == TAKE else len(had))
    assert program == TAKE or max(had) == 119


def test_a_process_killed_at_any_moment_loses_no_number(tmp_path: Path) -> None:
    path, draw, last = tmp_path / "sequence", random.Random(2), -1
    for _ in range(5):
        process = started(TAKE, path, 1_000_000)
        assert process.stdout is not None
        numbers = [int(process.stdout.readline()) for _ in range(draw.randrange(1, 30))]
        process.kill()
        numbers += [
            int(line) for line in process.communicate()[0].splitlines(keepends=True) if line.endswith("\n")
        ]
        assert numbers == sorted(set(numbers))
        assert numbers[0] > last
        last = numbers[-1]
    assert Sequence(path).next() > last


@pytest.mark.parametrize("how", ["cut", "flipped", "emptied", "another", "endless"])
def test_a_damaged_file_is_an_error_and_never_a_new_beginning(tmp_path: Path, how: str) -> None:
    path = tmp_path / "replays"
    Replays(path).accept("key", 1_000_000)
    data = path.read_bytes()
    damaged = {
        "cut": data[:-4], "flipped": data.replace(b"1000000", b"1000001"), "emptied": b"", "another": b'{"key": 1}\n',
        "endless": data + bytes(2_000_000),
    }[how]  # fmt: skip
    path.write_bytes(damaged)
    for number in (1, 2_000_000):
        with pytest.raises(DeploymentError, match="is damaged"):
            Replays(path).accept("key", number)
        with pytest.raises(DeploymentError, match="is damaged"):
            Sequence(path).next()
    assert path.read_bytes() == damaged


def test_where_nothing_can_be_written_nothing_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "no" / "replays", tmp_path / "file" / "replays"):
        with pytest.raises(DeploymentError, match="cannot be kept"):
            Replays(place).accept("key", 1)


def test_numbers_of_one_sender_say_nothing_of_another(tmp_path: Path) -> None:
    replays = Replays(tmp_path / "replays")
    replays.accept("one", 10)
    replays.accept("other", 3)
    for key, number in (("one", 10), ("one", 9), ("other", 3)):
        with pytest.raises(EnvelopeRefused, match="newer"):
            Replays(tmp_path / "replays").accept(key, number)
    assert (tmp_path / "replays").stat().st_mode & 0o777 == 0o600
