"""Bytes a model needs to serve, computed before anything is loaded.

The engine sizes its KV pool with these functions, and `octavo plan memory` prints them: one formula, one place.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.arch import Arch
from octavo.planner import codes, panels
from octavo.units import format_bytes

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

FP8_KV, FP8_BLOCK_ALIGN = "fp8", 16
"""Keys and values in e4m3, and what a block of them is padded to a multiple of."""

ROW_TILES = (4, 16, 64, 256)
"""Row counts at which large products run; more rows go in parts, so that padding is small beside them."""

ATTENTION_BYTES, ATTENTION_TILE, HEAD_WIDTHS = 8 << 20, 128, 16
"""The attention kernel's bound of one workspace, its tile of positions, and what heads are padded to a multiple of;
see `octavo.kernels.attention`."""

LIBRARY_BYTES = 32 << 20
"""What the tensor library's code and kernel cache take on first use, measured over a few models of 64 to 150 M
parameters: 20 to 50 MiB."""

PENALTY_TOKEN_BYTES = 32
"""Of each token of one sequence while repetitions are penalised: its id, sorted and without doubles."""

PROMPT_ROWS = 64
"""Prompt positions whose logits the runner computes at a time."""

CHANGED_ROWS = 8
"""Rows of logits whose bias, penalties and masks are applied to copies before their tokens are drawn side by side."""

DRAW_BYTES_PER_ENTRY = 64 + 4 * CHANGED_ROWS
"""Of each entry of the vocabulary: a draw's own copies of one row, and the changed ones."""


def weight_bytes(arch: Arch, dtype: str, isa: str | None = None, quantization: str | None = None) -> int:
    """Bytes of all weights as they will lie: packed for compiled kernels of an instruction set, or as tensors.

    quantization  None, or one that those kernels read: of ops that run one by one, a key of `codes.CODES`
    """
    if isa is not None:
        return panels.weight_bytes(arch, dtype, quantization)
    return arch.weight_bytes(dtype) if quantization is None else codes.weight_bytes(arch, dtype, quantization)


def kv_block_bytes(arch: Arch, dtype: str, block_tokens: int, isa: str | None = None) -> int:
    """Bytes of one block in all layers: L x 2 x P x K x D x element, and for compiled kernels what fills panels; in
    FP8_KV D + 1 bytes for each of P x K rows, see `octavo.kernels.kv_store.fp8`."""
    if isa is not None:
        return panels.kv_block_bytes(arch, dtype, block_tokens)
    if dtype == FP8_KV:
        used = 2 * block_tokens * arch.num_kv_heads * (arch.head_dim + 1)
        return arch.num_layers * -(-used // FP8_BLOCK_ALIGN) * FP8_BLOCK_ALIGN
    return block_tokens * arch.kv_bytes_per_token(dtype)


def workspace_bytes(
    arch: Arch,
    dtype: str,
    *,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    max_model_len: int,
    isa: str | None = None,
    quantization: str | None = None,
    num_threads: int = 1,
) -> int:
    """Peak bytes of activations and logits in the largest step, beside weights and KV: an upper bound.

    On the reference kernels the largest of three moments, each beside what the attention kernel keeps between calls:
    attention with its scores and gathered keys, the widest point of the MLP, and the head with the draw. On compiled
    ones what the program keeps, hidden states and the head with the draw. Then LIBRARY_BYTES.
    """
    element = DTYPE_BYTES[dtype]
    if isa is not None:
        drawn = min(max_num_seqs, max_num_batched_tokens)
        kept = panels.program_bytes(
            arch,
            dtype,
            quantization,
            num_rows=max_num_batched_tokens,
            max_model_len=max_model_len,
            num_threads=num_threads,
            num_head_rows=max(drawn, min(PROMPT_ROWS, max_num_batched_tokens)),
        )
        hidden = (max_num_batched_tokens + drawn) * arch.hidden_size * element
        logits = drawn + min(PROMPT_ROWS, max_num_batched_tokens)
        seen = PENALTY_TOKEN_BYTES * max_model_len
        return kept + hidden + (logits * 4 + DRAW_BYTES_PER_ENTRY) * arch.vocab_size + seen + LIBRARY_BYTES
    rows = _padded(max_num_batched_tokens)
    scratch, kept = _attention_bytes(arch, max_num_batched_tokens, max_model_len)
    layer = max(
        rows * _attention_row_bytes(arch, element) + scratch, rows * _mlp_row_bytes(arch, element) + kept
    )
    head = rows * arch.hidden_size * element + _head_bytes(
        arch, element, max_num_batched_tokens, max_num_seqs
    )
    rounded = 0 if quantization is None else codes.reference_bytes(arch, rows)
    return max(layer, head + kept) + rounded + LIBRARY_BYTES


def _attention_bytes(arch: Arch, num_tokens: int, max_model_len: int) -> tuple[int, int]:
    """What attention needs beside its rows, and what of it stays for the next call.

    Scores and gathered keys are bounded by ATTENTION_BYTES each, and in a small step by its positions; queries and
    weighted values of the same products are D / ATTENTION_TILE times the scores; masks and index arrays come to
    about one more.
    """
    width = -(-arch.head_dim // HEAD_WIDTHS) * HEAD_WIDTHS
    per_position = 4 * max(2 * arch.num_heads, arch.num_kv_heads * width) + 24
    most = min(ATTENTION_BYTES, num_tokens * (max_model_len + ATTENTION_TILE) * per_position)
    return 3 * most * (ATTENTION_TILE + width) // ATTENTION_TILE, 3 * most


def _attention_row_bytes(arch: Arch, element: int) -> int:
    """Per token: residual and normed copy, positions and angles, q, k and v before and after they are turned, the
    float32 halves in between, and the output."""
    q_size, kv_size = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    return (
        3 * arch.hidden_size * element
        + 32
        + 8 * arch.head_dim
        + (2 * q_size + 3 * kv_size) * element
        + 14 * q_size
    )


def _mlp_row_bytes(arch: Arch, element: int) -> int:
    """Per token: residual and normed copy; gate, up and their product; the sigmoid in float32. Or, where that is
    more, the norm of a wide residual in float32."""
    wide = 0 if element == 4 else 4
    mlp = 2 * arch.hidden_size * element + arch.ffn_size * (3 * element + wide + 8)
    return max(mlp, arch.hidden_size * (4 * element + 12))


def _head_bytes(arch: Arch, element: int, num_tokens: int, max_num_seqs: int) -> int:
    """Logits of all rows that draw and of the prompt rows scored at a time, and the copies that draws make."""
    copy = 0 if element == 4 else 4
    drawn, scored = min(max_num_seqs, num_tokens), min(PROMPT_ROWS, num_tokens)
    logits = _padded(drawn) * element + drawn * copy + _padded(scored) * element + scored * copy
    return (logits + DRAW_BYTES_PER_ENTRY) * arch.vocab_size


def _padded(num_rows: int) -> int:
    """Rows with what the row-fixed products add; see `octavo.kernels.tiles`."""
    return next((tile for tile in ROW_TILES if tile >= num_rows), num_rows + ROW_TILES[-1] // 4)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What will be allocated, line by line, in bytes."""

    limit_bytes: int
    weight_bytes: int
    workspace_bytes: int
    kv_block_bytes: int
    num_kv_blocks: int
    block_tokens: int
    recorder_bytes: int = 0

    @property
    def kv_bytes(self) -> int:
        return self.num_kv_blocks * self.kv_block_bytes

    @property
    def kv_tokens(self) -> int:
        """Tokens the pool can hold; block 0 is the null block and holds none."""
        return max(self.num_kv_blocks - 1, 0) * self.block_tokens

    @property
    def left_bytes(self) -> int:
        used = self.weight_bytes + self.workspace_bytes + self.recorder_bytes + self.kv_bytes
        return self.limit_bytes - used

    def rows(self) -> list[tuple[str, int, str]]:
        """(what, bytes, remark) for a printed table."""
        kv = f"{self.num_kv_blocks} blocks of {self.block_tokens} tokens, {self.kv_tokens} tokens in all"
        return [
            ("weights", self.weight_bytes, ""),
            ("KV cache", self.kv_bytes, kv),
            ("workspace", self.workspace_bytes, "activations and logits of the largest step, library caches"),
            ("recorder", self.recorder_bytes, "what it remembers of its last steps"),
            ("left", self.left_bytes, f"of a limit of {format_bytes(self.limit_bytes)}"),
        ]
