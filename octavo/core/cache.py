"""The prefix cache: which blocks hold which prefixes, what a prompt can reuse, and why not more.

Only full blocks are published, after the step that computed them has been committed, under exact keys. A prompt
reuses the longest resident chain in place, never its last token (somebody must compute the logits), and copies
the beginning of one more block when that agrees in part.

With full attention a resident block's whole prefix is resident. With a sliding window the tree may have holes, and
a hit needs only the blocks that the window still reaches.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from octavo.core.blocks import NULL_BLOCK, BlockPool
from octavo.core.evict import FairShare
from octavo.core.keys import PUBLIC, Chain, Lineage, seed_key
from octavo.core.prefix import Node, PrefixTree
from octavo.core.sequence import CacheReport, Sequence

CACHING_IS_OFF = "caching is off"
WANTS_PROMPT_LOGPROBS = "prompt log-probabilities were asked for"
WANTS_EMBEDDING = "an embedding was asked for"
LAST_TOKEN = "the last prompt token is always computed"
BEING_COMPUTED = "being computed by another sequence right now"
NEVER_SEEN = "never seen"
NO_FULL_BLOCK = "the rest fills no block"
EVICTED_LONG_AGO = "evicted long ago"


@dataclass(frozen=True, slots=True)
class Hit:
    """What a sequence can take over. Valid only until the pool next changes.

    blocks   table entries for the leading full blocks; null where a sliding window does not reach back
    node     the tree node of the last of them
    partial  (block, tokens) whose beginning agrees with what follows, or None
    """

    blocks: tuple[int, ...]
    node: Node[int] | None
    partial: tuple[int, int] | None
    report: CacheReport


@dataclass(slots=True)
class Counters:
    """Totals since the start. `lookups == hits + misses`, `lookup_tokens == hit_tokens + missed_tokens`.

    lookups          admissions that asked the cache; hits found at least one token
    lookup_tokens    tokens those admissions had to have computed or cached
    computed_tokens  positions planned, recomputed ones included
    """

    lookups: int = 0
    hits: int = 0
    misses: int = 0
    lookup_tokens: int = 0
    hit_tokens: int = 0
    missed_tokens: int = 0
    computed_tokens: int = 0
    evictions: int = 0
    preemptions: int = 0


class PrefixCache:
    """Lookup, publication, eviction memory and pins over one pool.

    enabled            False: nothing is looked up or published
    window_tokens      sliding window of every layer, or None for full attention
    max_pinned_blocks  blocks that pins may keep from eviction, all pins together
    fingerprint        weights and layout; part of every key
    """

    def __init__(
        self,
        num_blocks: int,
        block_tokens: int,
        *,
        enabled: bool,
        window_tokens: int | None,
        max_pinned_blocks: int,
        fingerprint: bytes,
    ) -> None:
        self._public_seed = seed_key(fingerprint, PUBLIC)
        order = FairShare(self._realm_of, num_blocks, shared=self._public_seed)
        self.pool = BlockPool(num_blocks, self._evicted, order)
        self.tree: PrefixTree[int] = PrefixTree()
        self.counters = Counters()
        self.step_number = 0
        self.node_of: dict[int, Node[int]] = {}
        self.pinned: dict[int, int] = {}
        self.computing: dict[bytes, tuple[int, ...]] = {}
        self.enabled = enabled
        self.max_pinned_blocks = max_pinned_blocks
        self._block_tokens = block_tokens
        self._window_tokens = window_tokens
        self.has_window = window_tokens is not None
        self._fingerprint = fingerprint
        self.pins: dict[tuple[bytes, tuple[int, ...]], list[int]] = {}
        self.ghosts: OrderedDict[bytes, int] = OrderedDict()
        self._max_ghosts = 4 * num_blocks

    def lineage(self, namespace: bytes, num_public_tokens: int = 0) -> Lineage:
        """Who may find the blocks of a prompt: everybody those that lie in its first `num_public_tokens`."""
        seed = seed_key(self._fingerprint, namespace)
        return Lineage(seed, self._public_seed, num_public_tokens // self._block_tokens)

    def extend_chain(self, sequence: Sequence, count: int) -> None:
        """Let `sequence` know the keys of its first `count` full blocks."""
        if len(sequence.chain.keys) < count:
            sequence.lineage.extend(sequence.chain, sequence.tokens, self._block_tokens, count)

    def _chain(self, lineage: Lineage, tokens: tuple[int, ...]) -> Chain:
        chain = Chain()
        lineage.extend(chain, tokens, self._block_tokens, len(tokens) // self._block_tokens)
        return chain

    def _realm_of(self, block: int) -> bytes:
        return self.node_of[block].realm

    def lookup(self, sequence: Sequence) -> Hit:
        """The most that `sequence` can reuse now. Changes nothing but the sequence's own keys."""
        if not self.enabled:
            return Hit((), None, None, CacheReport(0, 0, CACHING_IS_OFF))
        if sequence.request.params.prompt_logprobs is not None:
            return Hit((), None, None, CacheReport(0, 0, WANTS_PROMPT_LOGPROBS))
        if sequence.request.params.embed:
            return Hit((), None, None, CacheReport(0, 0, WANTS_EMBEDDING))
        size = self._block_tokens
        limit = len(sequence.tokens) - 1
        self.extend_chain(sequence, len(sequence.tokens) // size)
        path = self.tree.path(sequence.lineage.realm(0), sequence.chain)[: limit // size]
        count = self._usable(path)
        node = path[count - 1] if count else self.tree.root(sequence.lineage.realm(0))
        partial = None
        if node is not None:
            near = self.tree.nearest_child(
                node,
                sequence.tokens[count * size : min(limit, (count + 1) * size)],
                sequence.lineage.realm(count),
            )
            if near is not None and near[0].payload is not None:
                partial = (near[0].payload, near[1])
        num_partial = partial[1] if partial else 0
        why = LAST_TOKEN if count * size + num_partial == limit else self._why_missing(sequence.keys, count)
        blocks = self._reach(path[:count], count * size)
        return Hit(blocks, node if count else None, partial, CacheReport(count, num_partial, why))

    def _usable(self, path: list[Node[int]]) -> int:
        """How many leading blocks of `path` make a hit: the window before its end must be resident."""
        if self._window_tokens is None:
            return len(path)
        needed = -(-(self._window_tokens - 1) // self._block_tokens)
        usable = run = 0
        for index, node in enumerate(path):
            run = 0 if node.payload is None else run + 1
            if run >= min(index + 1, needed):
                usable = index + 1
        return usable

    def _reach(self, path: list[Node[int]], end: int) -> tuple[int, ...]:
        """Table entries for `path`, null for blocks that position `end` and later ones never see."""
        passed = self.num_passed_blocks(end)
        reached = [NULL_BLOCK if node.payload is None else node.payload for node in path[passed:]]
        return (*[NULL_BLOCK] * min(passed, len(path)), *reached)

    def num_passed_blocks(self, settled: int) -> int:
        """Leading blocks that no position from `settled` on can see."""
        if self._window_tokens is None:
            return 0
        return max(0, settled - self._window_tokens + 1) // self._block_tokens

    def _why_missing(self, keys: list[bytes], index: int) -> str:
        if index >= len(keys):
            return NO_FULL_BLOCK
        key = keys[index]
        if key in self.computing:
            return BEING_COMPUTED
        if key in self.ghosts:
            return f"evicted at step {self.ghosts[key]}"
        return NEVER_SEEN

    def publish(self, sequence: Sequence) -> None:
        """Make every full, settled block of `sequence` findable. Call it after the commit of what computed them.

        A block whose prefix another block in use already holds stays unpublished and dies with its table.
        """
        size = self._block_tokens
        count = sequence.num_computed // size
        if not self.enabled or count <= sequence.num_published:
            return
        self.extend_chain(sequence, count)
        node, chain = sequence.node, sequence.chain
        if node is None or not node.is_linked:
            node = self.tree.open_root(sequence.lineage.realm(0))
        for index in range(node.depth, count):
            child = self.tree.child(node, chain.keys[index], chain.blocks[index])
            if child is None:
                node = self._grow(node, sequence, count)
                break
            block = sequence.table[index]
            if child.payload is None and block != NULL_BLOCK:
                self._attach([child], [block])
            elif child.payload != block:
                self._take_over(child, block)
            node = child
        self.tree.prune(node)
        sequence.node = node
        sequence.num_published = count
        self._computed(sequence, count)

    def _grow(self, node: Node[int], sequence: Sequence, count: int) -> Node[int]:
        """Add nodes for all blocks of `sequence` from that after `node` to the first `count`. Returns the last."""
        lineage = sequence.lineage
        while (first := node.depth) < count:
            end = lineage.realm_end(first, count)
            blocks = sequence.table[first:end]
            added = self.tree.add_chain(node, sequence.chain[first:end], lineage.realm(first))
            if added:
                self._attach(added, blocks[: len(added)])
                node = added[-1]
            if len(added) < len(blocks):
                break
        return node

    def _attach(self, nodes: list[Node[int]], blocks: list[int]) -> None:
        """Publish blocks, one for each of these nodes, each the parent of the next; null blocks leave holes."""
        if self._window_tokens is None:
            parent = nodes[0].parent
            anchor = NULL_BLOCK if parent is None or parent.payload is None else parent.payload
            self.pool.publish_chain(blocks, anchor)
        else:
            for block in blocks:
                if block != NULL_BLOCK:
                    self.pool.publish(block)
        for node, block in zip(nodes, blocks, strict=True):
            if block != NULL_BLOCK:
                node.payload = block
                self.node_of[block] = node
                if node.key in self.ghosts:
                    del self.ghosts[node.key]

    def install(self, tokens: tuple[int, ...], namespace: bytes = b"") -> int:
        """Count the full blocks of `tokens` as cached, their contents having come from elsewhere. Returns how many are.

        Fewer where memory is short. They are free to be evicted, as any that nobody runs on.
        """
        if not self.enabled:
            return 0
        lineage, held = self.lineage(namespace), list[int]()
        chain = self._chain(lineage, tokens)
        node = self.tree.open_root(lineage.realm(0))
        for key, packed in zip(chain.keys, chain.blocks, strict=True):
            child = self.tree.child(node, key, packed) or self.tree.add(node, key, packed, None)
            if child is None:
                break
            if child.payload is None:
                taken = self.pool.take(1)
                if taken is None:
                    self.tree.prune(child)
                    break
                self._attach([child], taken)
                held += taken
            else:
                self.pool.share(child.payload)
                held.append(child.payload)
            node = child
        self.tree.prune(node)
        self.pool.give_back_all(held)
        return len(held)

    def _take_over(self, node: Node[int], block: int) -> None:
        """Let `block` replace the node's own block if only cached continuations refer to that one."""
        old = node.payload
        if self.has_window or old is None:
            return
        children = [child.payload for child in node.children() if child.payload is not None]
        if self.pool.references[old] > sum(1 for child in children if self.pool.references[child]):
            return
        self.pool.hand_over(old, block, children)
        node.payload = block
        del self.node_of[old]
        self.node_of[block] = node

    def reclaim(self, sequence: Sequence) -> None:
        """Free the blocks that only stay because blocks of `sequence` continue their prefix, where it has its own."""
        node = sequence.node
        while node is not None and node.is_linked and node.parent is not None:
            if node.payload != sequence.table[node.depth - 1]:
                self._take_over(node, sequence.table[node.depth - 1])
            node = node.parent

    def _evicted(self, blocks: list[int]) -> None:
        for block in blocks:
            node = self.node_of.pop(block)
            self.tree.clear(node)
            self.ghosts[node.key] = self.step_number  # at the end: what is cached has no ghost
        self.counters.evictions += len(blocks)
        while len(self.ghosts) > self._max_ghosts:
            self.ghosts.popitem(last=False)

    def announce(self, sequence: Sequence) -> None:
        """Others may wait for the known full blocks of `sequence` that are not cached yet."""
        if not self.enabled:
            return
        first, last = sequence.num_published, len(sequence.tokens) // self._block_tokens
        self.extend_chain(sequence, last)
        keys, own = sequence.keys[first:last], (sequence.request.priority,)
        if self.computing.keys().isdisjoint(keys):
            self.computing.update(dict.fromkeys(keys, own))
        else:
            for key in keys:
                self.computing[key] = self.computing.get(key, ()) + own
        sequence.computing = (first, last)

    def is_under_way(self, key: bytes, priority: int) -> bool:
        """Somebody of that priority or better is about to publish this block."""
        return key in self.computing and min(self.computing[key]) <= priority

    def withdraw(self, sequence: Sequence) -> None:
        """`sequence` lost its memory or ended: it computes nothing any more."""
        self._computed(sequence, sequence.computing[1])

    def _computed(self, sequence: Sequence, count: int) -> None:
        first, last = sequence.computing
        if first >= min(count, last):
            return
        for key in sequence.keys[first : min(count, last)]:
            priorities = list(self.computing.pop(key))
            if len(priorities) > 1:
                priorities.remove(sequence.request.priority)
                self.computing[key] = tuple(priorities)
        sequence.computing = (min(count, last), last)

    def pin(self, tokens: tuple[int, ...], namespace: bytes) -> int:
        """Keep the resident full blocks of `tokens` from eviction, up to the cap. Returns how many are kept.

        Pinning the same tokens again renews the pin over what is resident now.
        """
        self.unpin(tokens, namespace)
        if not self.enabled:
            return 0
        lineage = self.lineage(namespace)
        kept: list[int] = []
        for node in self.tree.path(lineage.realm(0), self._chain(lineage, tokens)):
            block = node.payload
            if block is None:
                continue
            if block not in self.pinned and len(self.pinned) >= self.max_pinned_blocks:
                break
            self.pinned[block] = self.pinned.get(block, 0) + 1
            self.pool.share(block)
            kept.append(block)
        if kept:
            self.pins[(namespace, tokens)] = kept
        return len(kept)

    def unpin(self, tokens: tuple[int, ...], namespace: bytes) -> int:
        """End that pin. Returns how many blocks it kept; 0 when there was none."""
        kept = self.pins.pop((namespace, tokens), [])
        for block in kept:
            self.pinned[block] -= 1
            if not self.pinned[block]:
                del self.pinned[block]
        self.pool.give_back_all(kept)
        return len(kept)
