"""Bytes of formats and layouts against their definitions, and of ranks against what vLLM printed at start-up."""

from __future__ import annotations

import pytest

from octavo.arch import known
from octavo.arch.tensors import Matrix
from octavo.errors import ConfigError
from octavo.planner.formats import FORMATS, tensor_bytes, untouched, weight_bytes, weight_format
from octavo.planner.kv_layouts import LAYOUTS, kv_cost, kv_layout
from octavo.planner.parallel import Parallel, cut, rank_tensors, stage_sizes

# Bits of an element of a 4096 x 4096 matrix, scales and zero points included.
BITS = {
    "fp32": 32,
    "bf16": 16,
    "fp8": 8 + 32 / 4096,
    "fp8-block": 8 + 32 / 16384,
    "int8": 8 + 32 / 4096,
    "int4-g32": 4.5,
    "int4-g64": 4.25,
    "int4-g128": 4.125,
    "awq-g128": 4 + (16 + 4) / 128,
    "gptq-g128": 4.15625,
    "nvfp4": 4.5 + 32 / 4096**2,
    "mxfp4": 4.25,
    "mxfp4-hopper": 4.25,
}


@pytest.mark.parametrize("name", BITS)
def test_bits_of_an_element(name: str) -> None:
    assert FORMATS[name].bits_per_element() == pytest.approx(BITS[name], rel=1e-12)
    assert FORMATS[name].source


def test_scales_of_parts_of_groups() -> None:
    assert FORMATS["int4-g128"].scales(300, 7) == 21
    assert FORMATS["fp8-block"].scales(129, 257) == 2 * 3
    assert FORMATS["fp8"].scales(300, 7) == 7
    assert FORMATS["bf16"].scales(300, 7) == 0


def test_what_stays_as_it_is() -> None:
    shape = known.shape("mixtral-8x7b")
    left = untouched(shape.tensors(), FORMATS["fp8"])
    assert left == {
        "embedding": 131_072_000, "head": 131_072_000, "norm": 65 * 4096, "router": 32 * 32768,
    }  # fmt: skip
    oss = known.shape("gpt-oss-20b")
    assert "qkv" in untouched(oss.tensors(), FORMATS["mxfp4"])
    experts = sum(
        count * tensor_bytes(tensor, FORMATS["mxfp4"], 2)
        for tensor, count in oss.tensors()
        if isinstance(tensor, Matrix) and tensor.is_expert
    )
    biases = 24 * 32 * (2 * 2880 + 2880) * 2
    assert experts == 24 * 32 * 3 * 2880 * 2880 * 4.25 / 8 + biases


def test_whole_models() -> None:
    shape = known.shape("llama-2-7b")
    assert weight_bytes(shape.tensors(), FORMATS["bf16"]) == 2 * 6_738_415_616
    assert weight_bytes(shape.tensors(), FORMATS["fp32"]) == 4 * 6_738_415_616
    quantized = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    rest = 2 * (6_738_415_616 - quantized)
    assert weight_bytes(shape.tensors(), FORMATS["int4-g128"]) == quantized * 4.125 / 8 + rest
    with pytest.raises(ConfigError, match="known are fp32, bf16"):
        weight_format("int3")


# Bytes of a token's keys and values in one layer and head of 128, and of a DeepSeek latent.
@pytest.mark.parametrize(
    ("name", "head", "latent"),
    [("bf16", 512, 1152), ("fp8", 256, 576), ("int8", 264, 580), ("int4", 136, 292), ("fp32", 1024, 2304)],
)
def test_layouts(name: str, head: int, latent: int) -> None:
    """vLLM's int8 takes 264 bytes of a token and head, LMDeploy's int4 136."""
    assert kv_cost(known.shape("llama-3-8b"), LAYOUTS[name]).token_bytes == 32 * 8 * head
    assert kv_cost(known.shape("deepseek-v3"), LAYOUTS[name]).token_bytes == 61 * latent


# Worked: 2 L k d e; for latents L (kvl + dr) e.
PER_TOKEN = {
    "llama-2-7b": 524_288,
    "llama-3-8b": 131_072,
    "llama-3-70b": 327_680,
    "mixtral-8x7b": 131_072,
    "deepseek-v3": 70_272,
    "llama-3.1-405b": 516_096,
}


@pytest.mark.parametrize("name", PER_TOKEN)
def test_bytes_of_a_token(name: str) -> None:
    assert kv_cost(known.shape(name), LAYOUTS["bf16"]).token_bytes == PER_TOKEN[name]


def test_windows_cap_what_a_sequence_keeps() -> None:
    gemma = kv_cost(known.shape("gemma-3-27b"), LAYOUTS["bf16"])
    a_layer = 2 * 16 * 128 * 2
    assert gemma.token_bytes == 62 * a_layer
    assert gemma.sequence_bytes(32768) == a_layer * (10 * 32768 + 52 * 1024)
    assert gemma.sequence_bytes(500) == a_layer * 62 * 500
    assert gemma.unbounded_token_bytes == 10 * a_layer
    scout = kv_cost(known.shape("llama-4-scout"), LAYOUTS["bf16"])
    assert scout.sequence_bytes(100_000) == 2 * 8 * 128 * 2 * (12 * 100_000 + 36 * 8192)


def test_what_an_indexer_may_pick_is_kept() -> None:
    cost = kv_cost(known.shape("deepseek-v3.2"), LAYOUTS["bf16"])
    assert cost.token_bytes == 61 * 2 * (576 + 128)
    assert cost.sequence_bytes(100_000) == 100_000 * cost.token_bytes


def test_states_are_kept_whatever_the_length() -> None:
    mamba = kv_cost(known.shape("mamba-2.8b"), LAYOUTS["bf16"])
    assert mamba.token_bytes == 0
    assert mamba.sequence_bytes(1) == mamba.sequence_bytes(10**6) == 64 * (5120 * 16 * 4 + 5120 * 3 * 2)


def test_ranks_share_heads_and_repeat_the_last() -> None:
    shape, layout = known.shape("llama-3-70b"), LAYOUTS["bf16"]
    assert kv_cost(shape, layout, Parallel(tensor=4)).token_bytes == 327_680 / 4
    assert kv_cost(shape, layout, Parallel(tensor=16)).token_bytes == 327_680 / 8
    assert kv_cost(known.shape("deepseek-v3"), layout, Parallel(tensor=8)).token_bytes == 70_272
    stages = Parallel(pipeline=3)
    assert [kv_cost(shape, layout, stages, one).token_bytes for one in range(3)] == [
        27 * 4096,
        27 * 4096,
        26 * 4096,
    ]
    assert kv_cost(shape, layout, stages).token_bytes == 27 * 4096
    with pytest.raises(ConfigError, match="known are fp32, bf16, fp8"):
        kv_layout("int2")


def test_what_a_rank_holds() -> None:
    shape = known.shape("llama-3-70b")
    held = sum(count * tensor.num_elements() for tensor, count in rank_tensors(shape, Parallel(tensor=8)))
    norms = 8192 * 161
    assert held == (shape.num_parameters() - norms) // 8 + norms
    sixteen = sum(count * tensor.num_elements() for tensor, count in rank_tensors(shape, Parallel(tensor=16)))
    keys = 80 * 2 * 8192 * 128  # of the one key-value head that two ranks hold
    assert sixteen == (shape.num_parameters() - norms - 8 * keys) // 16 + keys + norms


def test_stages_hold_the_model_once_and_a_tied_head_twice() -> None:
    for name, again in (("llama-3-8b", 0), ("qwen3-0.6b", 1)):
        shape, spread = known.shape(name), Parallel(pipeline=4)
        held = sum(
            count * tensor.num_elements()
            for stage in range(4)
            for tensor, count in rank_tensors(shape, spread, stage)
        )
        assert held == shape.num_parameters() + again * shape.embedding.num_elements()


def test_stages() -> None:
    assert stage_sizes(36, 3) == [12, 12, 12]
    assert stage_sizes(80, 3) == [27, 27, 26]
    assert sum(stage_sizes(61, 8)) == 61
    with pytest.raises(ConfigError, match="the model has 4"):
        stage_sizes(4, 5)


def test_experts_lie_whole_on_ranks() -> None:
    shape, spread = known.shape("deepseek-v3"), Parallel(data=32, expert=32)
    mine = [
        cut(tensor, spread)
        for tensor in shape.layers[5].tensors(7168)
        if isinstance(tensor, Matrix) and tensor.is_expert
    ]
    assert {(one.count, one.inputs, one.outputs) for one in mine if isinstance(one, Matrix)} == {
        (8, 7168, 2048), (8, 2048, 7168),
    }  # fmt: skip


def test_what_does_not_divide_is_refused_with_what_does() -> None:
    """vLLM refuses the same: 40 heads and a vocabulary of 151,936 on 5 ranks."""
    with pytest.raises(
        ConfigError, match=r"tensor-parallel 3 does not divide the 32 heads of `q`; use one of 1, 2, 4, 8"
    ):
        list(rank_tensors(known.shape("llama-3-8b"), Parallel(tensor=3)))
    with pytest.raises(ConfigError, match="tensor-parallel 5 does not divide the vocabulary of 151936"):
        list(rank_tensors(known.shape("qwen3-14b"), Parallel(tensor=5)))
    with pytest.raises(ConfigError, match=r"expert-parallel must be 1, or tensor x data, which is 8, got 4"):
        Parallel(tensor=8, expert=4)
    with pytest.raises(ConfigError, match="needs expert-parallel 4"):
        Parallel(data=4)
