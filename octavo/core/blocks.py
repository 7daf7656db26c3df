"""The pool of KV blocks: who refers to which, which are free, and which keep a cached prefix meanwhile.

block 0        the null block: stands for "nothing here", never taken, written, published or given back
references > 0 in use: table entries + pins + copies under way + published children in use (see `publish`)
references = 0 scratch     unpublished; reused first, last in first out
               idle        published; keeps its contents until evicted, in the order of `evict`
               deferred    a step in flight may still touch it; becomes scratch or idle when that step commits
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile

from octavo.core.evict import EvictionOrder, LeastRecent
from octavo.errors import Bug

NULL_BLOCK = 0


class BlockPool:
    """Reference counts over block ids 1 .. num_blocks - 1.

    order     of eviction; None means the least recently used first
    on_evict  called with published blocks, in the order of their eviction, just before they are handed out for
              something else; they are no longer published then

    Not safe for use by several threads.
    """

    def __init__(
        self, num_blocks: int, on_evict: Callable[[list[int]], None], order: EvictionOrder | None = None
    ) -> None:
        self.num_blocks = num_blocks
        self.references = [0] * num_blocks
        self.generations = [0] * num_blocks
        self.scratch = list(range(num_blocks - 1, 0, -1))
        self.idle: EvictionOrder = LeastRecent() if order is None else order
        self.deferred: dict[int, int] = {}
        self.copying: dict[int, int] = {}
        self._anchors: dict[int, int] = {}
        self._on_evict = on_evict
        self._defer_until: int | None = None

    @property
    def num_available(self) -> int:
        """Blocks that `take` can hand out now."""
        return len(self.scratch) + len(self.idle)

    @property
    def num_soon_available(self) -> int:
        """The same, once every step in flight has been committed."""
        return len(self.scratch) + len(self.idle) + len(self.deferred)

    def is_published(self, block: int) -> bool:
        return block in self._anchors

    def anchor(self, block: int) -> int:
        """The published block that must stay as long as this one does, or the null block."""
        return self._anchors.get(block, NULL_BLOCK)

    def is_read(self, block: int) -> bool:
        """Whether somebody else than its one owner may read what is in a block in use, and nobody may write there."""
        return (self.references[block] > 1 and self.num_owners(block) > 1) or block in self._anchors

    def num_owners(self, block: int) -> int:
        """References that expect the block's contents to stay: all but copies under way."""
        return self.references[block] - self.copying.get(block, 0)

    def take(self, count: int) -> list[int] | None:
        """Hand out `count` blocks with one reference each, or none at all when there are not enough.

        Scratch blocks go first; then idle ones are evicted.
        """
        if count > self.num_available:
            return None
        references, generations, scratch = self.references, self.generations, self.scratch
        num_clean = min(count, len(scratch))
        first = len(scratch) - num_clean
        taken = scratch[first:]
        taken.reverse()
        del scratch[first:]
        if num_clean < count:
            taken += self._evict(count - num_clean)
        for block in taken:
            references[block] = 1
            generations[block] += 1
        return taken

    def drop_idle(self) -> int:
        """Evict every idle block. Returns how many there were."""
        evicted = self._evict(len(self.idle))
        self.scratch += evicted
        return len(evicted)

    def _evict(self, count: int) -> list[int]:
        evicted = self.idle.take(count)
        for block in evicted:
            del self._anchors[block]
        self._on_evict(evicted)
        return evicted

    def share(self, block: int) -> None:
        """Add a reference to a block that is in use, idle or published and deferred."""
        self.share_all((block,))

    def share_all(self, blocks: Sequence[int]) -> None:
        """Add a reference to each of these blocks."""
        references, anchors, woken = self.references, self._anchors, list[int]()
        for block in blocks:
            while block != NULL_BLOCK:
                references[block] += 1
                if references[block] > 1:
                    break
                woken.append(block)
                block = anchors[block]
        if not woken:
            return
        if self.deferred:
            idle = [block for block in woken if self.deferred.pop(block, None) is None]
            self.idle.remove_all(idle)
        else:
            self.idle.remove_all(woken)

    def give_back(self, block: int) -> None:
        """Drop a reference. The last one frees the block: at once, or after the steps in flight."""
        self.give_back_all((block,))

    def give_back_all(self, blocks: Sequence[int]) -> None:
        """Drop one reference of each, last first, so that the deepest of a chain is evicted first."""
        references, anchors, freed = self.references, self._anchors, list[int]()
        for block in reversed(blocks):
            while block != NULL_BLOCK:
                left = references[block] - 1
                if left < 0:
                    raise Bug(f"I2: block {block} was given back more often than it was taken")
                references[block] = left
                if left:
                    break
                freed.append(block)
                block = anchors.get(block, NULL_BLOCK)
        if freed:
            self._free_in_time(freed)

    def publish(self, block: int, anchor: int = NULL_BLOCK) -> None:
        """Keep the contents of `block` from now on, even when nobody refers to it, until it is evicted.

        While `block` is in use it holds a reference to `anchor`, the block of the prefix before it, so that a
        cached prefix never loses its beginning before its end.
        """
        if block == NULL_BLOCK or not self.references[block] or block in self._anchors:
            raise Bug(f"I11: block {block} is published while it is null, free or already published")
        self._anchors[block] = anchor
        self.share(anchor)

    def publish_chain(self, blocks: Sequence[int], anchor: int) -> None:
        """Publish blocks, each of which continues the one before it, the first of them `anchor`."""
        references, anchors = self.references, self._anchors
        self.publish(blocks[0], anchor)
        for before, block in pairwise(blocks):
            if block == NULL_BLOCK or not references[block] or block in anchors:
                raise Bug(f"I11: block {block} is published while it is null, free or already published")
            anchors[block] = before
            references[before] += 1

    def hand_over(self, old: int, new: int, children: list[int]) -> None:
        """Let `new`, in use and unpublished, stand for the prefix that `old` stood for; `old` is freed.

        Only published children may refer to `old`; `children` are all of them, in use or idle.
        """
        anchor = self._anchors.pop(old)
        self._anchors[new] = anchor
        was_in_use = self.references[old] > 0
        for child in children:
            self._anchors[child] = new
            if self.references[child]:
                self.references[old] -= 1
                self.references[new] += 1
        if self.references[old]:
            raise Bug(f"I2: block {old} is handed over while {self.references[old]} others use it")
        if was_in_use:
            self._free_in_time([old])
            return
        if old in self.idle:
            self.idle.remove_all((old,))
            self.scratch.append(old)
        self.share(anchor)

    def begin_copy(self, source: int, target: int) -> None:
        """Keep both ends of a copy until `end_copy`, whatever happens to the sequences that use them."""
        for block in (source, target):
            self.share(block)
            self.copying[block] = self.copying.get(block, 0) + 1

    def end_copy(self, source: int, target: int) -> None:
        for block in (source, target):
            self.copying[block] -= 1
            if not self.copying[block]:
                del self.copying[block]
            self.give_back(block)

    def defer_until(self, step_number: int | None) -> None:
        """Blocks freed from now on wait for the commit of that step; None frees them at once."""
        self._defer_until = step_number

    def settle(self, step_number: int) -> None:
        """That step, and all before it, have been committed: free what waited for them."""
        deferred = self.deferred
        if not deferred:
            return
        if next(reversed(deferred.values())) <= step_number:  # the usual case: all of them
            freed = list(deferred)
            deferred.clear()
        else:
            freed = list(takewhile(lambda block: deferred[block] <= step_number, deferred))
            for block in freed:
                del deferred[block]
        self._free(freed)

    def _free_in_time(self, blocks: list[int]) -> None:
        if self._defer_until is not None:
            self.deferred.update(dict.fromkeys(blocks, self._defer_until))
        else:
            self._free(blocks)

    def _free(self, blocks: list[int]) -> None:
        anchors = self._anchors
        published = [block for block in blocks if block in anchors]
        if len(published) < len(blocks):
            self.scratch += [block for block in blocks if block not in anchors]
        if published:
            self.idle.add_all(published)
