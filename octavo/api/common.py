"""What completions and chat have in common: request fields, usage, model cards."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from octavo.api.structure import Structured
from octavo.core.sequence import SamplingParams
from octavo.errors import RequestError

MAX_STOPS = 4
MAX_BAD_WORDS = 128
MAX_TEXT_CHARS = 4096
"""All stops together, and all bad words."""
MAX_BIASES = 1024
MAX_STOP_TOKENS = 1024
MAX_ALLOWED_TOKENS = 2**18
MAX_WHOLE = 2**31 - 1


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """include_usage adds a last chunk with the numbers; continuous_usage_stats adds them to every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Generation(Structured, frozen=True, kw_only=True):
    """Fields of both request types. None means "not given": clients send null for what they leave out.

    deadline_ms  from the request's arrival to the end of its answer
    After those come extensions of other servers' making; they mean what they mean in `SamplingParams`.
    """

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    cache_salt: str | None = None
    deadline_ms: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    beam_width: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | None = None
    priority: int | None = None
    return_token_ids: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def sampling(self, **more: Any) -> SamplingParams:
        """The fields as SamplingParams; `more` overrides, and None anywhere means the default.

        Raises RequestError with the field's name as `param`.
        """
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true", param="stream_options")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        _check_texts("stop", stops, MAX_STOPS)
        _check_texts("bad_words", self.bad_words, MAX_BAD_WORDS)
        _check_count("logit_bias", self.logit_bias, MAX_BIASES, "tokens")
        _check_count("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKENS, "tokens")
        _check_count("allowed_token_ids", self.allowed_token_ids, MAX_ALLOWED_TOKENS, "tokens")
        fields: dict[str, Any] = {name: getattr(self, name) for name in _SAMPLED}
        fields["logit_bias"] = _token_bias(self.logit_bias)
        fields["stop"] = stops
        fields["grammar"] = self.grammar()
        fields |= more
        fields = {name: value for name, value in fields.items() if value is not None}
        for name, value in fields.items():
            _check_width(name, value)
        return SamplingParams(**{"max_tokens": None, **fields})


_SAMPLED = (
    "n", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "max_tokens",
    "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids",
    "prompt_logprobs", "beam_width", "length_penalty", "early_stopping", "bad_words", "allowed_token_ids",
    "include_stop_str_in_output", "skip_special_tokens",
)  # fmt: skip


def _check_width(name: str, value: Any) -> None:
    """JSON knows integers of any length; nothing behind the wire does."""
    if name == "seed":
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise RequestError("seed holds an integer of more than 64 bits", param=name)
        return
    numbers = value if isinstance(value, list | dict) else (value,)
    for number in numbers:
        if isinstance(number, int) and not -MAX_WHOLE <= number <= MAX_WHOLE:
            raise RequestError(f"{name} holds an integer beyond {MAX_WHOLE}", param=name)


def _check_count(name: str, value: Sized | None, limit: int, what: str) -> None:
    """Before anything is made of the value."""
    if value is not None and len(value) > limit:
        raise RequestError(f"{name} has {len(value)} {what}, at most {limit} are allowed", param=name)


def _check_texts(name: str, texts: list[str] | None, limit: int) -> None:
    _check_count(name, texts, limit, "texts")
    num_chars = sum(map(len, texts or ()))
    if num_chars > MAX_TEXT_CHARS:
        raise RequestError(
            f"{name} has {num_chars} characters in all, at most {MAX_TEXT_CHARS} are allowed", param=name
        )


def _token_bias(bias: dict[str, float] | None) -> dict[int, float] | None:
    if bias is None:
        return None
    for key in bias:
        if not (key.isascii() and key.isdigit()):
            raise RequestError(f"logit_bias keys are token ids, got {key!r}", param="logit_bias")
    return {int(key): value for key, value in bias.items()}


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """`completion_tokens_details` where the model may reason."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET

    @classmethod
    def of(
        cls,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int,
        reasoning_tokens: int | None = None,
    ) -> Usage:
        details: CompletionTokensDetails | UnsetType = UNSET
        if reasoning_tokens is not None:
            details = CompletionTokensDetails(reasoning_tokens=reasoning_tokens)
        return cls(
            completion_tokens_details=details,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
        )


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """What `/v1/embeddings` makes with a model that was trained to go on with texts."""

    dimensions: int
    pooling: str = "mean of the final hidden states, after the last norm"
    normalized: bool = True


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """`root` is the model behind the name, `max_model_len` the longest prompt plus output in tokens."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "octavo"
    root: str
    parent: str | None = None
    max_model_len: int
    embeddings: Embeddings | None = None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[ModelCard]


class PromptLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """One token of an entry of `prompt_logprobs`, which maps token ids (in text) to these."""

    logprob: float
    decoded_token: str
