"""The radix tree: bookkeeping, then a machine against a dictionary of token lists."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from octavo.core.keys import block_key, seed_key
from octavo.core.prefix import PrefixTree, num_shared

SEED = seed_key(b"", b"")


def packed(tokens):
    return b"".join(token.to_bytes(4, "little") for token in tokens)


def grow(
    tree: PrefixTree[str], blocks: list[tuple[int, ...]], payloads: list[str | None], seed: bytes = SEED
):
    """Add a chain of blocks with these payloads; returns its nodes."""
    node, key, nodes = tree.open_root(seed), seed, []
    for tokens, payload in zip(blocks, payloads, strict=True):
        key = block_key(key, tokens)
        node = tree.child(node, key, packed(tokens)) or tree.add(node, key, packed(tokens), payload)
        nodes.append(node)
    return nodes


def test_a_chain_is_found_by_key_and_tokens():
    tree: PrefixTree[str] = PrefixTree()
    first, second = grow(tree, [(1, 2), (3, 4)], ["a", "b"])
    root = tree.root(SEED)
    assert root is not None
    assert tree.child(root, first.key, packed((1, 2))) is first
    assert tree.child(first, second.key, packed([3, 4])) is second
    assert (first.depth, second.depth, len(tree)) == (1, 2, 3)
    assert tree.child(root, second.key, packed((3, 4))) is None, "right key, wrong place"
    assert tree.root(seed_key(b"", b"other")) is None


def test_a_key_is_trusted_only_when_the_tokens_agree():
    tree: PrefixTree[str] = PrefixTree()
    root = tree.open_root(SEED)
    forged = block_key(SEED, (1, 2))
    tree.add(root, forged, packed((8, 8)), "foreign")
    assert tree.child(root, forged, packed((1, 2))) is None
    assert tree.add(root, forged, packed((1, 2)), "mine") is None, "the key is taken: do not publish"


def test_leaves_go_alone_and_take_empty_ancestors_with_them():
    tree: PrefixTree[str] = PrefixTree()
    first, second = grow(tree, [(1, 2), (3, 4)], ["a", "b"])
    tree.clear(second)
    assert not second.is_linked
    assert len(tree) == 2
    tree.clear(first)
    assert len(tree) == 0
    assert tree.root(SEED) is None


def test_an_inner_node_without_payload_stays_as_a_hole_until_its_last_descendant_goes():
    tree: PrefixTree[str] = PrefixTree()
    first, second = grow(tree, [(1, 2), (3, 4)], ["a", "b"])
    tree.clear(first)
    assert first.is_linked
    assert first.payload is None
    tree.clear(second)
    assert len(tree) == 0


def test_nearest_child_shares_most_leading_tokens_has_a_payload_and_the_oldest_wins():
    tree: PrefixTree[str] = PrefixTree()
    grow(tree, [(5, 6, 1, 1)], ["one"])
    grow(tree, [(5, 6, 7, 1)], ["two"])
    grow(tree, [(5, 6, 7, 2)], ["three"])
    (hole, _) = grow(tree, [(5, 6, 7, 8), (0, 0, 0, 0)], ["four", "below"])
    tree.clear(hole)
    root = tree.root(SEED)
    assert root is not None

    def nearest(*tokens):
        found = tree.nearest_child(root, tokens, root.realm)
        return None if found is None else (found[0].payload, found[1])

    assert nearest(5, 6, 7, 8) == ("two", 3)
    assert nearest(5, 6, 7, 2) == ("three", 4)
    assert nearest(5, 6) == ("one", 2)
    assert nearest(5, 9) == ("one", 1)
    assert nearest(9) is None
    assert nearest() is None


def test_num_shared():
    assert [num_shared(a, b) for a, b in [("", "x"), ("ab", "ab"), ("abc", "abd"), ("b", "abc")]] == [
        0,
        2,
        2,
        0,
    ]


class TreeMachine(RuleBasedStateMachine):
    """Chains of 2-token blocks over a tiny alphabet, against {(seed, tokens): payload}."""

    block = st.tuples(st.integers(0, 1), st.integers(0, 1))
    chain = st.lists(block, min_size=1, max_size=4)
    seeds = st.sampled_from([SEED, seed_key(b"", b"x")])

    def __init__(self) -> None:
        super().__init__()
        self.tree: PrefixTree[int] = PrefixTree()
        self.reference: dict[tuple, int] = {}
        self.next_payload = 0

    def _node(self, seed, blocks):
        node, key = self.tree.root(seed), seed
        for tokens in blocks:
            if node is None:
                return None
            key = block_key(key, tokens)
            node = self.tree.child(node, key, packed(tokens))
        return node

    @rule(seed=seeds, blocks=chain)
    def add(self, seed, blocks):
        node, key = self.tree.open_root(seed), seed
        for index, tokens in enumerate(blocks):
            key = block_key(key, tokens)
            child = self.tree.child(node, key, packed(tokens)) or self.tree.add(
                node, key, packed(tokens), None
            )
            assert child is not None
            if child.payload is None:
                child.payload = self.reference[(seed, *blocks[: index + 1])] = self.next_payload
                self.next_payload += 1
            node = child

    @rule(seed=seeds, blocks=chain)
    def clear(self, seed, blocks):
        node = self._node(seed, blocks)
        if node is not None:
            self.tree.clear(node)
            self.reference.pop((seed, *blocks), None)

    @rule(seed=seeds, blocks=chain, tokens=st.lists(st.integers(0, 1), max_size=2))
    def nearest(self, seed, blocks, tokens):
        node = self._node(seed, blocks)
        if node is None:
            return
        found = self.tree.nearest_child(node, tokens, node.realm)
        place = (seed, *blocks)
        shared = [num_shared(k[-1], tokens) for k in self.reference if k[:-1] == place]
        longest = max(shared, default=0)
        assert (found[1] if found else 0) == longest

    @invariant()
    def agrees(self):
        with_payload = {}
        for node in self.tree.nodes():
            path, walk = [], node
            while walk.parent is not None:
                path.append(walk.tokens)
                walk = walk.parent
            assert node.is_linked
            assert node.num_children == len(list(node.children()))
            assert node.payload is not None or node.num_children, "a childless hole"
            if node.payload is not None:
                with_payload[(walk.key, *reversed(path))] = node.payload
        assert with_payload == self.reference


TestTreeMachine = TreeMachine.TestCase
TestTreeMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
