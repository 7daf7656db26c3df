"""Which cached block goes first, when memory for a new one is needed.

The pool lists a block here when its last reference ends, and takes it off when it is used again. Blocks of a
chain arrive deepest first, and a block arrives only after every block that builds on it, so any order that
never lets a later arrival overtake an earlier one evicts leaves before their parents.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Protocol


class EvictionOrder(Protocol):
    """Idle cached blocks, in the order in which they are to be given up."""

    def add_all(self, blocks: Sequence[int]) -> None:
        """List blocks, in this order, behind those that are listed."""
        ...

    def remove_all(self, blocks: Sequence[int]) -> None: ...

    def take(self, count: int) -> list[int]:
        """Take the first `count` off the list, which has as many."""
        ...

    def num_listed(self, blocks: Sequence[int]) -> int:
        """How many of these are listed."""
        ...

    def __len__(self) -> int: ...
    def __contains__(self, block: object) -> bool: ...
    def __iter__(self) -> Iterator[int]: ...


class LeastRecent:
    """Least recently used first: the block whose last reference ended longest ago. Every block is O(1)."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def add_all(self, blocks: Sequence[int]) -> None:
        self._blocks.update(dict.fromkeys(blocks))

    def remove_all(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            del self._blocks[block]

    def take(self, count: int) -> list[int]:
        return _first(self._blocks, count)

    def num_listed(self, blocks: Sequence[int]) -> int:
        return sum(map(self._blocks.__contains__, blocks))

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: object) -> bool:
        return block in self._blocks

    def __iter__(self) -> Iterator[int]:
        return iter(self._blocks)


def _first(listed: OrderedDict[int, Any], count: int) -> list[int]:
    """Take the first `count` off."""
    taken = list(islice(listed, count))
    for block in taken:
        del listed[block]
    return taken


KEEP_TURNOVERS = 4
"""Evictions, in sizes of the pool, after which a block that nobody has used is protected no longer."""


class FairShare:
    """Least recently used first, but nobody's blocks while he has no more than an equal share and another has more.

    So whoever floods the cache evicts his own blocks. Those who share a realm share its blocks; what `shared` holds
    belongs to nobody and goes in its turn, after all that builds on it. With one realm this is `LeastRecent`.

    realm_of    whose a block is, asked when it comes
    num_blocks  in the pool
    While all blocks are of one realm nothing is kept of who has how many.
    Every block is O(1).
    """

    def __init__(self, realm_of: Callable[[int], bytes], num_blocks: int, *, shared: bytes = b"") -> None:
        self._realm_of = realm_of
        self._shared = shared
        self._keep = KEEP_TURNOVERS * num_blocks
        self._num_evicted = 0
        self._all: OrderedDict[int, tuple[bytes, int]] = OrderedDict()
        self._own: dict[bytes, OrderedDict[int, None]] = {}
        self._by_size: dict[int, dict[bytes, None]] = {}
        self._largest = 0
        self._num_owned = 0
        self._sole: bytes | None = None

    def add_all(self, blocks: Sequence[int]) -> None:
        if not self._all:
            self._sole = self._realm_of(blocks[0])
        for realm, group in groupby(blocks, self._realm_of):
            several = list(group)
            if self._sole is not None and realm != self._sole:
                self._divide(self._sole)
            self._all.update(dict.fromkeys(several, (realm, self._num_evicted)))
            if self._sole is None and realm != self._shared:
                own = self._own.get(realm)
                if own is None:
                    own = self._own[realm] = OrderedDict()
                before = len(own)
                own.update(dict.fromkeys(several))
                self._resize(realm, before, len(own))

    def _divide(self, sole: bytes) -> None:
        """Somebody else has blocks, too."""
        self._sole = None
        if sole != self._shared:
            self._own[sole] = OrderedDict.fromkeys(self._all)
            self._resize(sole, 0, len(self._all))

    def remove_all(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            realm, _ = self._all.pop(block)
            if self._sole is None and realm != self._shared:
                own = self._own[realm]
                del own[block]
                self._resize(realm, len(own) + 1, len(own))

    def take(self, count: int) -> list[int]:
        if self._sole is None:
            return [self._next() for _ in range(count)]
        self._num_evicted += count
        return _first(self._all, count)

    def num_listed(self, blocks: Sequence[int]) -> int:
        return sum(map(self._all.__contains__, blocks))

    def _next(self) -> int:
        block, (realm, since) = next(iter(self._all.items()))
        is_kept = realm != self._shared and self._num_evicted - since < self._keep
        if is_kept and len(self._own[realm]) * len(self._own) <= self._num_owned < self._largest * len(
            self._own
        ):
            largest = next(iter(self._by_size[self._largest]))
            block = next(iter(self._own[largest]))
        self.remove_all((block,))
        self._num_evicted += 1
        return block

    def _resize(self, realm: bytes, before: int, after: int) -> None:
        """It has so many blocks now."""
        self._num_owned += after - before
        if before:
            del self._by_size[before][realm]
            if not self._by_size[before]:
                del self._by_size[before]
        if after:
            self._by_size.setdefault(after, {})[realm] = None
        else:
            del self._own[realm]
        if after > self._largest or before == self._largest not in self._by_size:
            self._largest = after

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, block: object) -> bool:
        return block in self._all

    def __iter__(self) -> Iterator[int]:
        """Least recently used first, whoever they belong to."""
        return iter(self._all)
