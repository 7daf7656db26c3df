"""Models whose ops run one by one, with weights rounded to codes as they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo import LLM, SamplingParams
from octavo.arch import Arch
from octavo.errors import ConfigError, LoadError
from octavo.kernels import native
from octavo.kernels.linear import Codes
from octavo.models import checkpoint
from octavo.models.loader import load
from octavo.models.model import Model, TorchModel
from octavo.planner.memory import weight_bytes
from tests.engine.tiny import CONFIG, weights, write_checkpoint
from tests.exec import plain
from tests.kernels.decoded import decoded
from tests.kernels.numbers import same_bits
from tests.models.folders import write_config, write_model
from tests.models.test_native import TOKENS, run

NAMES = ("w8a16", "w4a16", "fp8")
SHAPES: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True, "head_dim": 10, "num_key_value_heads": 1, "intermediate_size": 72},
    {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 9, "head_dim": 16},
    {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_bias": True, "hidden_size": 80},
    {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16},
]


def loaded(folder: Path | Arch, dtype: str, quantization: str) -> TorchModel:
    model = load(folder, dtype, kernels="reference", quantization=quantization)
    assert isinstance(model, TorchModel)
    return model


def held_by(model: TorchModel, held: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors with the matrices as the codes have them."""
    found = dict(held)

    def read(codes: Codes, *names: str) -> None:
        numbers = decoded(codes.format, codes.codes, codes.scales, codes.num_in)
        sizes = [len(held[name]) for name in names]
        found.update(zip(names, numbers.split(sizes), strict=True))

    for i, layer in enumerate(model.layers):
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        read(layer.attention.qkv.packed.codes, *(f"{attention}.{which}_proj.weight" for which in "qkv"))
        read(layer.attention.o.packed.codes, f"{attention}.o_proj.weight")
        read(layer.mlp.gate_up.packed.codes, f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight")
        read(layer.mlp.down.packed.codes, f"{mlp}.down_proj.weight")
    is_tied = "lm_head.weight" not in held
    read(model.head.packed.codes, "model.embed_tokens.weight" if is_tied else "lm_head.weight")
    return found


@pytest.mark.parametrize("quantization", NAMES)
@pytest.mark.parametrize("changes", SHAPES[:3], ids=str)
def test_logits_are_the_textbooks_with_the_rounded_weights(
    tmp_path: Path, quantization: str, changes: dict[str, Any]
) -> None:
    config = CONFIG | changes
    model = loaded(write_checkpoint(tmp_path / "model", **changes), "float32", quantization)
    held = weights(config)
    rounded = held_by(model, held)
    assert not torch.equal(
        rounded["model.layers.1.mlp.up_proj.weight"], held["model.layers.1.mlp.up_proj.weight"]
    )
    want, found = plain.logits(config, rounded, TOKENS), run(model, 1)
    assert float((found.double() - want).abs().max()) <= plain.budget(
        config, len(TOKENS), float(want.abs().max())
    )
    assert same_bits(run(model, 1, (1, 2, 33, 1, 12, 21), other=True), found)


@pytest.mark.parametrize("quantization", NAMES)
@pytest.mark.parametrize("changes", SHAPES[3:], ids=str)
def test_biases_and_norms_of_heads_are_not_rounded(
    tmp_path: Path, quantization: str, changes: dict[str, Any]
) -> None:
    """The same logits as from a checkpoint that holds the rounded weights."""
    shape = {"hidden_size": 48, "num_attention_heads": 4, "head_dim": 12, "vocab_size": 300} | changes
    shape |= {"max_position_embeddings": 128, "rope_theta": 10000.0}
    (tmp_path / "rounded").mkdir()
    held = write_model(tmp_path, **shape)
    model = loaded(tmp_path, "float32", quantization)
    write_config(tmp_path / "rounded", **shape)
    rounded = {name: value.to(torch.float32).contiguous() for name, value in held_by(model, held).items()}
    save_file(rounded, tmp_path / "rounded" / "model.safetensors")
    want = run(load(tmp_path / "rounded", "float32", kernels="reference"), 1).double()
    budget = plain.budget(CONFIG | shape, len(TOKENS), float(want.abs().max()))
    assert float((run(model, 1).double() - want).abs().max()) <= budget


@pytest.mark.parametrize("quantization", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_weights_are_planned_to_the_byte(quantization: str, dtype: str, changes: dict[str, Any]) -> None:
    arch = Arch.from_config(CONFIG | changes | {"torch_dtype": dtype})
    model = loaded(arch, dtype, quantization)
    packed = [model.head.packed]
    for layer in model.layers:
        packed += [
            one.packed for one in (layer.attention.qkv, layer.attention.o, layer.mlp.gate_up, layer.mlp.down)
        ]
    norms = [model.final_norm]
    for layer in model.layers:
        found = (layer.attention_norm, layer.mlp_norm, layer.attention.q_norm, layer.attention.k_norm)
        norms += [norm for norm in found if norm is not None]
    held = sum(one.nbytes for one in (*packed, *norms))
    if not arch.tie_embeddings:
        assert isinstance(model.embedding, Tensor)
        held += model.embedding.nbytes
    assert held == model.weight_bytes == weight_bytes(arch, dtype, None, quantization)


@pytest.mark.parametrize("quantization", NAMES)
def test_a_tied_embedding_is_the_head(tmp_path: Path, quantization: str) -> None:
    write_model(tmp_path, tie_word_embeddings=True)
    model = loaded(tmp_path, "bfloat16", quantization)
    assert isinstance(model.embedding, Codes)
    assert model.embedding.format == "int8"
    assert model.head.packed.codes is model.embedding


@pytest.mark.parametrize("quantization", NAMES)
def test_a_matrix_in_many_pieces_is_the_same_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    held = write_model(tmp_path, torch.float16, vocab_size=1000)
    whole = loaded(tmp_path, "bfloat16", quantization)
    monkeypatch.setattr(checkpoint, "PIECE_BYTES", 1)
    parts = loaded(tmp_path, "bfloat16", quantization)
    assert parts.fingerprint == whole.fingerprint
    found = held_by(parts, held)
    assert all(torch.equal(value, found[name]) for name, value in held_by(whole, held).items())


@pytest.mark.parametrize("quantization", NAMES)
def test_values_that_are_not_finite_are_refused(tmp_path: Path, quantization: str) -> None:
    held = write_model(tmp_path)
    for name in ("model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"):
        broken = {key: tensor.clone() for key, tensor in held.items()}
        broken[name].view(-1)[7] = torch.nan
        save_file(broken, tmp_path / "model.safetensors")
        with pytest.raises(LoadError, match=f"{name} holds infinite or undefined values when stored as F32"):
            loaded(tmp_path, "bfloat16", quantization)


def test_fingerprints_and_decisions_name_the_formats(tmp_path: Path) -> None:
    write_model(tmp_path)
    models: list[Model] = [loaded(tmp_path, "bfloat16", name) for name in NAMES]
    models.append(load(tmp_path, "bfloat16", kernels="reference"))
    assert len({model.fingerprint for model in models}) == 4
    products = [[one.op for one in model.decisions if one.op.startswith("linear")] for model in models]
    assert products == [
        ["linear int8"],
        ["linear int4", "linear int8"],
        ["linear fp8", "linear int8"],
        ["linear"],
    ]


def test_what_the_kernels_do_not_read_is_refused() -> None:
    arch = Arch.from_config(CONFIG)
    with pytest.raises(
        ConfigError, match=r"'int4' needs compiled kernels: .*; w8a16, w4a16, fp8 run without"
    ):
        load(arch, kernels="reference", quantization="int4")
    if native.instruction_sets():
        with pytest.raises(ConfigError, match="'w8a16': compiled kernels read int8, int4, w4a16; use one"):
            load(arch, "bfloat16", quantization="w8a16")


@pytest.mark.parametrize("quantization", NAMES)
def test_a_request_gets_the_same_tokens_alone_and_beside_others(tmp_path: Path, quantization: str) -> None:
    folder = write_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, logprobs=2)
    prompts = [{"prompt_token_ids": TOKENS[:n]} for n in (5, 33, 1)]
    with LLM(
        str(folder), dtype="bfloat16", kernels="reference", quantization=quantization, max_model_len=64,
        max_num_seqs=4, num_kv_blocks=40, num_threads=1,
    ) as llm:  # fmt: skip
        assert llm.built.model.weight_bytes == llm.built.plan.resolved.memory.weight_bytes
        together = [out.outputs[0] for out in llm.generate(prompts, params)]
        alone = [llm.generate([prompt], params)[0].outputs[0] for prompt in prompts]
    for one, other in zip(together, alone, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == other.logprobs
