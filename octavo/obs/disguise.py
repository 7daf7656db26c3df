"""Names for tokens that tell which prompts begin alike, and nothing of what they say.

The name of a token stands for everything from the beginning up to it: two sequences have equal names as far as they
are equal, and different ones from there on, so the same word has another name wherever it stands. Names are made with
random numbers that are never written down. What reuses prefixes decides the same by them as by the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

STOP = 2**31 - 1
"""The name of whatever token ended an output. No other token has it."""

Names = npt.NDArray[np.uint32]


class Disguise:
    """Names for the tokens of one recording.

    key  secret, random, at least 16 bytes
    """

    def __init__(self, key: bytes) -> None:
        self._random = np.random.Generator(np.random.Philox(np.frombuffer(key[:16], np.uint64)))
        self._masks = self._random.integers(0, 2**64, 3, dtype=np.uint64)
        self._factors = self._more(1024)

    def names(self, tokens: Sequence[int]) -> Names:
        """Names of all of them, below STOP: a sum of the tokens, each times the random number of its place, stirred.

        The stirring is that of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) between secret masks.
        """
        while len(self._factors) < len(tokens):
            self._factors = np.concatenate([self._factors, self._more(len(self._factors))])
        given = np.array(tokens, np.uint64) + np.uint64(1)
        word = np.cumsum(given * self._factors[: len(given)]) ^ self._masks[0]
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9) ^ self._masks[1]
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB) ^ self._masks[2]
        word ^= word >> np.uint64(31)
        names: Names = np.minimum(word >> np.uint64(33), np.uint64(STOP - 1)).astype(np.uint32)
        return names

    def _more(self, count: int) -> npt.NDArray[np.uint64]:
        return self._random.integers(0, 2**64, count, dtype=np.uint64) | np.uint64(1)
