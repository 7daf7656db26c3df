"""From a step's slices to the flat arrays a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from octavo.core.step import Slice
from octavo.errors import Bug
from octavo.exec.executor import Start
from octavo.exec.pooling import Mean
from octavo.models.batch import Batch


@dataclass(slots=True)
class Held:
    """What a worker remembers of a sequence between steps.

    tokens  every token known here, the ones drawn in steps not yet committed included
    table   block ids, in order of position
    mean    of the hidden states so far, for an embedding
    """

    start: Start
    tokens: list[int]
    table: list[int] = field(default_factory=list)
    mean: Mean = field(default_factory=Mean)

    def apply(self, piece: Slice) -> None:
        """Bring the block table up to date with a slice."""
        for index, block in piece.replaced:
            self.table[index] = block
        self.table.extend(piece.new_blocks)

    def slots(self, piece: Slice, block_tokens: int) -> list[int]:
        """Where the keys and values of the slice's positions go: block id x P + offset."""
        if len(self.table) * block_tokens < piece.end:
            raise Bug(
                f"sequence {piece.seq_id}: {len(self.table)} blocks of {block_tokens} tokens"
                f" cannot hold position {piece.end - 1}"
            )
        return [
            self.table[position // block_tokens] * block_tokens + position % block_tokens
            for position in range(piece.start, piece.end)
        ]


def build(slices: Sequence[Slice], held: dict[int, Held], block_tokens: int, device: torch.device) -> Batch:
    """The batch of a step, rows in the order of its slices.

    Tables are padded with block 0, the null block, which kernels never read.
    Raises Bug when a slice asks for a token or a block the worker does not have.
    """
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for piece in slices:
        sequence = held[piece.seq_id]
        known = sequence.tokens[piece.start : piece.end - len(piece.draft_tokens)]
        known.extend(piece.draft_tokens)
        if len(known) != piece.num_tokens:
            raise Bug(
                f"sequence {piece.seq_id}: asked to compute positions {piece.start} to {piece.end - 1},"
                f" knows {len(sequence.tokens)} tokens"
            )
        tokens.extend(known)
        positions.extend(range(piece.start, piece.end))
        slots.extend(sequence.slots(piece, block_tokens))
    width = max(-(-piece.end // block_tokens) for piece in slices)
    tables = [_padded(held[piece.seq_id].table, width) for piece in slices]
    return Batch(
        tokens=torch.tensor(tokens, dtype=torch.int64, device=device),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        slots=torch.tensor(slots, dtype=torch.int64, device=device),
        tables=torch.tensor(tables, dtype=torch.int32, device=device),
        starts=torch.tensor([piece.start for piece in slices], dtype=torch.int32, device=device),
        counts=torch.tensor([piece.num_tokens for piece in slices], dtype=torch.int32, device=device),
    )


def _padded(table: list[int], width: int) -> list[int]:
    return table[:width] + [0] * (width - len(table))
