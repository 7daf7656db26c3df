"""Shapes counted from config.json against transformers' own models on the meta device, and against published facts."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.arch import Arch, Shape, known
from octavo.arch.mixers import Attention, LatentAttention
from octavo.arch.tensors import CUTS, PARTS
from octavo.errors import LoadError
from tests.arch.configs import config, mistral, qwen2, qwen3
from tests.shared_data import document

CASES = [
    json.loads(line) for line in Path(__file__).with_name("shape_cases.jsonl").read_text("utf-8").splitlines()
]
"""Small configs of every family, with odd sizes and switches the published models leave alone."""

BUFFERS = re.compile(r"(e_score_correction_bias|expert_bias)$")
"""Weights that a checkpoint holds and transformers keeps as buffers."""


def meta_model(fields: dict[str, Any]) -> torch.nn.Module:
    """transformers' model of a config, without memory behind it."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    rest = {
        name: value for name, value in fields.items() if name not in ("model_type", "quantization_config")
    }
    kind = {"kimi_k2": "deepseek_v3"}.get(fields["model_type"], fields["model_type"])
    auto = transformers.AutoModelForCausalLM
    if "vision_config" in fields:
        auto = transformers.AutoModelForImageTextToText
    logging.disable(logging.CRITICAL)
    try:
        with torch.device("meta"):
            return auto.from_config(CONFIG_MAPPING[kind](**rest))
    finally:
        logging.disable(logging.NOTSET)


def total(model: torch.nn.Module) -> int:
    held = sum(weight.numel() for weight in model.parameters())
    return held + sum(buffer.numel() for name, buffer in model.named_buffers() if BUFFERS.search(name))


@pytest.mark.parametrize("name", known.names())
def test_known_models_have_the_parameters_of_transformers(name: str) -> None:
    shape = known.shape(name)
    vision = sum(tensor.num_elements() for tensor in shape.vision)
    assert shape.num_parameters() + vision == total(meta_model(known.config(name)))


@pytest.mark.parametrize("fields", CASES, ids=lambda fields: str(fields["model_type"]))
def test_every_family_has_the_parameters_of_transformers(fields: dict[str, Any]) -> None:
    """As given, and with every field that transformers writes out when it saves the config."""
    model = meta_model(fields)
    want = total(model)
    assert Shape.from_config(fields).num_parameters() == want
    assert Shape.from_config(model.config.to_dict()).num_parameters() == want


def test_all_families_are_among_the_cases() -> None:
    from octavo.arch.reading import families

    covered = {fields["model_type"] for fields in CASES} | {"kimi_k2"}
    assert covered == set(families())
    assert len(known.names()) >= 100
    assert len(families()) >= 70


WEIGHTS = re.compile(r"\.(weight|gate_up_proj|down_proj|up_proj|w1|v1|w2)$")
NOT_MATRICES = re.compile(r"norm|embed|wte|wpe|conv1d|\.conv\.conv|A_log|altup")


def matmul_parameters(model: torch.nn.Module) -> int:
    """Elements of every weight of two dimensions and more that is no table, norm or convolution, experts by the share
    that a token passes, and a tied embedding once as the head."""
    found = 0.0
    get = model.config.to_dict().get
    experts = (
        get("num_experts") or get("num_local_experts") or get("n_routed_experts") or get("moe_num_experts")
    )
    used = get("num_experts_per_tok") or get("moe_k") or get("num_experts_per_token") or get("moe_topk")
    for name, weight in model.named_parameters():
        if weight.dim() < 2 or not WEIGHTS.search(name) or NOT_MATRICES.search(name):
            continue
        share = used / experts if ".experts." in name else 1.0
        found += weight.numel() * share
    if get("tie_word_embeddings"):
        found += model.get_input_embeddings().weight.numel()
    return round(found)


@pytest.mark.parametrize(
    "fields",
    [
        fields
        for fields in CASES
        if fields["model_type"] not in ("dbrx", "opt", "mamba", "falcon_mamba", "jamba")
    ],
    ids=lambda fields: str(fields["model_type"]),
)
def test_matmul_parameters_of_every_family(fields: dict[str, Any]) -> None:
    assert Shape.from_config(fields).num_matmul_parameters() == matmul_parameters(meta_model(fields))


GOLDEN = {
    "Llama-2-7B": "llama-2-7b",
    "Llama-3-8B": "llama-3-8b",
    "Llama-3-70B": "llama-3-70b",
    "Llama-2-70B": "llama-2-70b",
    "Llama-3.1-405B": "llama-3.1-405b",
    "Mixtral-8x7B": "mixtral-8x7b",
    "DeepSeek-V3": "deepseek-v3",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_counts(name: str) -> None:
    want = document("golden/model_arithmetic.json")["models"][name]
    shape = known.shape(GOLDEN[name])
    for field, value in want.get("config", {}).items():
        assert known.config(GOLDEN[name])[field] == value
    got = {
        "total_params": shape.num_parameters(),
        "total_params_main": shape.num_parameters(),
        "active_params": shape.num_active_parameters(),
        "active_params_incl_embedding_and_head": shape.num_active_parameters(),
        "active_params_excl_input_embedding": shape.num_active_parameters() - shape.embedding.num_elements(),
        "matmul_params": shape.num_matmul_parameters(),
        "matmul_active_params": shape.num_matmul_parameters(),
        "mtp_unique_params": shape.num_mtp_parameters(),
        "total_in_checkpoint_with_mtp_and_duplicated_embeddings": shape.num_checkpoint_parameters(),
        "embedding": shape.embedding.num_elements(),
        "lm_head": shape.head.num_elements(),
        "final_norm": shape.final_norm_elements,
        "kv_elems_per_token": shape.kv_elements_per_token(),
        "kv_bytes_per_token_bf16": 2 * shape.kv_elements_per_token(),
    }
    checked = [field for field in want if field in got]
    assert {field: got[field] for field in checked} == {field: want[field] for field in checked}
    assert len(checked) >= 2


def part_sizes(shape: Shape, index: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for tensor in shape.layers[index].tensors(shape.hidden_size):
        found[tensor.part] = found.get(tensor.part, 0) + tensor.num_elements()
    return found


@pytest.mark.parametrize("name", ["Llama-2-7B", "Llama-3-70B"])
def test_golden_parts_of_a_layer(name: str) -> None:
    want = document("golden/model_arithmetic.json")["models"][name]["per_layer"]
    parts = part_sizes(known.shape(GOLDEN[name]), 0)
    assert parts["qkv"] + parts["output"] == want["attention"]
    assert (parts["mlp"], parts["norm"], sum(parts.values())) == (want["mlp"], want["norms"], want["total"])


def test_golden_parts_of_layers_with_experts() -> None:
    golden = document("golden/model_arithmetic.json")["models"]
    mixtral = part_sizes(known.shape("mixtral-8x7b"), 0)
    assert mixtral["experts"] == 8 * golden["Mixtral-8x7B"]["per_expert"]
    assert mixtral["router"] == golden["Mixtral-8x7B"]["router_per_layer"]
    want, deepseek = golden["DeepSeek-V3"], known.shape("deepseek-v3")
    dense, routed = part_sizes(deepseek, 0), part_sizes(deepseek, 3)
    assert dense["mlp"] == want["dense_mlp_per_layer"]
    assert dense["qkv"] + dense["output"] == want["attention_per_layer"]
    assert dense["norm"] == want["qk_lora_norms_per_layer"] + 2 * 7168
    assert routed["router"] == want["router_per_layer_incl_bias"]
    assert (routed["experts"], routed["shared"]) == (256 * want["per_expert"], want["per_expert"])
    assert "mlp" not in routed


def test_checkpoints_hold_more_than_the_decoder() -> None:
    for name in ("deepseek-v3", "glm-4.5", "gemma-3-4b", "mistral-small-3.2-24b", "qwen3.5-35b-a3b"):
        shape = known.shape(name)
        assert shape.num_checkpoint_parameters() > shape.num_parameters()
    gpt2 = known.shape("gpt2")
    assert gpt2.num_checkpoint_parameters() == gpt2.num_parameters()


def windows(name: str) -> dict[int | None, int]:
    found: dict[int | None, int] = {}
    for layer in known.shape(name).layers:
        (mixer,) = layer.attentions
        found[mixer.reach] = found.get(mixer.reach, 0) + 1
    return found


def test_windows() -> None:
    assert windows("mistral-7b") == {None: 32}
    assert windows("mistral-7b-v0.1") == {4096: 32}
    assert windows("gemma-2-27b") == {4096: 23, None: 23}
    assert windows("gemma-3-27b") == {1024: 52, None: 10}
    assert windows("gpt-oss-120b") == {128: 18, None: 18}
    assert windows("llama-4-scout") == {8192: 36, None: 12}
    assert windows("command-r7b") == {4096: 24, None: 8}
    assert windows("qwen2.5-7b") == {None: 28}
    first = known.shape("gpt-oss-20b").layers[0].mixers[0]
    assert isinstance(first, Attention)
    assert first.window == 128
    assert first.has_sinks
    assert known.shape("gemma-3-1b").layers[5].attentions[0].reach is None


def test_layers_that_keep_states() -> None:
    falcon = known.shape("falcon-h1-7b").layers[0]
    assert (len(falcon.attentions), len(falcon.states)) == (1, 1)
    assert falcon.states[0].state_elements() == 24 * 128 * 256
    assert falcon.states[0].conv_elements() == (3072 + 2 * 256) * 3
    mixed = known.shape("qwen3-next-80b-a3b")
    assert sum(bool(layer.states) for layer in mixed.layers) == 36
    assert mixed.layers[0].states[0].state_elements() == 32 * 128 * 128
    assert mixed.kv_elements_per_token() == 12 * 2 * 2 * 256
    assert known.shape("mamba-2.8b").kv_elements_per_token() == 0


def test_latent_attention_compares_in_two_ways() -> None:
    """DeepSeek-V3: 61 layers of 128 heads; the factor 3.4 is what reading 576 numbers instead of 40,960 costs."""
    mixer = known.shape("deepseek-v3").layers[0].mixers[0]
    assert isinstance(mixer, LatentAttention)
    expanded = 61 * (mixer.score_flop_per_pair() + mixer.value_flop_per_pair())
    absorbed = 61 * (mixer.score_flop_per_pair(absorbed=True) + mixer.value_flop_per_pair(absorbed=True))
    assert (expanded, absorbed) == (4_997_120, 16_990_208)


@pytest.mark.parametrize(
    "fields",
    [
        config(),
        config(attention_bias=True, mlp_bias=True, head_dim=64, tie_word_embeddings=True),
        mistral(num_key_value_heads=8),
        qwen2(use_sliding_window=True, sliding_window=100, max_window_layers=3),
        qwen3(attention_bias=True),
    ],
    ids=["llama", "biased", "mistral", "qwen2", "qwen3"],
)
def test_what_runs_and_what_is_planned_are_counted_alike(fields: dict[str, Any]) -> None:
    arch, shape = Arch.from_config(fields), Shape.from_config(fields)
    assert arch.shape.layers == shape.layers
    assert arch.shape.num_parameters() == shape.num_parameters() == arch.num_parameters()
    assert arch.shape.forward_flop_per_token() == shape.forward_flop_per_token()
    assert arch.shape.max_positions == shape.max_positions


def test_parts_and_cuts_are_the_named_ones() -> None:
    for name in known.names():
        for tensor, _ in known.shape(name).tensors():
            assert tensor.part in PARTS
            assert tensor.cut in CUTS
        by_part = known.shape(name).num_parameters_by_part()
        assert sum(by_part.values()) == known.shape(name).num_parameters()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5; expected a divisor"),
        ({"hidden_size": 4097}, "hidden_size is 4097; expected a multiple of num_attention_heads"),
        ({"intermediate_size": ...}, "intermediate_size is missing"),
        ({"num_hidden_layers": "32"}, 'num_hidden_layers is "32"; expected a whole number'),
        ({"model_type": "mixtral", "architectures": ...}, "num_local_experts is missing"),
        ({"num_memory_heads": 2}, "num_memory_heads is 2; expected nothing: no llama model"),
        ({"kv_lora_rank": 512}, "kv_lora_rank is 512; expected nothing"),
        ({"sliding_window": 128}, "sliding_window is 128; expected nothing"),
        ({"num_local_experts": 8}, "num_local_experts is 8; expected nothing"),
        ({"layer_types": ["linear_attention"] * 32}, "layer_types"),
        (
            {"architectures": ["RwkvForCausalLM"], "model_type": "rwkv"},
            'model_type is "rwkv"; expected one of',
        ),
        ({"architectures": ["RwkvForCausalLM"]}, "model_type is missing"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_understood_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(LoadError, match=re.escape(said)):
        Shape.from_config(config(**changes))


def test_fields_that_change_no_count_are_accepted() -> None:
    extras = {
        "rope_theta": 5e5,
        "rope_scaling": {"type": "yarn", "factor": 4.0},
        "attention_dropout": 0.1,
        "initializer_range": 0.02,
        "pretraining_tp": 2,
        "num_local_experts": 0,
        "kv_lora_rank": None,
        "transformers_version": "5.0",
        "hidden_act": "gelu",
    }
    assert Shape.from_config(config(**extras)) == Shape.from_config(config())


def test_how_weights_are_stored_and_what_is_not_counted() -> None:
    assert known.shape("deepseek-v3").stored == "fp8-block"
    assert known.shape("gpt-oss-20b").stored == "mxfp4"
    assert known.shape("llama-3-8b").stored is None
    awq = {"quant_method": "awq", "bits": 4, "group_size": 64}
    assert Shape.from_config(config(quantization_config=awq)).stored == "awq-g64"
    llama4 = {
        "model_type": "llama4",
        "text_config": known.config("llama-4-scout"),
        "vision_config": {"depth": 3},
    }
    (note,) = Shape.from_config(llama4).notes
    assert "vision_config describes an encoder that is not counted" in note


def test_known_models_are_found_by_name_and_hub_id() -> None:
    assert known.find("Llama-3-8B") == "llama-3-8b"
    assert known.find("qwen/qwen3-0.6b") == "qwen3-0.6b"
    assert known.hub_id("gpt2") == "openai-community/gpt2"
    with pytest.raises(LoadError, match=r"near it are llama-3-8b"):
        known.shape("lama-3-8b")


def test_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config()))
    assert (
        Shape.from_file(tmp_path) == Shape.from_file(tmp_path / "config.json") == Shape.from_config(config())
    )
