"""Sharing, masks, sessions, journals, complaints: each part's claims."""

import ast
import itertools
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sottovoce.common.config import canonical
from sottovoce.common.errors import SecureSumError
from sottovoce.common.keys import keystream
from sottovoce.common.secagg import derive, masks, shamir
from sottovoce.common.secagg.complaint import REASONS, Place, proves, read_complaint, sign_complaint
from sottovoce.common.secagg.coordinator import Coordinator
from sottovoce.common.secagg.journal import Mark
from sottovoce.common.secagg.session import decode_session, refuse_unless_agreed, session_for, threshold_of
from sottovoce.common.secagg.wire import label
from tests.fakes.secagg import World, signing_key


def test_the_prime_is_the_smallest_above_two_to_the_256() -> None:
    def is_prime(number: int) -> bool:  # Miller-Rabin, 20 bases
        odd, twos = number - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in range(2, 22):
            power = pow(base, odd, number)
            squares = [pow(power, 2**step, number) for step in range(twos)]
            if power != 1 and number - 1 not in squares:
                return False
        return True

    assert [k for k in range(1, 298) if is_prime(2**256 + k)] == [297]
    assert shamir.PRIME == 2**256 + 297


@pytest.mark.parametrize(("threshold", "n_shares"), [(2, 3), (3, 4), (4, 6)])
def test_any_threshold_of_shares_gives_the_secret_back(threshold: int, n_shares: int) -> None:
    secret = os.urandom(32)
    shares = shamir.split(secret, threshold=threshold, n_shares=n_shares, coins=os.urandom)
    for chosen in itertools.combinations(range(n_shares), threshold):
        assert shamir.combine({number: shares[number] for number in chosen}) == secret


def test_below_the_threshold_every_secret_is_as_likely() -> None:
    # For any other secret there is a share that would have led to it: the ones in hand exclude nothing.
    shares = shamir.split(bytes(32), threshold=3, n_shares=3, coins=os.urandom)
    for other in (1, 2**255, 2**256 - 1):
        # Lagrange at zero over x = 1, 2, 3 is 3 s1 - 3 s2 + s3; solve for s3.
        first, second = (int.from_bytes(share, "little") for share in shares[:2])
        third = (other - 3 * first + 3 * second) % shamir.PRIME
        rebuilt = shamir.combine({0: shares[0], 1: shares[1], 2: third.to_bytes(33, "little")})
        assert rebuilt == other.to_bytes(32, "little")


def test_a_combination_beyond_32_bytes_is_none() -> None:
    assert shamir.combine({0: (2**256).to_bytes(33, "little")}) is None
    assert shamir.combine({0: (2**256 - 1).to_bytes(33, "little")}) == b"\xff" * 32


@pytest.mark.parametrize(("n_bytes", "threshold"), [(31, 2), (32, 0), (32, 4)])
def test_splitting_refuses_what_it_cannot_split(n_bytes: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="Expected 32 bytes"):
        shamir.split(bytes(n_bytes), threshold=threshold, n_shares=3, coins=os.urandom)


@pytest.mark.parametrize("length", [1, 16_383, 16_384, 16_385, 40_000])
def test_a_mask_is_the_keystream_as_little_endian_words_and_comes_off_again(length: int) -> None:
    start = np.arange(length, dtype=np.uint32) * 65_537
    total = start.copy()
    masks.add_mask(total, bytes(range(32)), sign=1)
    whole = np.frombuffer(keystream(bytes(range(32)))(4 * length), "<u4")
    assert np.array_equal(total, start + whole)
    masks.add_mask(total, bytes(range(32)), sign=-1)
    assert np.array_equal(total, start)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_known_answers_of_the_ring_stream(bits: int) -> None:
    total = masks.zeros(64 // bits, bits=bits)
    masks.add_mask(total, bytes(32), sign=1)
    # AES-256 of the zero block under the zero key: one stream, read as words of any width.
    assert masks.to_wire(total).hex() == "dc95c078a2408989"


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("length", [1, 65_537])
def test_vectors_under_masks_add_up_to_their_integer_sum_in_every_ring(bits: int, length: int) -> None:
    n_sites = 5
    bound = masks.largest_sum(bits) // n_sites
    draw = np.random.default_rng(bits)
    values = draw.integers(-bound, bound + 1, (n_sites, length))
    values[:, 0] = bound  # the largest sum there is
    total = masks.zeros(length, bits=bits)
    for number, vector in enumerate(values):
        one = masks.wrap(vector, length=length, bound=bound, bits=bits)
        masks.add_mask(one, bytes([number] * 32), sign=1)
        total += masks.from_wire(masks.to_wire(one), bits=bits)
    for number in range(n_sites):
        masks.add_mask(total, bytes([number] * 32), sign=-1)
    assert np.array_equal(masks.unwrap(total), values.sum(axis=0))


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_one_beyond_the_largest_sum_wraps(bits: int) -> None:
    # The twin: without the bound in the session, this is what a sum would turn into.
    total = masks.wrap(
        np.array([masks.largest_sum(bits)]), length=1, bound=masks.largest_sum(bits), bits=bits
    )
    total += masks.wrap(np.array([1]), length=1, bound=1, bits=bits)
    assert masks.unwrap(total).tolist() == [-masks.largest_sum(bits) - 1]


def test_keys_differ_by_session_view_pair_direction_and_use() -> None:
    world, secret, view = World(3), bytes(32), bytes(32)
    one, other = world.session(1), world.session(2)
    keys = [
        derive.share_key(one, view, secret, 0, 1),
        derive.share_key(one, view, secret, 1, 0),
        derive.share_key(one, b"v" * 32, secret, 0, 1),
        derive.share_key(other, view, secret, 0, 1),
        derive.pair_mask_key(one, view, secret, 0, 1),
        derive.pair_mask_key(one, view, secret, 0, 2),
        derive.self_mask_key(one, view, secret, 0),
    ]
    assert len(set(keys)) == len(keys)
    assert derive.pair_mask_key(one, view, secret, 1, 0) == keys[4]


def test_a_commitment_is_to_one_secret_site_and_session() -> None:
    world, share = World(3), bytes(33)
    one, other = world.session(1), world.session(2)
    made = [
        derive.seed_commitment(one, 0, bytes(32)),
        derive.seed_commitment(one, 1, bytes(32)),
        derive.seed_commitment(one, 0, b"s" * 32),
        derive.seed_commitment(other, 0, bytes(32)),
        derive.share_commitment(one, "self-share", bytes(32), 0, 1, share),
        derive.share_commitment(one, "mask-share", bytes(32), 0, 1, share),
        derive.share_commitment(one, "mask-share", bytes(32), 1, 0, share),
        derive.share_commitment(one, "mask-share", b"v" * 32, 0, 1, share),
        derive.share_commitment(one, "mask-share", bytes(32), 0, 1, b"s" * 33),
    ]
    assert len(set(made)) == len(made)


def test_no_socket_clock_or_disk_is_within_reach() -> None:
    may = {
        "collections", "dataclasses", "enum", "functools", "hashlib", "hmac", "itertools", "json", "os", "struct",
        "typing", "numpy", "sottovoce.common.config", "sottovoce.common.errors", "sottovoce.common.keys",
        "sottovoce.common.secagg",
    }  # fmt: skip
    modules = sorted(Path(masks.__file__).parent.glob("*.py"))
    assert len(modules) > 8
    for path in modules:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert any(name == known or name.startswith(f"{known}.") for known in may), (path.name, name)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                assert node.attr == "urandom", path.name
            assert not (isinstance(node, ast.Name) and node.id == "open"), path.name


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 4},
        {"run": "b"},
        {"attempt": 2},
        {"model_digest": "1" * 64},
        {"threshold": 3},
        {"length": 6},
        {"ring_bits": 16},
    ],
)
def test_a_session_of_anything_else_has_another_digest(changes: dict[str, object]) -> None:
    session = World(3).session()
    assert replace(session, **changes).digest != session.digest  # type: ignore[arg-type]


def test_a_session_has_one_encoding() -> None:
    session = World(3).session()
    assert decode_session(session.encoded) == session
    for other in (session.encoded + b"\n", session.encoded.replace(b":", b": ", 1), session.encoded[:-1]):
        with pytest.raises(SecureSumError):
            decode_session(other)


def test_a_cohort_out_of_order_or_with_a_reserved_name_is_no_session() -> None:
    session = World(3).session()
    named = replace(session.cohort[0], site="coordinator")
    for cohort in (session.cohort[::-1], (named, *session.cohort[1:])):
        with pytest.raises(SecureSumError):
            decode_session(replace(session, cohort=cohort).encoded)


def test_the_threshold_is_two_thirds_rounded_up_and_beats_colluders_below_a_third() -> None:
    for n_sites in range(3, 51):
        threshold = threshold_of(n_sites)
        assert 3 * threshold >= 2 * n_sites > 3 * (threshold - 1)
        assert n_sites - n_sites // 3 >= threshold
        colluders = (n_sites - 1) // 3
        assert 2 * threshold > n_sites + min(colluders, 2 * threshold - n_sites - 1)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_bound_whose_sum_could_wrap_is_refused(bits: int) -> None:
    bound = (2 ** (bits - 1) - 1) // 3
    world = World(3, bound=bound, ring_bits=bits)
    refuse_unless_agreed(world.session(), world.agreement)
    with pytest.raises(SecureSumError, match="cannot leave"):
        World(3, bound=bound + 1, ring_bits=bits).session()


@pytest.mark.parametrize("bits", [1, 7, 9, 24, 33, 64])
def test_a_ring_of_another_width_is_refused_though_all_should_agree_on_it(bits: int) -> None:
    with pytest.raises(SecureSumError, match="8 or 16 or 32 bits") as refused:
        World(3, bound=1, ring_bits=bits).session()
    assert refused.value.reason == "terms"


def test_a_sum_takes_one_two_or_four_bytes_an_element() -> None:
    for bits, n_bytes in ((8, 5), (16, 10), (32, 20)):
        attempt = World(3, bound=42, ring_bits=bits).attempt()
        attempt.run()
        masked = [data for phase, who, _, data in attempt.log if (phase, who) == ("mask", "hospital-00")]
        assert [len(data) for data in masked] == [attempt.session.vector_bytes + 128] == [n_bytes + 128]


@pytest.mark.parametrize("sites", [["hospital-00"] * 3, ["hospital-00", "hospital-01", "elsewhere"]])
def test_a_session_is_made_of_different_sites_of_the_roster(sites: list[str]) -> None:
    with pytest.raises(SecureSumError, match="roster"):
        session_for(World(3).agreement, attempt=1, sites=sites)


def test_the_coordinator_must_hold_the_roster_s_key() -> None:
    with pytest.raises(SecureSumError):
        Coordinator(World(3).session(), key=signing_key("another"))


def test_marks_ascend_by_round_attempt_and_phase() -> None:
    def mark(round_: int, attempt: int, phase: str) -> Mark:
        return Mark(run="a", round=round_, attempt=attempt, phase=phase, reply_sha256="")

    order = [mark(1, 1, "advert"), mark(1, 1, "mask"), mark(1, 2, "advert"), mark(2, 1, "advert")]
    for (at, one), (to, other) in itertools.product(enumerate(order), repeat=2):
        assert other.after(one) is (to > at)
    assert order[0].after(None)


def test_all_attempts_at_a_round_are_of_one_model() -> None:
    def mark(round_: int, attempt: int, model: str) -> Mark:
        return Mark(
            run="a", round=round_, attempt=attempt, phase="advert", reply_sha256="", model_digest=model
        )

    assert mark(1, 2, "m").after(mark(1, 1, "m"))
    assert not mark(1, 2, "other").after(mark(1, 1, "m"))
    assert mark(2, 1, "other").after(mark(1, 2, "m"))
    assert mark(1, 2, "m").after(mark(1, 1, ""))  # of before models were kept


def _complaint(**changes: object) -> bytes:
    error = SecureSumError("share", "what", accused="hospital-01", evidence=b"bytes")
    place = Place(run="study", round=1, attempt=1, session="0" * 64, phase="mask")
    record = sign_complaint(error, place, accuser="hospital-00", key=World(3).keys[0])
    for before, after in changes.items():
        record = record.replace(before.encode(), str(after).encode())
    return record


def test_a_complaint_is_read_if_its_accuser_signed_it_and_otherwise_not() -> None:
    roster = World(3).roster
    complaint = read_complaint(_complaint(), roster)
    assert (complaint.accuser, complaint.accused, complaint.reason) == ("hospital-00", "hospital-01", "share")
    for change in ({"hospital-01": "hospital-02"}, {"hospital-00": "hospital-01"}, {"share": "terms"}):
        with pytest.raises(SecureSumError):
            read_complaint(_complaint(**change), roster)
    with pytest.raises(SecureSumError):
        read_complaint(_complaint(**{b"bytes".hex(): b"other".hex()}), roster)


def test_a_complaint_whose_evidence_is_not_what_its_digest_says_is_refused() -> None:
    # Its accuser signs it as it is: the digest was made of one message, and another one is shown.
    complaint = json.loads(_complaint())["complaint"] | {"evidence": b"other".hex()}
    signature = World(3).keys[0].sign(label("complaint") + canonical(complaint).encode()).hex()
    record = canonical({"complaint": complaint, "signature": signature}).encode()
    with pytest.raises(SecureSumError, match="evidence"):
        read_complaint(record, World(3).roster)


def test_a_complaint_proves_nothing_without_a_message_of_the_accused() -> None:
    assert not proves(read_complaint(_complaint(), World(3).roster), World(3).roster)


def test_evidence_that_is_too_long_stands_in_by_its_digest() -> None:
    error = SecureSumError("form", "what", accused="coordinator", evidence=bytes(70_000))
    place = Place(run="study", round=1, attempt=0, session="0" * 64, phase="advert")
    record = sign_complaint(error, place, accuser="hospital-00", key=World(3).keys[0])
    complaint = read_complaint(record, World(3).roster)
    assert (complaint.evidence, complaint.evidence_bytes) == ("", 70_000)


def test_the_error_survives_a_process_pool_whole() -> None:
    error = SecureSumError(
        REASONS[0], "Expected this; came that.", accused="a", evidence=b"e", complaint=b"c"
    )
    back = pickle.loads(pickle.dumps(error))
    assert (str(back), back.reason, back.accused, back.evidence, back.complaint) == (
        "Expected this; came that.",
        REASONS[0],
        "a",
        b"e",
        b"c",
    )
