"""A radix tree over blocks of tokens, with any payload: block ids in an engine, replica ids in a fleet.

A node stands for one full block of tokens after its parent's prefix, and is named by the chained key of
`keys.py`. All nodes are also in one flat map by key, so a prefix is found without touching what lies beside it.
A node whose payload is gone but which others build on stays as a hole.

    root (seed key of a namespace)
     ├─ [4 7 1 9] payload 12 ── [3 3 0 1] payload 7
     └─ [4 7 2 2] hole ──────── [8 8 8 8] payload 31
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

Payload = TypeVar("Payload")


class Node(Generic[Payload]):
    """One block of tokens in its place. `tokens` is empty for a root only; `payload` None makes it a hole.

    realm  the seed of those who may find it: the root's, or another one from some depth on
    """

    __slots__ = (
        "branches",
        "depth",
        "is_linked",
        "key",
        "num_children",
        "parent",
        "payload",
        "realm",
        "tokens",
    )

    def __init__(
        self, key: bytes, tokens: tuple[int, ...], parent: Node[Payload] | None, realm: bytes
    ) -> None:
        self.key = key
        self.realm = realm
        self.tokens = tokens
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.payload: Payload | None = None
        self.is_linked = True
        self.num_children = 0
        self.branches: dict[int, list[Node[Payload]]] = {}

    def children(self) -> Iterator[Node[Payload]]:
        for nodes in self.branches.values():
            yield from nodes


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
            root = self._nodes[seed] = Node(seed, (), None, seed)
        return root

    def child(self, parent: Node[Payload], key: bytes, tokens: Sequence[int]) -> Node[Payload] | None:
        """The child of `parent` that has this key and really these tokens, or None."""
        node = self._nodes.get(key)
        if node is None or node.parent is not parent or node.tokens != tuple(tokens):
            return None
        return node

    def add(
        self,
        parent: Node[Payload],
        key: bytes,
        tokens: Sequence[int],
        payload: Payload | None,
        realm: bytes | None = None,
    ) -> Node[Payload] | None:
        """Add a child that is not there yet. None when a different prefix has taken the same key.

        realm  its own and its descendants'; None means the parent's
        """
        if key in self._nodes:
            return None
        node = Node(key, tuple(tokens), parent, realm or parent.realm)
        node.payload = payload
        self._nodes[key] = node
        parent.branches.setdefault(node.tokens[0], []).append(node)
        parent.num_children += 1
        return node

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
                siblings = parent.branches[current.tokens[0]]
                siblings.remove(current)
                if not siblings:
                    del parent.branches[current.tokens[0]]
                parent.num_children -= 1
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
        for node in parent.branches.get(tokens[0], ()):
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
