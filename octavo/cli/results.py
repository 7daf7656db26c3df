"""An engine's output as plain JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.engine.outputs import Logprob, RequestOutput


def as_json(output: RequestOutput) -> dict[str, Any]:
    """Texts, token ids and metrics of a finished request; times in seconds from its arrival."""
    metrics = output.metrics
    return {
        "outputs": [
            {
                "text": choice.text,
                "token_ids": choice.token_ids,
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                **({"error": choice.error} if choice.error else {}),
                **({"logprobs": [_entry(one) for one in choice.logprobs]} if choice.logprobs else {}),
            }
            for choice in output.outputs
        ],
        "metrics": {
            "prompt_tokens": len(output.prompt_token_ids),
            "cached_prompt_tokens": metrics.cached_prompt_tokens,
            "queued_s": metrics.queued_s,
            "first_token_s": _since(metrics.arrival_s, metrics.first_token_s),
            "finished_s": _since(metrics.arrival_s, metrics.finished_s),
            "preemptions": metrics.preemptions,
            "seed": metrics.seed,
        },
    }


def _since(start_s: float, at_s: float | None) -> float | None:
    return None if at_s is None else at_s - start_s


def _entry(entry: dict[int, Logprob]) -> dict[str, float]:
    return {str(token): one.logprob for token, one in entry.items()}
