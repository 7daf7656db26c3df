"""The kernels one model runs on, chosen once at load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from octavo.arch import Arch
from octavo.errors import ConfigError
from octavo.kernels import activation, attention, embedding, linear, norm, rope
from octavo.kernels.choose import Impl, Need, choose
from octavo.kernels.linear import Codes
from octavo.planner.codes import CODES, HEAD_CODES


class Decision(NamedTuple):
    """Which implementation of an op runs, why those before it in the list do not, and whether a row's bits depend on
    nothing but that row."""

    op: str
    impl: str
    passed_over: tuple[str, ...]
    is_batch_invariant: bool = True


def decisions_of(
    arch: Arch,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str | None = None,
    *,
    has_fp8_kv: bool = False,
    batch_invariant: bool = True,
) -> list[Decision]:
    """What `Ops` decides, and for the products of a layer and of the head; needs neither weights nor the device."""
    ops = Ops(arch, dtype, device, has_fp8_kv=has_fp8_kv, batch_invariant=batch_invariant)
    formats = (None,) if quantization is None else (CODES[quantization], HEAD_CODES)
    for format in formats:
        ops.choose_linear(arch.ffn_size, arch.hidden_size, format)
    return ops.decisions


def check_variance(decisions: Sequence[Decision]) -> None:
    """For kernels that may depend on the batch. Raises ConfigError where none does, so that it would change nothing."""
    if not all(one.is_batch_invariant for one in decisions):
        return
    products = [one for one in decisions if one.op.startswith("linear")]
    why = "; ".join(
        f"{one.op} runs on {one.impl}" + (f" ({', '.join(one.passed_over)})" if one.passed_over else "")
        for one in products
    )
    raise ConfigError(f"batch_invariant=False would change nothing here: {why}; leave it out")


class Linear:
    """A linear layer whose weight lies as its kernel wants it."""

    __slots__ = ("_run", "packed")

    def __init__(self, run: Callable[[Tensor, Any], Tensor], packed: Any) -> None:
        self._run, self.packed = run, packed

    def __call__(self, x: Tensor) -> Tensor:
        """[T, I] to [T, O]."""
        return self._run(x, self.packed)


class Ops:
    """Every op of a decoder for one architecture, dtype and device.

    has_fp8_kv  keys and values lie in e4m3
    batch_invariant  False also takes kernels under which a row's bits depend on its company
    decisions  what was chosen, in the order of choosing, each once

    Raises KernelUnavailable when an op has no implementation that fits.
    """

    def __init__(
        self,
        arch: Arch,
        dtype: torch.dtype,
        device: torch.device,
        *,
        has_fp8_kv: bool = False,
        batch_invariant: bool = True,
    ) -> None:
        self.decisions: list[Decision] = []
        self._dtype, self._device, self._batch_invariant = dtype, device, batch_invariant
        heads = {"H": arch.num_heads, "K": arch.num_kv_heads, "D": arch.head_dim}
        hidden = {"E": arch.hidden_size}
        self.embed = self._pick("embed", embedding.IMPLS, {**hidden, "V": arch.vocab_size}).run
        self.rms_norm = self._pick("rms_norm", norm.IMPLS, hidden).run
        self.add_rms_norm = self._pick("add_rms_norm", norm.IMPLS, hidden).run
        self.tables = self._pick("tables", rope.IMPLS, heads).run
        if has_fp8_kv:
            self.rotate_and_write = self._pick("rotate_and_write fp8", rope.FP8_IMPLS, heads).run
            self.paged_attention = self._pick("paged_attention fp8", attention.FP8_IMPLS, heads).run
        else:
            self.rotate_and_write = self._pick("rotate_and_write", rope.IMPLS, heads).run
            self.paged_attention = self._pick("paged_attention", attention.IMPLS, heads).run
        self.silu_mul = self._pick("silu_mul", activation.IMPLS, {"F": arch.ffn_size}).run

    def embed_codes(self, tokens: Tensor, weight: Codes) -> Tensor:
        return embedding.embed_codes(tokens, weight, self._dtype)

    def linear(self, weight: Tensor | Codes, bias: Tensor | None = None) -> Linear:
        """Hand a weight [O, I] and a bias [O] to the kernel that fits; it may keep or repack them."""
        if isinstance(weight, Codes):
            impl = self.choose_linear(weight.num_out, weight.num_in, weight.format)
            assert impl.pack is not None, "a linear kernel packs its weight"
            return Linear(impl.run, impl.pack(weight, bias, self._dtype))
        impl = self.choose_linear(*weight.shape)
        assert impl.pack is not None, "a linear kernel packs its weight"
        return Linear(impl.run, impl.pack(weight, bias))

    def choose_linear(self, out_size: int, in_size: int, format: str | None = None) -> Impl:
        """For a plain weight, or for codes of a format."""
        sizes = {"O": out_size, "I": in_size}
        if format is None:
            return self._pick("linear", linear.IMPLS, sizes)
        return self._pick(f"linear {format}", linear.CODES_IMPLS, sizes)

    def _pick(self, op: str, impls: tuple[Impl, ...], sizes: dict[str, int]) -> Impl:
        need = Need(
            device=self._device.type, dtype=self._dtype, sizes=sizes, batch_invariant=self._batch_invariant
        )
        impl, passed_over = choose(op, need, impls)
        decision = Decision(op, impl.name, tuple(passed_over), impl.is_batch_invariant)
        if decision not in self.decisions:
            self.decisions.append(decision)
        return impl
