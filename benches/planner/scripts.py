"""What the public dashboard's scripts told its engines: how keys and values are stored, how many tokens are computed in
a step, how long an engine waits before it looks for further prompts, which images ran with drafts.

A row of the dashboard's dump has none of this. Source: SemiAnalysisAI/InferenceX, benchmarks/ and perf-changelog.yaml,
as of 18 April 2026, when the last of the rows were measured; benchmarks/70b_fp8_h200_trt_slurm.sh of October 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

DEEPSEEK = ("deepseek-r1", "deepseek-v3")
DRAFTING_IMAGE = "1.2.0rc6.post3"
"""Of TensorRT-LLM on B200: `dsr1-*-b200-trt-mtp` ran it while `dsr1-*-b200-trt` ran 1.2.0rc6.post2 (perf-changelog,
pull requests 642, 1488 and 1489). It drafted up to three tokens for each that it computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """kv              layout of keys and values
    budget_tokens   computed in a step at most
    polls_steps     from one look for further requests to the next
    collects_steps  that the first of some prompts waits for others
    """

    kv: str = "bf16"
    budget_tokens: int = 8192
    polls_steps: int = 1
    collects_steps: int = 0

    def waits_steps(self, per_step: float) -> float:
        """Steps that a request waits on average where so many come in each: half from look to look, and of those that
        come while prompts are collected, which the first begins, half of that, too."""
        come = per_step * self.collects_steps
        collected = self.collects_steps * (1 + come / 2) / (1 + come)
        return (self.polls_steps - 1) / 2 + collected


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a row says of itself. `form` is a format of weights, `data` groups that attend for themselves."""

    engine: str
    version: str
    model: str
    gpu: str
    form: str
    tensor: int
    data: int
    prompt: float
    output: float
    concurrency: float

    @property
    def is_blackwell(self) -> bool:
        return self.gpu.startswith(("b", "gb"))

    @property
    def drafts(self) -> bool:
        """Whether its image is known to have run with drafts."""
        return self.engine == "trtllm" and self.version == DRAFTING_IMAGE


def settings(label: Label) -> Settings:
    """Of the script that measured it."""
    return _OF_ENGINE[label.engine](label)


def _vllm(label: Label) -> Settings:
    """`--kv-cache-dtype`, `--max-num-batched-tokens`."""
    narrow = {"llama-3.1-70b": True, "gpt-oss-120b": label.is_blackwell, "minimax-m2": label.is_blackwell}
    budget = 2 * round(label.prompt) if label.model == "minimax-m2" and label.is_blackwell else 8192
    return Settings(kv="fp8" if narrow.get(label.model, False) else "bf16", budget_tokens=budget)


def _sglang(label: Label) -> Settings:
    """`--kv-cache-dtype`, `--chunked-prefill-size`, `--scheduler-recv-interval`."""
    narrow, budget, polls = label.is_blackwell, 32768, 1
    seldom = 30 if label.concurrency >= 16 else 10
    if label.model in DEEPSEEK and label.is_blackwell:
        budget, polls = 16384 if label.form == "nvfp4" else 32768, seldom
    elif label.model == "qwen3.5-397b-a17b":
        narrow = label.form != "bf16"
        if label.form == "fp8" and label.gpu != "b200":
            budget = 16384
        else:
            polls = seldom
    return Settings(kv="fp8" if narrow else "bf16", budget_tokens=budget, polls_steps=polls)


def _trtllm(label: Label) -> Settings:
    """`kv_cache_config.dtype`, `--max_num_tokens`, `batch_wait_timeout_iters`, and the `timeout_iters` of groups that
    attend for themselves and are to begin prompts together."""
    if label.model == "gpt-oss-120b":
        return Settings(kv="fp8" if label.is_blackwell else "bf16", budget_tokens=20000)
    is_even = label.prompt == label.output == 1024
    if label.model == "llama-3.1-70b":
        collects = 20 if is_even and label.tensor < 8 else 0
        return Settings(kv="fp8", budget_tokens=16384, collects_steps=collects)
    collects = 60 if label.data > 1 else 0
    if label.form == "fp8" and label.is_blackwell and is_even and label.concurrency >= 64:
        collects = max(collects, 40)
    return Settings(kv="fp8", collects_steps=collects)


_OF_ENGINE: dict[str, Callable[[Label], Settings]] = {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm}
