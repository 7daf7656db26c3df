"""Bytes planned before load against bytes really there: tensors counted, a step's peak traced, a process measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from octavo.arch import Arch
from octavo.core.sequence import SamplingParams
from octavo.core.step import Slice, Step
from octavo.exec.executor import Start
from octavo.exec.runner import Runner
from octavo.kernels import native, tiles
from octavo.kernels.attention import cut
from octavo.kernels.attention import reference as attention
from octavo.kv.pool import KvPool
from octavo.models.loader import load
from octavo.models.model import Model, TorchModel
from octavo.planner import memory
from octavo.planner.memory import LIBRARY_BYTES, MemoryPlan, kv_block_bytes, weight_bytes, workspace_bytes
from tests.engine.tiny import CONFIG

ROOT = Path(__file__).resolve().parents[2]

SHAPES: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True, "torch_dtype": "bfloat16"},
    {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6},
    {"num_key_value_heads": 1, "num_hidden_layers": 3, "torch_dtype": "float16"},
    {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 16},
    {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_bias": True},
    {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16},
]


def tensors_of(thing: object, seen: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Every tensor reachable from a model, each storage once."""
    if isinstance(thing, torch.Tensor):
        seen[thing.untyped_storage().data_ptr()] = thing
    elif isinstance(thing, list | tuple):
        for item in thing:
            tensors_of(item, seen)
    elif isinstance(thing, dict):
        tensors_of(list(thing.values()), seen)
    elif type(thing).__module__.startswith("octavo."):
        names = [
            *getattr(thing, "__dict__", {}),
            *(n for k in type(thing).__mro__ for n in getattr(k, "__slots__", ())),
        ]
        tensors_of([getattr(thing, name) for name in names if hasattr(thing, name)], seen)
    return seen


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_weights_and_cache_are_planned_to_the_byte(changes: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    config = CONFIG | changes
    dtype = config["torch_dtype"]
    arch = Arch.from_config(config)
    model = load(arch, dtype=dtype, kernels="reference")
    assert isinstance(model, TorchModel)
    parts = [model.embedding, model.layers, model.final_norm, model.head]
    held = sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(parts, {}).values())
    assert weight_bytes(arch, dtype) == arch.weight_bytes(dtype) == model.weight_bytes == held
    for block_tokens in (1, 16):
        pool = KvPool(model.kv_layout(block_tokens), arch.num_layers, 5)
        really = sum(pool.layer(i).nbytes for i in range(arch.num_layers))
        assert kv_block_bytes(arch, dtype, block_tokens) * 5 == really == pool.nbytes


def test_the_kernel_keeps_the_bounds_the_plan_counts_with() -> None:
    """Kernels stand alone, so these numbers stand twice."""
    assert memory.ATTENTION_BYTES == cut.WORKSPACE_BYTES
    assert memory.ATTENTION_TILE == cut.KV_TILE
    assert set(memory.ROW_TILES) <= set(tiles.TILES)
    assert memory.ROW_TILES[-1] == tiles.TILES[-1]


def test_a_plan_adds_up() -> None:
    plan = MemoryPlan(
        limit_bytes=1000,
        weight_bytes=300,
        workspace_bytes=100,
        kv_block_bytes=7,
        num_kv_blocks=80,
        block_tokens=4,
    )
    assert (plan.kv_bytes, plan.kv_tokens, plan.left_bytes) == (560, 79 * 4, 40)
    assert sum(num_bytes for _, num_bytes, _ in plan.rows()) == plan.limit_bytes


@dataclass(frozen=True)
class Load:
    """A step: sequences, tokens of each, tokens before those, and how they are drawn."""

    num_sequences: int
    num_tokens: int
    context: int
    params: SamplingParams


GREEDY = SamplingParams(temperature=0.0)
HEAVY = SamplingParams(temperature=1.0, top_p=0.95, min_p=0.01, logprobs=50, repetition_penalty=1.1)
SCORED = SamplingParams(temperature=1.0, top_p=0.95, prompt_logprobs=20)

MIDDLE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "head_dim": 64,
    "vocab_size": 4096,
}
WORDY = CONFIG | {"vocab_size": 30000, "num_hidden_layers": 1}
LOADS = [
    Load(1, 256, 0, GREEDY),
    Load(1, 256, 1200, GREEDY),
    Load(32, 8, 0, HEAVY),
    Load(64, 1, 300, HEAVY),
    Load(2, 100, 0, SCORED),
]


@pytest.mark.parametrize(
    "load_", LOADS, ids=lambda one: f"{one.num_sequences}x{one.num_tokens}+{one.context}"
)
@pytest.mark.parametrize(
    "config",
    [CONFIG, CONFIG | {"torch_dtype": "bfloat16"}, CONFIG | MIDDLE | {"torch_dtype": "bfloat16"}, WORDY],
    ids=["tiny", "tiny-bf16", "middle-bf16", "wordy"],
)
def test_no_step_takes_more_than_the_workspace(config: dict[str, Any], load_: Load) -> None:
    """The allocator is traced through one step, kept scratch memory of the attention kernel included."""
    torch.set_num_threads(1)
    arch = Arch.from_config(config | {"max_position_embeddings": 4096})
    dtype = config["torch_dtype"]
    model = load(arch, dtype=dtype, kernels="reference")
    planned = workspace_bytes(
        arch,
        dtype,
        max_num_batched_tokens=load_.num_sequences * load_.num_tokens,
        max_num_seqs=load_.num_sequences,
        max_model_len=load_.context + load_.num_tokens,
    )
    assert 0 < peak_bytes(model, load_) <= planned - LIBRARY_BYTES


def prepared_step(model: Model, load_: Load) -> Callable[[], None]:
    """A step whose sequences begin with it, ready to run a second time: kernels have been chosen and tried."""
    block_tokens, length = 16, load_.context + load_.num_tokens
    blocks = -(-length // block_tokens)
    pool = KvPool(model.kv_layout(block_tokens), model.arch.num_layers, load_.num_sequences * blocks + 1)
    runner = Runner(model, pool)
    starts, slices = [], []
    for seq_id in range(load_.num_sequences):
        tokens = tuple((seq_id + i * 7) % model.arch.vocab_size for i in range(length))
        starts.append(
            Start(
                seq_id=seq_id, epoch=0, tokens=tokens, num_prompt=length, params=load_.params, index=0, seed=1,
                end_token_ids=frozenset(),
            )
        )  # fmt: skip
        table = tuple(range(1 + seq_id * blocks, 1 + (seq_id + 1) * blocks))
        slices.append(Slice(seq_id, 0, load_.context, load_.num_tokens, table, samples=1))
    step = Step(0, tuple(slices))
    runner.run(step, starts)

    def run() -> None:
        assert all(output.error is None for output in runner.run(step, starts).outputs)

    return run


def peak_bytes(model: Model, load_: Load) -> int:
    """Most bytes allocated at a time in a step."""
    run = prepared_step(model, load_)
    attention._scratch._held.clear()  # what stays of the first time is no part of a step
    attention._recent = ()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        run()
    return largest_sum(traced)


def largest_sum(traced: Any) -> int:
    events = [event for event in traced.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


def test_the_trace_sees_allocations() -> None:
    """Guards the test above: three megabytes at a time, and one after another."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        kept = [torch.ones(2**18) for _ in range(3)]
        del kept
        for _ in range(9):
            torch.ones(2**18)
    assert 3 * 2**20 <= largest_sum(traced) < 4 * 2**20


MEASURE = """
import sys
from pathlib import Path

import torch
from octavo import LLM, SamplingParams

def resident_bytes():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
before = resident_bytes()
llm = LLM(sys.argv[1], num_threads=1, max_model_len=512, max_num_seqs=16, max_num_batched_tokens=64,
          num_kv_blocks=int(sys.argv[2]), kernels=sys.argv[3],
          quantization=None if sys.argv[4] == "none" else sys.argv[4])
llm.generate([[i] * 40 for i in range(8)], SamplingParams(max_tokens=2, ignore_eos=True, top_p=0.9, logprobs=5))
memory = llm.built.plan.resolved.memory
print(memory.limit_bytes - memory.left_bytes, resident_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    ("dtype", "kernels", "quantization"),
    [
        ("float32", "reference", "none"),
        ("bfloat16", "reference", "none"),
        ("float32", "auto", "none"),
        ("bfloat16", "auto", "none"),
        ("bfloat16", "auto", "int8"),
        ("bfloat16", "auto", "int4"),
        ("bfloat16", "reference", "w4a16"),
    ],
)
def test_a_process_uses_what_was_planned(tmp_path: Path, dtype: str, kernels: str, quantization: str) -> None:
    """Planned bytes of a fresh process are within 3 % of what it holds after work: 1.8 GiB of weights and cache."""
    found = native.instruction_sets()
    if kernels == "auto" and not found:
        pytest.skip("the compiled module is not built")
    shape = {
        "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 8000, "torch_dtype": dtype,
        "max_position_embeddings": 1024, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | shape))
    isa = found[0] if kernels == "auto" else None
    block = kv_block_bytes(Arch.from_config(CONFIG | shape), dtype, 16, isa)
    arguments = [
        sys.executable, "-c", MEASURE, str(tmp_path / "config.json"), str(1800 * 2**20 // block), kernels, quantization,
    ]  # fmt: skip
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    planned, used = map(int, done.stdout.split())
    assert abs(planned / used - 1) < 0.03, f"planned {planned}, used {used}"
