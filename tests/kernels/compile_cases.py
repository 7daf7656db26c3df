"""Every Triton kernel compiled for sm_90 as models start it. Needs no device.

Ops run on tensors without memory, their launches are recorded, and each distinct one is compiled by the same path that
a device would take.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import ModuleType

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler
from triton.runtime import driver

import octavo.kernels
from octavo.kernels.kv_store.fp8 import Fp8Blocks, block_bytes
from octavo.kernels.linear import FORMATS, Codes
from octavo.kernels.triton import Launch, recorded

TARGET = GPUTarget("cuda", 90, 32)
MAX_SHARED_BYTES = 227 * 1024
"""Of one program on compute capability 9.0; CUDA C++ Programming Guide, table of technical specifications."""
KERNELS = Path(octavo.kernels.__file__).parent
CUOBJDUMP = Path(compiler.__file__).parent / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Shape:
    """What of a model decides how kernels are compiled."""

    H: int
    K: int
    D: int
    E: int
    F: int
    V: int
    norms: bool = False
    bias: bool = False


SHAPES = {
    "Llama-3.1-8B": Shape(32, 8, 128, 4096, 14336, 128256),
    "Llama-2-7B": Shape(32, 32, 128, 4096, 11008, 32000),
    "Llama-3.3-70B": Shape(64, 8, 128, 8192, 28672, 128256),
    "Llama-3.2-1B": Shape(32, 8, 64, 2048, 8192, 128256),
    "Qwen2.5-0.5B": Shape(14, 2, 64, 896, 4864, 151936, bias=True),
    "Qwen3-0.6B": Shape(16, 8, 128, 1024, 3072, 151936, norms=True),
}


class NoDevice:
    """A driver that only says what to compile for."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


driver.set_active(NoDevice())


def kernels(op: str) -> ModuleType:
    return import_module(f"octavo.kernels.{op}.cuda")


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def blocks_of(shape: Shape, dtype: torch.dtype, *, is_fp8: bool) -> Tensor | Fp8Blocks:
    if not is_fp8:
        return empty(8, 2, 16, shape.K, shape.D, dtype=dtype)
    memory = empty(8, block_bytes(16, shape.K, shape.D), dtype=torch.uint8)
    return Fp8Blocks(memory=memory, block_tokens=16, num_kv_heads=shape.K, head_dim=shape.D)


def attend(
    shape: Shape,
    dtype: torch.dtype,
    *,
    counts: list[int],
    num_blocks: int,
    window: int | None,
    is_fp8: bool = False,
) -> None:
    num_seqs = len(counts)
    kernels("attention").paged_attention(
        empty(sum(counts), shape.H, shape.D, dtype=dtype),
        blocks_of(shape, dtype, is_fp8=is_fp8),
        empty(num_seqs, num_blocks, dtype=torch.int32),
        empty(num_seqs, dtype=torch.int32),
        empty(num_seqs, dtype=torch.int32),
        shape.D**-0.5,
        window,
    )


def products(shape: Shape, dtype: torch.dtype, num_rows: int, format: str | None = None) -> None:
    """With plain weights, or with codes of a format."""
    linear, q, kv = kernels("linear"), shape.H * shape.D, shape.K * shape.D
    for num_out, num_in in (
        (q + 2 * kv, shape.E), (shape.E, q), (2 * shape.F, shape.E), (shape.E, shape.F), (shape.V, shape.E),
    ):  # fmt: skip
        bias = empty(num_out, dtype=dtype) if shape.bias and num_out == q + 2 * kv else None
        if format is None:
            packed = linear.pack(empty(num_out, num_in, dtype=dtype), bias)
        else:
            packed = linear.pack_codes(Codes.empty(format, num_out, num_in, "meta"), bias, dtype)
        linear.linear(empty(num_rows, num_in, dtype=dtype), packed)


def rows(shape: Shape, dtype: torch.dtype, num_rows: int) -> None:
    x, weight = empty(num_rows, shape.E, dtype=dtype), empty(shape.E, dtype=dtype)
    kernels("sampling").likeliest(empty(num_rows, shape.V, dtype=torch.float32))
    kernels("norm").rms_norm(x, weight, 1e-5)
    kernels("norm").add_rms_norm(x, x, weight, 1e-5)
    kernels("activation").silu_mul(*empty(num_rows, 2 * shape.F, dtype=dtype).chunk(2, dim=1))
    heads = empty(num_rows, shape.H + 2 * shape.K, shape.D, dtype=dtype)
    norm = empty(shape.D, dtype=dtype) if shape.norms else None
    angles = empty(num_rows, shape.D // 2, dtype=torch.float32)
    for is_fp8 in (False, True):
        kernels("rope").rotate_and_write(
            *heads.split([shape.H, shape.K, shape.K], dim=1), angles, angles, blocks_of(shape, dtype, is_fp8=is_fp8),
            empty(num_rows, dtype=torch.int64), norm, norm, 1e-5,
        )  # fmt: skip


def made_for(call: Callable[[], None]) -> list[int]:
    """Which compiled kernels the call would start: equal numbers are one kernel."""
    with recorded() as launches:
        call()
    return [
        id(launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.options)) for launch in launches
    ]


def compiled(call: Callable[[], None]) -> list[str]:
    """Compiles what the call would start; returns a line for each, and fails where one does not fit."""
    with recorded() as launches:
        call()
    assert launches
    lines = []
    for launch in launches:
        made = launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.options)
        assert made.asm["ptx"]
        assert ".target sm_90" in made.asm["ptx"]
        assert len(made.asm["cubin"]) > 0
        assert made.metadata.shared <= MAX_SHARED_BYTES, f"{name(launch)} wants {made.metadata.shared} bytes"
        line = f"{name(launch)}: {made.metadata.shared} bytes shared{registers(made.asm['cubin'])}"
        if line not in lines:
            lines.append(line)
    return lines


def name(launch: Launch) -> str:
    options = [f"{key}={value}" for key, value in launch.options.items()]
    return f"{launch.kernel.__name__} {' '.join(options)}"


def registers(cubin: bytes) -> str:
    """What the assembler says of registers and of the stack, which holds what did not fit into them."""
    if not CUOBJDUMP.exists():
        return ""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    words = [word for word in done.stdout.split() if word.startswith(("REG:", "STACK:"))]
    return " ".join(["", *words])


WINDOWED = {"Llama-3.1-8B", "Qwen2.5-0.5B"}
HALF = {"Llama-3.1-8B", "Llama-3.2-1B"}
CASES = [
    (model, dtype)
    for model in SHAPES
    for dtype in (torch.bfloat16, torch.float16)
    if dtype == torch.bfloat16 or model in HALF
]


@pytest.mark.parametrize("is_fp8", [False, True])
@pytest.mark.parametrize(("model", "dtype"), CASES)
def test_attention(model: str, dtype: torch.dtype, is_fp8: bool) -> None:
    """Decodes of one part and of several, and chunks."""
    windows = (None, 4096) if model in WINDOWED else (None,)
    for window in windows:
        for counts, num_blocks in (([1] * 40, 16), ([1] * 40, 64), ([512, 1, 1], 64)):

            def call(counts=counts, num_blocks=num_blocks, window=window) -> None:  # type: ignore[no-untyped-def]
                attend(
                    SHAPES[model], dtype, counts=counts, num_blocks=num_blocks, window=window, is_fp8=is_fp8
                )

            print("\n".join(compiled(call)))


@pytest.mark.parametrize("is_fp8", [False, True])
def test_attention_with_the_widest_heads(is_fp8: bool) -> None:
    shape = Shape(8, 4, 256, 2304, 9216, 32000)
    print(
        "\n".join(
            compiled(
                lambda: attend(
                    shape, torch.bfloat16, counts=[512, 1, 1], num_blocks=64, window=None, is_fp8=is_fp8
                )
            )
        )
    )


@pytest.mark.parametrize(("model", "dtype"), CASES)
def test_products(model: str, dtype: torch.dtype) -> None:
    for num_rows in (1, 96, 4096):
        print("\n".join(compiled(partial(products, SHAPES[model], dtype, num_rows))))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("model", "dtype"), CASES)
def test_products_with_codes(model: str, dtype: torch.dtype, format: str) -> None:
    for num_rows in (1, 96, 4096):
        print("\n".join(compiled(partial(products, SHAPES[model], dtype, num_rows, format))))


@pytest.mark.parametrize(("model", "dtype"), CASES)
def test_rows(model: str, dtype: torch.dtype) -> None:
    print("\n".join(compiled(lambda: rows(SHAPES[model], dtype, 96))))


def test_steps_of_other_sizes_start_the_same_kernels() -> None:
    """Rows, sequences and the width of their tables change with every step: none may have a kernel compiled for it
    while requests wait, as Triton does for numbers that are 1 or divisible by 16."""
    shape, dtype = Shape(4, 2, 64, 512, 256, 320), torch.bfloat16
    packed = kernels("linear").pack(empty(512, 1024, dtype=dtype))
    assert packed.num_segments > 1
    for rows_of_one_tile in ((1, 16, 33, 64), (65, 128), (129, 160, 1000)):
        found = [
            made_for(partial(kernels("linear").linear, empty(n, 1024, dtype=dtype), packed))
            for n in rows_of_one_tile
        ]
        assert found == found[:1] * len(found)
    steps = [([1] * 3, 65), ([1] * 16, 80), ([1] * 7, 64), ([1], 70), ([5, 1, 1], 67), ([7] + [1] * 15, 96)]
    found = [
        made_for(partial(attend, shape, dtype, counts=counts, num_blocks=width, window=None))
        for counts, width in steps
    ]
    assert {one[:2] == found[0][:2] for one in found} == {True}
    assert len({one[2] for one in found if len(one) > 2}) == 1


def test_no_kernel_is_left_out() -> None:
    """Whatever the modules launch has been compiled above; other functions of theirs are parts of kernels."""
    with recorded() as launches:
        for counts, num_blocks in (([1] * 3, 64), ([4, 1], 1)):
            attend(SHAPES["Llama-3.1-8B"], torch.bfloat16, counts=counts, num_blocks=num_blocks, window=None)
        products(SHAPES["Qwen2.5-0.5B"], torch.bfloat16, 1)
        rows(SHAPES["Qwen3-0.6B"], torch.bfloat16, 3)
    launched = {
        kernel
        for file in KERNELS.glob("*/cuda.py")
        for kernel in re.findall(r"\blaunch\(\s*(\w+),", file.read_text(encoding="utf-8"))
    }
    assert {launch.kernel.__name__ for launch in launches} == launched


def test_the_interpreter_is_off() -> None:
    assert not triton.knobs.runtime.interpret
