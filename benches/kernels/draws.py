"""What does it cost to draw tokens from rows of logits, and what to report how likely they were?

Beside the compiled kernels and the reference stands the usual way: softmax of the row, sorted where a share of
probability is asked for, and the library's multinomial draw. The floor is one reading of the logits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benches.harness import Bench, GateFailed, Subject
from benches.kernels import trial
from octavo.engine.measure import MachineLimits
from octavo.kernels.native import module
from octavo.kernels.sampling import TORCH, Draw, Sampling
from octavo.kernels.sampling.native import NativeSampling

SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


KINDS = {
    "plain": Kind(),
    "top-p": Kind(top_p=0.9),
    "top-k-top-p": Kind(temperature=0.7, top_k=50, top_p=0.9),
    "min-p": Kind(min_p=0.05),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=trial.whole, default=[1, 32], help="N (default 1,32)")
    parser.add_argument("--vocab", type=int, default=151_936, help="V (default %(default)s)")
    parser.add_argument(
        "--spread", type=float, default=2.5, help="standard deviation of the logits (default %(default)s)"
    )


def build(args: argparse.Namespace, limits: MachineLimits) -> Iterator[Bench]:
    """One question for each number of rows and each kind of draw, and one about the report."""
    numbers = torch.Generator().manual_seed(SEED)
    threads = torch.get_num_threads()
    ways: dict[str, Sampling] = {
        isa: NativeSampling(module().Program(isa, threads, "float32", 1, 1, 2, 16, 1e-6))
        for isa in args.kernels
    }
    ways["reference"] = TORCH
    for num_rows in args.rows:
        logits = torch.randn(num_rows, args.vocab, generator=numbers) * args.spread
        for name, kind in KINDS.items():
            draws = [
                Draw(row, kind.temperature, kind.top_k, kind.top_p, kind.min_p, row)
                for row in range(num_rows)
            ]
            calls: dict[str, Callable[[], Any]] = {
                isa: partial(way.draw, logits, draws) for isa, way in ways.items()
            }
            calls["library"] = partial(usual_draw, logits, kind)
            question = f"what does it cost to draw from {num_rows} rows, {name}?"
            yield _bench(
                args,
                limits,
                question,
                f"draw-{name}-{num_rows}",
                logits,
                calls,
                partial(_same, ways, logits, draws),
            )
        asked = [(row, row % args.vocab, 0) for row in range(num_rows)]
        calls = {isa: partial(way.describe, logits, asked) for isa, way in ways.items()}
        question = f"what does it cost to report of {num_rows} tokens how likely they were?"
        yield _bench(
            args, limits, question, f"describe-{num_rows}", logits, calls, partial(_near, ways, logits, asked)
        )


def usual_draw(logits: Tensor, kind: Kind) -> Tensor:
    """Tokens [N], with a generator's noise: softmax, sort, multinomial."""
    logits = logits / kind.temperature
    if kind.top_k:
        edge = logits.topk(kind.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < edge, float("-inf"))
    if kind.top_p < 1.0:
        values, ids = logits.sort(dim=-1, descending=True)
        shares = values.softmax(-1)
        late = shares.cumsum(-1) - shares >= kind.top_p
        logits = torch.full_like(logits, float("-inf")).scatter(
            1, ids, values.masked_fill(late, float("-inf"))
        )
    shares = logits.softmax(-1)
    if kind.min_p:
        shares = shares.masked_fill(shares < kind.min_p * shares.amax(-1, keepdim=True), 0.0)
    return torch.multinomial(shares, 1)[:, 0]


def _bench(
    args: argparse.Namespace,
    limits: MachineLimits,
    question: str,
    slug: str,
    logits: Tensor,
    calls: Mapping[str, Callable[[], Any]],
    gate: Callable[[], str],
) -> Bench:
    def beside(call_s: float) -> dict[str, float]:
        return {
            "row_s": call_s / len(logits),
            "logits_read_share": logits.nbytes / call_s / limits.read_bytes_per_s,
        }

    def subject(call: Callable[[], Any]) -> Subject:
        return trial.timed(lambda _: call(), beside)

    return Bench(
        question=question,
        slug=f"{slug}-x-{args.vocab}",
        figure="call_s",
        unit="s",
        better="lower",
        shape={"N": len(logits), "V": args.vocab, "spread": args.spread, "dtype": "float32"},
        gate=gate,
        subjects={name: subject(call) for name, call in calls.items()},
        seeds={"logits": SEED},
    )


def _same(ways: Mapping[str, Sampling], logits: Tensor, draws: Sequence[Draw]) -> str:
    """All draw the same tokens, and the first row alone its own."""
    want = TORCH.draw(logits, draws)
    for name, way in ways.items():
        if way.draw(logits, draws) != want or way.draw(logits[:1].clone(), draws[:1]) != want[:1]:
            raise GateFailed(f"{name}: draws other tokens than the reference")
    return f"{', '.join(ways)}: no error budget is needed, tokens are equal, alone and in company"


def _near(ways: Mapping[str, Sampling], logits: Tensor, asked: Sequence[tuple[int, int, int]]) -> str:
    wide = logits.double().log_softmax(-1)
    bound = (logits.shape[1] / 16 + 64) * trial.F32_UNIT
    for name, way in ways.items():
        for (row, token, _), found in zip(asked, way.describe(logits, asked), strict=True):
            if not abs(found.logprob - float(wide[row, token])) <= bound:
                raise GateFailed(f"{name}: a log-probability is off by more than the error budget")
    return f"{', '.join(ways)}: within the error budget of float64"


def main(argv: Sequence[str] | None = None) -> int:
    return trial.run("benches.kernels.draws", __doc__, configure, build, argv)


if __name__ == "__main__":
    sys.exit(main())
