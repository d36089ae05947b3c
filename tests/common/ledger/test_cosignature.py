"""Claims of cosignature.py: one witness, one checkpoint, one time, one spelling."""

import base64
import hashlib

import pytest

from sottovoce.common.errors import LedgerError
from sottovoce.common.keys import SigningKey, verified
from sottovoce.common.ledger.checkpoint import Checkpoint, parse, sign
from sottovoce.common.ledger.cosignature import (
    MAX_WITNESSES,
    Cosignature,
    cosign,
    cosigned_text,
    read_cosigned,
    witnessed_by,
    witnesses_of,
)
from sottovoce.common.secagg.session import Member

LEDGER_KEY, ONE, OTHER = (SigningKey.generate() for _ in range(3))
NOTE = sign(Checkpoint(instance="ab" * 16, size=7, root=bytes(32)), LEDGER_KEY).text()
LONGER = sign(Checkpoint(instance="ab" * 16, size=8, root=bytes(32)), LEDGER_KEY).text()
SEEN = parse(NOTE)


def by(key: SigningKey, name: str, at: int = 1_800_000_000) -> Cosignature:
    return cosign(SEEN, key, witness=name, now=at)


def test_the_signed_bytes_and_the_line_are_those_of_the_published_format() -> None:
    """C2SP tlog-cosignature, written out by hand."""
    made = by(ONE, "Sankt Ägidius + Söhne")
    body = NOTE.split("\n\n")[0] + "\n"
    assert verified(ONE.public_hex, made.signature, b"cosignature/v1\ntime 1800000000\n" + body.encode())
    name = "sottovoce.witness/Sankt%20%C3%84gidius%20%2B%20S%C3%B6hne"
    hint = hashlib.sha256(f"{name}\n\x04".encode() + bytes.fromhex(ONE.public_hex)).digest()[:4]
    stamp = base64.b64encode(hint + (1_800_000_000).to_bytes(8, "big") + made.signature).decode()
    assert made.line() == f"— {name} {stamp}\n"


def test_a_cosigned_text_is_read_as_it_was_written() -> None:
    made = (by(ONE, "Ägidius, Haus 2"), by(OTHER, "hospital-b"))
    note, found = read_cosigned(cosigned_text(NOTE, made))
    assert note == NOTE
    assert sorted(found, key=lambda one: one.witness) == sorted(made, key=lambda one: one.witness)
    assert all(
        one.signed_by(key.public_hex, parse(note)) for one, key in zip(made, (ONE, OTHER), strict=True)
    )
    assert read_cosigned(NOTE) == (NOTE, ())


def test_nothing_of_witness_checkpoint_and_time_can_be_changed() -> None:
    made = by(ONE, "hospital-b")
    later = Cosignature(**{**vars(made), "witnessed_at": made.witnessed_at + 1})
    assert made.signed_by(ONE.public_hex, SEEN)
    assert not later.signed_by(ONE.public_hex, SEEN)
    assert not made.signed_by(OTHER.public_hex, SEEN)
    assert not made.signed_by(ONE.public_hex, parse(LONGER))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n",
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("sottovoce.witness/", "other/"),
        lambda text: text.replace("hospital-b", "hospital%2Db"),  # a second spelling of one name
        lambda text: text.replace("— sottovoce.witness", "- sottovoce.witness"),
        lambda text: text[:-4] + "x\n",
        lambda text: text + text.splitlines(keepends=True)[-1] * MAX_WITNESSES,
        lambda text: text.replace("\n7\n", "\n07\n"),
        lambda text: "",
    ],
)
def test_every_other_text_is_refused(change: object) -> None:
    text = cosigned_text(NOTE, [by(ONE, "hospital-b")])
    with pytest.raises(LedgerError):
        read_cosigned(change(text))  # type: ignore[operator]


def test_a_witness_counts_once_and_only_under_the_key_of_the_roster() -> None:
    keys = {"hospital-b": ONE.public_hex, "hospital-c": OTHER.public_hex}
    twice = [by(ONE, "hospital-b"), by(ONE, "hospital-b", 1_800_000_001), by(ONE, "hospital-c")]
    assert witnesses_of(NOTE, twice, keys) == ("hospital-b",)
    assert witnesses_of(LONGER, twice, keys) == ()


def test_a_site_is_no_witness_of_itself_and_without_a_roster_nobody_is_named() -> None:
    members = [
        Member(site="hospital-a", public_key=ONE.public_hex),
        Member(site="hospital-b", public_key=OTHER.public_hex),
    ]
    shown = {"file": (NOTE, [by(ONE, "hospital-a"), by(OTHER, "hospital-b")])}
    assert witnessed_by(shown, members, site="hospital-a") == {
        "file": {"lines": 2, "of": 1, "by": ["hospital-b"]}
    }
    assert witnessed_by(shown, None, site="hospital-a") == {"file": {"lines": 2, "of": None, "by": []}}
