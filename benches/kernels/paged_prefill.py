"""What does attention of a prompt chunk over paged keys and values cost as the context before it grows?

A chunk of rows at the end of each context. Beside it the library's attention on the same keys and values laid
out densely, which pages nothing and promises nothing about bits.
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
    parser.add_argument("--rows", type=int, default=512, help="tokens of the chunk (default %(default)s)")
    parser.add_argument(
        "--before",
        type=trial.whole,
        default=[0, 512, 1536],
        help="tokens before the chunk (default 0,512,1536)",
    )


def build(args: argparse.Namespace, limits: MachineLimits) -> Iterator[Bench]:
    cached.check_sizes([args.rows, *(before + 1 for before in args.before)])
    impls = cached.implementations(args)
    for before in args.before:
        case = cached.Case.draw(args, 1, before + args.rows, args.rows)
        yield Bench(
            question=f"what does attention of a chunk of {args.rows} tokens cost after {before} others?",
            slug=f"paged-prefill-{args.rows}-after-{before}-h{args.heads}-k{args.kv_heads}-{args.dtype}",
            figure="call_s",
            unit="s",
            better="lower",
            shape=trial.shape_of(
                args, S=1, T=args.rows, before=before, H=args.heads, K=args.kv_heads, D=args.head_dim
            ),
            gate=partial(cached.gate, case, impls),
            subjects=cached.subjects(case, impls, limits),
            seeds={"operands": cached.SEED},
        )


def main(argv: Sequence[str] | None = None) -> int:
    return trial.run("benches.kernels.paged_prefill", __doc__, configure, build, argv)


if __name__ == "__main__":
    sys.exit(main())
