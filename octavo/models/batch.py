"""One forward pass as flat tensors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of a step, sequence after sequence, and where their keys and values lie.

    tokens     [T] int64     token ids
    positions  [T] int64     position of each token in its sequence
    slots      [T] int64     where its key and value go: block_id * P + position % P
    tables     [S, N] int32  block ids of each sequence in order; entries past its end are ignored
    starts     [S] int32     position of the first token of each sequence in this step
    counts     [S] int32     tokens of each sequence in this step, at least 1; their sum is T

    num_positions          at least the sum of starts and counts, or None where nobody counted

    Sequence s owns rows sum(counts[:s]) .. sum(counts[:s + 1]) - 1. All on the model's device.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    tables: Tensor
    starts: Tensor
    counts: Tensor
    num_positions: int | None = None

    @property
    def only_decodes(self) -> bool:
        """Whether every sequence has one token in this step."""
        return len(self.tokens) == len(self.counts)
