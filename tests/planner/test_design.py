"""Designs: the worked example, the rules, exact counts against transformers, and rankings that hold."""

import math

import pytest

from octavo.errors import ConfigError
from octavo.planner import design, flops
from octavo.planner.design import Wishes, neighbours, shape_for
from octavo.planner.published import PUBLISHED
from octavo.planner.served import flop_costs

LAW = PUBLISHED["corrected"].law


def test_the_worked_example():
    """5.76e23 FLOPs by the corrected law: 8192 wide, 84 layers, N = L (12.5 h^2 + 2048 h + 2 h) + 2 V h + h."""
    best = LAW.optimum(5.76e23)
    made = shape_for(best.params)
    assert (made.hidden, made.layers, made.ffn, made.kv_heads, made.head_width) == (8192, 84, 28672, 8, 128)
    h, layers, vocabulary = 8192, 84, 128_256
    assert made.params == layers * (25 * h * h // 2 + 2048 * h + 2 * h) + 2 * vocabulary * h + h
    assert made.params == pytest.approx(73.98e9, rel=1e-4)
    assert 5.76e23 / 6 / made.params == pytest.approx(1.30e12, rel=0.002)


@pytest.mark.parametrize("params", [5e6, 3e7, 1.2e8, 6e8, 1.5e9, 8e9, 3e10, 7e10, 4e11])
def test_rules_are_kept(params):
    made = shape_for(params)
    assert made.active_params == pytest.approx(params, rel=0.13)
    assert made.hidden == made.query_heads * made.head_width
    assert made.query_heads % made.kv_heads == 0
    assert made.head_width == (64 if params < 1e9 else 128)
    if made.hidden >= 512:
        assert made.ffn % 256 == 0
        assert made.ffn == pytest.approx(3.5 * made.hidden, abs=128)
    low, high = design.aspect_range(params)
    assert low / 1.3 <= made.aspect <= high * 1.3
    assert made.tie_embeddings == (params < 4e9)
    if made.layers >= 40:
        assert made.layers % 4 == 0


@pytest.mark.parametrize("wishes", [Wishes(), Wishes(experts=16, active=2)], ids=["dense", "experts"])
def test_configs_are_those_of_transformers(wishes):
    """The model transformers builds from a design's config has as many parameters as the design says."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    made = shape_for(3e8, wishes)
    config = AutoConfig.for_model(**made.config())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == made.params


def test_tensor_parallelism_divides_width_heads_and_layers():
    made = shape_for(2e10, Wishes(tensor_parallel=8))
    assert made.hidden % (128 * 8) == 0
    assert made.query_heads % 8 == 0
    assert made.kv_heads % 8 == 0


def test_experts_share_the_feed_forward():
    dense, sparse = shape_for(1e10), shape_for(1e10, Wishes(experts=64, active=8))
    assert sparse.active_params == pytest.approx(1e10, rel=0.1)
    assert sparse.params > 5 * sparse.active_params
    assert sparse.config()["intermediate_size"] * 8 == sparse.ffn
    assert sparse.ffn == pytest.approx(dense.ffn, rel=0.15)
    assert sparse.config()["num_local_experts"] == 64


def test_a_vocabulary_is_the_users_or_fits_the_size():
    assert shape_for(8e9, Wishes(vocabulary=50_000)).vocabulary == 50_000
    assert design.vocabulary_for(8e9, 4096, tie=False) == 128_256
    assert design.vocabulary_for(1e8, 768, tie=True) == 32_000
    assert design.vocabulary_for(1e5, 128, tie=True) == 4_096


def test_neighbours_are_ranked_by_predicted_loss():
    best = LAW.optimum(1e22)
    found = neighbours(LAW, best.params, lambda n: 1e22 / 6 / n, Wishes())
    assert [one.loss_rank for one in found] == list(range(1, len(found) + 1))
    assert sorted(one.serving_rank for one in found) == list(range(1, len(found) + 1))
    for one in found:
        assert one.tokens == pytest.approx(1e22 / 6 / one.design.active_params)
        assert one.loss == pytest.approx(LAW.loss(one.design.active_params, one.tokens))
        assert one.loss >= best.loss
        assert one.served_flop == flops.decode(one.design.shape, 4096).total
        assert one.life_cost is None
        assert one.life_rank is None
    cheapest = min(found, key=lambda one: one.served_flop)
    assert cheapest.serving_rank == 1
    assert abs(math.log(found[0].design.params / best.params)) < 0.1
    assert 1.0 < found[0].training_flop / 1e22 < 1.1


def test_neighbours_are_ranked_by_life_where_serving_counts():
    best, costs = LAW.optimum(1e22), flop_costs(1e13)
    found = neighbours(
        LAW, best.params / 2, lambda n: LAW.tokens_for_loss(n, best.loss), Wishes(), costs=costs
    )
    assert [one.life_rank for one in found] == list(range(1, len(found) + 1))
    lives = [one.life_cost for one in found]
    assert lives == sorted(lives)
    for one in found:
        assert one.loss == pytest.approx(best.loss, rel=1e-9)
        assert one.life_cost == pytest.approx(costs.total(one.design.active_params, one.tokens))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: shape_for(2e6, Wishes(tensor_parallel=64)),
            "no design of about 2e\\+06 parameters keeps to tensor",
        ),
        (
            lambda: shape_for(1e5, Wishes(vocabulary=200_000)),
            "a vocabulary of 200000; ask for less parallelism",
        ),
        (lambda: Wishes(tensor_parallel=0), "tensor parallelism must be at least 1"),
        (lambda: Wishes(vocabulary=10), "at least 256 tokens, got 10"),
        (lambda: Wishes(experts=4, active=8), "got 8 of 4"),
    ],
)
def test_wishes_that_cannot_be(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
