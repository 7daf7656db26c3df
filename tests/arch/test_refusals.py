"""What a config may not say, and how the error names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.arch import Arch
from octavo.errors import LoadError
from tests.arch.configs import LLAMA3, YARN, config, mistral, qwen2, qwen3


def yarn(**changes: Any) -> dict[str, Any]:
    return config(rope_scaling={"rope_type": "yarn", **YARN, **changes})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": (
        config(architectures=["MixtralForCausalLM"]),
        'architectures is ["MixtralForCausalLM"]; expected one of ["LlamaForCausalLM"]',
    ),
    "no architecture": (config(architectures=...), "architectures is missing; expected one of"),
    "two architectures": (
        config(architectures=["LlamaForCausalLM", "X"]),
        'architectures is ["LlamaForCausalLM", "X"]',
    ),
    "odd architecture": (config(architectures=[{}]), "architectures is [{}]"),
    "model type": (
        config(architectures=..., model_type="gpt2"),
        'model_type is "gpt2"; expected one of "llama", "mistral"',
    ),
    "activation": (config(hidden_act="gelu"), 'hidden_act is "gelu"; expected "silu"'),
    "no activation": (config(hidden_act=...), "hidden_act is missing"),
    "experts": (config(num_local_experts=8), "num_local_experts is 8; expected nothing"),
    "quantized": (config(quantization_config={"quant_method": "gptq"}), "quantization_config is"),
    "partial rotary": (config(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    "soft cap": (config(attn_logit_softcapping=50.0), "attn_logit_softcapping is 50.0"),
    "heads": (
        config(num_attention_heads=0),
        "num_attention_heads is 0; expected a whole number between 1 and",
    ),
    "text for a number": (config(hidden_size="4096"), 'hidden_size is "4096"; expected a whole number'),
    "flag for a number": (
        config(num_hidden_layers=True),
        "num_hidden_layers is true; expected a whole number",
    ),
    "number for a flag": (config(tie_word_embeddings=1), "tie_word_embeddings is 1; expected true or false"),
    "kv heads": (
        config(num_key_value_heads=5),
        "num_key_value_heads is 5; expected a divisor of num_attention_heads, which is 32",
    ),
    "more kv heads": (
        config(num_key_value_heads=64),
        "num_key_value_heads is 64; expected a whole number between 1 and 32",
    ),
    "qwen2 kv heads": (qwen2(num_key_value_heads=...), "num_key_value_heads is missing"),
    "qwen3 head_dim": (qwen3(head_dim=...), "head_dim is missing"),
    "odd head_dim": (config(head_dim=63), "head_dim is 63; expected an even number"),
    "uneven heads": (
        config(num_attention_heads=31, num_key_value_heads=31),
        "hidden_size is 4096; expected an even multiple of num_attention_heads, which is 31",
    ),
    "epsilon": (config(rms_norm_eps=0.0), "rms_norm_eps is 0.0; expected a number above 0"),
    "not finite": (config(rms_norm_eps=float("nan")), "rms_norm_eps is NaN"),
    "dtype": (
        config(torch_dtype="float64"),
        'torch_dtype is "float64"; expected one of float32, bfloat16, float16',
    ),
    "end token": (config(eos_token_id=32000), "eos_token_id is 32000; expected token ids from 0 to 31999"),
    "end tokens": (config(eos_token_id=[2, "x"]), 'eos_token_id is [2, "x"]'),
    "llama window": (config(sliding_window=4096), "sliding_window is 4096; expected null"),
    "mistral window": (
        mistral(sliding_window=...),
        "sliding_window is missing; expected a number of tokens, or null",
    ),
    "mistral layers": (mistral(num_hidden_layers=1, layer_types=["full_attention"]), "layer_types is"),
    "qwen2 window": (qwen2(use_sliding_window=True, sliding_window=None), "sliding_window is null"),
    "qwen2 layers": (qwen2(use_sliding_window=True, sliding_window=8), "max_window_layers is missing"),
    "layer types": (qwen2(num_hidden_layers=2, layer_types=["full_attention"]), "expected 2 entries"),
    "layer kind": (
        qwen2(num_hidden_layers=1, layer_types=["linear_attention"]),
        "each one of full_attention, sliding_attention",
    ),
    "no window on": (
        qwen2(num_hidden_layers=1, layer_types=["sliding_attention"]),
        "no sliding window is switched on",
    ),
    "mistral bias": (
        mistral(attention_bias=True),
        "attention_bias is true; expected false: mistral models have no such bias",
    ),
    "qwen2 bias": (qwen2(attention_bias=False), "attention_bias is false; expected true"),
    "qwen3 mlp bias": (qwen3(mlp_bias=True), "mlp_bias is true; expected false"),
    "theta": (qwen2(rope_theta=...), "rope_theta is missing"),
    "theta of 1": (config(rope_theta=1.0), "rope_theta is 1.0; expected a number above 1"),
    "two thetas": (
        config(rope_theta=1e4, rope_parameters={"rope_theta": 2e4}),
        "rope_theta is 10000.0; expected 20000, as rope_parameters.rope_theta says",
    ),
    "rope kind": (
        config(rope_scaling={"type": "longrope"}),
        'rope_scaling.type is "longrope"; expected one of "default", "linear", "dynamic", "yarn", "llama3"',
    ),
    "two rope kinds": (
        config(rope_scaling={"type": "mrope", "rope_type": "default"}),
        'rope_scaling.type is "mrope"; expected "default", as rope_type says',
    ),
    "rope by layer": (
        config(rope_parameters={"full_attention": {"rope_type": "default"}}),
        "expected one set of values, the same for all layers",
    ),
    "rope no object": (config(rope_scaling=[1]), "rope_scaling is [1]; expected an object or null"),
    "partial rope": (
        config(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.25}),
        "rope_parameters.partial_rotary_factor is 0.25; expected 1",
    ),
    "axes": (
        config(rope_parameters={"mrope_section": [8, 12, 12]}),
        "rope_parameters.mrope_section is [8, 12, 12]",
    ),
    "no factor": (
        config(rope_scaling={"type": "linear"}),
        "rope_scaling.factor is missing; expected a number of at least 1",
    ),
    "small factor": (
        config(rope_scaling={"type": "dynamic", "factor": 0.5}),
        "rope_scaling.factor is 0.5; expected a number of at least 1",
    ),
    "llama3 borders": (
        config(rope_scaling={"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}),
        "rope_scaling.high_freq_factor is 1.0; expected a number above low_freq_factor, which is 1",
    ),
    "llama3 border": (
        config(rope_scaling={"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}),
        "rope_scaling.low_freq_factor is missing",
    ),
    "yarn borders": (
        yarn(beta_fast=0.5),
        "rope_scaling.beta_fast is 0.5; expected a number of at least beta_slow",
    ),
    "yarn attention": (
        yarn(attention_factor=-1.0),
        "rope_scaling.attention_factor is -1.0; expected a number above 0",
    ),
    "yarn truncate": (yarn(truncate="no"), 'rope_scaling.truncate is "no"; expected true or false'),
    "two ropes": (
        config(
            rope_scaling={"type": "linear", "factor": 2.0},
            rope_parameters={"rope_type": "linear", "factor": 3.0},
        ),
        "rope_scaling is",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(case: str) -> None:
    fields, message = REFUSED[case]
    with pytest.raises(LoadError) as caught:
        Arch.from_config(fields, "some/config.json")
    assert str(caught.value).startswith("some/config.json: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "hidden_act",
    ],
)
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(LoadError, match=f"{name} is missing; expected"):
        Arch.from_config(config(**{name: ...}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", r"holds \[1\]; expected a JSON object"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_a_broken_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(LoadError, match=message) as caught:
        Arch.from_file(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"config\.json does not exist; expected a config\.json, or a folder"):
        Arch.from_file(tmp_path)


NAMES = [*qwen2(), *mistral(), *qwen3(), "rope_scaling", "rope_parameters", "layer_types", "sliding_window"]
NAMES += ["use_sliding_window", "max_window_layers", "attention_bias", "mlp_bias", "quantization_config"]
ROPE_NAMES = ["type", "rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "truncate"]
ROPE_NAMES += ["original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "x"]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
scalars |= st.sampled_from(["yarn", "llama3", "dynamic", "linear", "default", 1, 2, 4096, 1.5])
values = (
    scalars
    | st.lists(scalars, max_size=3)
    | st.dictionaries(st.sampled_from(ROPE_NAMES), scalars, max_size=6)
)


@settings(max_examples=300, deadline=None)
@given(
    base=st.sampled_from([config, mistral, qwen2, qwen3]),
    changes=st.dictionaries(st.sampled_from(NAMES), values, max_size=3),
)
def test_any_values_end_in_an_arch_or_a_load_error(base: Any, changes: dict[str, Any]) -> None:
    fields = {**base(), **changes}
    try:
        arch = Arch.from_config(fields)
    except LoadError:
        return
    assert arch.num_parameters() > 0
    assert arch.max_positions > 0
    assert len(arch.windows) == arch.num_layers
