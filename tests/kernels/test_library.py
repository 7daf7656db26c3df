"""The library's product against the oracle of the contract; on a device where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from octavo.kernels.choose import Need, choose
from octavo.kernels.linear import CODES_IMPLS, IMPLS, library
from tests.kernels.numbers import F32, UNIT, assert_within, seeded

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.bfloat16, torch.float16)
SETTINGS = torch.backends.cuda.matmul
NARROW = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")


def to(x: Tensor) -> Tensor:
    return x.to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_out", "num_in"), [(77, 333), (64, 1024), (2, 64)])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 131])
def test_product(num_rows: int, has_bias: bool, num_out: int, num_in: int, dtype: torch.dtype) -> None:
    """Rows with gaps between them, too: views of a wider product."""
    weight = seeded(num_out, num_in, seed=1, dtype=dtype)
    wide = seeded(num_rows, num_in + 5, seed=2, dtype=dtype)
    bias = seeded(num_out, seed=3, dtype=dtype) if has_bias else None
    packed = library.pack(to(weight), None if bias is None else to(bias))
    got = library.linear(to(wide)[:, 5:], packed)
    x = wide[:, 5:].double()
    product, mass = x @ weight.double().t(), x.abs() @ weight.double().abs().t()
    want, rounded = product, 0.0
    if bias is not None:  # the product may be rounded before the bias comes to it
        want, mass, rounded = product + bias.double(), mass + bias.double().abs(), product.abs()
    assert (got.shape, got.dtype, got.is_contiguous()) == ((num_rows, num_out), dtype, True)
    if num_rows:
        bound = (num_in + 2) * F32 * mass + UNIT[dtype] * (want.abs() + rounded) * (1 + 2**-7)
        assert_within(got.cpu(), want, bound)


def test_a_weight_is_kept_and_not_copied() -> None:
    weight, bias = to(seeded(6, 4, seed=1, dtype=torch.bfloat16)), to(seeded(6, seed=2, dtype=torch.bfloat16))
    packed = library.pack(weight, bias)
    assert packed.weight.data_ptr() == weight.data_ptr()
    assert (packed.out_features, packed.in_features, packed.nbytes) == (6, 4, 2 * (24 + 6))


@pytest.mark.parametrize("before", [True, False])
def test_sums_are_float32_whatever_the_process_has_chosen(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it has chosen is so again afterwards, also after an error."""
    packed, seen = library.pack(torch.ones(2, 3, dtype=torch.bfloat16)), []
    product = functional.linear

    def watched(*args: Tensor) -> Tensor:
        seen.append([getattr(SETTINGS, name) for name in NARROW])
        if len(seen) > 1:
            raise RuntimeError("out of memory")
        return product(*args)

    found = [getattr(SETTINGS, name) for name in NARROW]
    try:
        for name in NARROW:
            setattr(SETTINGS, name, before)
        monkeypatch.setattr(functional, "linear", watched)
        x = torch.ones(1, 3, dtype=torch.bfloat16)
        assert library.linear(x, packed).tolist() == [[3.0, 3.0]]
        with pytest.raises(RuntimeError, match="out of memory"):
            library.linear(x, packed)
        assert seen == [[False, False]] * 2
        assert [getattr(SETTINGS, name) for name in NARROW] == [before] * 2
    finally:
        for name, value in zip(NARROW, found, strict=True):
            setattr(SETTINGS, name, value)


def test_what_does_not_fit_is_refused_with_its_shape() -> None:
    packed = library.pack(seeded(4, 3, seed=1, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"want x \[T, 3\] torch\.bfloat16 on cpu, got \[2, 4\]"):
        library.linear(seeded(2, 4, seed=1, dtype=torch.bfloat16), packed)
    with pytest.raises(ValueError, match=r"got \[2, 3\] torch\.float32"):
        library.linear(seeded(2, 3, seed=1), packed)
    with pytest.raises(ValueError, match=r"got \[4, 3\] torch\.float32 and \(\[3\], torch\.float32\)"):
        library.pack(seeded(4, 3, seed=1), seeded(3, seed=1))
    with pytest.raises(ValueError, match=r"want a weight \[O, I\]"):
        library.pack(seeded(4, seed=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_taken_on_a_gpu_where_bits_may_depend_on_the_batch(dtype: torch.dtype) -> None:
    chosen, passed_over = choose("linear", Need(device="cuda", dtype=dtype, batch_invariant=False), IMPLS)
    assert (chosen.name, chosen.is_batch_invariant, passed_over) == ("library", False, [])
    chosen, passed_over = choose("linear", Need(device="cuda", dtype=dtype), IMPLS)
    assert chosen.is_batch_invariant
    assert passed_over[0].startswith("library: a row's bits depend on its company")


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.bfloat16), ("cuda", torch.float32)])
def test_elsewhere_it_is_not(device: str, dtype: torch.dtype) -> None:
    chosen, passed_over = choose("linear", Need(device=device, dtype=dtype, batch_invariant=False), IMPLS)
    assert chosen.is_batch_invariant
    assert passed_over[0] == (
        "library: runs on cuda, not on cpu"
        if device == "cpu"
        else "library: takes bfloat16 and float16, not float32"
    )


def test_products_with_codes_depend_on_nothing_but_the_row() -> None:
    assert all(impl.is_batch_invariant for impl in CODES_IMPLS)
