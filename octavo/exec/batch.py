"""From a step's slices to the flat arrays a model reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.core.step import Slice
from octavo.errors import Bug
from octavo.exec.executor import Start
from octavo.exec.pooling import Mean
from octavo.models.batch import Batch

UNKNOWN = -1
"""Stands for a token that the step before has drawn and nobody has read yet."""
ALIGN_BYTES = 64
"""Where each array begins in the memory they share; kernels read whole lines from there."""


@dataclass(slots=True)
class Held:
    """What a worker remembers of a sequence between steps.

    tokens  every token known here, the ones drawn in steps not yet committed included; UNKNOWN at most at the end
    table   block ids, in order of position
    mean    of the hidden states so far, for an embedding
    source  where the step before drew the token that is UNKNOWN: the number of its job
    """

    start: Start
    tokens: list[int]
    table: list[int] = field(default_factory=list)
    mean: Mean = field(default_factory=Mean)
    source: int = -1
    _row: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32), repr=False)

    def apply(self, piece: Slice) -> None:
        """Bring the block table up to date with a slice."""
        for index, block in piece.replaced:
            self.table[index] = block
            self._row[index : index + 1] = block
        self.table.extend(piece.new_blocks)

    def row(self) -> NDArray[np.int32]:
        """The table as an array, kept between steps; only to be read, and only until the table changes."""
        have = len(self._row)
        if have < len(self.table):
            self._row = np.concatenate((self._row, np.array(self.table[have:], dtype=np.int32)))
        return self._row

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


@dataclass(frozen=True, slots=True)
class Flat:
    """A step's arrays on the host, rows in the order of its slices; see `octavo.models.batch.Batch`.

    tables   of each sequence, as long as it needs
    sources  of each row, the job of the step before that drew its token, or -1 where the token is known
    """

    tokens: list[int]
    positions: list[int]
    slots: list[int]
    tables: list[NDArray[np.int32]]
    starts: list[int]
    counts: list[int]
    sources: list[int]

    @property
    def only_decodes(self) -> bool:
        return len(self.tokens) == len(self.counts)

    @property
    def num_positions(self) -> int:
        return sum(self.starts) + sum(self.counts)

    @property
    def is_known(self) -> bool:
        """Whether no token is missing."""
        return max(self.sources) < 0

    @property
    def form(self) -> Form:
        """The smallest that holds it."""
        return Form(len(self.tokens), len(self.counts), max(len(table) for table in self.tables))


@dataclass(frozen=True, slots=True)
class Form:
    """How the arrays of a step lie in one piece of memory, so that one transfer carries them.

    num_rows, num_seqs, width  rows of the step, its sequences, and block ids for each of them
    """

    num_rows: int
    num_seqs: int
    width: int

    @property
    def nbytes(self) -> int:
        return _sections(self)[-1][2]

    def views(self, memory: Tensor) -> dict[str, Tensor]:
        """The arrays in memory [at least nbytes] uint8: those of `Batch`, and `sources` [T] int32."""
        shapes = {"tables": (self.num_seqs, self.width)}
        found = {}
        for name, begin, end, dtype, size in _sections(self):
            array = memory[begin:end].view(dtype)[:size]
            found[name] = array.view(shapes[name]) if name in shapes else array
        return found

    def write(self, flat: Flat, memory: Tensor) -> None:
        """Fill memory on the host. Rows and sequences that `flat` does not have become harmless ones.

        Each is a sequence of one token, number 0 at position 0, whose key and value go to slot 0, in the null block.
        """
        into = memory.numpy()
        for name, begin, end, dtype, size in _sections(self):
            array = into[begin:end].view(_NUMPY[dtype])[:size]
            if name == "tables":
                _write_tables(flat.tables, array.reshape(self.num_seqs, self.width))
            else:
                values = getattr(flat, name)
                array[: len(values)] = values
                array[len(values) :] = _FILL.get(name, 0)


_FILL = {"sources": -1, "counts": 1}
"""What arrays hold of rows and sequences that only fill up; 0 where nothing is said."""
_NUMPY: dict[torch.dtype, type[np.signedinteger[Any]]] = {torch.int64: np.int64, torch.int32: np.int32}


@lru_cache(maxsize=1024)
def _sections(form: Form) -> tuple[tuple[str, int, int, torch.dtype, int], ...]:
    """(name, first byte, end, dtype, items) of each array."""
    sizes = {
        "tokens": (torch.int64, form.num_rows), "positions": (torch.int64, form.num_rows),
        "slots": (torch.int64, form.num_rows), "sources": (torch.int32, form.num_rows),
        "starts": (torch.int32, form.num_seqs), "counts": (torch.int32, form.num_seqs),
        "tables": (torch.int32, form.num_seqs * form.width),
    }  # fmt: skip
    sections, begin = [], 0
    for name, (dtype, size) in sizes.items():
        end = begin + math.ceil(size * dtype.itemsize / ALIGN_BYTES) * ALIGN_BYTES
        sections.append((name, begin, end, dtype, size))
        begin = end
    return tuple(sections)


def _write_tables(tables: Sequence[NDArray[np.int32]], into: NDArray[np.int32]) -> None:
    """Rows padded with block 0, the null block, which kernels never read."""
    into[:] = 0
    for row, table in zip(into, tables, strict=False):
        row[: len(table)] = table


def flatten(slices: Sequence[Slice], held: Mapping[int, Held], block_tokens: int) -> Flat:
    """The arrays of a step. Raises Bug when a slice asks for a token or a block the worker does not have."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    sources: list[int] = []
    tables = []
    for piece in slices:
        sequence = held[piece.seq_id]
        known = sequence.tokens[piece.start : piece.end - len(piece.draft_tokens)]
        known.extend(piece.draft_tokens)
        if len(known) != piece.num_tokens:
            raise Bug(
                f"sequence {piece.seq_id}: asked to compute positions {piece.start} to {piece.end - 1},"
                f" knows {len(sequence.tokens)} tokens"
            )
        for token in known:
            sources.append(sequence.source if token == UNKNOWN else -1)
            tokens.append(max(token, 0))
        positions.extend(range(piece.start, piece.end))
        slots.extend(sequence.slots(piece, block_tokens))
        tables.append(sequence.row()[: -(-piece.end // block_tokens)])
    starts = [piece.start for piece in slices]
    return Flat(tokens, positions, slots, tables, starts, [piece.num_tokens for piece in slices], sources)


def to_device(flat: Flat, form: Form, device: torch.device, into: Tensor | None = None) -> dict[str, Tensor]:
    """The arrays on a device, by one transfer that the host does not wait for.

    into  memory there, [at least form.nbytes] uint8; None takes some
    """
    is_cuda = device.type == "cuda"
    if device.type == "cpu" and into is None and form == flat.form:
        return _on_host(flat)
    memory = torch.empty(form.nbytes, dtype=torch.uint8, pin_memory=is_cuda)
    form.write(flat, memory)
    if into is not None:
        into[: form.nbytes].copy_(memory, non_blocking=is_cuda)
    else:
        into = memory.to(device, non_blocking=is_cuda)
    return form.views(into)


def _on_host(flat: Flat) -> dict[str, Tensor]:
    """The arrays as they are: where nothing is transferred, one piece of memory is of no use."""
    tables = np.empty((len(flat.tables), flat.form.width), dtype=np.int32)
    _write_tables(flat.tables, tables)
    return {
        "tokens": torch.tensor(flat.tokens, dtype=torch.int64),
        "positions": torch.tensor(flat.positions, dtype=torch.int64),
        "slots": torch.tensor(flat.slots, dtype=torch.int64),
        "sources": torch.tensor(flat.sources, dtype=torch.int32),
        "starts": torch.tensor(flat.starts, dtype=torch.int32),
        "counts": torch.tensor(flat.counts, dtype=torch.int32),
        "tables": torch.from_numpy(tables),
    }


def batch_of(arrays: Mapping[str, Tensor], num_positions: int, previous: Tensor | None) -> Batch:
    """What a model reads.

    previous  [J] int64, tokens that the step before drew; None where all are known
    """
    tokens = arrays["tokens"]
    if previous is not None:
        sources = arrays["sources"]
        tokens = torch.where(sources < 0, tokens, previous[sources.clamp(min=0)])
    names = ("positions", "slots", "tables", "starts", "counts")
    return Batch(tokens=tokens, num_positions=num_positions, **{name: arrays[name] for name in names})


def build(
    slices: Sequence[Slice], held: Mapping[int, Held], block_tokens: int, device: torch.device
) -> Batch:
    """The batch of a step all of whose tokens are known."""
    flat = flatten(slices, held, block_tokens)
    if not flat.is_known:
        raise Bug("a step with tokens that nobody has read needs those of the step before")
    return batch_of(to_device(flat, flat.form, device), flat.num_positions, None)
