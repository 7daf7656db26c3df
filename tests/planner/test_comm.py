"""Bytes on links against worked values, and against rings and all-to-alls played out message by message."""

from __future__ import annotations

import pytest

from octavo.arch import known
from octavo.errors import ConfigError
from octavo.planner import comm
from octavo.planner.kv_layouts import LAYOUTS
from octavo.planner.links import LINKS
from tests.shared_data import document


def test_golden_traffic() -> None:
    golden = document("golden/model_arithmetic.json")["models"]
    llama = comm.tensor_parallel(known.shape("llama-3-70b"), 1, 8)
    assert llama.sent_bytes == golden["Llama-3-70B"]["tp8_allreduce_bytes_sent_per_rank_per_token_bf16"]
    assert llama.operations == 160
    deepseek = comm.expert_parallel(
        known.shape("deepseek-v3"), 1, 64, dispatch_bytes=1, combine_bytes=2, leaving=1.0
    )
    want = golden["DeepSeek-V3"]["ep_bytes_per_token_all_moe_layers_fp8_dispatch_bf16_combine"]
    assert deepseek.sent_bytes == want == 9_977_856
    assert deepseek.operations == 116


def ring_all_reduce(num_chunks: int) -> list[int]:
    """Chunks that each rank sends: p - 1 rounds of adding up, p - 1 of passing on."""
    sent = [0] * num_chunks
    for _ in range(2 * (num_chunks - 1)):
        for rank in range(num_chunks):
            sent[rank] += 1
    return sent


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_an_all_reduce_sends_what_a_ring_does(ranks: int) -> None:
    (sent,) = set(ring_all_reduce(ranks))
    assert comm.all_reduce_bytes(ranks * 1000, ranks) == pytest.approx(sent * 1000)
    assert comm.share_bytes(ranks * 1000, ranks) == pytest.approx((ranks - 1) * 1000)
    assert comm.all_reduce_bytes(1000, ranks, in_switch=True) == (1000 if ranks > 1 else 0)


def test_sharding_the_sequence_sends_as_much_in_twice_the_operations() -> None:
    shape = known.shape("llama-3-8b")
    plain, sharded = comm.tensor_parallel(shape, 100, 4), comm.sequence_sharded(shape, 100, 4)
    assert sharded.sent_bytes == pytest.approx(plain.sent_bytes)
    assert sharded.operations == 2 * plain.operations
    assert comm.tensor_parallel(shape, 100, 1).operations == 0


def test_one_rank_sends_nothing() -> None:
    shape = known.shape("mixtral-8x7b")
    for spread in comm.SPREADS.values():
        assert spread(shape, 1000, 1).sent_bytes == 0
        assert spread(shape, 1000, 1).operations == 0


def ulysses_bytes(heads: int, kv_heads: int, width: int, tokens: int, ranks: int) -> int:
    """Queries, keys, values and results that leave rank 0, vector by vector; key-value heads are repeated up to one
    for each rank."""
    mine = range(tokens // ranks)
    held = max(kv_heads, ranks)
    leaving = 0
    for _ in mine:
        for count in (heads, held, held, heads):
            leaving += sum(1 for head in range(count) if head * ranks // count != 0)
    return leaving * width * 2


@pytest.mark.parametrize(("name", "heads", "kv_heads"), [("llama-2-7b", 32, 32), ("llama-3-8b", 32, 8)])
@pytest.mark.parametrize("ranks", [2, 8, 16])
def test_ulysses_sends_what_leaves_a_rank(name: str, heads: int, kv_heads: int, ranks: int) -> None:
    got = comm.ulysses(known.shape(name), 64, ranks)
    assert got.sent_bytes == 32 * ulysses_bytes(heads, kv_heads, 128, 64, ranks)
    assert got.operations == 128


def test_grouped_heads_change_the_verdict_between_ulysses_and_a_ring() -> None:
    """65,536 tokens on 8 ranks: a ring sends 4.0 times as much for Llama-2-7B, 1.6 times for Llama-3-8B."""
    for name, factor in (("llama-2-7b", 4.0), ("llama-3-8b", 1.6)):
        shape = known.shape(name)
        ring, ulysses = comm.ring_attention(shape, 65536, 8), comm.ulysses(shape, 65536, 8)
        assert ring.sent_bytes / ulysses.sent_bytes == pytest.approx(factor)
        assert ring.operations == 32 * 7


def bubble_of(stages: int, microbatches: int) -> float:
    """A forward pipeline in unit time: when does the last stage end, and how long was it busy?"""
    done = [[0] * microbatches for _ in range(stages)]
    for batch in range(microbatches):
        for stage in range(stages):
            ready = done[stage - 1][batch] if stage else 0
            free = done[stage][batch - 1] if batch else 0
            done[stage][batch] = max(ready, free) + 1
    return 1 - microbatches / done[-1][-1]


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (4, 1), (4, 8), (8, 32)])
def test_bubble(stages: int, microbatches: int) -> None:
    assert comm.bubble(stages, microbatches) == pytest.approx(bubble_of(stages, microbatches))
    assert comm.bubble(4, 8, interleaved=2) == pytest.approx(1.5 / 9.5)
    with pytest.raises(ConfigError, match="at least 1 microbatch"):
        comm.bubble(4, 0)


def test_pipelines_send_hidden_states_once_a_boundary() -> None:
    shape = known.shape("llama-3-70b")
    assert comm.pipeline_parallel(shape, 4096, 4).sent_bytes == 3 * 4096 * 8192 * 2
    assert comm.pipeline_parallel(shape, 4096, 4, tensor=8).sent_bytes == 3 * 4096 * 8192 * 2 / 8


def test_gradients_and_sharded_weights() -> None:
    count = 1_000_000
    assert comm.data_parallel(count, 8).sent_bytes == 2 * 2 * count * 7 / 8
    assert comm.data_parallel(count, 8, stage=2).sent_bytes == 2 * 2 * count * 7 / 8
    assert comm.data_parallel(count, 8, stage=3).sent_bytes == 3 * 2 * count * 7 / 8
    with pytest.raises(ConfigError, match="zero-stage"):
        comm.data_parallel(count, 8, stage=4)


def test_hand_over_of_a_prompt() -> None:
    """Llama-3-70B, 4096 tokens: 1.34 GB, 27 ms at 50 GB/s."""
    got = comm.hand_over(known.shape("llama-3-70b"), 4096, LAYOUTS["bf16"])
    assert got.sent_bytes == 4096 * 327_680
    assert got.sent_bytes / 50e9 == pytest.approx(26.8e-3, abs=1e-4)


def test_vocabulary_is_added_up_and_gathered() -> None:
    got = comm.vocabulary(known.shape("llama-3-8b"), 100, 3, 4)
    assert got.sent_bytes == 100 * 4096 * 2 * 2 * 3 / 4 + 3 * 128256 * 2 * 3 / 4


def test_ulysses_and_rings_need_keys_and_values_by_head() -> None:
    for spread in (comm.ulysses, comm.ring_attention):
        with pytest.raises(ConfigError, match="no layers with keys and values"):
            spread(known.shape("deepseek-v3"), 100, 4)


def test_tensor_parallel_stays_inside_a_node() -> None:
    """A decode step of 64 sequences of Llama-3-70B on 8 ranks: reading its weights takes 5.3 ms on H100, the sums
    1.6 ms on NVLink and more than the weights on the fastest network."""
    got = comm.tensor_parallel(known.shape("llama-3-70b"), 64, 8)
    weights_s = 2 * 70_553_706_496 / 8 / 3.35e12
    assert got.seconds(LINKS["nvlink4"]) < 0.3 * weights_s
    assert got.seconds(LINKS["infiniband-ndr"]) > 1.5 * weights_s
    assert got.times(3).seconds(LINKS["pcie5"]) == pytest.approx(3 * got.seconds(LINKS["pcie5"]))
