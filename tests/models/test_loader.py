"""What a loaded model holds, and what is refused before serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import octavo.models.checkpoint as checkpoint_module
from octavo.arch import Arch
from octavo.errors import ConfigError, LoadError
from octavo.models import loader
from octavo.models.model import TorchModel
from tests.models.folders import CONFIG, tensors, write_config, write_model, write_shards


def load(model: str | Path | Arch, *arguments: Any, **options: Any) -> Any:
    """On the reference kernels, whose tensors can be looked at; tests/models/test_packed.py loads for the others."""
    return loader.load(model, *arguments, **{"kernels": "reference"} | options)


def held_by(model: TorchModel) -> dict[str, torch.Tensor]:
    """The model's tensors under the checkpoint's names."""
    found = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.final_norm}
    found["lm_head.weight"] = model.head.packed.weight
    for i, layer in enumerate(model.layers):
        prefix = f"model.layers.{i}"
        found[f"{prefix}.input_layernorm.weight"] = layer.attention_norm
        found[f"{prefix}.post_attention_layernorm.weight"] = layer.mlp_norm
        q_size, kv_size = (n * model.arch.head_dim for n in (model.arch.num_heads, model.arch.num_kv_heads))
        qkv = layer.attention.qkv.packed.weight.split([q_size, kv_size, kv_size])
        for name, weight in zip("qkvo", [*qkv, layer.attention.o.packed.weight], strict=True):
            found[f"{prefix}.self_attn.{name}_proj.weight"] = weight
        gate_up = layer.mlp.gate_up.packed.weight.chunk(2)
        for name, weight in zip(
            ("gate", "up", "down"), [*gate_up, layer.mlp.down.packed.weight], strict=True
        ):
            found[f"{prefix}.mlp.{name}_proj.weight"] = weight
    return found


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(LoadError) as caught:
        load(folder, **options)
    return str(caught.value)


def test_every_tensor_is_where_it_belongs(tmp_path: Path) -> None:
    held = write_model(tmp_path)
    model = load(tmp_path)
    found = held_by(model)
    assert found.keys() == held.keys()
    for name, value in held.items():
        assert torch.equal(found[name], value), name
    assert sum(value.numel() for value in found.values()) == model.arch.num_parameters()


def test_shards_load_as_one_file_does(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    write_shards(tmp_path / "many", write_model(tmp_path / "one"))
    write_config(tmp_path / "many")
    one, many = load(tmp_path / "one"), load(tmp_path / "many")
    assert one.fingerprint == many.fingerprint
    for name, value in held_by(one).items():
        assert torch.equal(held_by(many)[name], value), name


def test_a_single_file_of_any_name_will_do(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    assert load(tmp_path).arch.num_layers == 2


def test_tied_embeddings_are_one_tensor(tmp_path: Path) -> None:
    write_model(tmp_path, tie_word_embeddings=True)
    model = load(tmp_path)
    assert model.head.packed.weight.data_ptr() == model.embedding.data_ptr()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float16])
def test_weights_are_cast(stored: torch.dtype, dtype: str | torch.dtype, tmp_path: Path) -> None:
    held = write_model(tmp_path, stored)
    model = load(tmp_path, dtype)
    assert str(model.dtype).removeprefix("torch.") == str(dtype).removeprefix("torch.")
    for name, value in held_by(model).items():
        assert value.dtype == model.dtype
        assert torch.equal(value, held[name].to(model.dtype)), name


def test_auto_dtype(tmp_path: Path) -> None:
    """config.json counts first, then the file; without either it is float32."""
    write_model(tmp_path, torch.bfloat16)
    assert load(tmp_path).dtype == torch.bfloat16
    write_config(tmp_path, torch_dtype="float16")
    assert load(tmp_path).dtype == torch.float16
    assert load(Arch.from_config(CONFIG)).dtype == torch.float32
    assert load(Arch.from_config({**CONFIG, "dtype": "bfloat16"})).dtype == torch.bfloat16


def test_the_file_may_vanish_or_change_after_loading(tmp_path: Path) -> None:
    """Weights are copied out of the mapping: what happens to the file later is of no account."""
    held = write_model(tmp_path)
    model = load(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(held_by(model)["lm_head.weight"], held["lm_head.weight"])


def test_old_rotary_buffers_are_passed_over(tmp_path: Path) -> None:
    held = write_model(tmp_path)
    held["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(held, tmp_path / "model.safetensors")
    assert load(tmp_path).arch.num_layers == 2


def test_decisions_name_every_op(tmp_path: Path) -> None:
    write_model(tmp_path)
    decisions = load(tmp_path).decisions
    assert [one.op for one in decisions] == [
        "embed", "rms_norm", "add_rms_norm", "tables", "rotate_and_write", "paged_attention", "silu_mul", "linear",
    ]  # fmt: skip
    assert all(one.impl and one.is_batch_invariant for one in decisions)


# Refusals


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    held = write_model(tmp_path)
    del held["model.layers.1.mlp.up_proj.weight"]
    save_file(held, tmp_path / "model.safetensors")
    message = refusal(tmp_path)
    assert "tensor model.layers.1.mlp.up_proj.weight is missing; expected shape [24, 16]" in message
    assert "found 20 tensors of which 20 belong to this llama model" in message
    assert str(tmp_path) in message


def test_an_untied_head_is_missing(tmp_path: Path) -> None:
    write_model(tmp_path, tie_word_embeddings=True)
    write_config(tmp_path, tie_word_embeddings=False)
    assert "tensor lm_head.weight is missing; expected shape [30, 16]" in refusal(tmp_path)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    held = write_model(tmp_path)
    held["model.norm.weight"] = torch.ones(17)
    save_file(held, tmp_path / "model.safetensors")
    message = refusal(tmp_path)
    assert "model.safetensors: model.norm.weight has shape [17]; config.json asks for [16]" in message


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.2.mlp.up_proj.weight",
        "adapter.weight",
    ],
)
def test_a_tensor_that_would_be_ignored_is_named(name: str, tmp_path: Path) -> None:
    held = write_model(tmp_path)
    held[name] = torch.ones(16)
    save_file(held, tmp_path / "model.safetensors")
    assert f"model.safetensors: {name} belongs to no part of a llama model" in refusal(tmp_path)


def test_a_head_beside_tied_embeddings_must_equal_them(tmp_path: Path) -> None:
    held = write_model(tmp_path, tie_word_embeddings=True)
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    save_file(held, tmp_path / "model.safetensors")
    assert load(tmp_path).arch.tie_embeddings
    held["lm_head.weight"][3, 3] += 1
    save_file(held, tmp_path / "model.safetensors")
    assert "lm_head.weight differs from model.embed_tokens.weight" in refusal(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn])
def test_a_number_format_that_is_not_supported(dtype: torch.dtype, tmp_path: Path) -> None:
    held = write_model(tmp_path)
    held["model.norm.weight"] = held["model.norm.weight"].to(dtype)
    save_file(held, tmp_path / "model.safetensors")
    name = {torch.float64: "F64", torch.int8: "I8"}.get(dtype, "F8_E4M3")
    assert f"model.norm.weight is stored as {name}; supported are F32, BF16, F16" in refusal(tmp_path)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    held = write_model(tmp_path)
    held["model.norm.weight"][3] = torch.nan
    save_file(held, tmp_path / "model.safetensors")
    assert "model.norm.weight holds infinite or undefined values when stored as F32" in refusal(tmp_path)
    held["model.norm.weight"][3] = 1e6
    save_file(held, tmp_path / "model.safetensors")
    assert load(tmp_path).dtype == torch.float32
    message = refusal(tmp_path, dtype="float16")
    assert "model.norm.weight holds infinite or undefined values when cast to torch.float16" in message


def test_options_are_checked(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(ConfigError, match="dtype must be auto, float32, bfloat16, float16, got float64"):
        load(tmp_path, "float64")
    with pytest.raises(ConfigError, match="load_format must be one of auto, random, got 'dummy'"):
        load(tmp_path, load_format="dummy")


def test_code_in_the_folder_does_not_run(tmp_path: Path) -> None:
    write_model(tmp_path, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (tmp_path / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "auto_map" in load(tmp_path).arch.notes[0]
    assert not (tmp_path / "ran").exists()


# Random weights


def test_a_lone_config_gets_random_weights(tmp_path: Path) -> None:
    write_config(tmp_path)
    model = load(tmp_path / "config.json")
    found = held_by(model)
    assert found["lm_head.weight"].shape == (30, 16)
    assert (found["model.norm.weight"] == 1).all()
    weights = torch.cat([value.flatten() for name, value in found.items() if "norm" not in name])
    # the deviation of n normal values is within 5 / sqrt(2 n) of the true one but once in a million seeds
    assert abs(weights.std().item() / 0.02 - 1) < 5 / (2 * weights.numel()) ** 0.5


def test_random_weights_are_the_same_every_time_and_differ_by_seed(tmp_path: Path) -> None:
    write_config(tmp_path)
    arch = Arch.from_file(tmp_path)
    one, same, other = load(tmp_path, load_format="random"), load(arch), load(arch, seed=1)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert all(torch.equal(held_by(one)[name], value) for name, value in held_by(same).items())
    assert not torch.equal(one.embedding, other.embedding)


def test_random_weights_do_not_depend_on_the_other_tensors() -> None:
    arch = Arch.from_config(CONFIG)
    deeper = Arch.from_config({**CONFIG, "num_hidden_layers": 3})
    assert torch.equal(load(arch).head.packed.weight, load(deeper).head.packed.weight)


def test_a_folder_with_weights_can_be_made_random(tmp_path: Path) -> None:
    held = write_model(tmp_path)
    assert torch.equal(load(tmp_path).embedding, held["model.embed_tokens.weight"])
    assert not torch.equal(load(tmp_path, load_format="random").embedding, held["model.embed_tokens.weight"])


# The fingerprint


def test_fingerprint_follows_weights_config_and_dtype(tmp_path: Path) -> None:
    held = write_model(tmp_path)
    first = load(tmp_path).fingerprint
    assert len(first) == 32
    assert load(tmp_path).fingerprint == first
    assert load(tmp_path, "bfloat16").fingerprint != first
    write_config(tmp_path, rms_norm_eps=1e-6)
    assert load(tmp_path).fingerprint != first
    write_config(tmp_path, eos_token_id=3)
    assert load(tmp_path).fingerprint == first
    held["model.layers.1.self_attn.k_proj.weight"][7, 15] += 1e-3
    save_file(held, tmp_path / "model.safetensors")
    assert load(tmp_path).fingerprint != first


def test_fingerprint_of_a_large_checkpoint_samples_every_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "WHOLE_DIGEST_BYTES", 0)
    monkeypatch.setattr(checkpoint_module, "SAMPLE_BYTES", 64)
    monkeypatch.setattr(checkpoint_module, "NUM_SAMPLES", 4)
    held = write_model(tmp_path)
    first = load(tmp_path).fingerprint
    embedding = held["model.embed_tokens.weight"]  # 1920 bytes: the samples begin at 0, 618, 1237 and 1856
    embedding.view(-1)[100] += 1
    save_file(held, tmp_path / "model.safetensors")
    assert load(tmp_path).fingerprint == first
    for item in (0, 479):
        before = load(tmp_path).fingerprint
        embedding.view(-1)[item] += 1
        save_file(held, tmp_path / "model.safetensors")
        assert load(tmp_path).fingerprint != before


def test_the_bundled_model_loads() -> None:
    import octavo.bundled as bundled

    folder = Path(bundled.__file__).parent / "quire"
    file = folder / "model.safetensors"
    if not file.is_file():
        pytest.skip("the bundled model has not been trained yet")
    model = load(folder)
    assert model.dtype == torch.bfloat16
    assert model.arch.family == "llama"
    stored = load_file(file)
    assert torch.equal(model.embedding, stored["model.embed_tokens.weight"])
    assert model.arch.num_parameters() == sum(value.numel() for value in stored.values())
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == model.arch.vocab_size


def test_helpers_write_what_the_registry_asks_for() -> None:
    assert (
        sum(value.numel() for value in tensors(CONFIG).values()) == Arch.from_config(CONFIG).num_parameters()
    )
