"""Who is measured: every engine in every precision, how it is started, and at which settings it was best."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PEERS = ROOT / ".peers"
MODELS = PEERS / "models"
PRECISIONS = ("bf16", "int8", "int4")
OURS = "octavo"
LLAMA_SERVER = Path("llama.cpp", "build", "bin", "llama-server")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One engine at one precision.

    name         engine and format of its weights
    peer         folder of its environment under .peers; OURS for octavo
    precision    of the weights: "bf16" stands for all of 16 bits and more
    driver       module under benches.peers.drivers
    form         folder or file under .peers/models/MODEL
    workloads    those it is asked; empty for all
    environment  variables of its process; {peers} and {kv_gib} are filled in
    """

    name: str
    peer: str
    precision: str
    driver: str
    form: str
    workloads: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.peer == OURS else PEERS / self.peer / "bin" / "python"

    def model(self, name: str) -> Path:
        return MODELS / name / self.form

    def missing(self, model: str) -> str | None:
        """Why it cannot be started, or None."""
        if not self.python.exists():
            return f"no environment {self.peer}; make bench-peers sets it up"
        if self.peer == "llama.cpp" and not (PEERS / LLAMA_SERVER).exists():
            return "llama-server is not built; make bench-peers builds it"
        if not self.model(model).exists():
            return f"no model {model}/{self.form}; make bench-peers converts it"
        return None

    def command(self, task: Path, events: Path) -> list[str]:
        return [str(self.python), "-m", f"benches.peers.drivers.{self.driver}", str(task), str(events)]

    def variables(self, kv_gib: int) -> dict[str, str]:
        """The whole environment of its process. Nothing is fetched from anywhere while measuring."""
        own = {key: value.format(peers=PEERS, kv_gib=kv_gib) for key, value in self.environment.items()}
        return {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", **own}


def _octavo(precision: str) -> Subject:
    quantization = None if precision == "bf16" else precision
    return Subject(
        name=OURS,
        peer=OURS,
        precision=precision,
        driver="octavo_llm",
        form="hf",
        options={"quantization": quantization},
    )


def _llama_cpp(kind: str, precision: str) -> Subject:
    """Flash attention and the rest at their defaults; no prompt cache beside that of the slots."""
    return Subject(
        name=f"llama.cpp-{kind}",
        peer="llama.cpp",
        precision=precision,
        driver="llama_server",
        form=f"gguf/{kind}.gguf",
        options={"server": str(PEERS / LLAMA_SERVER), "flags": ["-cram", "0", "--no-kv-unified"]},
    )


def _openvino(kind: str, precision: str, suffix: str = "", **device: Any) -> Subject:
    return Subject(
        name=f"openvino-{kind}{suffix}",
        peer="openvino",
        precision=precision,
        driver="openvino_genai",
        form=f"openvino-{kind}",
        options={"device": device},
    )


def _vllm(kind: str, precision: str, form: str, **options: Any) -> Subject:
    """Intel OpenMP and one process: without them it is several times slower on two cores."""
    return Subject(
        name=f"vllm-{kind}",
        peer="vllm",
        precision=precision,
        driver="vllm_cpu",
        form=form,
        options=options,
        environment={
            "LD_PRELOAD": "{peers}/vllm/lib/libiomp5.so",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": "2",
            "KMP_AFFINITY": "granularity=fine,compact,1,0",
            "KMP_BLOCKTIME": "200",
            "VLLM_CPU_KVCACHE_SPACE": "{kv_gib}",
            "VLLM_CPU_OMP_THREADS_BIND": "0-1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CACHE_ROOT": "{peers}/vllm/cache",
        },
    )


def _transformers(kind: str, dtype: str) -> Subject:
    return Subject(
        name=f"transformers-{kind}",
        peer="transformers",
        precision="bf16",
        driver="hf_generate",
        form="hf",
        workloads=("W1", "W2"),
        options={"dtype": dtype},
    )


SUBJECTS: tuple[Subject, ...] = (
    _octavo("bf16"),
    _llama_cpp("bf16", "bf16"),
    _llama_cpp("f16", "bf16"),
    _openvino("fp16", "bf16"),
    _vllm("bf16", "bf16", "hf"),
    _vllm("fp32", "bf16", "hf", dtype="float32"),
    _transformers("bf16", "bfloat16"),
    _transformers("fp32", "float32"),
    _octavo("int8"),
    _llama_cpp("q8_0", "int8"),
    _openvino("int8", "int8"),
    _openvino("int8", "int8", "-dq0", DYNAMIC_QUANTIZATION_GROUP_SIZE=0),  # activations are not rounded
    _vllm("w8a8", "int8", "vllm-int8"),
    _octavo("int4"),
    _llama_cpp("q4_0", "int4"),
    _openvino("int4", "int4"),
    _vllm("w4", "int4", "vllm-int4", op="cpu_gemm_wna16"),
)


def chosen(precisions: Sequence[str], only: str = "") -> list[Subject]:
    """Subjects of these precisions whose "name precision" the pattern is found in. Raises ValueError for none."""
    unknown = sorted(set(precisions) - set(PRECISIONS))
    if unknown:
        raise ValueError(f"no precision {unknown[0]!r}; there are: {', '.join(PRECISIONS)}")
    found = [
        one
        for one in SUBJECTS
        if one.precision in precisions and re.search(only, f"{one.name} {one.precision}")
    ]
    if not found:
        raise ValueError(f"no subject of {', '.join(precisions)} matches {only!r}")
    return found
