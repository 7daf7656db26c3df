"""Which cached block goes first, when memory for a new one is needed.

The pool lists a block here when its last reference ends, and takes it off when it is used again. Blocks of a
chain arrive deepest first, and a block arrives only after every block that builds on it, so any order that
never lets a later arrival overtake an earlier one evicts leaves before their parents.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
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
