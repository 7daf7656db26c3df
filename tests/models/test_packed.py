"""What a model loaded for the compiled kernels holds, and that it is refused as the reference's is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.arch import Arch
from octavo.errors import ConfigError, LoadError
from octavo.models import checkpoint
from octavo.models.loader import load
from octavo.models.native import NativeModel
from octavo.models.parts import DecoderParts
from octavo.models.registry import parts_of
from tests.models.folders import CONFIG, write_config, write_model, write_shards

_cpu = pytest.importorskip("octavo._cpu", reason="the compiled module is not built")

ODD = {
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 10000.0}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16, "rope_theta": 10000.0}


def rows_of(weight: Any, part: int, first: int, num_rows: int) -> Tensor:
    out = torch.full((num_rows, weight.num_in), torch.nan)
    weight.read(part, first, out)
    return out


def pieces(model: NativeModel, parts: DecoderParts) -> Iterator[tuple[str, Any, int, int]]:
    """(name, packed weight, part, first row) of every matrix."""
    yield parts.embedding.name, model.embedding, 0, 0
    if parts.head is not None:
        yield parts.head.name, model.head, 0, 0
    for layer, part in zip(model.layers, parts.layers, strict=True):
        first = 0
        for index, one in enumerate((part.q, part.k, part.v)):
            if len(layer.qkv) == 1:
                yield one.weight.name, layer.qkv[0], 0, first
                first += one.weight.shape[0]
            else:
                yield one.weight.name, layer.qkv[index], 0, 0
        yield part.o.weight.name, layer.o, 0, 0
        yield part.gate.weight.name, layer.gate_up, 0, 0
        yield part.up.weight.name, layer.gate_up, 1, 0
        yield part.down.weight.name, layer.down, 0, 0


def held_by(model: NativeModel) -> dict[str, Tensor]:
    """The model's matrices and norms under the checkpoint's names, float32."""
    parts = parts_of(model.arch)
    shapes = {weight.name: weight.shape for weight in parts.weights()}
    found = {
        name: rows_of(packed, part, first, shapes[name][0])
        for name, packed, part, first in pieces(model, parts)
    }
    found[parts.final_norm.name] = model.final_norm.float()
    for layer, part in zip(model.layers, parts.layers, strict=True):
        found[part.attention_norm.name] = layer.attention_norm.float()
        found[part.mlp_norm.name] = layer.mlp_norm.float()
        for weight, norm in ((part.q_norm, layer.q_norm), (part.k_norm, layer.k_norm)):
            if weight is not None:
                assert norm is not None
                found[weight.name] = norm.float()
    return found


@pytest.mark.parametrize("isa", [*_cpu.instruction_sets(), "emulated"])
@pytest.mark.parametrize("changes", [{}, ODD, QWEN2, QWEN3, {"tie_word_embeddings": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_is_where_it_belongs(
    tmp_path: Path, isa: str, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    held = write_model(tmp_path, dtype, **changes)
    model = load(tmp_path, dtype, kernels=isa)
    assert isinstance(model, NativeModel)
    assert model.isa == isa
    found = held_by(model)
    assert found.keys() == {name for name in held if not name.endswith(".bias")}
    for name, value in found.items():
        assert torch.equal(value, held[name].float()), name


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_cast(stored: torch.dtype, dtype: str, tmp_path: Path) -> None:
    held = write_model(tmp_path, stored)
    model = load(tmp_path, dtype)
    assert isinstance(model, NativeModel)
    for name, value in held_by(model).items():
        assert torch.equal(value, held[name].to(model.dtype).float()), name


def test_shards_load_as_one_file_does(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    write_shards(tmp_path / "many", write_model(tmp_path / "one"))
    write_config(tmp_path / "many")
    for quantization in (None, "int8", "int4"):
        one, many = (load(tmp_path / name, quantization=quantization) for name in ("one", "many"))
        assert one.fingerprint == many.fingerprint


def test_tied_embeddings_are_one_weight(tmp_path: Path) -> None:
    write_model(tmp_path, tie_word_embeddings=True)
    for quantization in (None, "int8", "int4"):
        model = load(tmp_path, quantization=quantization)
        assert model.head is model.embedding
    write_model(tmp_path)
    model = load(tmp_path)
    assert model.head is not model.embedding


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_a_matrix_in_many_pieces_is_the_same_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str | None
) -> None:
    """Large tensors are packed a few rows at a time: 63 pieces of 16 rows here, the last one short."""
    write_model(tmp_path, torch.float16, vocab_size=1000)
    whole = load(tmp_path, "float32", quantization=quantization)
    monkeypatch.setattr(checkpoint, "PIECE_BYTES", 1)
    parts = load(tmp_path, "float32", quantization=quantization)
    assert parts.fingerprint == whole.fingerprint
    assert isinstance(whole, NativeModel)
    assert isinstance(parts, NativeModel)
    found = held_by(parts)
    assert all(torch.equal(value, found[name]) for name, value in held_by(whole).items())


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, quantization: str | None) -> None:
    held = write_model(tmp_path)
    for name in (
        "model.layers.1.mlp.up_proj.weight",
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
    ):
        for value in (torch.nan, torch.inf, -torch.inf):
            broken = {key: tensor.clone() for key, tensor in held.items()}
            broken[name].view(-1)[7] = value
            save_file(broken, tmp_path / "model.safetensors")
            with pytest.raises(
                LoadError, match=f"{name} holds infinite or undefined values when stored as F32"
            ):
                load(tmp_path, quantization=quantization)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    held = write_model(tmp_path)
    del held["model.layers.1.mlp.up_proj.weight"]
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=r"up_proj\.weight is missing; expected shape \[24, 16\]"):
        load(tmp_path)


def test_the_file_may_vanish_or_change_after_loading(tmp_path: Path) -> None:
    held = write_model(tmp_path)
    model = load(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    assert isinstance(model, NativeModel)
    assert all(torch.equal(value, held[name]) for name, value in held_by(model).items())


def test_random_weights_are_those_of_the_reference() -> None:
    arch = Arch.from_config({**CONFIG, **ODD})
    model, reference = load(arch), load(arch, kernels="reference")
    assert isinstance(model, NativeModel)
    assert torch.equal(rows_of(model.embedding, 0, 0, 30), reference.embedding)
    assert torch.equal(rows_of(model.layers[1].down, 0, 0, 40), reference.layers[1].mlp.down.packed.weight)
    _, up = reference.layers[1].mlp.gate_up.packed.weight.chunk(2)
    assert torch.equal(rows_of(model.layers[1].gate_up, 1, 0, 56), up)


def test_the_fingerprint_follows_weights_config_kernels_and_quantization(tmp_path: Path) -> None:
    held = write_model(tmp_path)
    kinds: list[dict[str, Any]] = [
        {"kernels": "reference"},
        {"dtype": "bfloat16"},
        *({"kernels": isa} for isa in (*_cpu.instruction_sets(), "emulated")),
        {"quantization": "int8"},
        {"quantization": "int4"},
        {"quantization": "w4a16"},
    ]
    first = [load(tmp_path, **kind).fingerprint for kind in kinds]
    assert len(set(first)) == len(first)
    assert [load(tmp_path, **kind).fingerprint for kind in kinds] == first
    write_config(tmp_path, eos_token_id=3)
    assert [load(tmp_path, **kind).fingerprint for kind in kinds] == first
    held["model.layers.1.self_attn.k_proj.weight"][7, 15] += 1e-3
    save_file(held, tmp_path / "model.safetensors")
    assert not {load(tmp_path, **kind).fingerprint for kind in kinds} & set(first)


def test_decisions_name_kernels_and_formats() -> None:
    arch = Arch.from_config(CONFIG)
    model = load(arch, "bfloat16", kernels="portable")
    assert [(one.op, one.impl) for one in model.decisions] == [
        ("program", "portable"),
        ("linear", "portable bfloat16"),
    ]
    model = load(arch, "bfloat16", kernels="portable", quantization="int4")
    assert [(one.op, one.impl) for one in model.decisions] == [
        ("program", "portable"),
        ("linear", "portable int4"),
        ("head", "portable int8"),
    ]


def test_what_has_no_compiled_kernels_is_refused() -> None:
    arch = Arch.from_config(CONFIG)
    with pytest.raises(ConfigError, match="quantization='int8' needs compiled kernels: as configured"):
        load(arch, kernels="reference", quantization="int8")
    with pytest.raises(ConfigError, match=r"quantization='int8' needs compiled kernels.*not float16"):
        load(arch, "float16", quantization="int8")
    with pytest.raises(ConfigError, match=r"kernels='portable': .*not float16; use 'auto' or 'reference'"):
        load(arch, "float16", kernels="portable")
    with pytest.raises(ConfigError, match="kernels='sse2': this processor runs"):
        load(arch, kernels="sse2")
