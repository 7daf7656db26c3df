"""Paged keys and values for the attention benches, the same ones laid out densely, and the gate."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benches.harness import Subject
from benches.kernels import compiled, trial
from octavo.engine.measure import MachineLimits
from octavo.kernels.attention import IMPLS
from octavo.kernels.choose import Impl, Need

SEED = 0
BLOCK_TOKENS = 16


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--heads", type=int, default=16, help="H (default %(default)s)")
    parser.add_argument("--kv-heads", type=int, default=8, help="K (default %(default)s)")
    parser.add_argument("--head-dim", type=int, default=128, help="D (default %(default)s)")


@dataclass(frozen=True, slots=True)
class Case:
    """Equal sequences whose last `num_rows` positions are asked for; blocks lie scattered.

    dense  keys and values [S, K, n, D] as the library wants them
    """

    q: Tensor
    blocks: Tensor
    tables: Tensor
    starts: Tensor
    counts: Tensor
    scale: float
    dense: tuple[Tensor, Tensor]

    @classmethod
    def draw(cls, args: argparse.Namespace, num_seqs: int, num_tokens: int, num_rows: int) -> Case:
        """The last `num_rows` of `num_tokens` positions of each sequence, from a fixed seed."""
        dtype, heads, kv_heads, width = trial.DTYPES[args.dtype], args.heads, args.kv_heads, args.head_dim
        generator = torch.Generator().manual_seed(SEED)
        per_seq = -(-num_tokens // BLOCK_TOKENS)
        order = torch.randperm(num_seqs * per_seq, generator=generator)
        blocks = torch.randn(len(order), 2, BLOCK_TOKENS, kv_heads, width, generator=generator).to(dtype)
        tables = order.view(num_seqs, per_seq).to(torch.int32)
        flat = blocks[order].view(num_seqs, per_seq, 2, BLOCK_TOKENS, kv_heads, width)
        keys, values = flat.permute(2, 0, 4, 1, 3, 5).reshape(2, num_seqs, kv_heads, -1, width)[
            ..., :num_tokens, :
        ]
        return cls(
            q=torch.randn(num_seqs * num_rows, heads, width, generator=generator).to(dtype),
            blocks=blocks,
            tables=tables,
            starts=torch.full((num_seqs,), num_tokens - num_rows, dtype=torch.int32),
            counts=torch.full((num_seqs,), num_rows, dtype=torch.int32),
            scale=width**-0.5,
            dense=(keys.contiguous(), values.contiguous()),
        )

    @property
    def num_tokens(self) -> int:
        return self.dense[0].shape[2]

    @property
    def num_rows(self) -> int:
        return int(self.counts[0])

    @property
    def kv_bytes(self) -> int:
        """Keys and values that must be read at least once."""
        return sum(one.nbytes for one in self.dense)

    @property
    def flop(self) -> int:
        """Operations of the two products for the pairs that are seen."""
        first, last = self.num_tokens - self.num_rows + 1, self.num_tokens
        seen = len(self.counts) * (first + last) * self.num_rows // 2
        return 4 * self.q.shape[1] * self.q.shape[2] * seen

    def run(self, impl: Impl) -> Tensor:
        """[T, H, D] by one of our implementations."""
        return impl.run(self.q, self.blocks, self.tables, self.starts, self.counts, self.scale)  # type: ignore[no-any-return]

    def run_library(self) -> Tensor:
        """[S, H, rows, D] by the library, on the dense copies and with no promise about bits."""
        keys, values = self.dense
        rows = self.q.view(len(self.counts), self.num_rows, *self.q.shape[1:]).transpose(1, 2)
        mask = None
        if self.num_rows > 1:
            mask = torch.ones(self.num_rows, self.num_tokens, dtype=torch.bool)
            mask = mask.tril(self.num_tokens - self.num_rows)
        return torch.nn.functional.scaled_dot_product_attention(
            rows, keys, values, attn_mask=mask, scale=self.scale, enable_gqa=True
        )


def subjects(case: Case, impls: dict[str, Impl], limits: MachineLimits) -> dict[str, Subject]:
    """Our implementations, and the library's attention on dense memory."""

    def beside(call_s: float) -> dict[str, float]:
        return {
            "kv_read_share": case.kv_bytes / call_s / limits.read_bytes_per_s,
            "fp32_share": case.flop / call_s / limits.fp32_flop_per_s,
            "flop_per_s": case.flop / call_s,
        }

    def ours(impl: Impl) -> Subject:
        return trial.timed(lambda _: case.run(impl), beside)

    made = {name: ours(impl) for name, impl in impls.items()}
    made["library"] = trial.timed(lambda _: case.run_library(), beside)
    return made


def implementations(args: argparse.Namespace) -> dict[str, Impl]:
    sizes = {"H": args.heads, "K": args.kv_heads, "D": args.head_dim}
    dtype = trial.DTYPES[args.dtype]
    found = trial.fitting(IMPLS, "paged_attention", Need(device="cpu", dtype=dtype, sizes=sizes))
    return found | compiled.attentions(dtype, args.kernels)


def gate(case: Case, impls: dict[str, Impl]) -> str:
    """Within the contract's budget of a float64 softmax over dense memory; the first sequence alone has the
    bits it has in company."""
    want, bound = expected(case)
    for name, impl in impls.items():
        got = case.run(impl)
        trial.require_within(name, got, want, bound)
        first = case.num_rows
        alone = impl.run(
            case.q[:first], case.blocks, case.tables[:1], case.starts[:1], case.counts[:1], case.scale
        )
        trial.require_same_bits(f"{name}, first sequence alone", alone, got[:first])
    return f"{', '.join(impls)}: within the error budget of float64; a sequence has equal bits alone and in company"


def expected(case: Case) -> tuple[Tensor, Tensor]:
    """What the definition gives in float64, [T, H, D], and how far the contract lets results be from it."""
    budget = 2 * trial.unit(case.q.dtype) + (case.q.shape[2] + case.num_tokens + 16) * trial.F32_UNIT
    want = _dense_softmax(case)
    return want, torch.full_like(want, budget * float(case.dense[1].abs().max()))


def _dense_softmax(case: Case) -> Tensor:
    """[T, H, D] float64, one sequence and head at a time, from the definition."""
    keys, values = (one.double() for one in case.dense)
    num_seqs, rows, heads = len(case.counts), case.num_rows, case.q.shape[1]
    want = torch.empty(case.q.shape, dtype=torch.float64)
    position = torch.arange(case.num_tokens - rows, case.num_tokens)
    hidden = torch.arange(case.num_tokens)[None, :] > position[:, None]
    for seq in range(num_seqs):
        for head in range(heads):
            own = slice(seq * rows, (seq + 1) * rows)
            kv_head = head * keys.shape[1] // heads
            scores = case.q[own, head].double() @ keys[seq, kv_head].t() * case.scale
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            want[own, head] = weights @ values[seq, kv_head]
    return want


def check_sizes(sizes: Sequence[int]) -> None:
    """Raises ValueError for a size below one."""
    if min(sizes) < 1:
        raise ValueError(f"sizes must be at least 1, got {list(sizes)}")
