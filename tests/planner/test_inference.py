"""Memory of serving against what vLLM printed at start-up, and pools against worked values."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest

from octavo.arch import Shape, known
from octavo.errors import ConfigError
from octavo.planner.formats import FORMATS
from octavo.planner.hardware import device
from octavo.planner.inference import (
    InferenceMemory,
    Serving,
    activation_bytes,
    plan_inference,
    rank_weight_bytes,
    table_bytes,
)
from octavo.planner.kv_layouts import LAYOUTS, kv_cost
from octavo.planner.parallel import Parallel
from octavo.units import GIB
from tests.shared_data import document, rows

MODELS = {
    "gpt-oss-20b": "gpt-oss-20b",
    "gpt-oss-120b": "gpt-oss-120b",
    "Llama-3.3-70B-FP8": "llama-3.3-70b",
    "Llama-3.1-8B": "llama-3.1-8b",
    "Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Qwen3-0.6B": "qwen3-0.6b",
    "Qwen3-8B": "qwen3-8b",
    "Qwen3-14B": "qwen3-14b",
    "Qwen3-32B": "qwen3-32b",
    "Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "Mistral-Small-3.2-24B": "mistral-small-3.2-24b",
}


@dataclass(frozen=True)
class ReadOut:
    """One row of what vLLM printed: GiB as given, None where it was not."""

    label: str
    model: str
    weights: str
    kv_dtype: str
    tensor: int
    pipeline: int
    utilization: float
    weights_gib: float | None
    activation_gib: float | None
    other_gib: float | None
    kv_gib: float | None
    kv_tokens: int | None

    @property
    def shape(self) -> Shape:
        """Qwen2.5-7B-Instruct is made for fewer positions than the base model."""
        shape = known.shape(self.model)
        return replace(shape, max_positions=32768) if self.model == "qwen2.5-7b" else shape

    @property
    def parallel(self) -> Parallel:
        return Parallel(tensor=self.tensor, pipeline=self.pipeline)

    def planned(self) -> InferenceMemory:
        """Of one H100, with the activations and libraries that were printed."""
        assert self.activation_gib is not None
        assert self.other_gib is not None
        serving = Serving(
            utilization=self.utilization,
            activation_bytes=int(self.activation_gib * GIB),
            library_bytes=int(self.other_gib * GIB),
        )
        layout = LAYOUTS[self.kv_dtype]
        return plan_inference(
            self.shape,
            device("h100").limit_bytes,
            FORMATS[self.weights],
            layout,
            parallel=self.parallel,
            serving=serving,
        )


def read_outs() -> list[ReadOut]:
    found = []
    for row in rows("reference/vllm_memory.csv"):
        name = re.sub(r"\s*\(.*", "", row["model"])
        if name not in MODELS or "RTX" in row["model"]:
            continue
        weights = "bf16"
        if "FP8" in row["model"] or "fp8" in row["model"]:
            weights = "fp8"
        elif "float32" in row["model"]:
            weights = "fp32"
        elif "gpt-oss" in name:
            weights = "mxfp4-hopper"

        def number(column: str, row: dict[str, str] = row) -> float | None:
            return float(row[column]) if row[column] else None

        # that row's own numbers add up at 0.95: 79.19 x 0.95 - 64.38 - 7.38 - 0.13 = 3.34
        utilization = 0.95 if name == "gpt-oss-120b" else float(row["gpu_mem_util"])
        tokens = row["kv_cache_tokens"]
        found.append(
            ReadOut(
                label=f"{row['model']} {row['engine']} TP{row['tp']} PP{row['pp']} {row['kv_dtype']}",
                model=MODELS[name],
                weights=weights,
                kv_dtype={"auto": "fp32" if weights == "fp32" else "bf16", "fp8": "fp8"}[row["kv_dtype"]],
                tensor=int(row["tp"]),
                pipeline=int(row["pp"]),
                utilization=utilization,
                weights_gib=number("weights_GiB_per_gpu"),
                activation_gib=number("activation_GiB"),
                other_gib=number("non_torch_GiB"),
                kv_gib=number("kv_cache_GiB_per_gpu"),
                kv_tokens=int(tokens) if tokens else None,
            )
        )
    return found


def weights_gib(one: ReadOut) -> float:
    """Of the rank that holds most, with the position tables that vLLM counts among the weights."""
    shape = one.shape
    held = max(
        rank_weight_bytes(shape, FORMATS[one.weights], one.parallel, stage) for stage in range(one.pipeline)
    )
    return (held + table_bytes(shape, 4 if one.weights == "fp32" else 2)) / GIB


def test_weights_are_those_vllm_printed() -> None:
    """Within 0.5 % of every read-out, in tensor groups and pipelines; 0.1 % on average."""
    found = {one.label: weights_gib(one) / one.weights_gib - 1 for one in read_outs() if one.weights_gib}
    assert len(found) >= 26
    assert max(map(abs, found.values())) < 0.005, found
    assert sum(map(abs, found.values())) / len(found) < 0.001


def test_experts_lie_padded_on_hopper() -> None:
    """The checkpoint of gpt-oss is 5 % smaller than what vLLM holds: experts are 2880 wide, and kernels pad."""
    for one in read_outs():
        if one.model.startswith("gpt-oss") and one.weights_gib:
            bare = weights_gib(replace(one, weights="mxfp4"))
            assert -0.06 < bare / one.weights_gib - 1 < -0.04


def test_pools_are_those_vllm_printed() -> None:
    """GiB for keys and values within 1 %; within 6 % of the 3.33 that gpt-oss-120b leaves of one GPU, where 0.3 %
    of its weights are 0.19 GiB."""
    checked = 0
    for one in read_outs():
        if one.kv_gib is None or one.activation_gib is None:
            continue
        within = 0.06 if one.model == "gpt-oss-120b" else 0.01
        assert one.planned().pool_bytes / GIB == pytest.approx(one.kv_gib, rel=within), one.label
        checked += 1
    assert checked >= 14


def test_tokens_are_those_vllm_printed() -> None:
    """Tokens from the GiB it gave itself, within 0.05 %; and from our own weights within 1 %."""
    checked = 0
    for one in read_outs():
        if one.kv_tokens is None or one.kv_gib is None:
            continue
        layout = LAYOUTS[one.kv_dtype]
        cost = kv_cost(known.shape(one.model), layout, one.parallel)
        assert one.kv_gib * GIB / cost.token_bytes == pytest.approx(one.kv_tokens, rel=5e-4), one.label
        if one.activation_gib is not None:
            assert one.planned().pool_tokens == pytest.approx(one.kv_tokens, rel=0.01), one.label
        checked += 1
    assert checked >= 8


def test_an_issue_s_pool() -> None:
    """vllm issue 21348: Qwen3-235B-A22B on 4 H100, 8.11 GiB a GPU, 178,880 tokens; 4 key-value heads, one each."""
    (row,) = [row for row in rows("reference/vllm_memory.csv") if row["engine"].endswith("issue 21348")]
    cost = kv_cost(known.shape("qwen3-235b-a22b"), LAYOUTS["bf16"], Parallel(tensor=4))
    tokens = float(row["kv_cache_GiB_per_gpu"]) * GIB / cost.token_bytes
    assert tokens == pytest.approx(int(row["kv_cache_tokens"]), rel=0.03)


# Bytes of memory, utilisation, weights, activations, libraries in GiB -> tokens; as vLLM 0.19 printed them on an H100
# of 79.19 GiB for Llama-3.1-8B (131,072 B a token) and Qwen2.5-7B (57,344), and the 2,588 blocks of an RTX 4090.
def test_worked_pools() -> None:
    def tokens(
        limit: float, weights: float, activations: float, libraries: float, name: str, layout: str
    ) -> int:
        made = InferenceMemory(
            stage=0,
            limit_bytes=int(limit * GIB),
            weight_bytes=int(weights * GIB),
            table_bytes=0,
            activation_bytes=int(activations * GIB),
            library_bytes=int(libraries * GIB),
            block_tokens=16,
            kv=kv_cost(known.shape(name), LAYOUTS[layout]),
        )
        return made.pool_tokens

    assert tokens(79.19 * 0.95, 14.99, 1.89, 0.25, "llama-3.1-8b", "bf16") == pytest.approx(475_952, abs=64)
    assert tokens(79.19 * 0.95, 14.99, 1.89, 0.25, "llama-3.1-8b", "fp8") == pytest.approx(952_064, rel=2e-4)
    assert tokens(79.19 * 0.95, 14.25, 2.21, 0.24, "qwen2.5-7b", "bf16") == pytest.approx(1_095_936, rel=2e-4)
    assert pytest.approx(5.05, abs=0.005) == 2588 * 16 * 131_072 / GIB


def test_activations_are_near_what_vllm_printed() -> None:
    """1.89 and 2.21 GiB of vLLM 0.19, 1024 sequences and 8192 tokens a step; 1.05 to 1.10 on stages without a head."""
    for name, want in (("llama-3.1-8b", 1.89), ("qwen3-8b", 2.21), ("qwen2.5-7b", 2.21)):
        assert activation_bytes(known.shape(name), Serving()) / GIB == pytest.approx(want, rel=0.06)
    first = activation_bytes(known.shape("llama-3.1-8b"), Serving(), is_last=False)
    assert first / GIB == pytest.approx(1.08, rel=0.2)


def test_the_stage_with_least_room_is_planned() -> None:
    shape, spread = known.shape("llama-3.1-8b"), Parallel(pipeline=4)
    plan = plan_inference(
        shape, device("h100").limit_bytes, FORMATS["bf16"], LAYOUTS["bf16"], parallel=spread
    )
    assert plan.stage == 3  # embedding and head weigh the same, but the head has logits
    assert plan.kv.token_bytes == 131_072 / 4
    assert sum(num_bytes for _, num_bytes, _ in plan.rows()) == plan.limit_bytes
    assert plan.num_sequences(1000) == plan.pool_bytes // (1008 * 32768)


def test_what_does_not_fit_has_no_room() -> None:
    plan = plan_inference(
        known.shape("llama-3-70b"), device("l4").limit_bytes, FORMATS["bf16"], LAYOUTS["bf16"]
    )
    assert plan.pool_bytes < 0
    assert plan.pool_tokens == plan.num_sequences(100) == 0
    mamba = plan_inference(
        known.shape("mamba-2.8b"), device("l4").limit_bytes, FORMATS["bf16"], LAYOUTS["bf16"]
    )
    assert mamba.pool_tokens == 0
    assert mamba.num_sequences(100) == mamba.num_sequences(10**6) > 100


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="utilization must be above 0 and at most 1"):
        Serving(utilization=1.5)
    with pytest.raises(ConfigError, match="max_tokens must be at least 1"):
        Serving(max_tokens=0)


def test_golden_batches_that_memory_allows() -> None:
    """Llama-2-70B in fp8 on H200 and on two H100: more than the 806 and 896 that NVIDIA configured in MLPerf v4.1."""
    golden = document("golden/model_arithmetic.json")["capacity"]["llama2_70b_fp8_kv_limited_mean_batch"]
    shape = known.shape("llama-2-70b")
    for key, ranks in (("H200_TP1", 1), ("H100_TP2_per_gpu", 2)):
        want = golden[key]
        cost = kv_cost(shape, LAYOUTS["fp8"], Parallel(tensor=ranks))
        pool = 0.9 * (want["usable_bytes"] - want["weights_bytes"] - 3e9)
        batch = pool / cost.token_bytes / (294 + 294 / 2)
        assert round(batch) == want["value"] > want["mlperf_v41_configured"]
        held = rank_weight_bytes(shape, FORMATS["fp8"], Parallel(tensor=ranks), None)
        assert held == pytest.approx(want["weights_bytes"], rel=0.02)  # there, head and embedding in fp8 too
    assert device("h200").limit_bytes == pytest.approx(golden["H200_TP1"]["usable_bytes"], rel=1e-3)
    assert device("h100").limit_bytes == pytest.approx(golden["H100_TP2_per_gpu"]["usable_bytes"], rel=1e-3)
