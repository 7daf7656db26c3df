"""A row's logits are bit-identical in one pass, in chunks, token by token, batched, and in any blocks."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.models.loader import load
from octavo.models.model import Model
from tests.parity.checkpoints import VARIANTS
from tests.parity.drive import Driver, logits_in_chunks
from tests.parity.test_parity import some_tokens

Folder = Callable[[str], Path]
LENGTHS = {"a": 41, "b": 1, "c": 17, "d": 30}


def one_pass(model: Model, tokens: list[int]) -> Tensor:
    return logits_in_chunks(model, tokens, len(tokens), block_tokens=16)


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_and_blocks_change_no_bit(variant: str, checkpoint: Folder) -> None:
    model, tokens = load(checkpoint(variant)), some_tokens(37)
    whole = one_pass(model, tokens)
    assert not whole.isnan().any()
    for size, block_tokens in ((1, 5), (3, 1), (7, 3), (16, 16), (36, 64)):
        got = logits_in_chunks(model, tokens, size, block_tokens=block_tokens, seed=size)
        assert torch.equal(got, whole), f"chunks of {size}, blocks of {block_tokens}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_company_changes_no_bit(variant: str, checkpoint: Folder) -> None:
    """Sequences of several lengths share steps: some prefill in chunks while others decode; order is shuffled."""
    model = load(checkpoint(variant))
    texts = {name: some_tokens(length, seed=length) for name, length in LENGTHS.items()}
    driver, rng = Driver(model, block_tokens=7, seed=3), random.Random(variant)
    rows: dict[str, list[Tensor]] = {name: [] for name in texts}
    while any(driver.lengths.get(name, 0) < len(text) for name, text in texts.items()):
        live = [name for name in texts if driver.lengths.get(name, 0) < len(texts[name])]
        pieces = {}
        for name in rng.sample(live, rng.randint(1, len(live))):
            done = driver.lengths.get(name, 0)
            pieces[name] = texts[name][done : done + rng.choice([1, 1, 2, 5, 13])]
        for name, logits in driver.feed(pieces).items():
            rows[name].append(logits)
    for name, text in texts.items():
        assert torch.equal(torch.cat(rows[name]), one_pass(model, text)), name


@pytest.mark.parametrize("variant", ["mistral-mha", "mistral-gqa"])
def test_blocks_behind_the_window_are_never_read(variant: str, checkpoint: Folder) -> None:
    """They are given away and poisoned as soon as every window has passed them; the pool holds no more."""
    model, tokens = load(checkpoint(variant)), some_tokens(60)
    driver = Driver(model, block_tokens=3, num_blocks=7, frees_window=True)
    got = torch.cat([driver.feed({"only": tokens[i : i + 5]})["only"] for i in range(0, 60, 5)])
    assert torch.equal(got, one_pass(model, tokens))


def test_reused_blocks_change_no_bit(checkpoint: Folder) -> None:
    model = load(checkpoint("llama-gqa"))
    driver = Driver(model, block_tokens=5, num_blocks=10)
    for seed in range(4):
        tokens = some_tokens(40, seed=seed)
        assert torch.equal(driver.feed({"only": tokens})["only"], one_pass(model, tokens))
        driver.drop("only")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_exact_too(dtype: str, checkpoint: Folder) -> None:
    model, tokens = load(checkpoint("qwen3-gqa"), dtype), some_tokens(37)
    whole = one_pass(model, tokens)
    assert whole.dtype == torch.float32
    assert not whole.isnan().any()
    for size in (1, 3, 7):
        assert torch.equal(logits_in_chunks(model, tokens, size, block_tokens=size + 1), whole)
