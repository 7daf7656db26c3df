"""Which cached block goes first, when memory for a new one is needed.

The pool lists a block here when its last reference ends, and takes it off when it is used again. Blocks of a
chain arrive deepest first, and a block arrives only after every block that builds on it, so any order that
never lets a later arrival overtake an earlier one evicts leaves before their parents.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Protocol


class EvictionOrder(Protocol):
    """Idle cached blocks, in the order in which they are to be given up."""

    def add(self, block: int) -> None: ...
    def remove(self, block: int) -> None: ...
    def pop(self) -> int: ...
    def __len__(self) -> int: ...
    def __contains__(self, block: object) -> bool: ...
    def __iter__(self) -> Iterator[int]: ...


class LeastRecent:
    """Least recently used first: the block whose last reference ended longest ago. Every operation is O(1)."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def add(self, block: int) -> None:
        self._blocks[block] = None

    def remove(self, block: int) -> None:
        del self._blocks[block]

    def pop(self) -> int:
        return self._blocks.popitem(last=False)[0]

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: object) -> bool:
        return block in self._blocks

    def __iter__(self) -> Iterator[int]:
        return iter(self._blocks)


KEEP_TURNOVERS = 4
"""Evictions, in sizes of the pool, after which a block that nobody has used is protected no longer."""


class FairShare:
    """Least recently used first, but nobody's blocks while he has no more than an equal share and another has more.

    So whoever floods the cache evicts his own blocks. Those who share a realm share its blocks; what `shared` holds
    belongs to nobody and goes in its turn, after all that builds on it. With one realm this is `LeastRecent`.

    realm_of    whose a block is, asked when it comes
    num_blocks  in the pool
    Every operation is O(1).
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

    def add(self, block: int) -> None:
        realm = self._realm_of(block)
        self._all[block] = (realm, self._num_evicted)
        if realm != self._shared:
            own = self._own.setdefault(realm, OrderedDict())
            own[block] = None
            self._resize(realm, len(own) - 1, len(own))

    def remove(self, block: int) -> None:
        realm, _ = self._all.pop(block)
        if realm != self._shared:
            own = self._own[realm]
            del own[block]
            self._resize(realm, len(own) + 1, len(own))
            if not own:
                del self._own[realm]

    def pop(self) -> int:
        block, (realm, since) = next(iter(self._all.items()))
        is_kept = realm != self._shared and self._num_evicted - since < self._keep
        if is_kept and len(self._own[realm]) * len(self._own) <= self._num_owned < self._largest * len(
            self._own
        ):
            largest = next(iter(self._by_size[self._largest]))
            block = next(iter(self._own[largest]))
        self.remove(block)
        self._num_evicted += 1
        return block

    def _resize(self, realm: bytes, before: int, after: int) -> None:
        self._num_owned += after - before
        if before:
            del self._by_size[before][realm]
            if not self._by_size[before]:
                del self._by_size[before]
        if after:
            self._by_size.setdefault(after, {})[realm] = None
        if after > self._largest or before == self._largest not in self._by_size:
            self._largest = after

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, block: object) -> bool:
        return block in self._all

    def __iter__(self) -> Iterator[int]:
        """Least recently used first, whoever they belong to."""
        return iter(self._all)
