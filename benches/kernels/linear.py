"""What does a row-invariant product cost beside the library's own, and which row tile is the fastest?

The library's product may sum in another order at another number of rows; ours may not. Weights are taken in
turn from copies larger than the last cache, as a model's layers are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benches.harness import Bench, Figures
from benches.kernels import compiled, trial
from octavo.engine.measure import MachineLimits
from octavo.kernels.choose import Impl, Need
from octavo.kernels.linear import IMPLS, Packed, linear, pack
from octavo.kernels.tiles import Ladder

SEED = 0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=trial.whole, default=[1, 8, 64, 512], help="T (default 1,8,64,512)")
    parser.add_argument("--in-features", type=int, default=1024, help="I (default %(default)s)")
    parser.add_argument("--out-features", type=int, default=3072, help="O (default %(default)s)")


def build(args: argparse.Namespace, limits: MachineLimits) -> Iterator[Bench]:
    """One question for each number of rows, and one about the tiles at the largest."""
    dtype, num_in, num_out = trial.DTYPES[args.dtype], args.in_features, args.out_features
    draw = torch.Generator().manual_seed(SEED)
    num_copies = trial.copies(num_in * num_out * dtype.itemsize, limits)
    weights = [
        (torch.randn(num_out, num_in, generator=draw) * num_in**-0.5).to(dtype) for _ in range(num_copies)
    ]
    need = Need(device="cpu", dtype=dtype, sizes={"O": num_out, "I": num_in})
    impls = trial.fitting(IMPLS, "linear", need) | compiled.linears(dtype, args.kernels)
    packed = {name: [_pack(impl, weight) for weight in weights] for name, impl in impls.items()}
    for num_rows in args.rows:
        x = torch.randn(num_rows, num_in, generator=draw).to(dtype)
        rates = {
            name: _Rates(args.dtype, limits, num_rows, weights[0].numel(), _nbytes(packed[name][0]))
            for name in impls
        }
        subjects = {
            name: trial.timed(_turns(impls[name].run, x, packed[name]), rates[name]) for name in impls
        }
        widest = [weight.float() for weight in weights]
        of_library = _Rates(args.dtype, limits, num_rows, weights[0].numel(), weights[0].nbytes)
        subjects["library"] = trial.timed(_turns(_library, x, weights), of_library)
        if dtype != torch.float32:
            of_float32 = _Rates("float32", limits, num_rows, weights[0].numel(), widest[0].nbytes)
            subjects["library float32"] = trial.timed(_turns(_library, x.float(), widest), of_float32)
        yield Bench(
            question=f"what does a row-invariant product of {num_rows} rows cost beside the library's?",
            slug=f"linear-{num_rows}-rows-{num_in}-to-{num_out}-{args.dtype}",
            figure="call_s",
            unit="s",
            better="lower",
            shape=trial.shape_of(args, T=num_rows, I=num_in, O=num_out),
            gate=partial(gate, x, weights[0], {name: (impls[name], packed[name][0]) for name in impls}),
            subjects=subjects,
            seeds={"operands": SEED},
        )
    yield _tiles(args, limits, weights, max(args.rows))


def gate(x: Tensor, weight: Tensor, ready: dict[str, tuple[Impl, Any]]) -> str:
    """Within the contract's error budget of float64, and every row the same bits alone and in company."""
    wide = x.double()
    for name, (impl, packed) in ready.items():
        is_compiled = isinstance(packed, compiled.Product)
        matrix = packed.matrix().t() if is_compiled else weight.double().t()
        want, mass = wide @ matrix, wide.abs() @ matrix.abs()
        before = (x.shape[1] + 2) * trial.F32_UNIT * mass + (packed.rounding(x) if is_compiled else 0.0)
        bound = before + trial.unit(x.dtype) * (want.abs() + before)
        got = impl.run(x, packed).clone()
        trial.require_within(name, got, want, bound)
        for row in sorted({0, len(x) // 2, len(x) - 1}):
            trial.require_same_bits(
                f"{name}, row {row} alone", impl.run(x[row : row + 1], packed)[0], got[row]
            )
    return (
        f"{', '.join(ready)}: within the error budget of float64; rows have equal bits alone and in company"
    )


class _Rates:
    """Shares of the machine's limits that a call of given length reaches."""

    def __init__(
        self, dtype: str, limits: MachineLimits, num_rows: int, num_weights: int, num_bytes: int
    ) -> None:
        self._bytes_share = num_bytes / limits.read_bytes_per_s
        self._flop = 2 * num_rows * num_weights
        rate = limits.flop_per_s(dtype)
        self._flop_share = None if rate is None else self._flop / rate

    def __call__(self, call_s: float) -> Figures:
        figures = {"weight_read_share": self._bytes_share / call_s, "flop_per_s": self._flop / call_s}
        if self._flop_share is not None:
            figures["matrix_share"] = self._flop_share / call_s
        return figures


def _pack(impl: Impl, weight: Tensor) -> Any:
    assert impl.pack is not None, "a linear kernel packs its weight"
    return impl.pack(weight)


def _nbytes(packed: Any) -> int:
    return int(packed.weight.nbytes)


def _library(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight.t())


def _turns(
    product: Callable[[Tensor, Any], Tensor], x: Tensor, weights: Sequence[Any]
) -> Callable[[int], Tensor]:
    """A product with each of the weights in turn."""
    return lambda number: product(x, weights[number % len(weights)])


def _tiles(
    args: argparse.Namespace, limits: MachineLimits, weights: Sequence[Tensor], num_rows: int
) -> Bench:
    """Every tile that was proven invariant here, used alone, and all of them together."""
    x = torch.randn(num_rows, weights[0].shape[1], generator=torch.Generator().manual_seed(SEED)).to(
        weights[0].dtype
    )
    threads = torch.get_num_threads()
    rates = _Rates(args.dtype, limits, num_rows, weights[0].numel(), weights[0].nbytes)
    proven = [pack(weight) for weight in weights]
    ladders = {"ladder": proven[0].ladder()}
    ladders |= {f"tile {tile}": Ladder((tile,), "chosen by the bench") for tile in ladders["ladder"].tiles}
    ready = {
        name: [Packed(one.weight, ladders={threads: ladder}) for one in proven]
        for name, ladder in ladders.items()
    }
    reference = next(impl for impl in IMPLS if impl.name == "reference")
    return Bench(
        question=f"which row tile takes {num_rows} rows through a product fastest?",
        slug=f"linear-tiles-{num_rows}-rows-{args.in_features}-to-{args.out_features}-{args.dtype}",
        figure="call_s",
        unit="s",
        better="lower",
        shape=trial.shape_of(args, T=num_rows, I=args.in_features, O=args.out_features),
        gate=lambda: gate(x, weights[0], {name: (reference, packed[0]) for name, packed in ready.items()}),
        subjects={name: trial.timed(_turns(linear, x, packed), rates) for name, packed in ready.items()},
        seeds={"operands": SEED},
        notes=[ladders["ladder"].because],
    )


def main(argv: Sequence[str] | None = None) -> int:
    return trial.run("benches.kernels.linear", __doc__, configure, build, argv)


if __name__ == "__main__":
    sys.exit(main())
