"""What share of the memory's read rate does decoding over paged keys and values reach?

One new row for each sequence. Beside it the library's attention on the same keys and values laid out densely,
which pages nothing and promises nothing about bits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from benches.harness import Bench
from benches.kernels import cached, trial
from octavo.engine.measure import MachineLimits


def configure(parser: argparse.ArgumentParser) -> None:
    cached.configure(parser)
    parser.add_argument("--sequences", type=trial.whole, default=[1, 8, 32], help="S (default 1,8,32)")
    parser.add_argument(
        "--tokens", type=int, default=2048, help="cached tokens of each (default %(default)s)"
    )


def build(args: argparse.Namespace, limits: MachineLimits) -> Iterator[Bench]:
    cached.check_sizes([*args.sequences, args.tokens])
    impls = cached.implementations(args)
    for num_seqs in args.sequences:
        case = cached.Case.draw(args, num_seqs, args.tokens, 1)
        yield Bench(
            question=f"what share of the read rate does decoding {num_seqs} x {args.tokens} cached tokens reach?",
            slug=f"paged-decode-{num_seqs}-x-{args.tokens}-h{args.heads}-k{args.kv_heads}-{args.dtype}",
            figure="call_s",
            unit="s",
            better="lower",
            shape=trial.shape_of(
                args, S=num_seqs, tokens=args.tokens, H=args.heads, K=args.kv_heads, D=args.head_dim
            ),
            gate=partial(cached.gate, case, impls),
            subjects=cached.subjects(case, impls, limits),
            seeds={"operands": cached.SEED},
        )


def main(argv: Sequence[str] | None = None) -> int:
    return trial.run("benches.kernels.paged_decode", __doc__, configure, build, argv)


if __name__ == "__main__":
    sys.exit(main())
