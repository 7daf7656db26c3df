"""The table of a block against sums over the whole model, and by hand."""

from __future__ import annotations

import pytest

from octavo.arch import known
from octavo.planner import flops
from octavo.planner.block import Op, block_ops
from octavo.planner.flops import Slice
from octavo.planner.formats import FORMATS
from octavo.planner.hardware import device
from octavo.planner.kv_layouts import LAYOUTS
from octavo.planner.parallel import ALONE, Parallel
from octavo.planner.step_work import step_work

PROMPT: list[Slice] = [(0, 2048, 1)]


def ops_of(name: str, slices: list[Slice], parallel: Parallel = ALONE, form: str = "bf16") -> list[list[Op]]:
    shape = known.shape(name)
    return [
        block_ops(shape, layer, slices, FORMATS[form], LAYOUTS["bf16"], parallel)
        for layer, count in shape.groups()
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "name",
    [
        "llama-3-8b",
        "gemma-3-1b",
        "mixtral-8x7b",
        "deepseek-v2-lite",
        "deepseek-v3.2",
        "falcon-h1-7b",
        "qwen3-next-80b-a3b",
        "gpt2",
    ],
)
def test_blocks_add_up_to_the_model(name: str) -> None:
    shape = known.shape(name)
    blocks = ops_of(name, PROMPT)
    total = flops.forward(shape, PROMPT)
    outside = total.parts["head"] + sum(total.parts.get(part, 0) for part in ("embedding",))
    assert sum(op.flop for ops in blocks for op in ops) == total.total - outside
    inside = sum(shape.num_layer_parameters(index) for index in range(shape.num_layers))
    assert sum(op.num_parameters for ops in blocks for op in ops) == inside
    work = step_work(shape, PROMPT)
    read = sum(op.weight_bytes for ops in blocks for op in ops)
    others = 2 * (shape.head.num_elements() + shape.final_norm_elements)
    assert read == pytest.approx(work.weight_bytes - others, rel=1e-9)
    kv = sum(op.kv_bytes for ops in blocks for op in ops)
    assert kv == pytest.approx(work.kv_read_bytes + work.kv_write_bytes, rel=1e-9)


def test_a_row_by_hand() -> None:
    (q, *_), *_ = ops_of("llama-3-8b", PROMPT)
    assert (q.name, q.part, q.shape, q.num_parameters) == ("q", "qkv", "4,096 x 4,096", 4096 * 4096)
    assert q.flop == 2 * 2048 * 4096 * 4096
    assert q.num_bytes == 2 * 4096 * 4096 + 2 * 2048 * (4096 + 4096)
    assert q.intensity == pytest.approx(1024)
    h100 = device("h100")
    assert q.bound(h100, "bf16") == "compute"
    assert q.seconds(h100, "bf16") == q.flop / 989e12
    decode = ops_of("llama-3-8b", [(4095, 1, 1)])[0][0]
    assert decode.bound(h100, "bf16") == "memory"
    assert decode.seconds(h100, "bf16") == decode.num_bytes / 3.35e12


def test_order_is_that_of_the_computation() -> None:
    names = [op.name for op in ops_of("llama-3-8b", PROMPT)[0]]
    assert names == ["q", "k", "v", "scores", "values", "o", "gate", "up", "down", "norms"]
    names = [op.name for op in ops_of("qwen3-next-80b-a3b", PROMPT)[0]]
    assert names.index("q, k and v") < names.index("recurrence") < names.index("out") < names.index("router")


def test_ranks_share_a_block() -> None:
    alone, shared = ops_of("llama-3-70b", PROMPT)[0], ops_of("llama-3-70b", PROMPT, Parallel(tensor=8))[0]
    for one, other in zip(alone, shared, strict=True):
        assert other.flop == one.flop / 8
        if one.name != "norms":
            assert other.num_parameters == one.num_parameters / 8


def test_few_tokens_touch_few_experts() -> None:
    ops = {op.name: op for op in ops_of("mixtral-8x7b", [(99, 1, 1)])[0]}
    assert ops["experts gate"].weight_bytes == pytest.approx(2 * 2 * 4096 * 14336)
    assert ops["experts gate"].flop == 2 * 2 * 4096 * 14336
    assert ops["experts gate"].shape == "8 of 4,096 x 14,336, 2 used"
