"""Qwen2 and 2.5: Llama's tensors, with biases on q, k and v but not on o; the last layers may slide.

Both differences are in `Arch` (`qkv_bias`, `windows`).
"""

from __future__ import annotations

from octavo.models.llama import parts

__all__ = ["parts"]
