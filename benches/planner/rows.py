"""Public measurements as the planner sees them: a replica, a load, how many requests at once, what was measured.

The files lie beside the project or under OCTAVO_SHARED_DATA, in `reference`.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from benches.planner.scripts import Label, Settings, settings
from octavo.arch import known
from octavo.arch.shape import Shape
from octavo.errors import ConfigError
from octavo.planner.capacity import Load, Replica
from octavo.planner.formats import FORMATS
from octavo.planner.hardware import device
from octavo.planner.kv_layouts import LAYOUTS
from octavo.planner.parallel import Parallel

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
SPLIT_SEED = 20
"""Of the halves: constants are read off one, errors are reported of the other."""

MODELS = {
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "nvidia/Qwen3-32B-NVFP4": "qwen3-32b",
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "deepseek-ai/DeepSeek-R1": "deepseek-r1",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-r1",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-v3",
    "Qwen/Qwen3.5-397B-A17B": "qwen3.5-397b-a17b",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
    "moonshotai/Kimi-K2.5": "kimi-k2",
    "zhipuai/GLM-5": "glm-5",
}
"""MiniMax-M2.5 and Kimi-K2.5 have the shapes of MiniMax-M2 and Kimi-K2, the latter but for an image encoder."""

FORMATS_OF = {
    "": "bf16", "fp8": "fp8", "fp8_block": "fp8-block", "nvfp4": "nvfp4", "int4_wo": "int4-g32",
}  # fmt: skip
WAVES = 10
"""Requests for each at once: `--num-prompts $((CONC * 10))` of the dashboard's scripts (SemiAnalysisAI/InferenceX)."""

SHORTEST = 0.8
"""`--random-range-ratio` of the same scripts: lengths lie evenly between this share of the nominal one and 1."""


def folder() -> Path:
    return Path(os.environ.get("OCTAVO_SHARED_DATA", BESIDE)) / "reference"


def table(name: str) -> list[dict[str, str]]:
    """Rows by column. Raises FileNotFoundError."""
    raw = (folder() / name).read_bytes()
    text = gzip.decompress(raw).decode() if name.endswith(".gz") else raw.decode()
    return list(csv.DictReader(io.StringIO(text)))


@cache
def shape(name: str) -> Shape:
    return known.shape(name)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One deployment that was measured in a closed loop.

    group        "dense" or "moe"
    is_public    from the public dashboard, whose scripts are known; else from a vendor's lab
    drafts       several tokens were drafted for each that was computed, which its label does not say
    """

    row: int
    group: str
    engine: str
    is_public: bool
    replica: Replica
    load: Load
    concurrency: float
    ttft_s: float
    tpot_s: float
    settings: Settings
    drafts: bool = False

    @property
    def is_half(self) -> bool:
        """Of the half that constants are read off."""
        return random.Random(SPLIT_SEED * 1_000_003 + self.row).random() < 0.5


def runs() -> tuple[list[Run], list[str]]:
    """Aggregated deployments that are kept, and why others cannot be planned as they are labelled."""
    found, left = [], []
    for row in table("silicon_points.csv.gz"):
        if row["keep"] == "1" and row["mode"] == "agg":
            try:
                found.append(_run(row))
            except ConfigError as error:
                left.append(f"row {row['row']}: {error}")
    return found, left


def _run(row: dict[str, str]) -> Run:
    name, gpu = MODELS[row["model_path"]], row["system"].removesuffix("_sxm")
    is_public = row["origin"] == "public-dashboard-dump"
    is_dense = shape(name).layers[-1].experts is None
    form = FORMATS_OF[row["gemm_quant_mode"]]
    if name == "gpt-oss-120b":  # its weights are published in 4 bits, whatever the products' label says
        form = "mxfp4-hopper" if gpu in ("h100", "h200") else "mxfp4"
    tensor, data = int(row["tp_size"]), max(1, int(row["attention_dp_size"] or 1))
    prompt, output = float(row["isl"]), float(row["osl"])
    concurrency = float(row["concurrency"] or float(row["batch_size"]) * data)
    label = Label(
        engine=row["backend"],
        version=row["backend_version"],
        model=name,
        gpu=gpu,
        form=form,
        tensor=tensor,
        data=data,
        prompt=prompt,
        output=output,
        concurrency=concurrency,
    )
    told = settings(label) if is_public else _of_lab(label)
    whole_experts = data > 1 or int(row["moe_ep_size"] or 1) > 1
    if is_dense:
        parallel = Parallel(tensor=tensor)
    else:
        parallel = Parallel(tensor=tensor, data=data, expert=tensor * data if whole_experts else 1)
    replica = Replica(
        shape=shape(name),
        device=device(gpu),
        weights=FORMATS[form],
        kv=LAYOUTS[told.kv],
        parallel=parallel,
        budget_tokens=told.budget_tokens,
    )
    mean = (1 + SHORTEST) / 2 if is_public else 1.0
    if replica.memory.pool_bytes <= replica.memory.kv.sequence_bytes(int(prompt + output)):
        raise ConfigError(
            f"{name} in {form} has no room on {parallel.num_ranks} x {gpu} beside its weights: something else ran"
        )
    replica.check()
    return Run(
        row=int(row["row"]),
        group="dense" if is_dense else "moe",
        engine=row["backend"],
        is_public=is_public,
        replica=replica,
        load=Load(prompt_tokens=prompt * mean, output_tokens=output * mean),
        concurrency=concurrency,
        ttft_s=float(row["ttft_ms"]) / 1e3,
        tpot_s=float(row["tpot_ms"]) / 1e3,
        settings=told,
        drafts=label.drafts,
    )


def _of_lab(label: Label) -> Settings:
    """Nobody says what a lab told its engines; TensorRT-LLM is known to store keys and values as narrow as weights."""
    narrow = label.engine == "trtllm" and label.form in ("fp8", "nvfp4")
    return Settings(kv="fp8" if narrow else "bf16")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A replica that only decodes, of a deployment whose prompts are computed elsewhere."""

    name: str
    replica: Replica
    load: Load
    concurrency: float
    tpot_s: float


def pools() -> Iterator[Pool]:
    """Deployments with prompts apart that say how many replicas decode, and how many requests."""
    for row in table("silicon_points.csv.gz"):
        if row["keep"] != "1" or row["mode"] != "disagg":
            continue
        if not row["decode_num_workers"] or not row["concurrency"]:
            continue
        name, gpu = MODELS[row["model_path"]], row["system"].removesuffix("_sxm")
        tensor, data = int(row["decode_tp_size"]), max(1, int(row["decode_attention_dp_size"] or 1))
        whole_experts = data > 1 or int(row["decode_moe_ep_size"] or 1) > 1
        yield Pool(
            name=f"{name} {gpu} {row['backend']}",
            replica=Replica(
                shape=shape(name),
                device=device(gpu),
                weights=FORMATS[FORMATS_OF[row["gemm_quant_mode"]]],
                kv=LAYOUTS["fp8"],
                parallel=Parallel(tensor=tensor, data=data, expert=tensor * data if whole_experts else 1),
            ),
            load=Load(prompt_tokens=0.9 * float(row["isl"]), output_tokens=0.9 * float(row["osl"])),
            concurrency=float(row["concurrency"]) / int(row["decode_num_workers"]),
            tpot_s=float(row["tpot_ms"]) / 1e3,
        )


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One deployment at its greatest throughput.

    output_per_s  of one replica
    num_requests  that one replica was given, all at once; None for as many as keep it full
    """

    name: str
    replica: Replica
    load: Load
    output_per_s: float
    num_requests: int | None = None


TRTLLM_MODELS = {
    "Llama-3.3-70B": "llama-3.3-70b", "Llama-3.1-8B": "llama-3.1-8b", "Llama-3.1-405B": "llama-3.1-405b",
    "Qwen3-235B-A22B": "qwen3-235b-a22b", "Qwen3-30B-A3B": "qwen3-30b-a3b", "DeepSeek-R1-0528": "deepseek-r1",
    "gpt-oss-120b": "gpt-oss-120b", "gpt-oss-20b": "gpt-oss-20b",
}  # fmt: skip


TRTLLM_REQUESTS = {
    "128/128": 30000, "128/2048": 3000, "128/4096": 1500, "1000/2000": 1500, "2048/128": 3000, "2048/2048": 1500,
    "5000/500": 1500, "1000/1000": 3000, "500/2000": 3000, "20000/2000": 1000, "1024/1024": 3000, "8192/1024": 1500,
    "1024/8192": 1500, "32768/1024": 1000, "1024/32768": 1000,
}  # fmt: skip
"""Of each pair of lengths, all alike (NVIDIA/TensorRT-LLM, perf-overview.md, "Preparing a Dataset")."""


def trtllm() -> Iterator[Loaded]:
    """TensorRT-LLM's overview; both versions' figures as of one replica.

    Every model with experts was run with `enable_attention_dp: true`, the newer text calls that DEP; keys and values of
    gpt-oss stay at 16 bits on Hopper ("Running the Benchmark").
    """
    for row in table("trtllm_published_throughput.csv"):
        name, gpu = TRTLLM_MODELS[row["model"]], row["gpu"].lower()
        ranks = int(row["parallelism"].split("(")[0])
        form = {"fp8": "fp8", "fp4": "nvfp4"}[row["precision"]]
        if name.startswith("gpt-oss"):
            form = "mxfp4-hopper"
        is_routed = shape(name).layers[-1].experts is not None
        parallel = Parallel(data=ranks, expert=ranks) if is_routed else Parallel(tensor=ranks)
        prompt, output = (float(one) for one in row["isl_osl"].split("/"))
        replica = Replica(
            shape=shape(name),
            device=device("rtx-pro-6000" if gpu == "rtx6000pro" else gpu),
            weights=FORMATS[form],
            kv=LAYOUTS["bf16" if name.startswith("gpt-oss") and gpu in ("h100", "h200") else "fp8"],
            parallel=parallel,
            max_seqs=2048,
            utilization=0.95,
        )
        per_gpu = "per GPU" in row["unit"]
        yield Loaded(
            name=f"{row['model']} {row['gpu']} x {row['parallelism']} {row['isl_osl']}",
            replica=replica,
            load=Load(prompt_tokens=prompt, output_tokens=output),
            output_per_s=float(row["output_tok_s"]) * (ranks if per_gpu else 1),
            num_requests=TRTLLM_REQUESTS[row["isl_osl"]],
        )


MLPERF_SYSTEMS = {
    "H100-SXM-80GB": ("h100", 2, "fp8", 896), "H100_SXM_80GB": ("h100", 2, "fp8", 896),
    "H200-SXM-141GB": ("h200", 1, "fp8", 806), "H200_SXM_141GB": ("h200", 1, "fp8", 806),
    "B200-SXM-180GB": ("b200", 1, "nvfp4", 2048), "B200_SXM_180GB": ("b200", 1, "nvfp4", 2048),
    "MI300X": ("mi300x", 1, "fp8", 2048), "MI325X": ("mi325x", 1, "fp8", 2048),
}  # fmt: skip
"""Device, ranks of a replica, format and sequences at most as NVIDIA and AMD submitted them; AMD's sequences are not
stated and left to memory."""

OPENORCA_PROMPT_TOKENS = 294
"""Mean of MLPerf's Llama-2-70B data set; not in the logs, an assumption."""


def mlperf() -> Iterator[Loaded]:
    """Llama-2-70B offline on systems of one kind of device, v4.1 and v5.1. Derived figures, not MLPerf results."""
    for row in table("mlperf_llm_results.csv"):
        if row["benchmark"] != "llama2-70b-99" or row["scenario"] != "Offline" or row["result"] != "VALID":
            continue
        kinds = [key for key in MLPERF_SYSTEMS if key in row["system"]]
        if len(kinds) != 1 or "MaxQ" in row["system"]:
            continue
        gpu, ranks, form, max_seqs = MLPERF_SYSTEMS[kinds[0]]
        counts = re.findall(r"(?:GB(?:-CTS)?[xX]|^)(\d+)(?:x|_|$)", row["system"])
        if len(counts) != 1:
            continue
        replica = Replica(
            shape=shape("llama-2-70b"),
            device=device(gpu),
            weights=FORMATS[form],
            kv=LAYOUTS["fp8"],
            parallel=Parallel(tensor=ranks),
            max_seqs=max_seqs,
            utilization=0.95,
        )
        output = float(row["tokens_per_s"]) / float(row["samples_per_s"])
        yield Loaded(
            name=f"{row['round']} {row['submitter']} {row['system']}",
            replica=replica,
            load=Load(prompt_tokens=OPENORCA_PROMPT_TOKENS, output_tokens=output),
            output_per_s=float(row["tokens_per_s"]) / (int(counts[0]) / ranks),
        )


@dataclass(frozen=True, kw_only=True)
class Step:
    """A prompt and a token by themselves, `batch` sequences at once."""

    name: str
    replica: Replica
    prompt_tokens: int
    output_tokens: int
    batch: int
    prompt_s: float
    token_s: float


def splitwise() -> Iterator[Step]:
    """Medians of Splitwise's runs, power-capped ones aside."""
    for row in table("splitwise_latency_medians.csv"):
        if row["hardware"].endswith("pcap"):
            continue
        yield Step(
            name=f"{row['model']} {row['hardware']} x {row['tensor_parallel']}",
            replica=replace(
                Replica(
                    shape=shape({"bloom-176b": "bloom-176b", "llama2-70b": "llama-2-70b"}[row["model"]]),
                    device=device(row["hardware"].removesuffix("-80gb")),
                    weights=FORMATS["fp16"],
                ),
                parallel=Parallel(tensor=int(row["tensor_parallel"])),
                budget_tokens=1 << 20,
            ),
            prompt_tokens=int(row["prompt_size"]),
            output_tokens=int(row["token_size"]),
            batch=int(row["batch_size"]),
            prompt_s=float(row["prompt_time"]) / 1e3,
            token_s=float(row["token_time"]) / 1e3,
        )
