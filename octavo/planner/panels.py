"""Bytes of a model on the compiled kernels: weights and cache in panels, and a step's workspace.

The kernels stand alone, so the sizes of their lines and blocks stand here a second time; tests hold both together
(csrc/cpu/kernels.h, csrc/cpu/program.cpp).
"""

from __future__ import annotations

from octavo.arch import Arch

PANEL, LINE_BYTES, IN_ALIGN, GROUP = 16, 64, 64, 64
"""Outputs side by side; bytes of a line; what inputs are padded to; inputs that share an int4 scale."""

INPUTS_OF_A_LINE = {"float32": 1, "bfloat16": 2, "int8": 4, "int4": 8, "w4a16": 8}
IN_GROUPS = ("int4", "w4a16")
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
PAGE = 4096
ROW_BLOCK, PANEL_BLOCK, IN_BLOCK, TILE, SPLIT, QUERY_ROWS = 120, 4, 256, 64, 1024, 120
ANGLE_ROWS, SPARE_ROWS = 1024, 32


def padded(size: int, step: int) -> int:
    return -(-size // step) * step


def packed_bytes(
    num_out: int, num_in: int, format: str, *, num_parts: int = 1, has_bias: bool = False
) -> int:
    """One weight [num_out, num_in], or `num_parts` of them whose panels take turns: lines, then for int8 a scale and a
    sum per output, then biases."""
    panels, width = num_parts * -(-num_out // PANEL), padded(num_in, IN_ALIGN)
    lines = width // INPUTS_OF_A_LINE[format] + (width // GROUP if format in IN_GROUPS else 0)
    vectors = 2 * (format == "int8") + has_bias
    return panels * (lines * LINE_BYTES + vectors * PANEL * 4)


def weight_bytes(arch: Arch, dtype: str, quantization: str | None) -> int:
    """All weights, packed. Layers in the quantized format; the head, and an embedding that is the same, in int8."""
    item, hidden = ITEM_BYTES[dtype], arch.hidden_size
    of_layers = quantization or dtype
    of_head = "int8" if quantization else dtype
    q_size, kv_size = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    qkv = [q_size, kv_size, kv_size]
    whole = all(size % PANEL == 0 for size in qkv)
    layer = sum(
        packed_bytes(size, hidden, of_layers, has_bias=arch.qkv_bias)
        for size in ([sum(qkv)] if whole else qkv)
    )
    layer += packed_bytes(hidden, q_size, of_layers, has_bias=arch.o_bias)
    layer += packed_bytes(arch.ffn_size, hidden, of_layers, num_parts=2, has_bias=arch.mlp_bias)
    layer += packed_bytes(hidden, arch.ffn_size, of_layers, has_bias=arch.mlp_bias)
    layer += (2 * hidden + 2 * arch.head_dim * arch.qk_norm) * item
    tables = packed_bytes(arch.vocab_size, hidden, of_head)
    if not arch.tie_embeddings:
        tables += packed_bytes(arch.vocab_size, hidden, dtype)
    return arch.num_layers * layer + tables + hidden * item


def kv_block_bytes(arch: Arch, dtype: str, block_tokens: int) -> int:
    """One block in all layers; see `octavo.kv.layout.PanelLayout`."""
    pair = 2 if ITEM_BYTES[dtype] == 2 else 1
    width = padded(arch.head_dim, PANEL)
    return 2 * arch.num_layers * arch.num_kv_heads * padded(block_tokens, pair) * width * ITEM_BYTES[dtype]


def program_bytes(
    arch: Arch,
    dtype: str,
    quantization: str | None,
    *,
    num_rows: int,
    max_model_len: int,
    num_threads: int,
    num_head_rows: int,
) -> int:
    """What the recorded program keeps for steps of up to `num_rows` rows: an upper bound.

    Its buffers; rows as products want them; a scratch for each thread, and another for its draws; sums of contexts
    beyond one split; and the angles of all positions.
    """
    item, hidden, q_size = ITEM_BYTES[dtype], arch.hidden_size, arch.num_heads * arch.head_dim
    widths = (hidden, hidden, q_size + 2 * arch.num_kv_heads * arch.head_dim, q_size, arch.ffn_size)
    buffers = sum(padded(num_rows * width * item, PAGE) for width in widths)
    of_layers = quantization or dtype
    rows = (num_rows + SPARE_ROWS) * max(
        _row_bytes(width, of_layers) for width in (hidden, q_size, arch.ffn_size)
    )
    rows = max(rows, (num_head_rows + SPARE_ROWS) * _row_bytes(hidden, "int8" if quantization else dtype))
    return (
        buffers
        + rows
        + num_threads * (_scratch_bytes(arch, item) + _draw_bytes(arch))
        + _partial_bytes(arch, num_rows, max_model_len, num_threads)
        + 2 * padded(max_model_len, ANGLE_ROWS) * arch.head_dim // 2 * 4
    )


def _row_bytes(width: int, format: str) -> int:
    """A prepared row: float32, or whole numbers of up to two bytes, with group sums and a scale."""
    items = padded(width, IN_ALIGN)
    sums = 4 * (items // GROUP) if format in IN_GROUPS else 0
    used = {"int8": 2 * items, "int4": items}.get(format, 4 * items) + sums
    return padded(used + 4, LINE_BYTES) + LINE_BYTES


def _scratch_bytes(arch: Arch, item: int) -> int:
    """One thread's: parts of panels and sums of a product; or queries, sums, scores and a tile of attention."""
    product = PANEL_BLOCK * IN_BLOCK * PANEL * 4 + ROW_BLOCK * PANEL_BLOCK * PANEL * 4 + PAGE
    width, group = padded(arch.head_dim, PANEL), arch.num_heads // arch.num_kv_heads
    rows = max(QUERY_ROWS, group)
    of_rows = 4 * rows * (2 * width + PANEL + TILE + 2)
    of_a_tile = 2 * width * TILE * (4 + item)
    return padded(product, PAGE) + padded(of_rows + of_a_tile, PAGE) + PAGE


def _draw_bytes(arch: Arch) -> int:
    """One thread's: values, ids and a copy of the values of a row of logits."""
    return padded(3 * 4 * padded(arch.vocab_size, LINE_BYTES), PAGE)


def _partial_bytes(arch: Arch, num_rows: int, max_model_len: int, num_threads: int) -> int:
    splits = -(-max_model_len // SPLIT)
    if splits < 2:
        return 0
    record = 4 * (PANEL + padded(arch.head_dim, PANEL))
    inline = num_rows * arch.num_heads
    apart = min(num_rows * arch.num_heads, (4 * num_threads + arch.num_kv_heads) * QUERY_ROWS) * splits
    return record * max(inline, apart if num_threads > 1 else 0)
