"""Runs a `Model` without an engine: block tables by hand, with shuffled ids and poisoned memory."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from octavo.kv.pool import KvPool
from octavo.models.batch import Batch
from octavo.models.model import Model


class Driver:
    """Sequences in a pool whose every slot is NaN until it is written.

    Block ids are handed out in random order; table entries past a sequence's end name a block full of NaN.
    `frees_window` poisons blocks again as soon as the window of every layer has passed them.
    """

    def __init__(
        self,
        model: Model,
        *,
        block_tokens: int = 5,
        num_blocks: int = 64,
        seed: int = 0,
        frees_window: bool = False,
    ) -> None:
        self.model, self.block_tokens = model, block_tokens
        arch = model.arch
        self.pool = KvPool(model.kv_layout(block_tokens), arch.num_layers, num_blocks, model.device)
        self.pool.poison(range(num_blocks))
        self.poisoned, *self.free = random.Random(seed).sample(range(num_blocks), num_blocks)
        self.tables: dict[str, list[int]] = {}
        self.lengths: dict[str, int] = {}
        self.window = arch.window_tokens if frees_window else None

    def feed(self, pieces: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """One forward pass over the next tokens of some sequences; their logits [n, V] by name."""
        batch = self._batch(pieces)
        logits = self.model.logits(self.model.forward(batch, self.pool)).cpu()
        parts = logits.split([len(tokens) for tokens in pieces.values()])
        for name, tokens in pieces.items():
            self.lengths[name] += len(tokens)
            self._forget_behind_window(name)
        return dict(zip(pieces, parts, strict=True))

    def drop(self, name: str) -> None:
        """End a sequence: its blocks are poisoned and may be used again."""
        blocks = [block for block in self.tables.pop(name) if block != self.poisoned]
        del self.lengths[name]
        self.pool.poison(blocks)
        self.free += blocks

    def _batch(self, pieces: Mapping[str, Sequence[int]]) -> Batch:
        starts, counts, tokens, positions, slots = [], [], [], [], []
        for name, piece in pieces.items():
            start = self.lengths.setdefault(name, 0)
            table = self.tables.setdefault(name, [])
            while len(table) * self.block_tokens < start + len(piece):
                table.append(self.free.pop())
            starts.append(start)
            counts.append(len(piece))
            tokens += piece
            for position in range(start, start + len(piece)):
                positions.append(position)
                slots.append(
                    table[position // self.block_tokens] * self.block_tokens + position % self.block_tokens
                )
        width = max(len(self.tables[name]) for name in pieces) + 2
        tables = [self.tables[name] + [self.poisoned] * (width - len(self.tables[name])) for name in pieces]
        device = self.model.device
        return Batch(
            tokens=torch.tensor(tokens, dtype=torch.int64, device=device),
            positions=torch.tensor(positions, dtype=torch.int64, device=device),
            slots=torch.tensor(slots, dtype=torch.int64, device=device),
            tables=torch.tensor(tables, dtype=torch.int32, device=device),
            starts=torch.tensor(starts, dtype=torch.int32, device=device),
            counts=torch.tensor(counts, dtype=torch.int32, device=device),
        )

    def _forget_behind_window(self, name: str) -> None:
        """The next row, at position `length`, sees positions above length - window; blocks before that go."""
        if self.window is None:
            return
        num_passed = max(self.lengths[name] - self.window + 1, 0) // self.block_tokens
        passed = [i for i in range(num_passed) if self.tables[name][i] != self.poisoned]
        blocks = [self.tables[name][i] for i in passed]
        for i in passed:
            self.tables[name][i] = self.poisoned
        self.pool.poison(blocks)
        self.free += blocks


def chunks(tokens: Sequence[int], size: int) -> list[list[int]]:
    return [list(tokens[i : i + size]) for i in range(0, len(tokens), size)]


def logits_in_chunks(model: Model, tokens: Sequence[int], size: int, **options: int) -> Tensor:
    """Logits [T, V] of one sequence fed `size` tokens at a time."""
    driver = Driver(model, **options)
    return torch.cat([driver.feed({"only": chunk})["only"] for chunk in chunks(tokens, size)])


def greedy(model: Model, prompt: Sequence[int], num_tokens: int, **options: int) -> list[int]:
    """The likeliest next token, again and again, fed one at a time."""
    driver, tokens = Driver(model, **options), []
    logits = driver.feed({"only": prompt})["only"]
    for _ in range(num_tokens):
        tokens.append(int(logits[-1].argmax()))
        logits = driver.feed({"only": tokens[-1:]})["only"]
    return tokens
