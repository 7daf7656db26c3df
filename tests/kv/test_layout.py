from __future__ import annotations

import pytest
import torch

from octavo.kv.layout import DenseLayout


@pytest.mark.parametrize(
    ("num_kv_heads", "head_dim", "layers", "bytes_per_token"),
    [
        (8, 128, 32, 131_072),  # Llama-3.1-8B
        (8, 128, 80, 327_680),  # Llama-3.1-70B
        (8, 128, 36, 147_456),  # Qwen3-8B
    ],
)
def test_bytes_of_known_models(num_kv_heads: int, head_dim: int, layers: int, bytes_per_token: int) -> None:
    layout = DenseLayout(num_kv_heads, head_dim, 16, torch.bfloat16)
    assert layout.token_bytes * layers == bytes_per_token
    assert layout.block_bytes == 16 * layout.token_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_is_what_a_tensor_takes(dtype: torch.dtype) -> None:
    layout = DenseLayout(num_kv_heads=3, head_dim=20, block_tokens=5, dtype=dtype)
    assert layout.shape(7) == (7, 2, 5, 3, 20)
    assert torch.empty(layout.shape(7), dtype=dtype).nbytes == 7 * layout.block_bytes


@pytest.mark.parametrize("name", ["num_kv_heads", "head_dim", "block_tokens"])
def test_ranges(name: str) -> None:
    sizes = {"num_kv_heads": 1, "head_dim": 1, "block_tokens": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        DenseLayout(**sizes, dtype=torch.float32)


def test_integers_hold_no_keys() -> None:
    with pytest.raises(ValueError, match="int8"):
        DenseLayout(1, 1, 1, torch.int8)
