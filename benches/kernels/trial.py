"""What kernel benches have in common: timing of short calls, error bounds, command lines."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benches import harness
from benches.harness import Bench, Figures, GateFailed, Subject
from octavo.engine.measure import MachineLimits, measure_machine
from octavo.kernels.choose import Impl, Need
from octavo.kernels.native import instruction_sets

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
F32_UNIT = torch.finfo(torch.float32).eps / 2
REPEAT_S = 0.02

Build = Callable[[argparse.Namespace, MachineLimits], Iterable[Bench]]


def unit(dtype: torch.dtype) -> float:
    """Relative error of rounding to a dtype once."""
    return torch.finfo(dtype).eps / 2


def require_within(what: str, got: Tensor, want: Tensor, bound: Tensor) -> None:
    """Raises GateFailed with the worst element when |got - want| exceeds the bound, all in float64."""
    excess = (got.double() - want).abs() - bound
    if not bool((excess <= 0).all()):
        raise GateFailed(
            f"{what}: off by {float(excess.nan_to_num(torch.inf).max()):.3g} more than the error budget"
        )


def require_same_bits(what: str, got: Tensor, want: Tensor) -> None:
    if not torch.equal(got, want):
        raise GateFailed(f"{what}: not the same bits")


def fitting(impls: Iterable[Impl], op: str, need: Need) -> dict[str, Impl]:
    """Every implementation of an op that runs here, by name."""
    return {impl.name: impl for impl in impls if impl.op == op and impl.refuses(need) is None}


def timed(work: Callable[[int], Any], beside: Callable[[float], Figures]) -> Subject:
    """A subject that calls `work` for at least REPEAT_S in each repeat and reports the mean of a call.

    work    gets a running number, to go through operands that the caches have forgotten
    beside  figures that follow from the seconds of one call
    """
    state = {"calls": 1, "next": 0}

    def run(repeat: int) -> Figures:
        del repeat
        while True:
            started_s = time.perf_counter()
            for number in range(state["next"], state["next"] + state["calls"]):
                work(number)
            spent_s = time.perf_counter() - started_s
            state["next"] += state["calls"]
            if spent_s >= REPEAT_S:
                break
            state["calls"] = max(
                state["calls"] + 1, int(state["calls"] * 1.2 * REPEAT_S / max(spent_s, 1e-6))
            )
        call_s = spent_s / state["calls"]
        return {"call_s": call_s, **beside(call_s)}

    return run


def copies(num_bytes: int, limits: MachineLimits) -> int:
    """How many copies of an operand to go through so that each call finds its own out of every cache.

    At most 256: operands so small that more would be needed are near the processor in a model, too.
    """
    return min(256, 1 + 2 * limits.cpu.last_level_bytes // max(num_bytes, 1))


def whole(text: str) -> list[int]:
    """`"1,64"` -> [1, 64]."""
    return [int(word) for word in text.split(",")]


def run(
    module: str,
    doc: str | None,
    configure: Callable[[argparse.ArgumentParser], None],
    build: Build,
    argv: Sequence[str] | None = None,
) -> int:
    """The command line of a kernel bench; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc)
    parser.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="of operands (default %(default)s)"
    )
    parser.add_argument(
        "--kernels",
        type=lambda text: text.split(","),
        default=list(instruction_sets()[:1]),
        help="instruction sets of the compiled kernels, in turns (default: the best)",
    )
    configure(parser)
    harness.arguments(parser)
    args = parser.parse_args(words)
    settings = harness.settings(args, module, words)
    torch.set_num_threads(settings.threads)
    limits = measure_machine(settings.threads)
    return harness.ask(list(build(args, limits)), settings, limits)


def shape_of(args: argparse.Namespace, **sizes: int) -> Mapping[str, Any]:
    """A bench's shape: sizes by the letters of the shape legend, and the dtype."""
    return {**sizes, "dtype": args.dtype}
