"""What a caller gets back."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of one token from the raw logits, in nats.

    rank  1 for the likeliest token of the vocabulary
    """

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a prompt.

    text                up to a stop text, which is left out
    token_ids           every token drawn, the one that ended the output included
    cumulative_logprob  sum over `token_ids`, when log-probabilities were computed, else None
    logprobs            one dict (token id -> Logprob) per token, when asked for
    finish_reason       "stop", "length", "cancelled" or "error"; None while running
    stop_reason         the stop text or stop token id that ended it; None for the model's end tokens
    error               what went wrong, when the reason is "error"
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Times are seconds on the engine's monotonic clock; None until they happen.

    wait_reasons          why it stood in the queue: reason -> plans that passed while it held
    queued_s              from arrival to the first step that computed a token of it
    cached_prompt_tokens  prompt tokens whose keys and values came from the prefix cache
    cache_miss_reason     why the cached prefix ended where it did
    preemptions           how often a sequence of it lost its blocks and was recomputed
    seed                  the seed its draws were keyed with; pass it to repeat them
    """

    arrival_s: float
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    cached_prompt_tokens: int = 0
    cache_miss_reason: str | None = None
    preemptions: int = 0
    seed: int = 0
    wait_reasons: dict[str, int] = field(default_factory=dict)

    @property
    def queued_s(self) -> float | None:
        return None if self.first_scheduled_s is None else self.first_scheduled_s - self.arrival_s


@dataclass(slots=True)
class RequestOutput:
    """A request, finished or under way.

    embedding  of the prompt when that was asked for: mean of the final hidden states, of length 1, as little-endian
               float32
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    finished: bool = False
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    embedding: bytes | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of one prompt."""

    embedding: list[float]


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """What `LLM.embed` returns for one prompt."""

    request_id: str
    outputs: Embedding
    prompt_token_ids: list[int]
    metrics: RequestMetrics


@dataclass(frozen=True, slots=True)
class Delta:
    """What one sequence gained in a step. `text` may be empty while characters or stop texts are incomplete."""

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[dict[int, Logprob], ...] | None = None


@dataclass(frozen=True, slots=True)
class ChoiceEnded:
    """One completion has ended; the request may have others still running."""

    request_id: str
    index: int
    finish_reason: str
    stop_reason: str | int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """The request has ended, exactly once, with everything in `output`.

    was_streamed         its tokens came as Delta before; otherwise choices were ranked at the end
    num_prompt_logprobs  likeliest tokens asked for at each prompt token
    num_drawn_tokens     of all sequences, those that were not returned included
    """

    request_id: str
    output: RequestOutput
    was_streamed: bool = True
    num_prompt_logprobs: int = 0
    num_drawn_tokens: int = 0


Update = Delta | ChoiceEnded | RequestEnded
