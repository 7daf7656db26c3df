"""Bytes a model needs to serve, computed before anything is loaded.

The engine sizes its KV pool with these functions, and `octavo plan memory` prints them: one formula, one place.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.arch import Arch

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def kv_block_bytes(arch: Arch, dtype: str, block_tokens: int) -> int:
    """Bytes of one block in all layers: L x 2 x P x K x D x element."""
    return block_tokens * arch.kv_bytes_per_token(dtype)


def workspace_bytes(arch: Arch, dtype: str, max_num_batched_tokens: int, max_num_seqs: int) -> int:
    """Peak bytes of activations and logits in one step, beside weights and KV.

    A layer holds at its widest the residual stream and its normed copy, then either queries, keys, values and
    the attention output, or gate, up and their product (the row-fixed products may pad each once more). The
    head computes float32 logits for sampled rows only, and a draw copies one row a few times.
    """
    element = DTYPE_BYTES[dtype]
    attention = (3 * arch.num_heads + 2 * arch.num_kv_heads) * arch.head_dim
    layer = 3 * arch.hidden_size + 2 * max(attention, 3 * arch.ffn_size)
    rows = min(max_num_seqs, max_num_batched_tokens)
    return max_num_batched_tokens * layer * element + rows * arch.vocab_size * 4 + 8 * arch.vocab_size * 8


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What will be allocated, line by line, in bytes."""

    limit_bytes: int
    weight_bytes: int
    workspace_bytes: int
    kv_block_bytes: int
    num_kv_blocks: int
    block_tokens: int

    @property
    def kv_bytes(self) -> int:
        return self.num_kv_blocks * self.kv_block_bytes

    @property
    def kv_tokens(self) -> int:
        """Tokens the pool can hold; block 0 is the null block and holds none."""
        return max(self.num_kv_blocks - 1, 0) * self.block_tokens

    @property
    def left_bytes(self) -> int:
        return self.limit_bytes - self.weight_bytes - self.workspace_bytes - self.kv_bytes

    def rows(self) -> list[tuple[str, int, str]]:
        """(what, bytes, remark) for a printed table."""
        kv = f"{self.num_kv_blocks} blocks of {self.block_tokens} tokens, {self.kv_tokens} tokens in all"
        return [
            ("weights", self.weight_bytes, ""),
            ("KV cache", self.kv_bytes, kv),
            ("workspace", self.workspace_bytes, "activations and logits of the largest step"),
            ("left", self.left_bytes, f"of a limit of {self.limit_bytes} bytes"),
        ]
