"""The door of the compiled module: what it takes, and what it refuses."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from tests.kernels.numbers import DTYPES, same_bits, seeded

_cpu = pytest.importorskip("octavo._cpu", reason="the compiled module is not built")
EPS = 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_equals_out_of_place(dtype: torch.dtype) -> None:
    x, weight = seeded(5, 33, seed=1, dtype=dtype), seeded(33, seed=2, dtype=dtype)
    out = torch.full_like(x, torch.nan)
    _cpu.rms_norm(x, weight, EPS, out)
    _cpu.rms_norm(x, weight, EPS, x)
    assert same_bits(x, out)


def test_arrays_without_the_exchange_table_are_taken_too() -> None:
    x, weight = seeded(5, 33, seed=1), seeded(33, seed=2)
    want, out = torch.empty_like(x), np.empty((5, 33), dtype=np.float32)
    _cpu.rms_norm(x, weight, EPS, want)
    _cpu.rms_norm(x.numpy(), weight.numpy(), EPS, out)
    assert same_bits(torch.from_numpy(out), want)
    _cpu.rms_norm(x.numpy(), weight, EPS, out)
    assert same_bits(torch.from_numpy(out), want)


def test_writes_only_out() -> None:
    arena = torch.full((9, 33), torch.nan)
    x, weight = seeded(5, 33, seed=1), seeded(33, seed=2)
    kept = x.clone()
    _cpu.rms_norm(x, weight, EPS, arena[2:7])
    assert arena[:2].isnan().all()
    assert arena[7:].isnan().all()
    assert arena[2:7].isfinite().all()
    assert same_bits(x, kept)


@pytest.mark.parametrize(
    ("x", "weight", "out"),
    [
        (torch.ones(2, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64), torch.ones(2, 4)),
        (torch.ones(2, 4, dtype=torch.float16), torch.ones(4, dtype=torch.float16), torch.ones(2, 4)),
        (torch.ones(2, 4), torch.ones(4, dtype=torch.bfloat16), torch.ones(2, 4)),
        (torch.ones(2, 4), torch.ones(4), torch.ones(2, 4, dtype=torch.bfloat16)),
        (torch.ones(2, 8)[:, ::2], torch.ones(4), torch.ones(2, 4)),
        (torch.ones(4, 2).t(), torch.ones(4), torch.ones(2, 4)),
        (torch.ones(2, 4), torch.ones(4), torch.ones(4, 2).t()),
        (torch.ones(4), torch.ones(4), torch.ones(4)),
        (torch.ones(1, 2, 4), torch.ones(4), torch.ones(1, 2, 4)),
        (torch.ones(2, 4, device="meta"), torch.ones(4), torch.ones(2, 4)),
        ([[1.0, 2.0]], torch.ones(2), torch.ones(1, 2)),
        (None, torch.ones(2), torch.ones(1, 2)),
        (np.ones((2, 4), dtype=np.float64), torch.ones(4), torch.ones(2, 4)),
    ],
    ids=str,
)
def test_other_types_strides_and_ranks_are_refused(x: object, weight: object, out: object) -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _cpu.rms_norm(x, weight, EPS, out)


def test_a_read_only_array_is_not_written() -> None:
    out = np.ones((2, 4), dtype=np.float32)
    out.flags.writeable = False
    with pytest.raises(TypeError):
        _cpu.rms_norm(np.ones((2, 4), dtype=np.float32), np.ones(4, dtype=np.float32), EPS, out)
    assert (out == 1).all()


def test_shapes_that_do_not_agree_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"got \[2, 4\], \[5\] and \[2, 4\]"):
        _cpu.rms_norm(torch.ones(2, 4), torch.ones(5), EPS, torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"got \[2, 4\], \[4\] and \[3, 4\]"):
        _cpu.rms_norm(torch.ones(2, 4), torch.ones(4), EPS, torch.ones(3, 4))


def test_arrays_that_overlap_in_part_are_refused() -> None:
    arena = torch.ones(9)
    with pytest.raises(ValueError, match="overlap"):
        _cpu.rms_norm(arena[:8].view(2, 4), torch.ones(4), EPS, arena[1:].view(2, 4))
    rows = torch.ones(4, 4)
    _cpu.rms_norm(rows[:2], torch.ones(4), EPS, rows[2:])


def test_threads_may_call_at_once() -> None:
    weight = seeded(257, seed=9)
    inputs = [seeded(200, 257, seed=i) for i in range(4)]
    alone = [torch.empty_like(x) for x in inputs]
    for x, out in zip(inputs, alone, strict=True):
        _cpu.rms_norm(x, weight, EPS, out)
    together = [torch.empty_like(x) for x in inputs]
    threads = [
        threading.Thread(target=lambda x=x, out=out: [_cpu.rms_norm(x, weight, EPS, out) for _ in range(20)])
        for x, out in zip(inputs, together, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_bits(a, b) for a, b in zip(alone, together, strict=True))


def test_features_are_what_the_operating_system_lists() -> None:
    found = _cpu.features()
    assert found == sorted(set(found), key=found.index)
    try:
        with open("/proc/cpuinfo") as lines:
            listed = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), None)
    except OSError:
        listed = None
    if listed is None:
        pytest.skip("the operating system lists no processor flags")
    names = {"avx512f": "avx512f", "avx512_bf16": "avx512_bf16", "avx512_vnni": "avx512_vnni", "avx2": "avx2"}
    assert {name for name in names if name in found} == {
        name for name, flag in names.items() if flag in listed
    }
    assert ("amx_bf16" in found) <= ("amx_bf16" in listed)
