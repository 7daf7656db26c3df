"""Requests, their sampling parameters, and the sequences they become."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from octavo.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop.

    n                    completions returned for one prompt
    best_of              completions drawn, of which the `n` with the highest mean log-probability are returned;
                         None means `n`
    temperature          divides the logits; below 1e-5 the highest logit is taken (greedy, lowest id on a tie)
    top_p                keep the smallest set of tokens whose probability reaches it; the crossing token stays
    top_k                keep the k highest; 0 or -1 keeps all
    min_p                drop tokens less likely than this fraction of the likeliest
    presence_penalty     subtracted once from each token already in the output
    frequency_penalty    subtracted per occurrence in the output
    repetition_penalty   divides positive and multiplies negative logits of tokens in prompt or output
    seed                 makes draws repeatable; None lets the engine pick one and say which
    stop                 texts that end the output, themselves left out
    stop_token_ids       token ids that end the output
    max_tokens           longest output; None means up to the model's window
    min_tokens           no end of any kind before so many tokens
    ignore_eos           do not end on the model's end tokens
    logprobs             report the chosen token's log-probability and that many of the highest; None reports none
    prompt_logprobs      the same for each prompt token; such a request does not read the prefix cache
    logit_bias           token id -> added to its logit
    beam_width           search this many beams instead of sampling; None samples
    length_penalty       beams are ranked by sum(logprob) / generated_tokens ** length_penalty
    early_stopping       beams: stop as soon as `beam_width` candidates have ended

    Order of application: bias, penalties, temperature, top-k, top-p, min-p, draw.
    Raises RequestError that names the field, the value and the allowed range.
    """

    n: int = 1
    best_of: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    beam_width: int | None = None
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop or ()))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        _whole("n", self.n, 1, 128)
        if self.best_of is not None:
            _whole("best_of", self.best_of, self.n, 128)
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _whole("top_k", self.top_k, -1, None)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, low_open=True)
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**64 - 1)
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise RequestError(f"stop must hold non-empty texts, got {list(self.stop)!r}", param="stop")
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, 0, None)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, None)
        _whole("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, 50)
        if self.prompt_logprobs is not None:
            _whole("prompt_logprobs", self.prompt_logprobs, 0, 50)
        for token, bias in (self.logit_bias or {}).items():
            _whole("logit_bias", token, 0, None)
            _number("logit_bias", bias, -100.0, 100.0)
        self._check_beams()

    def _check_beams(self) -> None:
        _number("length_penalty", self.length_penalty, -10.0, 10.0)
        if self.beam_width is None:
            return
        _whole("beam_width", self.beam_width, 1, 64)
        if self.n > self.beam_width:
            raise RequestError(
                f"n must be at most beam_width, got n={self.n} and beam_width={self.beam_width}", param="n"
            )
        if self.best_of is not None:
            raise RequestError("best_of cannot be combined with beam_width; leave one of them out", param="best_of")
        if self.temperature not in (0.0, 1.0) or self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0:
            raise RequestError(
                "beam search does not sample: leave temperature, top_p, top_k and min_p at their defaults",
                param="beam_width",
            )

    @property
    def num_choices(self) -> int:
        """Sequences drawn side by side (beams are counted by `beam_width`)."""
        return self.best_of or self.n

    @property
    def is_greedy(self) -> bool:
        return self.temperature < 1e-5


def _whole(name: str, value: object, low: int, high: int | None) -> None:
    limit = f"at least {low}" if high is None else f"between {low} and {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be a whole number {limit}, got {value!r}", param=name)
    if value < low or (high is not None and value > high):
        raise RequestError(f"{name} must be {limit}, got {value}", param=name)


def _number(name: str, value: object, low: float, high: float, *, low_open: bool = False) -> None:
    limit = f"{'above' if low_open else 'at least'} {low:g} and at most {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{name} must be a finite number {limit}, got {value!r}", param=name)
    if value < low or value > high or (low_open and value == low):
        raise RequestError(f"{name} must be {limit}, got {value}", param=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and what to do with it, as the scheduler sees it.

    prompt         token ids, at least one
    priority       smaller goes first; equal priorities go by order of arrival
    namespace      who may share cached blocks with this request; equal bytes share
    end_token_ids  the model's end tokens; end the output unless `params.ignore_eos`
    """

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    namespace: bytes = b""
    end_token_ids: frozenset[int] = frozenset()


class State(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    HELD = "held"
    FINISHED = "finished"
