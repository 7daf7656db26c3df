"""Bytes planned for the compiled kernels against bytes really there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from octavo.arch import Arch
from octavo.kv.layout import PANEL, PanelLayout
from octavo.kv.pool import KvPool
from octavo.models.loader import load
from octavo.models.native import ANGLE_ROWS, NativeModel
from octavo.planner import panels
from octavo.planner.memory import LIBRARY_BYTES, kv_block_bytes, weight_bytes, workspace_bytes
from tests.engine.tiny import CONFIG
from tests.planner.test_memory import (
    GREEDY,
    HEAVY,
    MIDDLE,
    ROOT,
    SCORED,
    WORDY,
    Load,
    largest_sum,
    prepared_step,
)

_cpu = pytest.importorskip("octavo._cpu", reason="the compiled module is not built")

ISAS = [*_cpu.instruction_sets(), "emulated"]
SHAPES: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True, "torch_dtype": "bfloat16"},
    {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6},
    {
        "head_dim": 10,
        "num_key_value_heads": 1,
        "num_hidden_layers": 3,
        "vocab_size": 301,
        "intermediate_size": 72,
    },
    {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 16},
    {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_bias": True},
    {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16, "torch_dtype": "bfloat16"},
]


@pytest.mark.parametrize("quantization", [None, "int8", "int4", "w4a16"])
@pytest.mark.parametrize("changes", SHAPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_weights_and_cache_are_planned_to_the_byte(
    isa: str, changes: dict[str, Any], quantization: str | None
) -> None:
    config = CONFIG | changes
    dtype = config["torch_dtype"]
    arch = Arch.from_config(config)
    model = load(arch, dtype=dtype, kernels=isa, quantization=quantization)
    assert model.weight_bytes == weight_bytes(arch, dtype, isa, quantization)
    for block_tokens in (1, 2, 8, 16, 64):
        pool = KvPool(model.kv_layout(block_tokens), arch.num_layers, 5)
        assert pool.nbytes == pool.arena.nbytes == kv_block_bytes(arch, dtype, block_tokens, isa) * 5


def constants(*names: str) -> dict[str, int]:
    """Whole numbers declared `constexpr size_t kName = ...;` in csrc/cpu."""
    found: dict[str, int] = {}
    for name in names:
        for line in (ROOT / "csrc" / "cpu" / name).read_text().splitlines():
            if match := re.match(r"(?:static )?constexpr size_t (k\w+) = ([\w *+]+);", line.strip()):
                found[match[1]] = eval(match[2], {"__builtins__": {}}, found)
    return found


@pytest.mark.skipif(not Path(ROOT / "csrc" / "cpu").is_dir(), reason="the sources are not here")
def test_the_kernels_keep_the_sizes_the_plan_counts_with() -> None:
    """The kernels stand alone, so these numbers stand twice."""
    found = constants("kernels.h", "program.cpp")
    planned = {
        "kPanel": panels.PANEL,
        "kLineBytes": panels.LINE_BYTES,
        "kInAlign": panels.IN_ALIGN,
        "kRowBlock": panels.ROW_BLOCK,
        "kPanelBlock": panels.PANEL_BLOCK,
        "kInBlock": panels.IN_BLOCK,
        "kTile": panels.TILE,
        "kSplit": panels.SPLIT,
        "kPartial": panels.PANEL,
        "kQueryRows": panels.QUERY_ROWS,
        "kSpareRows": panels.SPARE_ROWS,
    }
    assert {name: found[name] for name in planned} == planned
    assert panels.PANEL == PANEL
    assert panels.ANGLE_ROWS == ANGLE_ROWS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [2, 10, 16, 20, 64, 130])
@pytest.mark.parametrize("block_tokens", [1, 2, 4, 5, 7, 8, 15, 16, 32, 64])
def test_a_layout_and_its_kernels_agree_on_a_blocks_size(
    block_tokens: int, head_dim: int, dtype: torch.dtype
) -> None:
    for heads in (1, 3):
        program = _cpu.Program(
            "portable", 1, str(dtype).removeprefix("torch."), heads, heads, head_dim, block_tokens, 1e-6
        )
        assert PanelLayout(heads, head_dim, block_tokens, dtype).block_items == program.block_items


LOADS = [
    Load(1, 256, 0, GREEDY),
    Load(1, 256, 1200, GREEDY),
    Load(1, 1, 2300, GREEDY),
    Load(32, 8, 0, HEAVY),
    Load(64, 1, 300, HEAVY),
    Load(3, 1, 2300, HEAVY),
    Load(2, 100, 0, SCORED),
]


BF16 = {"torch_dtype": "bfloat16"}
SETUPS: list[tuple[dict[str, Any], str | None, int]] = [
    (CONFIG, None, 1),
    (CONFIG | BF16, "int4", 2),
    (CONFIG | MIDDLE | BF16, None, 2),
    (CONFIG | MIDDLE | BF16, "int8", 1),
    (CONFIG | MIDDLE, "int4", 2),
    (WORDY, "int8", 2),
    (CONFIG | MIDDLE, "w4a16", 1),
]
"""(config, quantization, threads)"""


@pytest.mark.parametrize(
    "load_", LOADS, ids=lambda one: f"{one.num_sequences}x{one.num_tokens}+{one.context}"
)
@pytest.mark.parametrize(
    ("config", "quantization", "num_threads"),
    SETUPS,
    ids=[
        "tiny",
        "tiny-bf16-int4",
        "middle-bf16",
        "middle-bf16-int8",
        "middle-int4",
        "wordy-int8",
        "middle-w4a16",
    ],
)
def test_no_step_takes_more_than_the_workspace(
    config: dict[str, Any],
    quantization: str | None,
    load_: Load,
    num_threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the program keeps and the angles, and the allocator traced through one step."""
    # of the program alone: torch's own would wait for one another while other tests have the cores
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    arch = Arch.from_config(config | {"max_position_embeddings": 4096})
    dtype = config["torch_dtype"]
    model = load(arch, dtype=dtype, quantization=quantization)
    assert isinstance(model, NativeModel)
    run = prepared_step(model, load_)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        run()
    assert model._angles is not None
    assert list(model._programs) == [(16, num_threads)]
    kept = model.program(16).workspace_bytes + sum(angles.nbytes for angles in model._angles)
    planned = workspace_bytes(
        arch,
        dtype,
        max_num_batched_tokens=load_.num_sequences * load_.num_tokens,
        max_num_seqs=load_.num_sequences,
        max_model_len=load_.context + load_.num_tokens,
        isa=model.isa,
        quantization=quantization,
        num_threads=num_threads,
    )
    assert kept + largest_sum(traced) <= planned - LIBRARY_BYTES
    assert kept > 0
