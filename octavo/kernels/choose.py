"""Which implementation of an op runs, decided once at load, with the reasons against the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from octavo.errors import KernelUnavailable

VARIANT = "a row's bits depend on its company; --no-batch-invariant allows that"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a model asks of an op.

    device  torch device type, "cpu" or "cuda"
    dtype   of the activations
    sizes   widths that matter to the op, by the letters of the shape legend ({"D": 64, "H": 4, "K": 2})
    batch_invariant  a row's bits may depend on nothing but that row; False: on its company, too
    """

    device: str
    dtype: torch.dtype
    sizes: Mapping[str, int] = field(default_factory=dict)
    batch_invariant: bool = True

    def __str__(self) -> str:
        sizes = "".join(f" {name}={size}" for name, size in self.sizes.items())
        return f"{self.device} {str(self.dtype).removeprefix('torch.')}{sizes}"


@dataclass(frozen=True, slots=True)
class Impl:
    """One way to run an op.

    op       the op's name, that of the contract function
    name     of this way: "reference", "cpu", ...
    run      same signature and promises as the contract function
    refuses  a reason why it does not fit the need, or None when it does
    pack     for ops with weights: turns [O, I] and an optional bias into what `run` takes
    is_batch_invariant  keeps the contract's promise on bits; False: all of the contract but that
    """

    op: str
    name: str
    run: Callable[..., Any]
    refuses: Callable[[Need], str | None]
    pack: Callable[..., Any] | None = None
    is_batch_invariant: bool = True


def fits_all(need: Need) -> str | None:
    """`refuses` of an implementation that runs on any device and floating dtype."""
    if not need.dtype.is_floating_point:
        return f"{need.dtype} is not a floating type"
    return None


def choose(op: str, need: Need, impls: Sequence[Impl]) -> tuple[Impl, list[str]]:
    """First implementation of `op` that fits, and one reason for each passed over before it.

    Raises KernelUnavailable when none fits.
    """
    passed_over: list[str] = []
    for impl in impls:
        if impl.op != op:
            continue
        reason = impl.refuses(need)
        if reason is None and need.batch_invariant and not impl.is_batch_invariant:
            reason = VARIANT
        if reason is None:
            return impl, passed_over
        passed_over.append(f"{impl.name}: {reason}")
    raise KernelUnavailable(op, need, passed_over)
