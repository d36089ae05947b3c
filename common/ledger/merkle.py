"""The Merkle tree of RFC 6962 (section 2.1) over a ledger's entries, and its two kinds of proof.

Leaves are hashed with the prefix 0x00 and nodes with 0x01, so that no node can be passed off as a leaf.

Guarantees:
  - `Frontier` gives the root after every leaf in O(log n), the same as the definition's recursion.
  - A consistency proof is accepted exactly if the old tree is a prefix of the new one.
  - An inclusion proof is accepted exactly for the leaf at its index.

>>> frontier = Frontier()
>>> frontier.root().hex()[:8]  # the empty tree is the hash of nothing
'e3b0c442'
>>> for leaf in (b"a", b"b", b"c"): frontier.add(leaf_hash(leaf))
>>> leaves = [leaf_hash(leaf) for leaf in (b"a", b"b", b"c")]
>>> frontier.root() == root_of(leaves)
True
"""

import hashlib
from collections.abc import Sequence


def leaf_hash(data: bytes) -> bytes:
    """Returns the hash of a leaf; it is also what the next entry names as `previous`."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Returns the hash of two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A growing tree, of which only the roots of its full subtrees are kept."""

    def __init__(self) -> None:
        self.size = 0
        self._full: list[bytes] = []  # roots of full subtrees, largest first; sizes are the bits of `size`

    def copy(self) -> "Frontier":
        """Returns a tree that grows on its own from here."""
        other = Frontier()
        other.size, other._full = self.size, list(self._full)
        return other

    def add(self, leaf: bytes) -> None:
        """Appends a leaf's hash."""
        node, size = leaf, self.size
        while size & 1:  # a full subtree of the same height waits on the left
            node = node_hash(self._full.pop(), node)
            size >>= 1
        self._full.append(node)
        self.size += 1

    def root(self) -> bytes:
        """Returns the tree's root."""
        if not self._full:
            return hashlib.sha256().digest()
        root = self._full[-1]
        for left in reversed(self._full[:-1]):
            root = node_hash(left, root)
        return root


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Returns the root of a list of leaf hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.add(leaf)
    return frontier.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Returns the siblings on the way from leaf `index` to the root, lowest first."""
    if len(leaves) == 1:
        return []
    half = _half(len(leaves))
    if index < half:
        return [*inclusion_proof(leaves[:half], index), root_of(leaves[half:])]
    return [*inclusion_proof(leaves[half:], index - half), root_of(leaves[:half])]


def included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Says whether `leaf` is at `index` of the tree of `size` leaves with this root."""
    if not 0 <= index < size:
        return False
    sides = _sides(index, size)
    if len(sides) != len(proof):
        return False
    for sibling, sibling_is_left in zip(proof, sides, strict=True):
        leaf = node_hash(sibling, leaf) if sibling_is_left else node_hash(leaf, sibling)
    return leaf == root


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> list[bytes]:
    """Returns what shows that the tree of the first `old_size` leaves is a prefix of this one."""
    return _prefix_proof(leaves, old_size, whole=True) if 0 < old_size < len(leaves) else []


def consistent(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Says whether the proof leads from the old root to the new one."""
    if not 0 < old_size <= new_size:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    nodes = list(proof)
    roots = _rebuild(old_size, new_size, nodes, old_root, whole=True)
    return not nodes and roots == (old_root, new_root)


def _half(size: int) -> int:
    """The largest power of two below `size`: where the definition splits a tree."""
    return 1 << (size - 1).bit_length() - 1


def _sides(index: int, size: int) -> list[bool]:
    """For each step from a leaf upwards: whether the sibling stands on the left."""
    if size == 1:
        return []
    half = _half(size)
    if index < half:
        return [*_sides(index, half), False]
    return [*_sides(index - half, size - half), True]


def _prefix_proof(leaves: Sequence[bytes], old_size: int, *, whole: bool) -> list[bytes]:
    """`whole`: the old tree's root is known to the reader, so that it need not be sent."""
    if old_size == len(leaves):
        return [] if whole else [root_of(leaves)]
    half = _half(len(leaves))
    if old_size <= half:
        return [*_prefix_proof(leaves[:half], old_size, whole=whole), root_of(leaves[half:])]
    return [*_prefix_proof(leaves[half:], old_size - half, whole=False), root_of(leaves[:half])]


def _rebuild(
    old_size: int, size: int, proof: list[bytes], old_root: bytes, *, whole: bool
) -> tuple[bytes, bytes] | None:
    """Takes the proof from its end and returns (old root, new root) of this subtree; None if it is too short."""
    if old_size == size:
        if whole:
            return old_root, old_root
        return (proof[-1], proof.pop()) if proof else None
    if not proof:
        return None
    half, sibling = _half(size), proof.pop()
    if old_size <= half:
        below = _rebuild(old_size, half, proof, old_root, whole=whole)
        return below and (below[0], node_hash(below[1], sibling))
    below = _rebuild(old_size - half, size - half, proof, old_root, whole=False)
    return below and (node_hash(sibling, below[0]), node_hash(sibling, below[1]))
