"""A tiny model on every instruction set: against the textbook in float64, and the same bits however it is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.models.loader import load
from octavo.models.native import NativeModel
from tests.engine.tiny import CONFIG, weights, write_checkpoint
from tests.exec import plain
from tests.kernels.native_program import ISAS
from tests.kernels.numbers import same_bits
from tests.parity.drive import Driver

TOKENS = [(i * 37 + i * i) % 300 for i in range(70)]
OTHER = [(i * 11 + 5) % 300 for i in range(41)]
SHAPES: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True, "head_dim": 10, "num_key_value_heads": 1, "intermediate_size": 72},
    {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 9, "head_dim": 16},
]


@pytest.fixture(autouse=True)
def threads_are_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(
    model: Any,
    num_threads: int,
    sizes: tuple[int, ...] = (70,),
    *,
    other: bool = False,
    block_tokens: int = 5,
) -> Tensor:
    """Logits [70, V] after every token, fed in pieces of these sizes, beside another sequence or alone."""
    torch.set_num_threads(num_threads)
    driver = Driver(model, block_tokens=block_tokens, num_blocks=160, seed=num_threads, frees_window=True)
    found, done = [], 0
    for i, size in enumerate(sizes):
        pieces = {"one": TOKENS[done : done + size]}
        if other:
            beside = {"other": OTHER[i * 3 : i * 3 + 3]}
            pieces = beside | pieces if i % 2 else pieces | beside
        found.append(driver.feed(pieces)["one"])
        done += size
    assert done == len(TOKENS)
    return torch.cat(found)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_float32_is_within_the_budget_of_the_textbook(
    tmp_path: Path, isa: str, changes: dict[str, Any]
) -> None:
    config = CONFIG | changes
    model = load(write_checkpoint(tmp_path / "model", **changes), kernels=isa)
    assert isinstance(model, NativeModel)
    want = plain.logits(config, weights(config), TOKENS)
    found = run(model, 1)
    budget = plain.budget(config, len(TOKENS), float(want.abs().max()))
    assert float((found.double() - want).abs().max()) <= budget


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", [None, "int8", "int4", "w4a16"])
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_threads_chunks_company_and_blocks_change_no_bit(
    tmp_path: Path, isa: str, dtype: str, quantization: str | None, changes: dict[str, Any]
) -> None:
    folder = write_checkpoint(tmp_path / "model", **changes)
    model = load(folder, dtype, kernels=isa, quantization=quantization)
    want = run(model, 1)
    assert want.isfinite().all()
    assert same_bits(run(model, 2), want)
    assert same_bits(run(model, 2, (1, 2, 33, 1, 12, 21), other=True), want)
    assert same_bits(run(model, 1, (64, *[1] * 6), other=True, block_tokens=16), want)
    again = load(folder, dtype, kernels=isa, quantization=quantization)
    assert same_bits(run(again, 2, (30, 40), block_tokens=8), want)


def dequantized(model: NativeModel, held: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors with the matrices as the packed weights hold them."""
    found = dict(held)

    def read(name: str, weight: Any, part: int = 0, first: int = 0) -> None:
        out = torch.empty(held[name].shape)
        weight.read(part, first, out)
        found[name] = out

    for i, layer in enumerate(model.layers):
        name = f"model.layers.{i}"
        first = 0
        for index, which in enumerate("qkv"):
            weight = layer.qkv[0 if len(layer.qkv) == 1 else index]
            read(f"{name}.self_attn.{which}_proj.weight", weight, 0, first if len(layer.qkv) == 1 else 0)
            first += len(held[f"{name}.self_attn.{which}_proj.weight"])
        read(f"{name}.self_attn.o_proj.weight", layer.o)
        read(f"{name}.mlp.gate_proj.weight", layer.gate_up, 0)
        read(f"{name}.mlp.up_proj.weight", layer.gate_up, 1)
        read(f"{name}.mlp.down_proj.weight", layer.down)
    read("model.embed_tokens.weight", model.embedding)
    if "lm_head.weight" in held:
        read("lm_head.weight", model.head)
    return found


@pytest.mark.parametrize("quantization", ["int8", "int4", "w4a16"])
@pytest.mark.parametrize("changes", SHAPES[:2], ids=str)
def test_instruction_sets_agree_on_quantized_weights(
    tmp_path: Path, quantization: str, changes: dict[str, Any]
) -> None:
    """Every set packs the same numbers: what one holds, the others hold to the bit."""
    folder = write_checkpoint(tmp_path / "model", **changes)
    held = weights(CONFIG | changes)
    models = [load(folder, kernels=isa, quantization=quantization) for isa in ISAS]
    assert all(isinstance(model, NativeModel) for model in models)
    first, *rest = (dequantized(model, held) for model in models)  # type: ignore[arg-type]
    for other in rest:
        for name, value in first.items():
            assert torch.equal(other[name], value), name


def test_greedy_of_the_models_own_logits(tmp_path: Path) -> None:
    model = load(write_checkpoint(tmp_path / "model"))
    logits = run(model, 2)
    for one, row in zip(model.sampling.greedy(logits), logits, strict=True):
        assert (one.token, one.problem) == (int(row.argmax()), 0)


def test_a_changed_number_of_threads_is_a_new_program(tmp_path: Path) -> None:
    """One program at a time: it holds a workspace and threads."""
    model = load(write_checkpoint(tmp_path / "model"))
    assert isinstance(model, NativeModel)
    torch.set_num_threads(1)
    first = model.program(16)
    assert model.program(16) is first
    torch.set_num_threads(2)
    assert model.program(16) is not first
    assert len(model._programs) == 1


def test_reserved_memory_is_all_a_step_takes(tmp_path: Path) -> None:
    model = load(write_checkpoint(tmp_path / "model"))
    assert isinstance(model, NativeModel)
    torch.set_num_threads(1)
    model.reserve(5, 70, 128)
    assert model._angles is not None
    angles, kept = model._angles[0], model.program(5).workspace_bytes
    run(model, 1)
    assert model._angles[0] is angles
    assert model.program(5).workspace_bytes - kept <= 2**20  # scratch of the threads, taken when first needed
