"""A radix tree over blocks of tokens, with any payload: block ids in an engine, replica ids in a fleet.

A node stands for one full block of tokens after its parent's prefix, and is named by the chained key of
`keys.py`. All nodes are also in one flat map by key, so a prefix is found without touching what lies beside it.
A node whose payload is gone but which others build on stays as a hole.

    root (seed key of a namespace)
     ├─ [4 7 1 9] payload 12 ── [3 3 0 1] payload 7
     └─ [4 7 2 2] hole ──────── [8 8 8 8] payload 31
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from octavo.core.keys import Chain, pack

Payload = TypeVar("Payload")


class Node(Generic[Payload]):
    """One block of tokens in its place. `payload` None makes it a hole.

    packed  its tokens as `keys.pack` has them, empty for a root only: there is a node for each cached block, and
            numbers apart would take six times the memory
    realm   the seed of those who may find it: the root's, or another one from some depth on
    only    its child while there has never been a second one; from then on `branches` has them by their first token
    """

    __slots__ = (
        "branches",
        "depth",
        "is_linked",
        "key",
        "num_children",
        "only",
        "packed",
        "parent",
        "payload",
        "realm",
    )

    def __init__(
        self,
        key: bytes,
        packed: bytes,
        parent: Node[Payload] | None,
        realm: bytes,
        payload: Payload | None = None,
    ) -> None:
        self.key = key
        self.realm = realm
        self.packed = packed
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.payload = payload
        self.is_linked = True
        self.num_children = 0
        self.only: Node[Payload] | None = None
        self.branches: dict[bytes, list[Node[Payload]]] | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return struct.unpack(f"<{len(self.packed) // 4}I", self.packed)

    def children(self) -> Iterator[Node[Payload]]:
        if self.only is not None:
            yield self.only
        for nodes in (self.branches or {}).values():
            yield from nodes

    def starting(self, token: bytes) -> Sequence[Node[Payload]]:
        """Children whose first token this is, packed; the oldest first."""
        if self.only is not None:
            return (self.only,) if self.only.packed.startswith(token) else ()
        return (self.branches or {}).get(token, ())

    def link(self, child: Node[Payload]) -> None:
        self.num_children += 1
        if self.branches is None and self.only is None:
            self.only = child
            return
        if self.branches is None:
            self.branches = {}
        if self.only is not None:
            self.branches[self.only.packed[:4]] = [self.only]
            self.only = None
        self.branches.setdefault(child.packed[:4], []).append(child)

    def unlink(self, child: Node[Payload]) -> None:
        self.num_children -= 1
        if self.only is child:
            self.only = None
        elif self.branches is not None:
            siblings = self.branches[child.packed[:4]]
            siblings.remove(child)
            if not siblings:
                del self.branches[child.packed[:4]]


class PrefixTree(Generic[Payload]):
    """Find, add and drop prefixes. A key is trusted only when the tokens under it compare equal."""

    def __init__(self) -> None:
        self._nodes: dict[bytes, Node[Payload]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def nodes(self) -> Iterator[Node[Payload]]:
        """All nodes, roots and holes included, oldest first."""
        return iter(self._nodes.values())

    def root(self, seed: bytes) -> Node[Payload] | None:
        return self._nodes.get(seed)

    def open_root(self, seed: bytes) -> Node[Payload]:
        """The root of that seed, made now if there is none."""
        root = self._nodes.get(seed)
        if root is None:
            root = self._nodes[seed] = Node(seed, b"", None, seed)
        return root

    def child(self, parent: Node[Payload], key: bytes, packed: bytes) -> Node[Payload] | None:
        """The child of `parent` that has this key and really these tokens, or None."""
        node = self._nodes.get(key)
        if node is None or node.parent is not parent or node.packed != packed:
            return None
        return node

    def path(self, seed: bytes, chain: Chain) -> list[Node[Payload]]:
        """The nodes of the blocks of `chain` under the root of that seed, as far as they are there."""
        found, node = list[Node[Payload]](), self._nodes.get(seed)
        for key, packed in zip(chain.keys, chain.blocks, strict=True):
            node = None if node is None else self.child(node, key, packed)
            if node is None:
                break
            found.append(node)
        return found

    def add(
        self,
        parent: Node[Payload],
        key: bytes,
        packed: bytes,
        payload: Payload | None,
        realm: bytes | None = None,
    ) -> Node[Payload] | None:
        """Add a child that is not there yet. None when a different prefix has taken the same key.

        realm  its own and its descendants'; None means the parent's
        """
        if key in self._nodes:
            return None
        node = self._nodes[key] = Node(key, packed, parent, realm or parent.realm, payload)
        parent.link(node)
        return node

    def add_chain(
        self, parent: Node[Payload], chain: Chain, realm: bytes | None = None
    ) -> list[Node[Payload]]:
        """Add a hole that is not there yet, another one under it, and so on, for all blocks of `chain`.

        Ends before a key that a different prefix has taken. Returns those that were added.
        """
        added = list[Node[Payload]]()
        for key, packed in zip(chain.keys, chain.blocks, strict=True):
            node = self.add(parent, key, packed, None, realm)
            if node is None:
                break
            added.append(node)
            parent = node
        return added

    def clear(self, node: Node[Payload]) -> None:
        """Take the payload away, and unlink the node and its ancestors as far as nothing needs them."""
        node.payload = None
        self.prune(node)

    def prune(self, node: Node[Payload]) -> None:
        """Unlink the node if it is a childless hole, then its parent likewise, up to the root."""
        current: Node[Payload] | None = node
        while (
            current is not None and current.payload is None and not current.num_children and current.is_linked
        ):
            current.is_linked = False
            del self._nodes[current.key]
            parent = current.parent
            if parent is not None:
                parent.unlink(current)
            current = parent

    def nearest_child(
        self, parent: Node[Payload], tokens: Sequence[int], realm: bytes
    ) -> tuple[Node[Payload], int] | None:
        """The child in that realm, with a payload, that shares most leading tokens, and how many (at least 1).

        The oldest wins a tie.
        """
        if not tokens:
            return None
        best: Node[Payload] | None = None
        longest = 0
        for node in parent.starting(pack(tokens[:1])):
            if node.payload is None or node.realm != realm:
                continue
            length = num_shared(node.tokens, tokens)
            if length > longest:
                best, longest = node, length
        return None if best is None else (best, longest)


def num_shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences have in common."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
