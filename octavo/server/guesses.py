"""Wrong keys, by where they come from: who sends many waits longer and longer for each refusal.

Right keys never wait.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

FREE = 20
"""Wrong keys of one address that are refused at once; one more is free again each second."""
FIRST_S, LONGEST_S = 0.05, 2.0
MAX_ADDRESSES = 4096


class Guesses:
    """What it remembers is bounded: of very many addresses, those that were heard of longest ago are forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Another wrong key has come from there: how long its refusal is held back."""
        now = self._clock()
        count, seen = self._known.pop(address, (0.0, now))
        count = max(count - (now - seen), 0.0) + 1
        self._known[address] = (count, now)
        if len(self._known) > MAX_ADDRESSES:
            self._known.popitem(last=False)
        if count <= FREE:
            return 0.0
        return float(min(FIRST_S * 2 ** min(count - FREE - 1, 16), LONGEST_S))
