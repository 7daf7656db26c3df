"""An `LLM` that computes nothing and whose answers take exactly known times."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from octavo.core.sequence import SamplingParams
from octavo.engine.outputs import CompletionOutput, RequestMetrics, RequestOutput


class FakeLLM:
    """Answers on a clock of its own: a request arrives each 0.1 s, first token after 1 s, then one each 0.25 s."""

    def __init__(self, vocab_size: int = 50, shortfall: int = 0) -> None:
        plan = SimpleNamespace(
            arch=SimpleNamespace(vocab_size=vocab_size), resolved=SimpleNamespace(device="cpu")
        )
        self.built = SimpleNamespace(plan=plan)
        self.shortfall = shortfall
        self.calls: list[tuple[list[list[int]], list[SamplingParams]]] = []

    def generate(self, prompts: Any, sampling_params: Any) -> list[RequestOutput]:
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        self.calls.append((ids, list(sampling_params)))
        outputs = []
        for number, (prompt, params) in enumerate(zip(ids, sampling_params, strict=True)):
            arrival_s = 100.0 + 0.1 * number
            first_s = arrival_s + 1.0
            metrics = RequestMetrics(arrival_s, arrival_s, first_s, first_s + 0.25 * (params.max_tokens - 1))
            tokens = [0] * (params.max_tokens - self.shortfall)
            choice = CompletionOutput(0, token_ids=tokens, finish_reason="length")
            outputs.append(RequestOutput(str(number), None, prompt, [choice], metrics, True))
        return outputs
