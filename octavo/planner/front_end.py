"""What a first token takes beside an engine's steps."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.arch.shape import Shape
from octavo.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEnd:
    """Seconds before, between and after the steps of a request's prompt.

    request_s  of each request: HTTP, queues between processes
    token_s    of each token of the prompt: making tokens of text, handing them over
    experts_s  of each layer of routed experts: steps with prompts are launched kernel by kernel, not as one graph
    steps      that a token is handed out later, where the next step is launched before the last one's tokens are read
    """

    request_s: float = 0.0
    token_s: float = 0.0
    experts_s: float = 0.0
    steps: float = 0.0

    def __post_init__(self) -> None:
        for name in ("request_s", "token_s", "experts_s", "steps"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"a front end's {name} must be at least 0, got {getattr(self, name)}")

    def seconds(self, shape: Shape, prompt_tokens: float, step_s: float) -> float:
        """Of one request, where a step takes `step_s`."""
        routed = sum(layer.experts is not None for layer in shape.layers)
        return self.request_s + prompt_tokens * self.token_s + routed * self.experts_s + self.steps * step_s


FRONT_ENDS = {
    "vllm": FrontEnd(request_s=0.005, token_s=9e-6, experts_s=0.4e-3, steps=1),
    "trtllm": FrontEnd(request_s=0.025, token_s=2e-6, experts_s=0.8e-3, steps=1),
    "sglang": FrontEnd(request_s=0.114, token_s=3e-6, experts_s=0.6e-3, steps=1),
}
"""By engine: the constants with the least relative error of TTFT over half of 2,800 public deployments
(`python -m benches.planner.silicon`). All three launch a step before they read the tokens of the one before (vLLM's
async scheduling, the overlap schedulers of TensorRT-LLM and SGLang)."""
