"""Frequencies against formulas written down here in float64, and against transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from octavo.arch import Arch, Rope
from octavo.kernels.rope import tables
from octavo.models.rope import RopeTables, inverse_frequencies

UNIT = 2.0**-24
CPU = torch.device("cpu")

# As published: Llama 3.1 8B, Qwen2.5 with its long-context recipe, and others of the same kinds.
LLAMA_31 = Rope(
    theta=5e5, kind="llama3", factor=8.0, original_positions=8192, low_freq_factor=1.0, high_freq_factor=4.0
)
QWEN_25 = Rope(
    theta=1e6, kind="yarn", factor=4.0, original_positions=32768, attention_factor=0.1 * math.log(4.0) + 1.0
)
SMOOTH = Rope(theta=150000.0, kind="yarn", factor=32.0, original_positions=4096, truncate=False)
LINEAR = Rope(theta=1e4, kind="linear", factor=4.0, original_positions=2048)
DYNAMIC = Rope(theta=1e4, kind="dynamic", factor=4.0, original_positions=2048)


def plain(theta: float, head_dim: int) -> list[float]:
    return [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]


def turns(rope: Rope, frequency: float) -> float:
    """Full turns of a pair over the original context."""
    return rope.original_positions * frequency / (2 * math.pi)


def frequency_bound(rope: Rope) -> float:
    """Relative. The exponent is rounded twice, each time by up to one unit of its size, at most 1, and the power
    multiplies that by ln(theta); power, quotient and what follows round once each. A blend's weight moves the
    result by at most (factor - 1) times its own error: that is the frequency's, times turns over the width of
    the blend, in llama3, and a difference and a quotient in yarn, whose borders are float64.
    """
    power = 2 * math.log(rope.theta) + 4
    weight = 0.0
    if rope.kind == "llama3":
        weight = (power + 4) * rope.high_freq_factor / (rope.high_freq_factor - rope.low_freq_factor)
    elif rope.kind == "yarn":
        weight = 3.0
    return (power + (rope.factor - 1) * weight + 4) * UNIT


@pytest.mark.parametrize("head_dim", [6, 64, 128])
@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_plain_and_linear(theta: float, head_dim: int) -> None:
    want = torch.tensor(plain(theta, head_dim), dtype=torch.float64)
    got = inverse_frequencies(Rope(theta=theta), head_dim)
    assert got.dtype == torch.float32
    assert ((got.double() / want - 1).abs() < frequency_bound(Rope(theta=theta))).all()
    slowed = inverse_frequencies(Rope(theta=theta, kind="linear", factor=4.0, original_positions=8), head_dim)
    assert torch.equal(slowed * 4, got)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_llama3_blends_by_turns(head_dim: int) -> None:
    rope, want = LLAMA_31, []
    for frequency in plain(rope.theta, head_dim):
        kept = (turns(rope, frequency) - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        kept = min(max(kept, 0.0), 1.0)
        want.append(kept * frequency + (1 - kept) * frequency / rope.factor)
    got = inverse_frequencies(rope, head_dim).double()
    assert ((got / torch.tensor(want, dtype=torch.float64) - 1).abs() < frequency_bound(rope)).all()


@pytest.mark.parametrize("rope", [QWEN_25, SMOOTH])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_yarn_leaves_fast_pairs_alone_and_interpolates_slow_ones(rope: Rope, head_dim: int) -> None:
    """The paper's two ends; a common summary has them the other way round. Snapping widens the ramp by one pair."""
    unscaled = inverse_frequencies(Rope(theta=rope.theta), head_dim)
    got = inverse_frequencies(rope, head_dim)
    number = [turns(rope, frequency) for frequency in plain(rope.theta, head_dim)]
    fast = [i for i, count in enumerate(number) if count > rope.beta_fast][:-1]
    slow = [i for i, count in enumerate(number) if count < rope.beta_slow][1:]
    between = range(fast[-1] + 2, slow[0] - 1)
    assert fast
    assert slow
    assert between
    assert torch.equal(got[fast], unscaled[fast])
    assert ((got[slow] * rope.factor / unscaled[slow] - 1).abs() <= 3 * UNIT).all()
    assert (got[between] < unscaled[between]).all()
    assert (got[between] * rope.factor > unscaled[between]).all()


@pytest.mark.parametrize("rope", [QWEN_25, SMOOTH])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_yarn_ramp_over_the_index(rope: Rope, head_dim: int) -> None:
    def index_of(count: float) -> float:
        """Solve count = original * theta ** (-2 i / D) / (2 pi) for i."""
        return head_dim / 2 * math.log(rope.original_positions / (2 * math.pi * count), rope.theta)

    first, last = index_of(rope.beta_fast), index_of(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    want = []
    for i, frequency in enumerate(plain(rope.theta, head_dim)):
        slowed = min(max((i - first) / (last - first), 0.0), 1.0)
        want.append(frequency * (1 - slowed) + frequency / rope.factor * slowed)
    got = inverse_frequencies(rope, head_dim).double()
    assert ((got / torch.tensor(want, dtype=torch.float64) - 1).abs() < frequency_bound(rope)).all()


def test_yarn_whose_borders_meet_is_a_step() -> None:
    rope = Rope(theta=1e4, kind="yarn", factor=4.0, original_positions=4, truncate=True)
    got = inverse_frequencies(rope, 8)
    assert torch.equal(got[1:] * 4, inverse_frequencies(Rope(theta=1e4), 8)[1:])


def transformers_frequencies(rope: dict[str, Any], head_dim: int, positions: int) -> tuple[Tensor, float]:
    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=positions,
        rope_parameters=rope,
    )
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, CPU)


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4},
        {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 8192, "rope_theta": 5e5},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6},
        {
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_theta": 150000.0,
        }
        | {"truncate": False, "beta_fast": 24.0, "beta_slow": 2.0},
        {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "rope_theta": 1e4}
        | {"mscale": 1.0, "mscale_all_dim": 0.707},
        {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5, "rope_theta": 1e4},
    ],
)
def test_transformers_has_the_same_frequencies(parameters: dict[str, Any], head_dim: int) -> None:
    want, attention_factor = transformers_frequencies(dict(parameters), head_dim, 131072)
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4 * head_dim,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": parameters,
    }
    rope = Arch.from_config(fields).rope
    got = inverse_frequencies(rope, head_dim)
    assert ((got.double() / want.double() - 1).abs() < 2 * frequency_bound(rope)).all()
    assert rope.attention_factor == pytest.approx(attention_factor, rel=1e-15)


def test_tables_carry_the_attention_factor() -> None:
    positions = torch.tensor([0, 3, 11, 4000])
    cos, sin = RopeTables(QWEN_25, 64, CPU, tables)(positions)
    expected = torch.full((4, 32), QWEN_25.attention_factor**2)
    # cosine and sine are each within 2 units of 1 before scaling, and round once more after it
    torch.testing.assert_close(cos**2 + sin**2, expected, rtol=16 * UNIT, atol=0)
    assert (cos[0] == torch.tensor(QWEN_25.attention_factor)).all()


def test_dynamic_is_plain_within_the_original_context() -> None:
    positions = torch.tensor([0, 5, 2047])
    got = RopeTables(DYNAMIC, 64, CPU, tables)(positions)
    want = RopeTables(Rope(theta=DYNAMIC.theta), 64, CPU, tables)(positions)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_dynamic_beyond_it_stretches_by_the_position_alone() -> None:
    """The published formula, its sequence length being the position's own: p + 1."""
    rope_tables = RopeTables(DYNAMIC, 64, CPU, tables)
    cos, sin = rope_tables(torch.tensor([5000, 2048, 3, 8191]))
    for row, position in ((0, 5000), (1, 2048), (3, 8191)):
        stretch = DYNAMIC.factor * (position + 1) / DYNAMIC.original_positions - (DYNAMIC.factor - 1)
        theta = DYNAMIC.theta * stretch ** (64 / 62)
        angles = position * torch.tensor(plain(theta, 64), dtype=torch.float64)
        bound = (
            angles * (frequency_bound(Rope(theta=theta)) + UNIT) + 2 * UNIT
        )  # of the angle; cosine and sine add little
        assert ((cos[row] - angles.cos()).abs() < bound).all()
        assert ((sin[row] - angles.sin()).abs() < bound).all()
    alone = RopeTables(DYNAMIC, 64, CPU, tables)(torch.tensor([5000]))
    assert torch.equal(alone[0][0], cos[0])
    assert torch.equal(alone[1][0], sin[0])
    again = rope_tables(torch.arange(4999, 5002))
    assert torch.equal(again[0][1], cos[0])
