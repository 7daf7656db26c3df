"""Models that keep keys and values in e4m3."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from octavo.arch import Arch
from octavo.core.step import Copy
from octavo.errors import ConfigError
from octavo.kernels import native
from octavo.kv.layout import Fp8Layout
from octavo.kv.pool import KvPool
from octavo.models.loader import load
from octavo.models.model import TorchModel
from octavo.planner.memory import kv_block_bytes
from tests.engine.tiny import CONFIG, write_checkpoint
from tests.kernels.numbers import same_bits
from tests.models.test_native import run


def loaded(folder: Path | Arch, dtype: str = "bfloat16") -> TorchModel:
    model = load(folder, dtype, kernels="reference", has_fp8_kv=True)
    assert isinstance(model, TorchModel)
    return model


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 1, "head_dim": 10}], ids=str)
def test_chunks_company_and_blocks_change_no_bit(tmp_path: Path, changes: dict[str, int]) -> None:
    """And rounding changes something: keys and values lie in blocks of bytes."""
    folder = write_checkpoint(tmp_path / "model", **changes)
    model = loaded(folder)
    want = run(model, 1)
    assert want.isfinite().all()
    assert same_bits(run(model, 1, (1, 2, 33, 1, 12, 21), other=True), want)
    assert same_bits(run(model, 1, (64, *[1] * 6), other=True, block_tokens=16), want)
    plain = load(folder, "bfloat16", kernels="reference")
    assert not same_bits(run(plain, 1), want)
    assert plain.fingerprint != model.fingerprint


@pytest.mark.parametrize("block_tokens", [1, 3, 16])
def test_blocks_are_planned_to_the_byte(block_tokens: int) -> None:
    arch = Arch.from_config(CONFIG)
    layout = loaded(arch).kv_layout(block_tokens)
    assert isinstance(layout, Fp8Layout)
    pool = KvPool(layout, arch.num_layers, 5)
    assert pool.nbytes == 5 * kv_block_bytes(arch, "fp8", block_tokens) == pool.arena.nbytes


def test_poison_and_copies() -> None:
    layout = Fp8Layout(2, 6, 4, torch.uint8)
    pool = KvPool(layout, 3, 4)
    pool.poison([2])
    blocks = layout.blocks(pool.layer(1))
    assert blocks.numbers(torch.tensor([2])).isnan().all()
    assert blocks.numbers(torch.tensor([0, 1, 3])).eq(0).all()
    pool.copy([Copy(2, 1, 3), Copy(3, 2, 4), Copy(1, 1, 4)])
    assert blocks.numbers(torch.tensor([1])).isnan().all()
    assert blocks.numbers(torch.tensor([2])).eq(0).all()
    with pytest.raises(ValueError, match=r"Fp8Layout: dtype must be torch\.uint8, got torch\.bfloat16"):
        Fp8Layout(2, 6, 4, torch.bfloat16)


def test_compiled_kernels_do_not_store_them() -> None:
    if not native.instruction_sets():
        pytest.skip("the compiled module is not built")
    with pytest.raises(
        ConfigError, match=r"the compiled kernels .* store keys and values as they compute them"
    ):
        load(Arch.from_config(CONFIG), "bfloat16", has_fp8_kv=True)
