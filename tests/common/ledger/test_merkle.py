"""Claims of merkle.py, against the definition of RFC 6962, for every tree of up to 20 leaves."""

import hashlib
from collections.abc import Sequence

import pytest

from sottovoce.common.ledger.merkle import (
    Frontier,
    consistency_proof,
    consistent,
    included,
    inclusion_proof,
    leaf_hash,
    root_of,
)

LEAVES = [leaf_hash(bytes([k])) for k in range(20)]


def by_definition(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1, read aloud; leaves are hashed already."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + by_definition(leaves[:k]) + by_definition(leaves[k:])).digest()


def test_the_frontier_has_the_root_of_the_definition_at_every_size() -> None:
    frontier = Frontier()
    for size in range(len(LEAVES) + 1):
        assert frontier.root() == by_definition(LEAVES[:size])
        if size < len(LEAVES):
            frontier.add(LEAVES[size])


def test_the_published_root_of_an_eight_leaf_tree() -> None:
    """The test vector that certificate transparency implementations share."""
    inputs = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ]
    root = root_of([leaf_hash(bytes.fromhex(text)) for text in inputs])
    assert root.hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_a_copy_grows_on_its_own() -> None:
    frontier = Frontier()
    frontier.add(LEAVES[0])
    other = frontier.copy()
    other.add(LEAVES[1])
    assert (frontier.size, other.size) == (1, 2)
    assert frontier.root() == LEAVES[0]


@pytest.mark.parametrize("size", range(1, 21))
def test_every_leaf_is_included_where_it_is_and_nowhere_else(size: int) -> None:
    leaves = LEAVES[:size]
    root = root_of(leaves)
    for index in range(size):
        proof = inclusion_proof(leaves, index)
        assert included(leaves[index], index, size, proof, root)
        assert not included(LEAVES[(index + 1) % 20], index, size, proof, root)
        assert not any(
            included(leaves[index], other, size, proof, root)
            for other in range(-1, size + 1)
            if other != index
        )
        assert not included(leaves[index], index, size, [*proof, root], root)


@pytest.mark.parametrize("size", range(1, 21))
def test_a_tree_is_consistent_with_its_prefixes_and_nothing_else(size: int) -> None:
    leaves = LEAVES[:size]
    root = root_of(leaves)
    for old in range(1, size + 1):
        proof, old_root = consistency_proof(leaves, old), root_of(leaves[:old])
        assert consistent(old, old_root, size, root, proof)
        assert not consistent(old, LEAVES[-1] if old_root != LEAVES[-1] else LEAVES[0], size, root, proof)
        assert not consistent(old, old_root, size, LEAVES[1], proof)
        assert not consistent(old, old_root, size, root, [*proof, root])
        for cut in range(len(proof)):
            assert not consistent(old, old_root, size, root, proof[:cut])
            broken = [*proof[:cut], bytes(32), *proof[cut + 1 :]]
            assert not consistent(old, old_root, size, root, broken)
    assert not consistent(0, root, size, root, [])
    assert not consistent(size + 1, root, size, root, [])


def test_a_rewritten_prefix_has_no_proof() -> None:
    rewritten = [bytes(32), *LEAVES[1:9]]
    proof = consistency_proof(rewritten, 5)
    assert not consistent(5, root_of(LEAVES[:5]), 9, root_of(rewritten), proof)
