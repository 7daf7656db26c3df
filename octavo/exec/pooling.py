"""The mean of a prompt's final hidden states, summed so that no order and no chunking can change a bit of it."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

FRACTION_BITS = 26
"""Values are rounded to 2^-26 (1.5e-8) before they are added; sums of whole numbers are exact."""
MAX_SIZE = 2.0**16
"""Beyond this a state is taken for broken; 2^20 of them still fit 64 bits."""
ROWS = 64
"""Rows widened at a time, so that the work space stays below that of the head's rows."""


class BadStates(Exception):
    """A hidden state is no finite number, or absurdly large."""


class Mean:
    """Of the rows added so far."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._num_rows = 0

    def add(self, rows: Tensor) -> None:
        """Take in hidden states [T, E]. Raises BadStates."""
        for part in rows.split(ROWS):
            wide = part.to(torch.float64)
            if not bool((wide.abs() <= MAX_SIZE).all()):
                raise BadStates("a hidden state of the prompt is not finite")
            whole = (wide * 2.0**FRACTION_BITS).round_().to(torch.int64).sum(dim=0)
            self._total = whole if self._total is None else self._total + whole
        self._num_rows += rows.shape[0]

    def unit(self) -> bytes:
        """The mean, divided by its Euclidean length: [E] float32, little-endian. All zeros stay zeros."""
        assert self._total is not None, "the mean of no rows"
        mean = self._total.to(torch.float64) / (2.0**FRACTION_BITS * self._num_rows)
        length = float(torch.linalg.vector_norm(mean))
        unit = mean / length if length else mean
        values = array("f", unit.to(torch.float32).tolist())
        return values.tobytes()
