"""The vocabulary in parts of PART, side by side, then merged in order. The contract is in the package."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.sampling.reference import check
from octavo.kernels.triton import launch

PART = 4096
"""Entries whose exponentials are summed together, whatever V."""


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check("likeliest", logits)
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    (num_rows, size), device = logits.shape, logits.device
    num_parts = triton.cdiv(size, PART)
    tokens, problems = (torch.empty(num_rows, dtype=torch.int64, device=device) for _ in range(2))
    tops, log_masses = (torch.empty(num_rows, dtype=torch.float32, device=device) for _ in range(2))
    if num_rows:
        facts = torch.empty(num_rows, num_parts, 3, dtype=torch.float32, device=device)
        ids = torch.empty(num_rows, num_parts, dtype=torch.int32, device=device)
        launch(
            _part, (num_parts, num_rows), logits, facts, ids, logits.stride(0), size, num_parts,
            PART=PART, num_warps=8,
        )  # fmt: skip
        launch(
            _merge, (num_rows,), facts, ids, tokens, tops, log_masses, problems, num_parts,
            PARTS=max(16, triton.next_power_of_2(num_parts)), num_warps=1,
        )  # fmt: skip
    return tokens, tops, log_masses, problems


@triton.jit
def _part(logits, facts, ids, row_stride, size, num_parts, PART: tl.constexpr):
    """Top, sum of exponentials under it, whether an entry is NaN; and the place of the top."""
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    entry = part * PART + tl.arange(0, PART)
    values = tl.load(logits + row * row_stride + entry, mask=entry < size, other=float("-inf"))
    broken = tl.max((values != values).to(tl.int32), axis=0)
    values = tl.where(values != values, float("-inf"), values)
    top = tl.max(values, axis=0)
    base = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    mass = tl.sum(tl.exp(values - base), axis=0)
    place = tl.min(tl.where(values == top, entry, 2147483647), axis=0)
    at = row * num_parts + part
    tl.store(facts + at * 3, top)
    tl.store(facts + at * 3 + 1, mass)
    tl.store(facts + at * 3 + 2, broken.to(tl.float32))
    tl.store(ids + at, place)


@triton.jit
def _merge(facts, ids, tokens, tops, log_masses, problems, num_parts, PARTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    at, inside = row * num_parts + part, part < num_parts
    part_tops = tl.load(facts + at * 3, mask=inside, other=float("-inf"))
    masses = tl.load(facts + at * 3 + 1, mask=inside, other=0.0)
    broken = tl.max(tl.load(facts + at * 3 + 2, mask=inside, other=0.0), axis=0) > 0
    places = tl.load(ids + at, mask=inside, other=2147483647)
    top = tl.max(part_tops, axis=0)
    problem = tl.where(broken, 1, tl.where(top == float("inf"), 2, tl.where(top == float("-inf"), 3, 0)))
    base = tl.where(problem == 0, top, 0.0)
    fades = tl.where(part_tops == float("-inf"), 0.0, tl.exp(tl.minimum(part_tops - base, 0.0)))
    mass = tl.sum(masses * fades, axis=0)
    token = tl.min(tl.where(part_tops == top, places, 2147483647), axis=0)
    tl.store(tokens + row, tl.where(problem == 0, token, 0).to(tl.int64))
    tl.store(tops + row, base)
    tl.store(log_masses + row, tl.where(problem == 0, tl.log(mass), 0.0))
    tl.store(problems + row, problem.to(tl.int64))
