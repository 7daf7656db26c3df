"""`/v1/completions` on the wire."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from octavo.api.common import Generation, PromptLogprob, Usage
from octavo.core.sequence import SamplingParams
from octavo.errors import RequestError, Unsupported

DEFAULT_MAX_TOKENS = 16
MAX_LOGPROBS = 5
MAX_BEST_OF = 20

Prompt = str | list[int]


def several_prompts(prompt: str | list[str | int | list[int]], name: str) -> list[Prompt]:
    """One text or one list of token ids per prompt, from any of the four forms. Raises RequestError."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError(f"{name} is an empty list; send a text or token ids", param=name)
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise RequestError(
            f"{name} mixes forms; send a text, a list of texts, a list of token ids, or a list of those",
            param=name,
        )
    if kinds == {int}:
        return [[item for item in prompt if isinstance(item, int)]]
    return [item for item in prompt if not isinstance(item, int)]


class CompletionRequest(Generation, frozen=True, kw_only=True):
    """prompt: a text, a list of texts, a list of token ids, or a list of those."""

    prompt: str | list[str | int | list[int]]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None

    def prompts(self) -> list[Prompt]:
        """One text or one list of token ids per prompt, from any of the four forms. Raises RequestError."""
        return several_prompts(self.prompt, "prompt")

    @property
    def is_scoring(self) -> bool:
        """max_tokens 0: nothing is generated, the prompt is echoed (with log-probabilities when asked)."""
        return self.max_tokens == 0

    def params(self) -> SamplingParams:
        """Raises RequestError for a value out of range or a combination that cannot be answered."""
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise RequestError(
                f"logprobs must be from 0 to {MAX_LOGPROBS}, got {self.logprobs}", param="logprobs"
            )
        if self.best_of is not None and not 0 <= self.best_of <= MAX_BEST_OF:
            raise RequestError(
                f"best_of must be from 0 to {MAX_BEST_OF}, got {self.best_of}", param="best_of"
            )
        if self.is_scoring and not self.echo:
            raise RequestError("max_tokens must be at least 1 unless echo is true, got 0", param="max_tokens")
        prompt_logprobs = self.prompt_logprobs
        if self.echo and self.logprobs is not None:
            prompt_logprobs = max(self.logprobs, prompt_logprobs or 0)
        max_tokens = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        params = self.sampling(
            best_of=self.best_of or None,
            logprobs=self.logprobs,
            prompt_logprobs=prompt_logprobs,
            max_tokens=1 if self.is_scoring else max_tokens,
        )
        if self.stream:
            self._check_stream(params)
        return params

    def _check_stream(self, params: SamplingParams) -> None:
        if params.num_choices > params.n or params.beam_width is not None:
            name = "beam_width" if params.beam_width is not None else "best_of"
            raise Unsupported(f"{name} ranks whole answers and cannot be combined with stream", param=name)
        if self.echo and self.logprobs is not None:
            raise Unsupported("echo with logprobs cannot be combined with stream", param="echo")
        if self.prompt_logprobs is not None:
            raise Unsupported("prompt_logprobs cannot be combined with stream", param="prompt_logprobs")


class Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Parallel lists, one entry per token; None where nothing came before the token to judge it by."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, and with `object` unchanged also a chunk of a stream."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str
