"""Work of steps against slow sums over every layer and every slice, and seconds against the published rooflines."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from octavo.arch import Shape, known
from octavo.arch.mixers import Attention, LatentAttention
from octavo.arch.tensors import Matrix
from octavo.errors import ConfigError
from octavo.planner import flops
from octavo.planner.efficiency import ASSUMED, ASSUMED_NARROW, Efficiency, efficiency
from octavo.planner.flops import Slice
from octavo.planner.formats import FORMATS
from octavo.planner.hardware import device
from octavo.planner.kv_layouts import LAYOUTS
from octavo.planner.links import link
from octavo.planner.parallel import Parallel
from octavo.planner.roofline import bound, crossover_batch, floor_seconds, launch_seconds, ridge, step_seconds
from octavo.planner.step_work import StepCounter, step_work, touched_experts
from tests.shared_data import document, rows

RIDGES = {
    "A100": "a100", "H100": "h100", "H200": "h200", "L40S": "l40s", "MI300X": "mi300x",
}  # fmt: skip


def decodes(batch: int, context: int) -> list[Slice]:
    """So many sequences whose next token sees `context` positions."""
    return [(context - 1, 1, 1)] * batch


def test_golden_ridges() -> None:
    want = document("golden/model_arithmetic.json")["roofline"]["ridge_bf16_flop_per_byte"]
    for name, key in RIDGES.items():
        assert round(ridge(device(key)), 1) == pytest.approx(want[name], abs=0.11)
    b200 = (
        device("b200").rate("bf16") / 8e12
    )  # the data sheet's rate; the table has AIConfigurator's 7.7 TB/s
    assert round(b200, 1) == pytest.approx(want["B200_at_8TBps"], abs=0.06)


# Crossover batch of linear layers, ridge x bytes of an element / 2.
CROSSOVERS = {
    "bf16": {"a100": 153, "h100": 295, "h200": 206, "l40s": 419, "mi300x": 247},
    "fp8": {"h100": 295, "h200": 206, "l40s": 424, "mi300x": 247},
    "int4-g128": {"a100": 38, "h100": 74, "h200": 52, "l40s": 105, "mi300x": 62},
}


@pytest.mark.parametrize("form", CROSSOVERS)
def test_crossover_batches(form: str) -> None:
    for name, batch in CROSSOVERS[form].items():
        assert round(crossover_batch(device(name), FORMATS[form])) == batch


def test_golden_intensity_of_decoding() -> None:
    """Llama-2-7B at 1024 positions, of bytes read: it never nears the batch, because keys and values grow with it."""
    want = document("golden/model_arithmetic.json")["roofline"]["llama2_7b_decode_ctx1024_bf16_intensity"]
    counter = StepCounter(known.shape("llama-2-7b"))
    for batch, intensity in want.items():
        work = counter.work(decodes(int(batch), 1024))
        assert work.flop / (work.weight_bytes + work.kv_read_bytes) == pytest.approx(intensity, abs=0.006)
        assert work.intensity <= work.flop / (work.weight_bytes + work.kv_read_bytes)


def test_golden_intensity_of_attention() -> None:
    want = document("golden/model_arithmetic.json")["roofline"]["decode_attention_intensity"]
    for name, key in (
        ("llama-2-7b", "MHA_bf16"), ("llama-3-70b", "GQA_8to1_bf16"), ("deepseek-v3", "MLA_absorbed_bf16"),
    ):  # fmt: skip
        work = step_work(known.shape(name), decodes(1, 1 << 20))
        assert work.attention_flop / work.kv_read_bytes == pytest.approx(want[key], abs=0.005)


def test_golden_touched_experts() -> None:
    want = document("golden/model_arithmetic.json")["roofline"]["moe_expected_distinct_experts"]
    for key, count, share in (("E8_k2", 8, 2 / 8), ("E256_k8", 256, 8 / 256)):
        for tokens, experts in want[key].items():
            assert touched_experts(count, share, int(tokens)) == pytest.approx(experts, abs=6e-4)


def attention_bytes(shape: Shape, start: int, count: int, element: int) -> int:
    """Positions read in every layer, one by one."""
    total = 0
    for layer in shape.layers:
        for mixer in layer.attentions:
            seen = set()
            for position in range(start, start + count):
                first = 0
                if isinstance(mixer, Attention) and mixer.window is not None:
                    first = max(0, position - mixer.window + 1)
                elif isinstance(mixer, Attention) and mixer.chunk is not None:
                    first = position // mixer.chunk * mixer.chunk
                seen.update(range(first, position + 1))
            total += len(seen) * mixer.kv_elements_per_token() * element
    return total


SLICES: Sequence[Slice] = ((0, 37, 0), (100, 1, 1), (511, 1, 1), (130, 260, 1), (0, 1, 1))


@pytest.mark.parametrize(
    "name", ["llama-3.2-1b", "gemma-3-1b", "gpt-oss-20b", "llama-4-scout", "falcon-h1-7b"]
)
def test_work_is_the_sum_over_layers_and_slices(name: str) -> None:
    shape = known.shape(name)
    work = step_work(shape, SLICES)
    total = flops.forward(shape, list(SLICES))
    assert work.flop == pytest.approx(total.total - total.parts.get("recurrence", 0), rel=1e-12)
    pairs = total.parts["scores"] + total.parts["values"]
    assert work.attention_flop == pytest.approx(pairs, rel=1e-12)
    states = sum(
        4 * state.state_elements() + 2 * state.conv_elements()
        for layer in shape.layers
        for state in layer.states
    )
    read = sum(attention_bytes(shape, start, count, 2) for start, count, _ in SLICES)
    assert work.kv_read_bytes == read + states * len(SLICES)
    assert work.kv_write_bytes == 300 * shape.kv_elements_per_token() * 2 + states * len(SLICES)
    chunks = step_work(shape, [one for one in SLICES if one[1] > 1])
    assert work.chunk_attention_flop == pytest.approx(chunks.attention_flop)
    assert work.chunk_kv_read_bytes == chunks.kv_read_bytes
    assert (work.num_tokens, work.num_seqs, work.num_sampled) == (300, 5, 4)


def test_latents_are_compared_the_cheaper_way() -> None:
    shape = known.shape("deepseek-v3")
    absorbed = flops.decode(shape, 5000, absorbed=True)
    assert step_work(shape, decodes(1, 5000)).flop == absorbed.total
    assert step_work(shape, [(0, 4096, 1)]).flop == flops.prefill(shape, 4096).total
    assert isinstance(shape.layers[0].mixers[0], LatentAttention)


def test_picked_positions_are_read_and_all_are_compared() -> None:
    """DeepSeek-V3.2: latents of 2048 positions, and of all of them the indexer's key, 128 numbers."""
    shape = known.shape("deepseek-v3.2")
    work = step_work(shape, decodes(1, 10_000))
    assert work.flop == flops.decode(shape, 10_000, absorbed=True).total
    assert work.kv_read_bytes == 61 * 2 * (2048 * 576 + 10_000 * 128)
    assert work.kv_write_bytes == 61 * 2 * (576 + 128)


def test_weights_read_are_all_but_the_embedding() -> None:
    shape = known.shape("llama-3-8b")
    work = step_work(shape, decodes(1, 10))
    assert work.weight_bytes == 2 * (shape.num_parameters() - shape.embedding.num_elements())
    no_logits = step_work(shape, [(0, 10, 0)])
    assert work.weight_bytes - no_logits.weight_bytes == 2 * shape.head.num_elements()
    tied = known.shape("qwen3-0.6b")
    assert step_work(tied, decodes(1, 10)).weight_bytes == 2 * tied.num_parameters()


def test_experts_are_read_as_far_as_tokens_reach_them() -> None:
    shape = known.shape("mixtral-8x7b")
    counter = StepCounter(shape)
    others = 2 * (shape.num_parameters() - 32 * 8 * 176160768 - shape.embedding.num_elements())
    for batch, experts in ((1, 2), (4, 5.46875), (10_000, 8)):
        want = others + 2 * 32 * experts * 176160768
        assert counter.work(decodes(batch, 10)).weight_bytes == pytest.approx(want, rel=1e-9)
    # one token reads the parameters that count as active, embedding aside
    active = shape.num_active_parameters() - shape.embedding.num_elements()
    assert counter.work(decodes(1, 10)).weight_bytes == pytest.approx(2 * active, rel=1e-9)


def test_ranks_share_the_work() -> None:
    shape = known.shape("llama-3-70b")
    alone = step_work(shape, SLICES)
    shared = step_work(shape, SLICES, parallel=Parallel(tensor=8))
    norms = 2 * 8192 * (2 * 80 + 1)
    assert shared.linear_flop == pytest.approx(alone.linear_flop / 8)
    assert shared.attention_flop == pytest.approx(alone.attention_flop / 8)
    assert shared.kv_read_bytes == alone.kv_read_bytes / 8
    assert shared.weight_bytes - norms == pytest.approx((alone.weight_bytes - norms) / 8)
    # 4,587,520 bytes of each token over 80 layers: 2 all-reduces, 2 x 7/8 of 8192 bfloat16 numbers
    assert shared.link_bytes == 300 * 4_587_520
    assert shared.link_operations == 160
    sixteen = step_work(shape, SLICES, parallel=Parallel(tensor=16))
    assert sixteen.kv_read_bytes == alone.kv_read_bytes / 8  # 8 key-value heads: each is held twice


def test_stages_add_up() -> None:
    shape, spread = known.shape("mixtral-8x7b"), Parallel(tensor=2, pipeline=3)
    whole = step_work(shape, SLICES, parallel=spread)
    stages = [StepCounter(shape, parallel=spread, stage=one).work(SLICES) for one in range(3)]
    for name in (
        "linear_flop",
        "attention_flop",
        "weight_bytes",
        "kv_read_bytes",
        "kv_write_bytes",
        "link_bytes",
    ):
        assert sum(getattr(one, name) for one in stages) == pytest.approx(getattr(whole, name))


def test_experts_on_ranks_of_their_own() -> None:
    """DeepSeek-V3 on 8 ranks that attend for themselves: each holds 32 experts of 256, and all tokens reach them."""
    shape = known.shape("deepseek-v3")
    spread = Parallel(data=8, expert=8)
    mine = step_work(shape, decodes(16, 100), parallel=spread)
    alone = step_work(shape, decodes(16, 100))
    assert mine.linear_flop == pytest.approx(alone.linear_flop)
    assert mine.kv_read_bytes == alone.kv_read_bytes
    expert = 2 * 44_040_192 * 58
    touched = 32 * (1 - (1 - 8 / 256) ** 128)
    few = 256 * (1 - (1 - 8 / 256) ** 16)
    assert alone.weight_bytes - mine.weight_bytes == pytest.approx((few - touched) * expert)
    assert mine.link_operations == 2 * 58
    assert mine.link_bytes == pytest.approx(16 * 58 * 2 * 8 * 7168 * 2 * 7 / 8)


def test_formats_and_layouts_change_bytes_alone() -> None:
    shape = known.shape("llama-3-8b")
    wide = step_work(shape, SLICES)
    narrow = step_work(shape, SLICES, weights=FORMATS["fp8"], kv=LAYOUTS["fp8"])
    assert narrow.flop == wide.flop
    assert narrow.kv_read_bytes == wide.kv_read_bytes / 2
    linear = sum(
        tensor.count * tensor.inputs * tensor.outputs * count
        for tensor, count in shape.tensors()
        if isinstance(tensor, Matrix) and tensor.part in ("qkv", "output", "mlp")
    )
    scales = 4 * 32 * (4096 + 1024 + 1024 + 4096 + 2 * 14336 + 4096)
    assert wide.weight_bytes - narrow.weight_bytes == linear - scales


def test_seconds_follow_the_form() -> None:
    """t = c0 + c1 B + ((W / (bw e_b))^3 + (F / (peak e_f))^3)^(1/3) + A / (bw e_b) + KV / (bw e_k) + links, by
    hand."""
    shape, gpu, bus = known.shape("llama-3-8b"), device("h100"), link("nvlink4")
    work = step_work(shape, decodes(32, 2000), parallel=Parallel(tensor=2))
    made = Efficiency(
        step_s=1e-3,
        sequence_s=1e-5,
        weights=0.8,
        linear=0.7,
        kv=0.9,
        attention=1.0,
        basis="assumed",
        source="here",
    )
    weights = work.weight_bytes / (3.35e12 * 0.8)
    linear = work.linear_flop / (989e12 * 0.7)
    kv = work.kv_read_bytes / (3.35e12 * 0.9)
    attention = work.attention_flop / 989e12
    between = work.activation_bytes / (3.35e12 * 0.8)
    want = 1e-3 + 32e-5 + between + (weights**3 + linear**3) ** (1 / 3) + (kv**3 + attention**3) ** (1 / 3)
    want += work.kv_write_bytes / (3.35e12 * 0.9)
    assert step_seconds(work, gpu, made) == pytest.approx(want)
    want += 64 * bus.latency_s + work.link_bytes / (450e9 * bus.share)
    assert step_seconds(work, gpu, made, link=bus) == pytest.approx(want)


def test_nothing_is_faster_than_light() -> None:
    chance = random.Random(5)
    perfect = Efficiency(
        step_s=0, sequence_s=0, weights=1, linear=1, kv=1, attention=1, basis="assumed", source="here"
    )
    for name in ("llama-3-8b", "deepseek-v3", "gpt-oss-20b", "qwen3-next-80b-a3b"):
        counter = StepCounter(known.shape(name), weights=FORMATS["fp8"])
        for _ in range(20):
            slices = [
                (chance.randrange(5000), chance.choice((1, 1, 1, 17, 900)), 1)
                for _ in range(chance.randrange(1, 60))
            ]
            work = counter.work(slices)
            for gpu in (device("h100"), device("a100"), device("mi300x")):
                floor = floor_seconds(work, gpu, precision="fp8")
                assert floor <= step_seconds(work, gpu, perfect, precision="bf16")
                assert floor < step_seconds(work, gpu, ASSUMED, precision="fp8")


def test_prompts_are_bound_by_arithmetic_and_single_tokens_by_memory() -> None:
    counter, gpu = StepCounter(known.shape("llama-3-8b")), device("h100")
    assert bound(counter.work([(0, 4096, 1)]), gpu) == "compute"
    assert bound(counter.work([(0, 128, 1)]), gpu) == "memory"  # below a few hundred tokens a prompt is, too
    assert bound(counter.work(decodes(64, 1000)), gpu) == "memory"


def kernel_errors(table: str, gpu: str, seconds: Callable[[dict[str, str]], float | None]) -> list[float]:
    """Predicted over measured, less 1, of every row that is predicted."""
    found = []
    for row in rows(f"kernels/{table}.csv.gz"):
        predicted = seconds(row) if row["gpu"] == gpu else None
        if predicted is not None:
            found.append(predicted * 1e3 / float(row["latency_ms"]) - 1)
    return found


@pytest.mark.parametrize("gpu", ["h100", "h200"])
@pytest.mark.parametrize(("dtype", "precision", "miss"), [("bfloat16", "bf16", 0.07), ("fp8", "fp8", 0.18)])
def test_products_take_what_the_kernel_tables_say(gpu: str, dtype: str, precision: str, miss: float) -> None:
    """A launch, a memory rate and a peak, over three decades of sizes. The tables' own scatter is the tolerance: two
    shapes of as many bytes differ as much."""
    one, held, element = device(gpu), efficiency(device(gpu).name, precision), 2 if precision == "bf16" else 1

    def seconds(row: dict[str, str]) -> float | None:
        m, n, k = int(row["m"]), int(row["n"]), int(row["k"])
        if row["gemm_dtype"] != dtype or min(n, k) < 1024 or n > 65536:
            return None
        memory = n * k * element / (one.bytes_per_s * held.weights)
        arithmetic = 2 * m * n * k / (one.rate(precision) * held.linear)
        return held.product_s + float((memory**3 + arithmetic**3) ** (1 / 3))

    errors = kernel_errors("hopper_gemm_vllm0.24", gpu, seconds)
    assert len(errors) > 3000
    assert abs(statistics.median(errors)) < 0.02
    assert statistics.fmean(map(abs, errors)) < miss


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_attention_takes_what_the_kernel_tables_say(gpu: str) -> None:
    one, held = device(gpu), efficiency(device(gpu).name, "bf16")

    def decode(row: dict[str, str]) -> float | None:
        if row["kv_cache_dtype"] != "bfloat16":
            return None
        heads = int(row["num_key_value_heads"]) or int(row["num_heads"])
        read = 4 * 128 * int(row["batch_size"]) * int(row["step"]) * heads
        return held.attention_s + read / (one.bytes_per_s * held.kv)

    def prompt(row: dict[str, str]) -> float | None:
        length = int(row["isl"])
        flop = 2 * 128 * int(row["num_heads"]) * int(row["batch_size"]) * length * (length + 1)
        return flop / (one.rate("bf16") * held.attention) if length == 4096 and flop > 2e11 else None

    errors = kernel_errors("hopper_decode_attention_vllm0.24", gpu, decode)
    assert abs(statistics.median(errors)) < 0.04
    assert statistics.fmean(map(abs, errors)) < 0.22
    assert abs(statistics.median(kernel_errors("hopper_prefill_attention_vllm0.24", gpu, prompt))) < 0.03


@pytest.mark.parametrize("gpu", ["h100", "h200"])
@pytest.mark.parametrize(
    ("dtype", "precision", "miss"), [("bfloat16", "bf16", 0.24), ("fp8_block", "fp8", 0.26)]
)
def test_experts_take_what_the_kernel_tables_say(gpu: str, dtype: str, precision: str, miss: float) -> None:
    one, held, element = device(gpu), efficiency(device(gpu).name, precision), 2 if precision == "bf16" else 1
    assert held.expert_weights is not None
    assert held.expert_linear is not None

    def seconds(row: dict[str, str]) -> float | None:
        if row["moe_dtype"] != dtype or row["distribution"] != "balanced":
            return None
        used, count, tokens = int(row["topk"]), int(row["num_experts"]), int(row["num_tokens"])
        elements = 3 * int(row["hidden_size"]) * int(row["inter_size"]) / int(row["moe_tp_size"])
        mine = count / int(row["moe_ep_size"])
        touched = mine * (1 - (1 - used / count) ** tokens)
        memory = touched * elements * element / (one.bytes_per_s * held.expert_weights)
        flop = 2 * tokens * used * elements / int(row["moe_ep_size"])
        arithmetic = flop / (one.rate(precision) * held.expert_linear)
        return held.experts_s + float((memory**3 + arithmetic**3) ** (1 / 3))

    errors = kernel_errors("hopper_moe_vllm0.24", gpu, seconds)
    assert abs(statistics.median(errors)) < 0.03
    assert statistics.fmean(map(abs, errors)) < miss


def test_launches_are_counted_once_for_matrices_of_one_input() -> None:
    def counts(name: str) -> tuple[int, int, int]:
        work = step_work(known.shape(name), decodes(1, 10))
        return work.num_products, work.num_attentions, work.num_routed

    assert counts("llama-3-8b") == (4 * 32 + 1, 32, 0)  # qkv, o, gate and up, down; the head
    assert counts("mixtral-8x7b") == (3 * 32 + 1, 32, 32)  # qkv, o, router
    # down to two latents, up from each, o; 3 dense networks; 58 routers and shared experts
    assert counts("deepseek-v3") == (4 * 61 + 2 * 3 + 3 * 58 + 1, 61, 58)
    # and the indexer's queries, keys and weights, its scores and its choice
    assert counts("deepseek-v3.2") == (7 * 61 + 2 * 3 + 3 * 58 + 1, 3 * 61, 58)
    held = efficiency("h100-sxm", "bf16")
    work = step_work(known.shape("mixtral-8x7b"), decodes(1, 10))
    assert launch_seconds(work, held) == pytest.approx(97 * 3.9e-6 + 32 * 13e-6 + 32 * 46e-6)


def test_products_elsewhere_reach_what_large_ones_were_measured_to() -> None:
    """Fastest products on MI300X: 668.4 of 1307 TFLOP/s; engines reach 0.52 of 0.709 of an H100's peak in fp8."""
    assert efficiency("mi300x", "bf16").linear == pytest.approx(668.4 / 1307)
    assert efficiency("mi300x", "fp8").linear == pytest.approx(
        668.4 / 1307 * 0.52 / (1402.6 / 1978), rel=0.01
    )
    assert efficiency("b200-sxm", "fp4").linear == efficiency("b200-sxm", "fp8").linear
    assert efficiency("b200-sxm", "fp8").basis == "assumed"


def test_the_busiest_rank_of_experts_sets_the_pace() -> None:
    """Where arithmetic takes the time, and nowhere else; the speed of light knows no skew."""
    shape, gpu, held = known.shape("deepseek-v3"), device("h200"), efficiency("h200-sxm", "fp8")
    spread = Parallel(data=16, expert=16)
    many = step_work(shape, [(0, 8192, 1)], weights=FORMATS["fp8"], parallel=spread)
    few = step_work(shape, decodes(1, 100), weights=FORMATS["fp8"], parallel=spread)
    assert many.expert_skew == few.expert_skew == pytest.approx(2.0)
    assert step_work(shape, decodes(1, 100), parallel=Parallel(tensor=8)).expert_skew == 1
    for work, least, most in ((many, 1.2, 1.9), (few, 1.0, 1.01)):
        even = replace(work, expert_skew=1.0)
        slower = step_seconds(work, gpu, held, precision="fp8") / step_seconds(
            even, gpu, held, precision="fp8"
        )
        assert least <= slower < most
        assert floor_seconds(work, gpu, precision="fp8") == floor_seconds(even, gpu, precision="fp8")


@pytest.mark.parametrize("ranks", [4, 8, 16, 32])
def test_skew_is_what_the_kernel_tables_say(ranks: int) -> None:
    """Experts in fp8 whose popularity falls as their rank to the power of 1.01, over balanced ones."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows("kernels/hopper_moe_vllm0.24.csv.gz"):
        if (
            row["moe_dtype"] == "fp8_block"
            and int(row["moe_ep_size"]) == ranks
            and int(row["num_tokens"]) >= 4096
        ):
            key = (row["gpu"], row["hidden_size"], row["num_experts"], row["num_tokens"])
            found.setdefault(key, {})[row["distribution"]] = float(row["latency_ms"])
    skew = statistics.median(one["power_law_1.01"] / one["balanced"] for one in found.values())
    work = step_work(known.shape("deepseek-v3"), decodes(1, 10), parallel=Parallel(data=ranks, expert=ranks))
    assert work.expert_skew == pytest.approx(skew, rel=0.12)


def test_efficiency_is_checked_and_says_its_basis() -> None:
    assert efficiency("l4", "bf16") is ASSUMED
    assert efficiency("l40s", "fp8") is ASSUMED_NARROW
    assert {efficiency(name, "bf16").basis for name in ("h100-sxm", "rtx-pro-6000", "l4")} == {
        "measured", "fitted", "assumed",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        Efficiency(step_s=0, sequence_s=0, weights=1.5, linear=1, kv=1, attention=1, basis="", source="")
