""" "auto" becomes numbers, each with its reason, before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.arch import Arch
from octavo.config import EngineConfig
from octavo.core.scheduler import Limits
from octavo.engine.machine import WHOLE, Machine, Share
from octavo.errors import ConfigError
from octavo.kernels import native
from octavo.planner.device import device_workspace_bytes
from octavo.planner.memory import (
    DTYPE_BYTES,
    FP8_KV,
    MemoryPlan,
    kv_block_bytes,
    weight_bytes,
    workspace_bytes,
)
from octavo.units import format_bytes

MEMORY_FRACTION = 0.9
BLOCK_TOKENS = 16
MIXED_PART = 2
BATCHED_TOKENS = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True, slots=True)
class Decision:
    """One setting that was left open, what it became, and why."""

    field: str
    value: str
    because: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """An engine's settings with nothing left open."""

    device: str
    dtype: str
    kv_dtype: str
    isa: str | None
    quantization: str | None
    num_threads: int
    max_model_len: int
    limits: Limits
    memory: MemoryPlan
    decisions: tuple[Decision, ...]


def resolve(
    config: EngineConfig,
    arch: Arch,
    machine: Machine,
    *,
    device: str,
    free_bytes: int,
    share: Share = WHOLE,
) -> Resolved:
    """Settle every open setting.

    device      "cpu", "cuda" or "cuda:N", already chosen by whoever can ask the tensor library
    free_bytes  free memory of that device now
    share       what of the machine is this engine's
    Raises ConfigError when the model does not fit, with the table's figures and what would make it fit.
    """
    made: list[Decision] = [Decision("device", device, _because_device(config.runtime.device, device))]
    dtype = _dtype(config, arch, made)
    isa = _isa(config, device, dtype, made)
    kv_dtype = _kv_dtype(config, dtype, device, made)
    threads = _threads(config, machine, share, made)
    _device_kernels(config, arch, device, dtype, isa, kv_dtype, made)
    max_len = _max_model_len(config, arch, made)
    seqs = config.scheduler.max_num_seqs
    batched = _batched_tokens(config, device, seqs, made)
    block_tokens = _block_tokens(config, made)
    limit = _limit(config, free_bytes, share, made)
    limits = Limits(
        num_blocks=2,  # until the memory plan below
        block_tokens=block_tokens,
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        max_model_len=max_len,
        window_tokens=arch.window_tokens,
        enable_prefix_caching=config.kv.enable_prefix_caching,
        max_chunk_tokens=config.scheduler.max_chunk_tokens,
        max_num_mixed_tokens=_mixed_tokens(config, batched, made),
    )
    quantization = config.model.quantization
    memory = _memory(config, arch, dtype, kv_dtype, device, isa, threads, limit, limits, made)
    limits = replace(limits, num_blocks=memory.num_kv_blocks)
    return Resolved(device, dtype, kv_dtype, isa, quantization, threads, max_len, limits, memory, tuple(made))


def _because_device(asked: str, device: str) -> str:
    if asked != "auto":
        return "as configured"
    return "no CUDA device is present" if device == "cpu" else "a CUDA device is present"


def _dtype(config: EngineConfig, arch: Arch, made: list[Decision]) -> str:
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = arch.dtype or "float32"
        made.append(
            Decision("dtype", dtype, "the checkpoint's own" if arch.dtype else "the checkpoint names none")
        )
    return dtype


def _kv_dtype(config: EngineConfig, dtype: str, device: str, made: list[Decision]) -> str:
    """The model's dtype, or "fp8"."""
    asked = config.kv.kv_cache_dtype
    if asked == "auto":
        made.append(Decision("kv_cache_dtype", dtype, "as the model computes"))
        return dtype
    if asked == FP8_KV:
        if device == "cpu":
            raise ConfigError(
                "kv_cache_dtype='fp8': on a processor keys and values are stored as the model computes them;"
                " use 'auto', or device='cuda'"
            )
        made.append(Decision("keys and values", "e4m3", "a power of two for each token's row of a head"))
    elif asked != dtype:
        raise ConfigError(
            f"kv_cache_dtype={asked!r} differs from the model's dtype {dtype!r};"
            f" this build stores keys and values as the model computes them, or in 'fp8': use 'auto'"
        )
    return asked


def _isa(config: EngineConfig, device: str, dtype: str, made: list[Decision]) -> str | None:
    """The instruction set of the compiled kernels, or None for the torch reference."""
    asked, quantization = config.runtime.kernels, config.model.quantization
    isa, because = native.choose(asked, device.partition(":")[0], dtype)
    if asked == "auto":
        made.append(Decision("kernels", isa or "reference", because))
    native.check_quantization(quantization, isa, because)
    if quantization is not None:
        is_grouped = quantization in ("int4", "w4a16")
        layers = "groups of 64 with scale and minimum" if is_grouped else "one scale per output"
        if quantization == "fp8":
            layers += ", e4m3"
        rows = (
            "rounded to int8"
            if quantization in ("int8", "int4")
            else f"in {dtype if isa is None else 'bfloat16'}"
        )
        made.append(
            Decision(
                "quantized weights",
                f"layers {quantization}, head {'w8a16' if isa is None else 'int8'}",
                f"{layers}; activations {rows}; norms stay in {dtype}",
            )
        )
    return isa


def _device_kernels(
    config: EngineConfig,
    arch: Arch,
    device: str,
    dtype: str,
    isa: str | None,
    kv_dtype: str,
    made: list[Decision],
) -> None:
    """Whether bits depend on company, and whether decode steps are recorded.

    On a processor neither is open: compiled kernels and references keep their promise, and nothing here needs torch.
    """
    batch_invariant, seqs = config.runtime.batch_invariant, config.scheduler.max_num_seqs
    if isa is not None:
        native.check_batch_invariant(batch_invariant, isa)
    if device == "cpu" and batch_invariant:
        return
    import torch

    from octavo.exec.graphs import why_not
    from octavo.kernels.triton import MAX_SEQUENCES
    from octavo.models.ops import check_variance, decisions_of

    where = torch.device(device)
    chosen = decisions_of(
        arch,
        getattr(torch, dtype),
        where,
        config.model.quantization,
        has_fp8_kv=kv_dtype == FP8_KV,
        batch_invariant=batch_invariant,
    )
    if not batch_invariant:
        check_variance(chosen)
        variant = ", ".join(f"{one.op} ({one.impl})" for one in chosen if not one.is_batch_invariant)
        because = (
            f"a request's bits depend on what runs beside it: {variant}; only its sampling noise does not"
        )
        made.append(Decision("batch_invariant", "false", because))
    for one in chosen:
        if one.op == "paged_attention fp8" and one.impl == "reference":
            raise ConfigError(f"kv_cache_dtype='fp8' needs kernels of a GPU: {'; '.join(one.passed_over)}")
        if one.op.startswith("paged_attention") and one.impl == "triton" and seqs > MAX_SEQUENCES:
            raise ConfigError(
                f"max_num_seqs={seqs}: attention on a GPU takes at most {MAX_SEQUENCES} sequences in one step; lower it"
            )
    reason = why_not(arch, where, chosen)
    because = reason or "one launch for a step of a size that has been seen before"
    made.append(Decision("graphs", "none" if reason else "decode steps", because))


def _threads(config: EngineConfig, machine: Machine, share: Share, made: list[Decision]) -> int:
    if config.runtime.num_threads is not None:
        return config.runtime.num_threads
    threads = max(1, machine.num_cores // share.num_engines)
    because = "cores this process may use (affinity and cgroup quota)"
    made.append(Decision("num_threads", str(threads), because + _shared(share)))
    return threads


def _shared(share: Share) -> str:
    return f", shared by {share.num_engines} engines" if share.num_engines > 1 else ""


def _max_model_len(config: EngineConfig, arch: Arch, made: list[Decision]) -> int:
    asked = config.model.max_model_len
    if asked is None:
        made.append(Decision("max_model_len", str(arch.max_positions), "positions the model was made for"))
        return arch.max_positions
    if asked > arch.max_positions:
        raise ConfigError(
            f"max_model_len={asked} exceeds the {arch.max_positions} positions of the model;"
            f" lower it, or set a RoPE scaling in config.json"
        )
    return asked


def _batched_tokens(config: EngineConfig, device: str, seqs: int, made: list[Decision]) -> int:
    asked = config.scheduler.max_num_batched_tokens
    if asked is not None:
        if asked < seqs:
            raise ConfigError(
                f"max_num_batched_tokens={asked} is below max_num_seqs={seqs}: every running sequence needs"
                f" one token of each step; raise the first or lower the second"
            )
        return asked
    batched = max(BATCHED_TOKENS[device.partition(":")[0]], seqs)
    because = "keeps a step short beside running decodes; at least max_num_seqs"
    made.append(Decision("max_num_batched_tokens", str(batched), because))
    return batched


def _mixed_tokens(config: EngineConfig, batched: int, made: list[Decision]) -> int:
    asked = config.scheduler.max_num_mixed_tokens
    if asked is not None:
        return asked
    mixed = max(batched // MIXED_PART, 1)
    because = "half: a step that decodes or that another client waits for is that much shorter"
    made.append(Decision("max_num_mixed_tokens", str(mixed), because))
    return mixed


def _block_tokens(config: EngineConfig, made: list[Decision]) -> int:
    if config.kv.block_size is not None:
        return config.kv.block_size
    made.append(Decision("block_size", str(BLOCK_TOKENS), "small tail waste, short tables"))
    return BLOCK_TOKENS


def _limit(config: EngineConfig, free_bytes: int, share: Share, made: list[Decision]) -> int:
    if config.kv.memory_limit is not None:
        return config.kv.memory_limit
    limit = int(free_bytes * MEMORY_FRACTION)
    if share.memory_limit is not None and share.memory_limit <= limit:
        because = "what the engine before it in this place had"
        limit = share.memory_limit
    elif share.memory_limit is not None:
        because = f"{MEMORY_FRACTION:.0%} of what is free now, less than the engine before it had"
    else:
        because = f"{MEMORY_FRACTION:.0%} of what is free now{_shared(share)}"
        limit //= share.num_engines
    made.append(Decision("memory_limit", format_bytes(limit), because))
    return limit


def _memory(
    config: EngineConfig,
    arch: Arch,
    dtype: str,
    kv_dtype: str,
    device: str,
    isa: str | None,
    num_threads: int,
    limit: int,
    limits: Limits,
    made: list[Decision],
) -> MemoryPlan:
    max_len, block_tokens, quantization = limits.max_model_len, limits.block_tokens, config.model.quantization
    weights = weight_bytes(arch, dtype, isa, quantization)
    sizes = {
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "max_num_seqs": limits.max_num_seqs,
        "max_model_len": max_len,
    }
    if device == "cpu":
        workspace = workspace_bytes(
            arch, dtype, **sizes, isa=isa, quantization=quantization, num_threads=num_threads
        )
    else:
        workspace = device_workspace_bytes(arch, DTYPE_BYTES[dtype], **sizes)
    block = kv_block_bytes(arch, kv_dtype, block_tokens, isa)
    recorder = config.runtime.recorder_bytes
    fits = (limit - weights - workspace - recorder) // block
    least = limits.min_blocks(max_len) + 1
    blocks = config.kv.num_kv_blocks
    if blocks is None:
        useful = limits.max_num_seqs * -(-max_len // block_tokens) + 1
        blocks = min(fits, useful)
        because = (
            f"max_num_seqs x max_model_len needs no more ({fits} would fit)"
            if useful <= fits
            else f"what {format_bytes(limit)} leave beside weights, workspace and recorder"
        )
        made.append(Decision("num_kv_blocks", str(blocks), because))
    if blocks > fits:
        raise ConfigError(
            f"{blocks} KV blocks of {format_bytes(block)} do not fit: weights {format_bytes(weights)}, workspace"
            f" {format_bytes(workspace)} and recorder {format_bytes(recorder)} leave room for {max(fits, 0)} under"
            f" a memory limit of {format_bytes(limit)}; lower num_kv_blocks or raise memory_limit"
        )
    if blocks < least:
        need = weights + workspace + recorder + least * block
        raise ConfigError(
            f"one sequence of max_model_len={max_len} needs {least} KV blocks of"
            f" {format_bytes(block)}, there is room for {max(blocks, 0)}: lower max_model_len, or raise"
            f" memory_limit from {format_bytes(limit)} to at least {format_bytes(need)}"
        )
    return MemoryPlan(limit, weights, workspace, block, blocks, block_tokens, recorder)
