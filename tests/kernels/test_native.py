"""The door of the compiled module: what it takes, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.native_program import ISAS, cpu, name_of, packed, rows_program, seen
from tests.kernels.numbers import DTYPES, same_bits, seeded

HEADS, KV_HEADS, WIDTH, P, BLOCKS, VOCAB = 2, 1, 4, 4, 3, 7
QKV = (HEADS + 2 * KV_HEADS) * WIDTH


def whole_program(isa: str = "portable", num_threads: int = 1, dtype: torch.dtype = torch.float32) -> Any:
    """Embedding, attention and head, with weights of a fixed seed."""
    made = cpu.Program(isa, num_threads, name_of(dtype), HEADS, KV_HEADS, WIDTH, P, 1e-6)
    qkv, mixed = made.buffer(QKV), made.buffer(HEADS * WIDTH)
    made.embed(packed(isa, name_of(dtype), seeded(VOCAB, QKV, seed=1, dtype=dtype)), qkv)
    made.rope(qkv, 0, None, None)
    made.attention(qkv, 0, 0, mixed)
    head = packed(isa, name_of(dtype), seeded(VOCAB, HEADS * WIDTH, seed=2, dtype=dtype))
    made.head(mixed, torch.ones(HEADS * WIDTH, dtype=dtype), head)
    return made


def step(**changes: Any) -> dict[str, Any]:
    """Five tokens of one sequence, in blocks 1 and 2."""
    made = {
        "tokens": torch.tensor([0, 6, 3, 2, 1]),
        "positions": torch.arange(5),
        "slots": torch.tensor([4, 5, 6, 7, 8]),
        "tables": torch.tensor([[1, 2]], dtype=torch.int32),
        "starts": torch.tensor([0], dtype=torch.int32),
        "counts": torch.tensor([5], dtype=torch.int32),
        "cos": torch.ones(8, WIDTH // 2),
        "sin": torch.zeros(8, WIDTH // 2),
        "arena": torch.full((1, BLOCKS, whole_program().block_items), torch.nan),
    }
    return made | changes


def logits_of(program: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    arena = torch.full((1, BLOCKS, program.block_items), torch.nan, dtype=dtype)
    program.run(**step(arena=arena))
    hidden, logits = torch.empty(5, HEADS * WIDTH, dtype=dtype), torch.empty(5, VOCAB)
    program.hidden(hidden)
    program.logits(hidden, logits)
    return logits


def test_features_are_what_the_operating_system_lists() -> None:
    found = cpu.features()
    assert len(found) == len(set(found))
    try:
        with open("/proc/cpuinfo") as lines:
            listed = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), None)
    except OSError:
        listed = None
    if listed is None:
        pytest.skip("the operating system lists no processor flags")
    for name in ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni"):
        assert (name in found) == (name in listed), name
    for name in ("amx_bf16", "amx_int8"):
        assert (name in found) <= (name in listed), name


def test_instruction_sets_are_those_the_features_allow() -> None:
    found, features = cpu.instruction_sets(), set(cpu.features())
    assert found[-1] == "portable"
    assert [name for name in ("amx", "avx512_bf16", "avx512", "avx2", "portable") if name in found] == found
    assert ("avx2" in found) <= ({"avx2", "fma"} <= features)
    assert ("avx512" in found) <= ("avx512f" in features)
    assert ("avx512_bf16" in found) <= ("avx512_bf16" in features)
    assert ("amx" in found) <= ("amx_bf16" in features)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_program_runs(isa: str, dtype: torch.dtype) -> None:
    found = logits_of(whole_program(isa, 2, dtype), dtype)
    assert found.isfinite().all()
    assert same_bits(found, logits_of(whole_program(isa, 1, dtype), dtype))


def test_arrays_without_the_exchange_table_are_taken_too() -> None:
    program, want = whole_program(), logits_of(whole_program())
    program.run(**{name: value.numpy() for name, value in step().items()})
    hidden, logits = np.empty((5, HEADS * WIDTH), np.float32), np.empty((5, VOCAB), np.float32)
    program.hidden(hidden)
    program.logits(hidden, logits)
    assert same_bits(torch.from_numpy(logits), want)


ONES = torch.ones(2, 4)
BAD_ROWS = [
    ONES.double(), ONES.half(), ONES.int(), torch.ones(2, 8)[:, ::2], torch.ones(4, 2).t(), torch.ones(4),
    torch.ones(1, 2, 4), torch.ones(2, 4, device="meta"), [[1.0] * 4] * 2, None, np.ones((2, 4)),
]  # fmt: skip


@pytest.mark.parametrize("rows", BAD_ROWS, ids=str)
def test_other_types_strides_and_ranks_are_refused(rows: object) -> None:
    weight, program = cpu.Weight("portable", "float32", 2, 4), rows_program("portable", 1, torch.float32)
    buffer = program.buffer(4)
    program.head(buffer, torch.ones(4), weight)
    calls: list[Callable[[], object]] = [
        lambda: weight.fill(0, 0, rows),
        lambda: weight.read(0, 0, rows),
        lambda: program.write(buffer, rows),
        lambda: program.read(buffer, rows),
        lambda: program.hidden(rows),
        lambda: program.logits(rows, torch.ones(2, 2)),
        lambda: program.logits(torch.ones(2, 4), rows),
        lambda: program.greedy(rows),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call()


@pytest.mark.parametrize("name", list(step()))
def test_a_step_of_other_types_strides_and_ranks_is_refused(name: str) -> None:
    good = step()[name]
    stretched = good.repeat_interleave(2, -1)[..., ::2]
    wrong = [good.double(), good[None], good[..., 0], None] + ([stretched] if good.shape[-1] > 1 else [])
    for bad in wrong:
        with pytest.raises(TypeError, match="incompatible function arguments"):
            whole_program().run(**step(**{name: bad}))


def test_what_is_read_only_is_not_written() -> None:
    out = np.ones((2, 4), dtype=np.float32)
    out.flags.writeable = False
    with pytest.raises(TypeError):
        cpu.Weight("portable", "float32", 2, 4).read(0, 0, out)
    assert (out == 1).all()


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"positions": torch.arange(4)}, "want tokens, positions and slots"),
        ({"slots": torch.arange(6)}, "want tokens, positions and slots"),
        ({"starts": torch.zeros(2, dtype=torch.int32)}, r"starts and counts \[S\]"),
        ({"counts": torch.zeros(0, dtype=torch.int32)}, r"starts and counts \[S\]"),
        ({"counts": torch.tensor([4], dtype=torch.int32)}, "counts add up to 4 rows, there are 5"),
        ({"counts": torch.tensor([-5], dtype=torch.int32)}, "sequence 0 has positions"),
        ({"counts": torch.tensor([9], dtype=torch.int32)}, r"positions 0 \.\. 8, its table holds 2 blocks"),
        ({"starts": torch.tensor([4], dtype=torch.int32)}, r"positions 4 \.\. 8, its table holds 2 blocks"),
        ({"starts": torch.tensor([-1], dtype=torch.int32)}, r"positions -1 \.\. 3"),
        ({"starts": torch.tensor([2**31 - 1], dtype=torch.int32)}, "its table holds 2 blocks"),
        ({"cos": torch.ones(8, 3)}, "want cos and sin"),
        ({"sin": torch.ones(9, 2)}, "want cos and sin"),
        ({"arena": torch.ones(1, 3, 31)}, r"want an arena \[layers, blocks, 128\], got \[1, 3, 31\]"),
        ({"arena": torch.ones(0, 3, 128)}, r"got \[0, 3, 128\]"),
        ({"arena": torch.ones(1, 3, 128, dtype=torch.bfloat16)}, r"want an arena"),
    ],
    ids=str,
)
def test_shapes_of_a_step_that_do_not_agree_are_refused_by_name(changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        whole_program().run(**step(**changes))


@pytest.mark.parametrize(
    ("name", "index", "values", "hint"),
    [
        ("tokens", 2, (-1, VOCAB, 2**62), "no row of the embedding"),
        ("positions", 4, (-1, 8, 2**62), "position has no angles"),
        ("slots", 0, (-1, BLOCKS * P, 2**62), "slot lies outside"),
        ("tables", (0, 1), (-1, BLOCKS, 2**31 - 1), "block id lies outside"),
        ("tables", (0, 0), (-7, BLOCKS), "block id lies outside"),
    ],
)
def test_indices_out_of_range_are_refused(name: str, index: Any, values: tuple[int, ...], hint: str) -> None:
    for value in values:
        broken = step()[name].clone()
        broken[index] = value
        with pytest.raises(IndexError, match=hint):
            whole_program().run(**step(**{name: broken}))


@pytest.mark.parametrize("value", [-1, -7, BLOCKS])
def test_a_block_of_the_past_that_does_not_exist_is_refused(value: int) -> None:
    """This step reads what earlier ones wrote. The arena is part of a larger one, so that nothing breaks."""
    program = whole_program()
    larger = torch.zeros(1, 20, program.block_items)
    last = {name: step()[name][4:] for name in ("tokens", "positions", "slots")}
    one = torch.tensor([1], dtype=torch.int32)
    changes = last | {"starts": 4 * one, "counts": one, "arena": larger[:, 8 : 8 + BLOCKS]}
    program.run(**step(**changes))
    with pytest.raises(IndexError, match="block id lies outside"):
        program.run(**step(**changes, tables=torch.tensor([[value, 2]], dtype=torch.int32)))


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: cpu.Weight("sse2", "float32", 1, 1), "'sse2' does not run here; these do: .*portable"),
    (lambda: cpu.Weight("portable", "int3", 1, 1), "format must be .* got 'int3'"),
    (lambda: cpu.Weight("portable", "float32", 0, 1), "at least one output"),
    (lambda: cpu.Weight("portable", "float32", 3, 1, 2), "num_parts is 1, or 2"),
    (lambda: cpu.Weight("portable", "float32", 3, 1, 3), "num_parts is 1, or 2"),
    (lambda: cpu.Weight("portable", "int4", 3, 1, 1, False, 16), "group must be 32, 64 or 128, got 16"),
    (lambda: cpu.Weight("portable", "float32", 20, 4).fill(0, 0, torch.ones(21, 4)), r"rows \[21, 4\] .* \[20, 4\]"),
    (lambda: cpu.Weight("portable", "float32", 20, 4).fill(0, 8, torch.ones(4, 4)), "at output 8 .* steps of 16"),
    (lambda: cpu.Weight("portable", "float32", 20, 4).fill(0, 16, torch.ones(5, 4)), "at output 16"),
    (lambda: cpu.Weight("portable", "float32", 20, 4).fill(1, 0, torch.ones(4, 4)), "of part 1"),
    (lambda: cpu.Weight("portable", "float32", 20, 4).fill(0, 0, torch.ones(4, 5)), r"rows \[4, 5\]"),
    (lambda: cpu.Weight("portable", "float32", 20, 4).fill_bias(0, 0, torch.ones(4)), r"bias \[4\] .* does not fit"),
    (lambda: cpu.Weight("portable", "float32", 4, 4).read(0, 1, torch.ones(4, 4)), r"rows \[4, 4\] at output 1"),
    (lambda: cpu.Program("portable", 1, "float16", 1, 1, 2, 1, 1e-6), "number must be .* got 'float16'"),
    (lambda: cpu.Program("portable", 0, "float32", 1, 1, 2, 1, 1e-6), "threads at least 1"),
    (lambda: cpu.Program("portable", 1, "float32", 3, 2, 2, 1, 1e-6), "heads must be a multiple of kv_heads"),
    (lambda: cpu.Program("portable", 1, "float32", 1, 1, 3, 1, 1e-6), "head_dim must be even, got 3"),
    (lambda: cpu.Program("portable", 1, "float32", 1, 1, 2, 24, 1e-6), "multiple of it, got 24"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "hint"), REFUSED, ids=[hint for _, hint in REFUSED])
def test_weights_and_programs_that_cannot_be_are_refused(call: Callable[[], object], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        call()


def test_operations_that_do_not_fit_their_buffers_are_refused() -> None:
    made = cpu.Program("portable", 1, "float32", HEADS, KV_HEADS, WIDTH, P, 1e-6)
    narrow, wide, qkv = made.buffer(3), made.buffer(5), made.buffer(QKV)
    square, pair = cpu.Weight("portable", "float32", 5, 5), cpu.Weight("portable", "float32", 10, 5, 2)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: made.buffer(0), "at least one column"),
        (lambda: made.norm(narrow, torch.ones(3), wide), "differ in width"),
        (lambda: made.norm(narrow, torch.ones(4), narrow), "vector of 3, got 4"),
        (lambda: made.norm(99, torch.ones(4), narrow), "no buffer 99"),
        (lambda: made.embed(square, narrow), "as wide as the buffer"),
        (lambda: made.embed(cpu.Weight("portable", "int4", 5, 5), wide), "not int4"),
        (lambda: made.embed(pair, wide), "of one part"),
        (lambda: made.linear(square, wide, narrow), "does not fit buffers of 5 and 3"),
        (lambda: made.linear(square, narrow, wide), "does not fit buffers of 3 and 5"),
        (lambda: made.linear(square, wide, qkv, "store", QKV - 4), "does not fit"),
        (lambda: made.linear(square, wide, wide), "cannot write where it reads"),
        (lambda: made.linear(pair, wide, qkv), "gate takes a weight of two parts"),
        (lambda: made.linear(square, wide, qkv, "gate"), "gate takes a weight of two parts"),
        (lambda: made.linear(square, wide, qkv, "keep"), "finish must be .* got 'keep'"),
        (lambda: made.rope(wide, 0, None, None), "all heads"),
        (lambda: made.rope(qkv, 0, torch.ones(3), None), "vector of 4, got 3"),
        (lambda: made.attention(qkv, 0, 0, wide), "do not fit the heads"),
        (lambda: made.attention(qkv, 0, -1, made.buffer(HEADS * WIDTH)), "window"),
        (lambda: made.head(narrow, torch.ones(3), square), "does not fit the buffer"),
        (lambda: made.write(narrow, torch.ones(2, 4)), "do not fit"),
        (lambda: made.write(narrow, torch.ones(2, 3, dtype=torch.bfloat16)), "do not fit"),
        (lambda: made.read(narrow, torch.ones(1000, 3)), "do not fit"),
        (lambda: made.hidden(torch.ones(1, 5)), "program with a head"),
        (lambda: made.logits(torch.ones(1, 5), torch.ones(1, 5)), "program with a head"),
    ]
    for call, hint in calls:
        with pytest.raises(ValueError, match=hint):
            call()
    with pytest.raises((TypeError, RuntimeError)):
        made.norm(narrow, torch.ones(3, dtype=torch.bfloat16), narrow)


def test_a_program_keeps_what_it_points_to() -> None:
    """Weights and vectors live as long as the program, whoever else lets go of them."""
    program = whole_program()
    want = logits_of(program)
    rubbish = [torch.full((64, 64), torch.nan) for _ in range(64)]
    assert same_bits(logits_of(program), want)
    del rubbish


def test_reading_back_gives_what_was_packed_and_writes_nothing_else() -> None:
    rows = seeded(37, 19, seed=1)
    weight = packed("portable", "float32", rows)
    assert same_bits(seen(weight, 37), rows)
    arena = torch.full((9, 19), torch.nan)
    weight.read(0, 30, arena[2:7])
    assert same_bits(arena[2:7], rows[30:35])
    assert arena[:2].isnan().all()
    assert arena[7:].isnan().all()


@pytest.mark.parametrize("isa", ISAS)
def test_several_programs_may_run_at_once(isa: str) -> None:
    want = logits_of(whole_program(isa))
    found: list[bool] = []

    def work(num_threads: int) -> None:
        program = whole_program(isa, num_threads)
        found.extend(same_bits(logits_of(program), want) for _ in range(20))

    threads = [threading.Thread(target=work, args=(1 + i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80
