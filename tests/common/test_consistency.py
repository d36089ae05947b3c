"""Proofs between checkpoints of a ledger, for every pair of sizes up to 64, against a plain recomputation.

`verified_by_rfc` is the algorithm of RFC 9162, section 2.1.4.2, which walks the proof from its other end: it shares
nothing with merkle.py.
"""

import hashlib
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.common.errors import LedgerError
from sottovoce.common.keys import SigningKey
from sottovoce.common.ledger.checkpoint import Checkpoint, sign
from sottovoce.common.ledger.merkle import consistency_proof, consistent, leaf_hash, root_of
from sottovoce.common.ledger.witness import witness

MOST = 64
LEAVES = [leaf_hash(bytes([number])) for number in range(MOST)]


def verified_by_rfc(first: int, second: int, old: bytes, new: bytes, proof: Sequence[bytes]) -> bool:
    if first == second:
        return not proof and old == new
    if not proof:
        return False
    path = [old, *proof] if first & (first - 1) == 0 else list(proof)
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for one in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = _node(one, fr), _node(one, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = _node(sr, one)
        fn, sn = fn >> 1, sn >> 1
    return fr == old and sr == new and sn == 0


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


ROOTS = [root_of(LEAVES[:size]) for size in range(MOST + 1)]


def test_every_proof_up_to_64_entries_holds_by_both_algorithms_and_is_short() -> None:
    for new in range(1, MOST + 1):
        for old in range(1, new + 1):
            proof = consistency_proof(LEAVES[:new], old)
            assert consistent(old, ROOTS[old], new, ROOTS[new], proof), (old, new)
            assert verified_by_rfc(old, new, ROOTS[old], ROOTS[new], proof), (old, new)
            assert len(proof) <= new.bit_length() + 1


def test_no_proof_between_other_sizes_or_roots_is_accepted() -> None:
    draw = random.Random(1)
    for new in range(2, MOST + 1):
        for old in range(1, new):
            proof = consistency_proof(LEAVES[:new], old)
            other = draw.choice([size for size in range(1, MOST + 1) if size not in (old, new)])
            for wrong in (
                (other, ROOTS[old], new, ROOTS[new]),
                (old, ROOTS[other], new, ROOTS[new]),
                (old, ROOTS[old], new, ROOTS[other]),
                (new, ROOTS[new], old, ROOTS[old]),
            ):
                assert not consistent(*wrong, proof), (old, new, other)


def test_no_mutation_of_a_proof_is_accepted() -> None:
    for new in range(2, MOST + 1):
        for old in range(1, new):
            proof = consistency_proof(LEAVES[:new], old)
            for mutated in mutations(proof):
                assert not consistent(old, ROOTS[old], new, ROOTS[new], mutated), (old, new)


def mutations(proof: list[bytes]) -> list[list[bytes]]:
    flipped = [
        [*proof[:at], bytes([proof[at][0] ^ 1]) + proof[at][1:], *proof[at + 1 :]] for at in range(len(proof))
    ]
    shorter = [proof[:at] + proof[at + 1 :] for at in range(len(proof))]
    swapped = [
        [*proof[:at], proof[at + 1], proof[at], *proof[at + 2 :]]
        for at in range(len(proof) - 1)
        if proof[at] != proof[at + 1]
    ]
    return [*flipped, *shorter, *swapped, [*proof, proof[0]], [proof[0], *proof]]


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 399))
def test_a_rewritten_entry_before_the_old_size_is_always_found(old: int, more: int, where: int) -> None:
    before = [leaf_hash(number.to_bytes(2, "big")) for number in range(old + more)]
    after = list(before)
    after[where % old] = leaf_hash(b"rewritten")
    proof = consistency_proof(after, old)
    assert not consistent(old, root_of(before[:old]), old + more, root_of(after), proof)
    assert not verified_by_rfc(old, old + more, root_of(before[:old]), root_of(after), proof)
    honest = consistency_proof(before, old)
    assert verified_by_rfc(old, old + more, root_of(before[:old]), root_of(before), honest)


KEY = SigningKey.generate()


def note(size: int, instance: str = "ab" * 16) -> str:
    return sign(Checkpoint(instance=instance, size=size, root=ROOTS[size]), KEY).text()


def test_a_witness_follows_a_ledger_step_by_step_and_never_back() -> None:
    kept: str | None = None
    size = 0
    for new in (3, 3, 4, 17, 64):
        kept = witness(kept, note(new), consistency_proof(LEAVES[:new], size), KEY.public_hex)
        size = new
    for wrong in (note(63), note(64, "cd" * 16)):
        with pytest.raises(LedgerError, match="extends its 64 entries"):
            witness(kept, wrong, [], KEY.public_hex)
