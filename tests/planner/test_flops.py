"""FLOPs against worked values, and against loops that count one pair at a time."""

from __future__ import annotations

from itertools import product

import pytest

from octavo.arch import known
from octavo.arch.mixers import Attention, LatentAttention
from octavo.errors import ConfigError
from octavo.planner import flops
from octavo.planner.flops import causal_pairs
from tests.planner.mpt import SIZES, shape_of
from tests.shared_data import document, rows

GOLDEN = {
    "Llama-2-7B": "llama-2-7b",
    "Llama-3-8B": "llama-3-8b",
    "Llama-3-70B": "llama-3-70b",
    "Mixtral-8x7B": "mixtral-8x7b",
    "DeepSeek-V3": "deepseek-v3",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_flops(name: str) -> None:
    want = document("golden/model_arithmetic.json")["models"][name]
    shape = known.shape(GOLDEN[name])
    step = flops.decode(shape, 4096).total
    per_pair = (step - flops.decode(shape, 1).total) // 4095
    absorbed = flops.decode(shape, 2, absorbed=True).total - flops.decode(shape, 1, absorbed=True).total
    trained = flops.training(shape, 4096)
    got = {
        "attn_flops_per_pair": per_pair,
        "attn_flops_per_pair_expanded": per_pair,
        "attn_flops_per_pair_absorbed": absorbed,
        "prefill_flops_2048_head_last_token_causal": flops.prefill(shape, 2048).total,
        "decode_flops_ctx4096": step,
        "train_flops_per_token_seq4096_causal": trained.model // 4096,
    }
    checked = [field for field in want if field in got]
    assert {field: got[field] for field in checked} == {field: want[field] for field in checked}
    assert checked
    assert trained.model % 4096 == 0


# (prefill of 2048, share of attention in %, decode at 4096, training of 4096 tokens per token, of 6 N_matmul): each
# worked by hand from the config: 2 x matrices + 4 L a d x pairs, or for MLA 2 L a ((dn + dr) + dv) x pairs.
WORKED = {
    "llama-2-7b": (27.626e12, 4.0, 15.362e9, 42.86e9, 1.081),
    "llama-3-70b": (285.878e12, 1.9, 149.741e9, 433.1e9, 1.039),
    "mixtral-8x7b": (52.782e12, 2.1, 27.645e9, 79.71e9, 1.042),
    "deepseek-v3": (156.705e12, 6.7, 93.717e9, 250.5e9, 1.140),
}


@pytest.mark.parametrize("name", WORKED)
def test_worked_flops(name: str) -> None:
    prompt, share, token, trained, ratio = WORKED[name]
    shape = known.shape(name)
    found = flops.prefill(shape, 2048)
    assert found.total == pytest.approx(prompt, rel=2e-5)
    assert 100 * found.attention / found.total == pytest.approx(share, abs=0.05)
    assert flops.decode(shape, 4096).total == pytest.approx(token, rel=4e-5)
    step = flops.training(shape, 4096)
    assert step.model / 4096 == pytest.approx(trained, rel=2e-4)
    assert step.model / 4096 / (6 * shape.num_matmul_parameters()) == pytest.approx(ratio, abs=6e-4)


@pytest.mark.parametrize(
    ("start", "count", "reach"), list(product((0, 1, 5, 17), (1, 2, 7, 20), (1, 3, 8, 30)))
)
def test_pairs_are_those_a_loop_counts(start: int, count: int, reach: int) -> None:
    positions = range(start, start + count)
    assert causal_pairs(start, count) == sum(p + 1 for p in positions)
    assert causal_pairs(start, count, reach) == sum(min(p + 1, reach) for p in positions)
    assert causal_pairs(start, count, reach, chunked=True) == sum(p % reach + 1 for p in positions)


@pytest.mark.parametrize(
    "name", ["llama-3-8b", "gemma-3-27b", "llama-4-scout", "qwen3-next-80b-a3b", "deepseek-v3"]
)
def test_pieces_change_nothing_in_the_total(name: str) -> None:
    shape = known.shape(name)
    assert flops.chunked_prefill(shape, 5000, 512) == flops.prefill(shape, 5000)
    whole, hit = flops.prefill(shape, 9000), flops.prefill(shape, 9000, num_cached=1000)
    first = flops.prefill(shape, 1000, num_sampled=0)
    assert {part: hit.parts[part] + first.parts[part] for part in whole.parts} == whole.parts


def test_a_prefix_hit_saves_its_matrices_and_its_triangle() -> None:
    shape = known.shape("llama-3-8b")
    saved = flops.prefill(shape, 4096).total - flops.prefill(shape, 4096, num_cached=1024).total
    assert saved == 1024 * shape.forward_flop_per_token(with_head=False) + 524288 * (1024 * 1025 // 2)


def test_windows_bound_what_a_token_costs() -> None:
    shape = known.shape("mistral-7b-v0.1")
    assert flops.decode(shape, 4096).total == flops.decode(shape, 100_000).total
    gpt_oss = known.shape("gpt-oss-120b")
    more = flops.decode(gpt_oss, 10_001).total - flops.decode(gpt_oss, 10_000).total
    assert more == 18 * 4 * 64 * 64  # half of the layers see everything


def test_an_indexer_compares_all_and_picks_some() -> None:
    """DeepSeek-V3.2 at 10,000 positions: 64 narrow heads of 128 over all of them, 128 heads over 2048."""
    shape = known.shape("deepseek-v3.2")
    found = flops.decode(shape, 10_000, absorbed=True)
    assert found.parts["index"] == 61 * 10_000 * 2 * 64 * 128
    assert found.parts["scores"] + found.parts["values"] == 2048 * 16_990_208
    before = flops.decode(known.shape("deepseek-v3"), 10_000, absorbed=True)
    assert before.attention == 10_000 * 16_990_208


def test_latents_that_are_expanded_again_cost_more_the_smaller_the_pieces() -> None:
    shape = known.shape("deepseek-v3")
    mixer = shape.layers[0].mixers[0]
    assert isinstance(mixer, LatentAttention)
    again = flops.chunked_prefill(shape, 4096, 1024, re_expand=True)
    assert again.parts["expand"] == 61 * (1024 + 2048 + 3072) * 2 * 512 * 128 * 256
    assert again.total - again.parts["expand"] == flops.prefill(shape, 4096).total


def test_recomputing() -> None:
    shape = known.shape("llama-2-7b")
    none, selective, full = (flops.training(shape, 4096, recompute=kind) for kind in flops.RECOMPUTE)
    head = 4096 * 2 * 4096 * 32000
    assert none.model == none.hardware == selective.model == full.model == 3 * none.forward.total
    assert selective.hardware - selective.model == 524288 * (4096 * 4097 // 2)
    assert full.hardware == 4 * full.forward.total - head


def test_states_cost_the_same_for_every_token() -> None:
    shape = known.shape("mamba-2.8b")
    assert flops.decode(shape, 1).total == flops.decode(shape, 10**6).total
    assert flops.decode(shape, 1).parts["recurrence"] == 64 * (5 * 5120 * 16 + 2 * 5120 * 4)


def test_utilisation_as_llm_foundry_prints_it() -> None:
    """R36: MPT-7B on 8 H100, 10,643 tokens/s each at 2048 tokens: 46.44 %. Attention is counted in full there."""
    flop = flops.full_attention_flop_per_token(6_658_859_008, 32, 4096, 2048)
    assert 100 * flop * 10643 / 989e12 == pytest.approx(46.44, abs=0.1)


def test_every_published_utilisation_of_mpt() -> None:
    """Model-FLOP utilisation of 216 training runs to 0.1 point, from their tokens per second alone; and their number
    of parameters from the shape."""
    peaks = {"h100_80gb": 989e12, "a100_80gb": 312e12, "a100_40gb": 312e12}
    errors = []
    for row in rows("reference/mpt_training_throughput.csv"):
        layers, width, _ = SIZES[row["model"]]
        length, shape = int(row["seq_len"]), shape_of(row)
        assert shape.num_parameters() == int(row["num_params"])
        flop = flops.full_attention_flop_per_token(shape.num_parameters(), layers, width, length)
        peak = peaks[row["gpu"]] * (2 if "fp8" in row["precision"] else 1)
        rate = float(row["tokens_per_s"]) / int(row["gpus"])
        errors.append(abs(100 * flop * rate / peak - float(row["mfu_pct"])))
    assert len(errors) == 216
    assert max(errors) <= 0.1


def test_what_cannot_be_is_refused() -> None:
    shape = known.shape("gpt2")
    for call in (
        lambda: flops.prefill(shape, 10, num_cached=10),
        lambda: flops.chunked_prefill(shape, 10, 0),
        lambda: flops.decode(shape, 0),
        lambda: flops.training(shape, 10, recompute="some"),
    ):
        with pytest.raises(ConfigError):
            call()
    assert isinstance(shape.layers[0].mixers[0], Attention)
