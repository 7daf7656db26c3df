"""Rows of library text without repeats inside a pass, as a function of seed and row number."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from lab import corpus
from lab.batches import Batch
from lab.scaling.family import WINDOW_TOKENS
from lab.tokenizer import BOS_ID, EOS_ID


def flat_tokens(tokenizer: Tokenizer, sources: Sequence[corpus.Source]) -> np.ndarray:
    """All files, one after another, each between the start and the end token."""
    flat: list[int] = []
    for encoding in tokenizer.encode_batch([source.text for source in sources]):
        flat += [BOS_ID, *encoding.ids, EOS_ID]
    return np.array(flat, dtype=np.int64)


def text_batch(rows: Sequence[np.ndarray]) -> Batch:
    """Rows of WINDOW_TOKENS + 1 tokens; all but the first of each count."""
    tokens = np.stack(rows)
    weights = np.ones(tokens.shape, dtype=np.float32)
    weights[:, 0] = 0.0
    return Batch("text", tokens, weights)


class Windows:
    """Passes over the text; each pass cuts it at another offset and goes through the pieces in another order."""

    def __init__(self, flat: np.ndarray, seed: int) -> None:
        if len(flat) <= 2 * WINDOW_TOKENS:
            raise ValueError(f"{len(flat)} tokens of text are too few for windows of {WINDOW_TOKENS}")
        self.flat, self.seed = flat, seed
        self.per_pass = (len(flat) - 1) // WINDOW_TOKENS - 1
        self._pass: tuple[int, list[int]] = (-1, [])

    def starts(self, number: int) -> list[int]:
        """Where the windows of pass `number` begin, in the order they are read."""
        if self._pass[0] != number:
            rng = random.Random(f"windows:{self.seed}:{number}")
            offset = rng.randrange(WINDOW_TOKENS)
            order = list(range(self.per_pass))
            rng.shuffle(order)
            self._pass = (number, [offset + place * WINDOW_TOKENS for place in order])
        return self._pass[1]

    def batch(self, step: int, rows: int) -> Batch:
        """The rows of one step."""
        cut = []
        for row in range(step * rows, (step + 1) * rows):
            number, place = divmod(row, self.per_pass)
            start = self.starts(number)[place]
            cut.append(self.flat[start : start + WINDOW_TOKENS + 1])
        return text_batch(cut)


def held_out_batches(flat: np.ndarray, rows: int) -> list[Batch]:
    """The whole text in windows that follow one another; what is left over at the end is not read."""
    starts = range(0, len(flat) - WINDOW_TOKENS, WINDOW_TOKENS)
    windows = [flat[start : start + WINDOW_TOKENS + 1] for start in starts]
    return [text_batch(windows[first : first + rows]) for first in range(0, len(windows), rows)]
