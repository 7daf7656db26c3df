"""How a model's published weights are stored: their type, and what they were quantized to."""

from __future__ import annotations

from octavo.arch.reading.watch import Watched

_DTYPES = ("float32", "bfloat16", "float16")


def read_dtype(fields: Watched) -> str | None:
    """`dtype` (new) or `torch_dtype` (old); None where neither says."""
    name = fields.first("dtype", "torch_dtype")
    value = str(fields.values.get(name)).removeprefix("torch.")
    return value if value in _DTYPES else None


def read_stored(fields: Watched) -> str | None:
    """A name of `octavo.planner.formats` where the published quantization is one of those, else the method's own."""
    given = fields.inner("quantization_config")
    if given is None:
        return None
    method = str(given.values.get("quant_method", given.values.get("quant_algo", "unnamed"))).lower()
    if method == "fp8":
        return "fp8-block" if given.has("weight_block_size") else "fp8"
    if method in ("awq", "gptq") and given.values.get("bits", 4) == 4:
        group = given.values.get("group_size", 128)
        return f"{method}-g{group}" if group in (32, 64, 128) else method
    return "nvfp4" if given.values.get("quant_algo") == "NVFP4" else method
