from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from octavo.errors import KernelUnavailable
from octavo.kernels.choose import Impl, Need, choose, fits_all


def impl(name: str, reason: str | None, op: str = "rms_norm") -> Impl:
    return Impl(op, name, lambda: name, lambda _: reason)


NEED = Need(device="cpu", dtype=torch.float32, sizes={"E": 7})


def test_the_first_that_fits_is_chosen_and_those_before_it_give_reasons() -> None:
    impls = [
        impl("fast", "no AMX"),
        impl("other op", None, op="linear"),
        impl("fair", None),
        impl("slow", None),
    ]
    chosen, passed_over = choose("rms_norm", NEED, impls)
    assert chosen is impls[2]
    assert passed_over == ["fast: no AMX"]


def test_nothing_that_fits_is_an_error_with_every_reason() -> None:
    with pytest.raises(KernelUnavailable) as caught:
        choose("rms_norm", NEED, [impl("fast", "no AMX"), impl("slow", "E is odd")])
    assert caught.value.op == "rms_norm"
    assert caught.value.passed_over == ["fast: no AMX", "slow: E is odd"]
    assert "cpu float32 E=7" in str(caught.value)
    assert "no AMX" in str(caught.value)


def test_an_op_nobody_implements() -> None:
    with pytest.raises(KernelUnavailable, match="none is registered"):
        choose("fly", NEED, [impl("walk", None)])


def test_refuses_sees_the_need() -> None:
    only_wide = Impl(
        "linear", "wide", lambda: None, lambda n: None if n.sizes["E"] > 8 else f"E is {n.sizes['E']}"
    )
    with pytest.raises(KernelUnavailable, match="wide: E is 7"):
        choose("linear", NEED, [only_wide])
    assert (
        choose("linear", Need(device="cpu", dtype=torch.float32, sizes={"E": 9}), [only_wide])[0] is only_wide
    )


def variant(name: str, reason: str | None = None) -> Impl:
    return Impl("rms_norm", name, lambda: name, lambda _: reason, is_batch_invariant=False)


def test_what_depends_on_the_batch_is_taken_only_where_that_is_allowed() -> None:
    impls = [variant("library"), impl("ours", None)]
    chosen, passed_over = choose("rms_norm", NEED, impls)
    assert chosen.name == "ours"
    assert passed_over == ["library: a row's bits depend on its company; --no-batch-invariant allows that"]
    allowed = replace(NEED, batch_invariant=False)
    assert choose("rms_norm", allowed, impls) == (impls[0], [])


def test_allowing_more_leaves_the_others_as_they_are() -> None:
    ours = impl("ours", None)
    assert choose("rms_norm", replace(NEED, batch_invariant=False), [ours, variant("library")])[0] is ours


def test_only_what_depends_on_the_batch_is_left() -> None:
    with pytest.raises(KernelUnavailable, match="library: a row's bits depend on its company"):
        choose("rms_norm", NEED, [variant("library")])


def test_a_reason_of_its_own_comes_first() -> None:
    _, passed_over = choose("rms_norm", NEED, [variant("library", "runs on cuda"), impl("ours", None)])
    assert passed_over == ["library: runs on cuda"]


def test_fits_all_refuses_integers() -> None:
    assert fits_all(NEED) is None
    assert "int8" in str(fits_all(Need(device="cuda", dtype=torch.int8)))
