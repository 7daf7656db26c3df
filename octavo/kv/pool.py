"""The memory of all blocks."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from octavo.core.step import Copy
from octavo.errors import ConfigError
from octavo.kv.layout import Layout
from octavo.units import format_bytes


class KvPool:
    """One arena, [L, B, ...] as the layout has it; a block id names the same block in every layer.

    layout      of a block
    num_layers  at least 1
    num_blocks  at least 1; block 0 is as good as any other here
    device      where the arena lies

    The arena is zeroed when it is made, so all of it is really there from the start: nothing runs out later. Raises
    `ConfigError` if the system does not give that much memory.
    """

    def __init__(
        self, layout: Layout, num_layers: int, num_blocks: int, device: torch.device | str = "cpu"
    ) -> None:
        if num_layers < 1 or num_blocks < 1:
            raise ValueError(f"KvPool: want at least 1 layer and 1 block, got {num_layers} and {num_blocks}")
        self.layout = layout
        self.num_layers = num_layers
        self.num_blocks = num_blocks
        try:
            self._arena = _zeros((num_layers, *layout.shape(num_blocks)), layout.dtype, torch.device(device))
        except (OSError, RuntimeError, OverflowError) as refusal:
            raise ConfigError(
                f"KV cache: {num_blocks} blocks take {format_bytes(self.nbytes)}, which {device} does not give"
                f" ({refusal}); lower --num-kv-blocks or --memory-limit"
            ) from refusal

    @property
    def nbytes(self) -> int:
        return self.num_layers * self.num_blocks * self.layout.block_bytes

    @property
    def device(self) -> torch.device:
        return self._arena.device

    def layer(self, index: int) -> Tensor:
        """The blocks of one layer, [B, ...]: a view to read and write."""
        return self._arena[index]

    @property
    def arena(self) -> Tensor:
        """All layers' blocks, [L, B, ...]."""
        return self._arena

    def copy(self, copies: Sequence[Copy]) -> None:
        """Carry out a step's copies in order, all layers."""
        if copies:
            self.layout.copy(self._arena, copies)

    def poison(self, block_ids: Iterable[int]) -> None:
        """Fill blocks with NaN, so that a read of what nobody owns shows."""
        ids = torch.tensor(list(block_ids), dtype=torch.int64, device=self.device)
        self._arena.index_fill_(1, ids, self.layout.undefined)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the CPU in huge pages where the system has them: attention reads blocks far apart, and filling is faster."""
    if device.type != "cpu" or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # advice, which a system may not know
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape).zero_()
