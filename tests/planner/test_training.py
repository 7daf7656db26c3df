"""Training memory against worked values, and activations against a list of what is kept, tensor by tensor."""

from __future__ import annotations

from dataclasses import replace

import pytest

from octavo.arch import known
from octavo.errors import ConfigError
from octavo.planner import training
from octavo.planner.parallel import Parallel
from octavo.planner.training import Recipe
from octavo.units import GIB
from tests.shared_data import document

GOLDEN = {"Llama-2-7B": "llama-2-7b", "Llama-3-70B": "llama-3-70b"}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_training_memory(name: str) -> None:
    want = document("golden/model_arithmetic.json")["models"][name]
    shape = known.shape(GOLDEN[name])
    a_layer = training.layer_activation_bytes(shape.layers[0], shape.hidden_size, Recipe())
    assert a_layer == want["act_bytes_per_token_per_layer_no_ckpt"]
    kept = shape.num_layers * training.checkpoint_bytes(shape)
    assert kept == want["act_bytes_per_token_ckpt_all_layers"]
    assert training.plan_training(shape, Recipe()).state_bytes == want["training_state_bytes_16_per_param"]


def test_activations_of_4096_tokens() -> None:
    """16.08, 17.02 and 83.8 GiB; with a checkpoint at every layer's border 1.0, 1.0 and 5.0, and one layer live."""
    for name, a_layer, whole, kept in (
        ("llama-2-7b", 131_720, 16.08, 1.0),
        ("llama-3-8b", 139_400, 17.02, 1.0),
        ("llama-3-70b", 274_696, 83.8, 5.0),
    ):
        shape = known.shape(name)
        assert training.layer_activation_bytes(shape.layers[0], shape.hidden_size, Recipe()) == a_layer
        per_token = training.activation_bytes_per_token(shape, Recipe())
        assert 4096 * per_token / GIB == pytest.approx(whole, abs=0.05)
        full = training.activation_bytes_per_token(shape, Recipe(checkpoint="full"))
        assert 4096 * (full - a_layer) / GIB == pytest.approx(kept, abs=0.005)


def test_what_a_gated_layer_keeps() -> None:
    """Tensor by tensor, in bfloat16 but for statistics in float32."""
    hidden, heads, kv_heads, width, ffn = 4096, 32, 8, 128, 14336
    kept = [
        *(2 * hidden for _ in ("input of norm", "normed", "input of norm", "normed")),
        *(4, 4),  # a norm's statistic each
        *(2 * heads * width, 2 * kv_heads * width, 2 * kv_heads * width, 2 * heads * width),
        4 * heads,  # log-sum-exp
        *(2 * ffn, 2 * ffn, 2 * ffn),
    ]
    shape = known.shape("llama-3-8b")
    assert training.layer_activation_bytes(shape.layers[0], hidden, Recipe()) == sum(kept)


def test_the_reference_formula_of_gpt() -> None:
    """GPT-3, one sequence of 2048: 256.5 GiB, 76.5 without scores, 4.5 with checkpoints."""
    gpt3 = (2048, 1, 12288, 96, 96)
    for checkpoint, want in (("none", 256.5), ("selective", 76.5), ("full", 4.5)):
        assert training.gpt_activation_bytes(*gpt3, checkpoint=checkpoint) / GIB == pytest.approx(want)
    alone = training.gpt_activation_bytes(*gpt3)
    cut = training.gpt_activation_bytes(*gpt3, tensor=8)
    sharded = training.gpt_activation_bytes(*gpt3, tensor=8, sequence_sharded=True)
    rows = 2048 * 12288 * 96
    assert cut == pytest.approx(rows * (10 + 24 / 8 + 80 / 8))
    assert sharded == pytest.approx(alone / 8)


def test_scores_come_back_without_flash_attention() -> None:
    shape = known.shape("llama-2-7b")
    flash = training.activation_bytes_per_token(shape, Recipe())
    naive = training.activation_bytes_per_token(shape, Recipe(flash=False, sequence_tokens=2048))
    assert naive - flash == 32 * 32 * (5 * 2048 - 4)
    again = training.activation_bytes_per_token(shape, Recipe(flash=False, checkpoint="selective"))
    assert flash - again == 32 * 32 * 4


@pytest.mark.parametrize(
    ("convention", "optimizer", "want"),
    [
        ("bf16", "adam", 16),
        ("bf16-fp32-gradients", "adam", 18),
        ("bf16-both-gradients", "adam", 20),
        ("fp32", "adam", 16),
        ("bf16", "sgd", 8),
        ("bf16", "sgd-momentum", 12),
        ("bf16", "adamw-8bit", 8 + 2 + 8 / 256),
    ],
)
def test_bytes_of_a_parameter(convention: str, optimizer: str, want: float) -> None:
    assert training.state_bytes_per_parameter(Recipe(convention=convention, optimizer=optimizer)) == want


@pytest.mark.parametrize(("stage", "sharded"), [(0, 0), (1, 12), (2, 14), (3, 16)])
def test_zero_shards_so_many_of_16_bytes(stage: int, sharded: int) -> None:
    shape = known.shape("llama-2-7b")
    plan = training.plan_training(shape, Recipe(zero_stage=stage, data=64))
    count = shape.num_parameters()
    assert plan.state_bytes == pytest.approx(count * (16 - sharded) + count * sharded / 64, abs=3)
    whole = 2 * shape.num_layer_parameters() if stage == 3 else 0
    assert plan.gathered_bytes == whole


def test_tensor_groups_and_sharded_sequences() -> None:
    shape = known.shape("llama-3-8b")
    layer, hidden = shape.layers[0], shape.hidden_size
    alone = training.layer_activation_bytes(layer, hidden, Recipe())
    cut = training.layer_activation_bytes(layer, hidden, Recipe(), tensor=4)
    sharded = training.layer_activation_bytes(layer, hidden, Recipe(sequence_sharded=True), tensor=4)
    assert sharded == alone / 4
    assert cut - sharded == (8 * hidden + 8) * 3 / 4


def test_pipelines_hold_microbatches_in_flight() -> None:
    shape = known.shape("llama-3-8b")
    spread = Parallel(pipeline=4)
    recipe = Recipe(microbatches=16, fused_logits=True)
    plan = training.plan_training(shape, recipe, spread)
    assert plan.stage == 0
    assert plan.activation_bytes == 4 * 4096 * 8 * 139_400
    few = training.plan_training(shape, replace(recipe, microbatches=2), spread)
    assert few.activation_bytes == plan.activation_bytes / 2


def test_logits_and_their_gradient() -> None:
    shape = known.shape("llama-3-8b")
    plan = training.plan_training(shape, Recipe(micro_tokens=1000))
    assert plan.logit_bytes == 1000 * 6 * 128256
    assert training.plan_training(shape, Recipe(fused_logits=True)).logit_bytes == 0
    assert plan.total_bytes == sum(num_bytes for what, num_bytes, _ in plan.rows() if what != "total")


def test_experts_keep_what_is_sent_to_them() -> None:
    shape = known.shape("mixtral-8x7b")
    dense = replace(shape.layers[0], mlps=())
    recipe = Recipe()
    with_experts = training.layer_activation_bytes(shape.layers[0], 4096, recipe)
    without = training.layer_activation_bytes(dense, 4096, recipe)
    half = 2 * 2 * 4096 + 4
    assert with_experts - without - half == 2 * (6 * 14336 + 4 * 4096) + 4 * 8


def test_recipes_are_checked() -> None:
    for wrong, said in (
        ({"convention": "fp4"}, "convention must be one of bf16"),
        ({"zero_stage": 5}, "zero_stage must be 0, 1, 2 or 3"),
        ({"data": 0}, "data must be at least 1"),
        ({"checkpoint": "some"}, "checkpoint must be one of"),
    ):
        with pytest.raises(ConfigError, match=said):
            Recipe(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="checkpoint must be one of"):
        training.gpt_activation_bytes(1, 1, 1, 1, 1, checkpoint="all")
