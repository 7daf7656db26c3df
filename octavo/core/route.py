"""Which of several engines takes a request: one that holds its prompt's beginning, unless it has too much to do.

The router remembers which prompts it has sent where, as chains of block keys in one tree whose payload is the set
of replicas, a bit each. It knows nothing of what an engine has evicted since; a wrong guess costs a prefill.
Costs are in prompt tokens to be computed before this request's own first token.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from octavo.core.keys import PUBLIC, Chain, Lineage, seed_key
from octavo.core.prefix import Node, PrefixTree

BLOCK_TOKENS = 64
"""Coarser than an engine's blocks: a prompt of 100,000 tokens takes 1,563 digests."""
PUBLIC_SEED = seed_key(b"", PUBLIC)
MAX_BLOCKS = 2**16
"""Nodes remembered: 4 million prompt tokens."""
RUNNING_TOKENS = 32
"""What a sequence that runs is taken to cost a newcomer: it shares every step of the newcomer's prefill."""


class Load(NamedTuple):
    """What a replica has to do.

    pending_tokens  prompt tokens sent to it whose request has no output yet, those taken to be cached left out
    num_running     requests on it
    """

    replica: int
    pending_tokens: int
    num_running: int


@dataclass(frozen=True, slots=True)
class Route:
    """A choice. `num_matched` prompt tokens are taken to be cached there."""

    replica: int
    num_matched: int
    because: str


def least_loaded(load: Load, num_tokens: int, num_matched: int) -> float:
    """Where the least waits, whatever is cached."""
    del num_matched
    return load.pending_tokens + num_tokens + RUNNING_TOKENS * load.num_running


def prefix(load: Load, num_tokens: int, num_matched: int) -> float:
    """Where the first token comes soonest: what waits there, and what of the prompt is not cached there."""
    return load.pending_tokens + num_tokens - num_matched + RUNNING_TOKENS * load.num_running


COST: Mapping[str, Callable[[Load, int, int], float]] = {"prefix": prefix, "least_loaded": least_loaded}
"""A policy is a cost of (load, prompt tokens, of these cached); the lowest wins."""


class Router:
    """Chooses replicas and remembers what they have been sent.

    policy  a key of COST
    """

    def __init__(self, policy: str = "prefix", max_blocks: int = MAX_BLOCKS) -> None:
        self._cost = COST[policy]
        self._max_blocks = max_blocks
        self._tree: PrefixTree[int] = PrefixTree()
        self._recent: OrderedDict[bytes, Node[int]] = OrderedDict()

    def __len__(self) -> int:
        """Blocks remembered."""
        return len(self._recent)

    def choose(
        self, tokens: Sequence[int], namespace: bytes, loads: Iterable[Load], num_public_tokens: int = 0
    ) -> Route:
        """The replica for a prompt, one of `loads`, which must not be empty. Ties go to the first.

        num_public_tokens  of the prompt's beginning, which all namespaces share
        """
        lineage = Lineage(seed_key(b"", namespace), PUBLIC_SEED, num_public_tokens // BLOCK_TOKENS)
        chain = Chain()
        lineage.extend(chain, tokens, BLOCK_TOKENS, len(tokens) // BLOCK_TOKENS)
        path = self._tree.path(lineage.realm(0), chain)
        matched = _matched(path)
        best: Load | None = None
        cheapest = 0.0
        for load in loads:
            cost = self._cost(load, len(tokens), matched.get(load.replica, 0))
            if best is None or cost < cheapest:
                best, cheapest = load, cost
        if best is None:
            raise ValueError("there is no replica to choose from")
        num_matched = matched.get(best.replica, 0)
        self._note(lineage.realm(0), chain, path, best.replica)
        because = f"{num_matched} of {len(tokens)} prompt tokens were sent there before" if num_matched else (
            f"{best.num_running} requests run there and {best.pending_tokens} prompt tokens wait"
        )  # fmt: skip
        return Route(best.replica, num_matched, because)

    def forget(self, replica: int) -> None:
        """It has lost its cache."""
        bit = 1 << replica
        for key, node in list(self._recent.items()):
            if node.payload is not None and node.payload & bit:
                node.payload ^= bit
                if not node.payload:
                    del self._recent[key]
                    self._tree.clear(node)

    def _note(self, seed: bytes, chain: Chain, path: list[Node[int]], replica: int) -> None:
        if not chain:
            return
        last = path[-1] if path else self._tree.open_root(seed)
        path = path + self._tree.add_chain(last, chain[len(path) :])
        self._tree.prune(last)
        for node in path:
            node.payload = (node.payload or 0) | 1 << replica
        for one in reversed(path):  # the beginning of a prompt is the last of it to be forgotten
            self._recent[one.key] = one
            self._recent.move_to_end(one.key)
        while len(self._recent) > self._max_blocks:
            _, oldest = self._recent.popitem(last=False)
            self._tree.clear(oldest)


def _matched(path: Iterable[Node[int]]) -> dict[int, int]:
    """Replica to the prompt tokens it was sent before, as far as they reach without a gap."""
    matched: dict[int, int] = {}
    still = -1
    for index, node in enumerate(path):
        still &= node.payload or 0
        if not still:
            break
        for replica in _bits(still):
            matched[replica] = (index + 1) * BLOCK_TOKENS
    return matched


def _bits(mask: int) -> Iterable[int]:
    index = 0
    while mask:
        if mask & 1:
            yield index
        mask >>= 1
        index += 1
