"""Reading config.json: what models are made of, exactly, and what is refused, by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.arch import Arch, Rope
from octavo.errors import LoadError
from tests.arch.configs import LLAMA3, YARN, config, mistral, qwen2, qwen3


def shape(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
    }


# Totals as published: the sizes of the weight files, or model cards. KV bytes per token in bfloat16.
PUBLISHED = {
    "Llama-2-7B": (config(), 6_738_415_616, 524_288),
    "Llama-2-70B": (config(**shape(80, 8192, 28672, 64, 8, 32000)), 68_976_648_192, 327_680),
    "Llama-3-8B": (config(**shape(32, 4096, 14336, 32, 8, 128256)), 8_030_261_248, 131_072),
    "Llama-3-70B": (config(**shape(80, 8192, 28672, 64, 8, 128256)), 70_553_706_496, 327_680),
    "Llama-3.1-405B": (config(**shape(126, 16384, 53248, 128, 8, 128256)), 405_853_388_800, 516_096),
    "Llama-3.2-1B": (
        config(**shape(16, 2048, 8192, 32, 8, 128256), head_dim=64, tie_word_embeddings=True),
        1_235_814_400,
        32_768,
    ),
    "Mistral-7B": (mistral(**shape(32, 4096, 14336, 32, 8, 32000)), 7_241_732_096, 131_072),
    "Qwen2.5-0.5B": (
        qwen2(**shape(24, 896, 4864, 14, 2, 151936), tie_word_embeddings=True),
        494_032_768,
        12_288,
    ),
    "Qwen2-7B": (qwen2(**shape(28, 3584, 18944, 28, 4, 152064)), 7_615_616_512, 57_344),
    "Qwen3-0.6B": (
        qwen3(**shape(28, 1024, 3072, 16, 8, 151936), tie_word_embeddings=True),
        596_049_920,
        114_688,
    ),
    "Qwen3-8B": (qwen3(**shape(36, 4096, 12288, 32, 8, 151936)), 8_190_735_360, 147_456),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_kv_bytes_of_published_models(name: str) -> None:
    fields, num_parameters, kv_bytes = PUBLISHED[name]
    arch = Arch.from_config(fields)
    assert arch.num_parameters() == num_parameters
    assert arch.weight_bytes("bfloat16") == 2 * num_parameters
    assert arch.kv_bytes_per_token("bfloat16") == kv_bytes
    assert arch.kv_bytes_per_token("float32") == 2 * kv_bytes


def test_the_fields_of_llama() -> None:
    arch = Arch.from_config(config())
    assert arch == Arch(
        family="llama",
        num_layers=32,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        ffn_size=11008,
        vocab_size=32000,
        max_positions=4096,
        norm_eps=1e-5,
        tie_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows=(None,) * 32,
        rope=Rope(theta=10000.0),
        dtype="float16",
        end_token_ids=frozenset({2}),
    )


def test_llama_1_says_little() -> None:
    """No num_key_value_heads, no rope_theta; its class was once spelt with more capitals."""
    fields = config(architectures=["LLaMAForCausalLM"], num_key_value_heads=...)
    assert Arch.from_config(fields).num_kv_heads == 32
    assert Arch.from_config(config(architectures=..., model_type="llama")).family == "llama"


def test_biases_by_family() -> None:
    def biases(fields: dict[str, Any]) -> tuple[bool, bool, bool]:
        arch = Arch.from_config(fields)
        return arch.qkv_bias, arch.o_bias, arch.mlp_bias

    assert biases(config()) == (False, False, False)
    assert biases(config(attention_bias=True)) == (True, True, False)
    assert biases(config(mlp_bias=True)) == (False, False, True)
    assert biases(mistral()) == (False, False, False)
    assert biases(qwen2()) == (True, False, False)
    assert biases(qwen3()) == (False, False, False)
    assert biases(qwen3(attention_bias=True)) == (True, True, False)
    assert Arch.from_config(qwen3()).qk_norm
    assert not Arch.from_config(qwen2()).qk_norm


def test_windows_by_family() -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 100, "num_hidden_layers": 4}

    def windows(fields: dict[str, Any]) -> tuple[int | None, ...]:
        return Arch.from_config(fields).windows

    assert windows(mistral(num_hidden_layers=3)) == (4096, 4096, 4096)
    assert windows(mistral(num_hidden_layers=3, sliding_window=None)) == (None, None, None)
    assert windows(qwen2(**sliding, max_window_layers=3)) == (None, None, None, 100)
    assert windows(qwen2(**sliding, max_window_layers=0)) == (100,) * 4
    assert windows(qwen2(**sliding, max_window_layers=4)) == (None,) * 4
    assert windows(qwen2(**{**sliding, "use_sliding_window": False}, max_window_layers=0)) == (None,) * 4
    mixed = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    assert windows(qwen3(**sliding, layer_types=mixed)) == (100, None, None, 100)
    assert windows(config(num_hidden_layers=2, layer_types=["full_attention"] * 2)) == (None, None)


def test_window_tokens_needs_a_window_on_every_layer() -> None:
    assert Arch.from_config(mistral()).window_tokens == 4096
    assert Arch.from_config(config()).window_tokens is None
    some = qwen2(use_sliding_window=True, sliding_window=100, max_window_layers=1)
    assert Arch.from_config(some).window_tokens is None


def test_head_dim() -> None:
    assert Arch.from_config(config(head_dim=None)).head_dim == 128
    assert Arch.from_config(config(head_dim=64)).head_dim == 64
    assert Arch.from_config(qwen3(hidden_size=1000)).head_dim == 128


@pytest.mark.parametrize(
    ("scaling", "rope", "max_positions"),
    [
        ({"type": "linear", "factor": 4.0}, {"factor": 4.0, "original_positions": 4096}, 16384),
        ({"type": "dynamic", "factor": 2.5}, {"factor": 2.5, "original_positions": 4096}, 10240),
        (
            {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 512},
            {**LLAMA3, "original_positions": 512},
            4096,
        ),
        ({"type": "yarn", "factor": 1.0}, {"factor": 1.0, "original_positions": 4096}, 4096),
        (
            {"type": "yarn", **YARN},
            {"factor": 4.0, "original_positions": 32768, "attention_factor": 1.1386294361119891},
            131072,
        ),
        (
            {"rope_type": "yarn", "original_max_position_embeddings": 1024},
            {"factor": 4.0, "original_positions": 1024, "attention_factor": 1.1386294361119891},
            4096,
        ),
        (
            {"rope_type": "yarn", **YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "truncate": False},
            {"factor": 4.0, "original_positions": 32768, "attention_factor": 1.0, "truncate": False},
            131072,
        ),
        (
            {"rope_type": "yarn", **YARN, "mscale": 0.707, "beta_fast": 16, "beta_slow": 2},
            {
                "factor": 4.0,
                "original_positions": 32768,
                "attention_factor": 1.1386294361119891,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
            },
            131072,
        ),
        (
            {"rope_type": "yarn", **YARN, "attention_factor": 0.9},
            {"factor": 4.0, "original_positions": 32768, "attention_factor": 0.9},
            131072,
        ),
    ],
)  # fmt: skip
def test_rope_in_both_spellings(scaling: dict[str, Any], rope: dict[str, Any], max_positions: int) -> None:
    kind = scaling.get("type", scaling.get("rope_type"))
    want = Rope(theta=5e5, kind=kind, **rope)
    renamed = {("rope_type" if name == "type" else name): value for name, value in scaling.items()}
    old = config(rope_theta=5e5, rope_scaling=scaling)
    new = config(rope_parameters={"rope_theta": 5e5, **renamed})
    both = config(rope_theta=5e5, rope_scaling=scaling, rope_parameters={"rope_theta": 5e5, **renamed})
    for fields in (old, new, both):
        arch = Arch.from_config(fields)
        assert arch.rope == want
        assert arch.max_positions == max_positions


def test_plain_rope_in_every_spelling() -> None:
    for fields in (
        config(rope_theta=5e5),
        config(rope_theta=5e5, rope_scaling=None),
        config(rope_theta=5e5, rope_scaling={"type": "default"}),
        config(rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
        config(rope_theta=5e5, rope_parameters={}),
    ):
        assert Arch.from_config(fields).rope == Rope(theta=5e5)


def test_original_positions_beside_the_rope_object_count_more() -> None:
    fields = config(rope_scaling={"type": "yarn", **YARN}, original_max_position_embeddings=2048)
    assert Arch.from_config(fields).rope.original_positions == 2048


def test_fields_that_change_nothing_are_accepted() -> None:
    plain = Arch.from_config(config())
    extras = {"pretraining_tp": 2, "use_cache": True, "attention_dropout": 0.0, "initializer_range": 0.02}
    assert Arch.from_config(config(**extras, num_local_experts=0, use_qk_norm=False)) == plain


def test_code_of_a_folder_is_noted_and_not_more() -> None:
    arch = Arch.from_config(config(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}))
    assert "ever executed" in arch.notes[0]
    assert Arch.from_config(config()).notes == ()


def test_digest_follows_what_changes_keys_and_values() -> None:
    digest = Arch.from_config(config()).digest()
    for same in (
        config(eos_token_id=5),
        config(torch_dtype="bfloat16"),
        config(max_position_embeddings=8192),
    ):
        assert Arch.from_config(same).digest() == digest
    for other in (
        config(rms_norm_eps=1e-6),
        config(rope_theta=2e4),
        config(num_key_value_heads=8),
        mistral(),
    ):
        assert Arch.from_config(other).digest() != digest


def test_from_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config()))
    want = Arch.from_config(config())
    assert Arch.from_file(tmp_path) == want
    assert Arch.from_file(str(tmp_path / "config.json")) == want
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert Arch.from_file(tmp_path).end_token_ids == {2, 7, 9}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": -1}))
    with pytest.raises(LoadError, match=r"generation_config\.json: eos_token_id is -1"):
        Arch.from_file(tmp_path)


def test_torch_is_not_imported() -> None:
    code = "import sys, octavo.arch; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
