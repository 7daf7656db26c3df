"""Plain torch. The contract is in the package."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo.kernels.sampling.noise import gumbel
from octavo.kernels.sampling.truncate import highest, select

NO_TOKEN = -1


def greedy(logits: Tensor) -> list[tuple[int, float, int]]:
    check("greedy", logits)
    return [_row(row) for row in logits]


def check(op: str, logits: Tensor) -> None:
    if logits.ndim != 2 or logits.dtype != torch.float32:
        raise ValueError(f"{op}: want float32 logits [N, V], got {list(logits.shape)} {logits.dtype}")


def _row(row: Tensor) -> tuple[int, float, int]:
    problem = problem_of(row)
    if problem:
        return 0, 0.0, problem
    token = int(row.argmax())
    return token, float(row.log_softmax(-1)[token]), 0


def problem_of(row: Tensor) -> int:
    top = float(row.amax())  # NaN when any entry is
    if math.isnan(top):
        return 1
    if math.isinf(top):
        return 2 if top > 0 else 3
    return 0


def draw(row: Tensor, temperature: float, top_k: int, top_p: float, min_p: float, key: int) -> int:
    if math.isnan(float(row.amax())):  # the largest is, when any entry is
        return NO_TOKEN
    ids, values = select(row / temperature, top_k, top_p, min_p)
    if not ids.numel():
        return NO_TOKEN
    scores = values.double() + gumbel(key, ids)
    return int(ids[scores == scores.max()].min())


def describe(row: Tensor, token: int, num_top: int) -> tuple[int, float, int, tuple[tuple[int, float], ...]]:
    problem = problem_of(row)
    if problem:
        return problem, 0.0, 0, ()
    logprobs = row.log_softmax(-1)
    own = logprobs[token]
    rank = 1 + int((logprobs > own).count_nonzero()) + int((logprobs[:token] == own).count_nonzero())
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        ids, values = highest(logprobs, min(num_top, logprobs.numel()))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return 0, float(own), rank, top


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check("likeliest", logits)
    tops = logits.amax(-1)  # NaN when any entry is
    problems = torch.where(
        tops.isnan(), 1, torch.where(tops == math.inf, 2, torch.where(tops == -math.inf, 3, 0))
    )
    safe = torch.where(problems == 0, tops, 0.0)
    wholes = whole_shares(torch.where(problems[:, None] == 0, logits, 0.0), safe[:, None])
    log_masses = (wholes.sum(-1).double() * 2.0 ** -_bits(logits.shape[1])).log().float()
    sound = problems == 0
    tokens = torch.where(sound, logits.argmax(-1), 0)
    return tokens, safe, torch.where(sound, log_masses, 0.0), problems


def whole_shares(values: Tensor, tops: Tensor) -> Tensor:
    return ((values - tops).double().exp() * 2.0 ** _bits(values.shape[-1])).round_().to(torch.int64)


def _bits(size: int) -> int:
    """Fraction bits with which `size` shares, none above 1, add up within 62 bits."""
    return 62 - max(size - 1, 1).bit_length()


def ordered(values: Tensor) -> Tensor:
    bits = values.contiguous().view(torch.int32).to(torch.int64)
    return torch.where(bits < 0, -(2**31) - 1 - bits, bits)
