"""Logits and greedy tokens equal transformers' on every family, head form and rope scaling."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.models.loader import load
from tests.parity.bound import relative_rms, rounding_bound
from tests.parity.checkpoints import ORIGINAL_POSITIONS, VARIANTS, VOCAB, reference
from tests.parity.drive import greedy, logits_in_chunks

Folder = Callable[[str], Path]


def some_tokens(num_tokens: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (num_tokens,), generator=generator).tolist()


def in_one_pass(model: Any, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0]


def token_by_token(model: Any, tokens: list[int]) -> Tensor:
    rows, cache = [], None
    with torch.no_grad():
        for token in tokens:
            out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, -1])
    return torch.stack(rows)


def num_tokens_of(variant: str) -> int:
    """Longer than windows and original contexts; for "dynamic" the length up to which one pass is defined."""
    return ORIGINAL_POSITIONS if variant == "llama-dynamic" else 43


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, checkpoint: Folder) -> None:
    tokens = some_tokens(num_tokens_of(variant))
    want = in_one_pass(reference(checkpoint(variant)), tokens)
    bound = rounding_bound(
        reference(checkpoint(variant), torch.float64), lambda model: in_one_pass(model, tokens)
    )
    got = logits_in_chunks(load(checkpoint(variant)), tokens, len(tokens))
    assert got.dtype == torch.float32
    assert (relative_rms(got - want, want) < bound).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_transformers(variant: str, checkpoint: Folder) -> None:
    """Decoding runs past windows, and past the original context of "dynamic" and "yarn"."""
    prompt = some_tokens(11, seed=1)
    model = reference(checkpoint(variant))
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        out = model.generate(torch.tensor([prompt]), max_new_tokens=25, do_sample=False, pad_token_id=0)
    assert greedy(load(checkpoint(variant)), prompt, 25, block_tokens=3) == out[0, len(prompt) :].tolist()


def test_dynamic_beyond_the_original_context_is_transformers_token_by_token(checkpoint: Folder) -> None:
    tokens = some_tokens(2 * ORIGINAL_POSITIONS + 1)
    want = token_by_token(reference(checkpoint("llama-dynamic")), tokens)
    bound = rounding_bound(
        reference(checkpoint("llama-dynamic"), torch.float64), lambda model: token_by_token(model, tokens)
    )
    got = logits_in_chunks(load(checkpoint("llama-dynamic")), tokens, len(tokens))
    assert (relative_rms(got - want, want) < bound).all()


def test_dynamic_in_one_pass_of_transformers_depends_on_the_length(checkpoint: Folder) -> None:
    """Why one pass beyond the original context cannot be the rule: its first rows would change as text is added."""
    model = reference(checkpoint("llama-dynamic"))
    tokens = some_tokens(2 * ORIGINAL_POSITIONS)
    short, long = in_one_pass(model, tokens[:ORIGINAL_POSITIONS]), in_one_pass(model, tokens)
    assert relative_rms(long[:ORIGINAL_POSITIONS] - short, short).max() > 1e-3


MISTAKES: dict[str, tuple[str, dict[str, Any]]] = {
    "window one too wide": ("mistral-gqa", {"sliding_window": 8}),
    "windows on other layers": (
        "qwen3-window",
        {"layer_types": ["full_attention"] + 2 * ["sliding_attention"]},
    ),
    "epsilon": ("llama-gqa", {"rms_norm_eps": 2e-5}),
    "theta": ("llama-mha", {"rope_parameters": {"rope_theta": 10010.0}}),
    "ramp snapped to dimensions": ("llama-yarn-smooth", {"rope_parameters": {"truncate": True}}),
    "temperature": ("llama-yarn-factor", {"rope_parameters": {"attention_factor": 1.2999}}),
    "mscale forgotten": ("llama-yarn-mscale", {"rope_parameters": {"mscale": None}}),
    "border of the blend": ("llama-llama3", {"rope_parameters": {"low_freq_factor": 1.01}}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_bound_notices(mistake: str, checkpoint: Folder, tmp_path: Path) -> None:
    variant, changes = MISTAKES[mistake]
    shutil.copytree(checkpoint(variant), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens = some_tokens(num_tokens_of(variant))
    want = in_one_pass(reference(checkpoint(variant)), tokens)
    bound = rounding_bound(
        reference(checkpoint(variant), torch.float64), lambda model: in_one_pass(model, tokens)
    )
    got = logits_in_chunks(load(tmp_path), tokens, len(tokens))
    assert not (relative_rms(got - want, want) < bound).all()
