"""Requests, their sampling parameters, and the sequences they become."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.core.keys import Chain, Lineage
from octavo.core.prefix import Node
from octavo.errors import RequestError

GRAMMAR_KINDS = ("json_schema", "json_object", "regex", "choice", "lark", "calls")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What an output must look like.

    kind    "json_schema" (source is the schema as JSON), "json_object" (no source), "regex", "choice" (source is a
            JSON list of texts), "lark" (an EBNF grammar in Lark's notation, or in the `::=` one of GBNF) or "calls"
            (what `octavo.codec.tools` writes for calls of tools)
    Raises RequestError for a kind that is not one of these.
    """

    kind: str
    source: str = ""

    def __post_init__(self) -> None:
        if self.kind not in GRAMMAR_KINDS:
            raise RequestError(
                f"a grammar is one of {', '.join(GRAMMAR_KINDS)}, got {self.kind!r}", param="grammar"
            )


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
    min_tokens           no end of any kind before so many tokens, unless the grammar is complete by then
    ignore_eos           do not end on the model's end tokens
    logprobs             report the chosen token's log-probability and that many of the highest; None reports none
    prompt_logprobs      the same for each prompt token; such a request does not read the prefix cache
    logit_bias           token id -> added to its logit
    bad_words            texts that must not come, as the tokens they encode to, with and without a space before;
                         the same text cut into other tokens passes
    allowed_token_ids    the only tokens that may come, end tokens included; None allows all
    include_stop_str_in_output
                         keep the stop text, or the text of the stop token, at the end of the output
    skip_special_tokens  leave special tokens out of the text
    beam_width           search this many beams instead of sampling; None samples
    length_penalty       beams are ranked by sum(logprob) / generated_tokens ** length_penalty
    early_stopping       beams: stop as soon as `beam_width` candidates have ended
    grammar              the output follows it, and ends where it is complete; None lets it be anything
    embed                draw nothing: the mean of the prompt's final hidden states is what is asked for; such a
                         request does not read the prefix cache

    Order of application: grammar, allowed tokens, bias, penalties, bad words, temperature, top-k, top-p, min-p, draw.
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
    grammar: Grammar | None = None
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    embed: bool = False

    def __post_init__(self) -> None:
        stop: object = self.stop
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else _several("stop", stop))
        object.__setattr__(self, "stop_token_ids", _several("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "bad_words", _several("bad_words", self.bad_words))
        if self.allowed_token_ids is not None:
            allowed = _several("allowed_token_ids", self.allowed_token_ids)
            object.__setattr__(self, "allowed_token_ids", allowed)
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
        self._check_lists()
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, None)
        _whole("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, 50)
        if self.prompt_logprobs is not None:
            _whole("prompt_logprobs", self.prompt_logprobs, 0, 50)
        for name in ("ignore_eos", "early_stopping", "include_stop_str_in_output", "skip_special_tokens"):
            _flag(name, getattr(self, name))
        if not isinstance(self.grammar, Grammar | None):
            raise RequestError(f"grammar must be a Grammar, got {self.grammar!r}", param="grammar")
        self._check_beams()
        self._check_embed()

    def _check_lists(self) -> None:
        for name, texts in (("stop", self.stop), ("bad_words", self.bad_words)):
            if any(not isinstance(text, str) or not text for text in texts):
                raise RequestError(f"{name} must hold non-empty texts, got {list(texts)!r}", param=name)
        if self.allowed_token_ids == ():
            raise RequestError(
                "allowed_token_ids is empty, so nothing could come; name tokens or leave it out",
                param="allowed_token_ids",
            )
        for name, tokens in (
            ("stop_token_ids", self.stop_token_ids),
            ("allowed_token_ids", self.allowed_token_ids or ()),
        ):
            for token in tokens:
                _whole(name, token, 0, None)
        if not isinstance(self.logit_bias, Mapping | None):
            raise RequestError(
                f"logit_bias must map token ids to numbers, got {self.logit_bias!r}", param="logit_bias"
            )
        for token, bias in (self.logit_bias or {}).items():
            _whole("logit_bias", token, 0, None)
            _number("logit_bias", bias, -100.0, 100.0)

    def _check_embed(self) -> None:
        _flag("embed", self.embed)
        if not self.embed:
            return
        for name in ("best_of", "logprobs", "prompt_logprobs", "beam_width", "grammar"):
            if getattr(self, name) is not None:
                raise RequestError(f"an embedding draws no tokens: leave {name} out", param=name)
        if self.n != 1:
            raise RequestError(f"an embedding has one result for each prompt, got n={self.n}", param="n")

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
            raise RequestError(
                "best_of cannot be combined with beam_width; leave one of them out", param="best_of"
            )
        if self.temperature not in (0.0, 1.0) or self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0:
            raise RequestError(
                "beam search does not sample: leave temperature, top_p, top_k and min_p at their defaults",
                param="beam_width",
            )

    @property
    def num_choices(self) -> int:
        """Sequences side by side (beams are counted by `beam_width`)."""
        return self.best_of or self.n

    @property
    def is_greedy(self) -> bool:
        return self.temperature < 1e-5

    @property
    def is_told_at_once(self) -> bool:
        """Whether an answer can only be given when all of it is known: choices ranked, beams, scored prompts."""
        is_ranked = self.beam_width is not None or self.num_choices > self.n
        return is_ranked or self.prompt_logprobs is not None or self.embed


def _several(name: str, value: object) -> tuple[Any, ...]:
    """A list or tuple as a tuple; None is none. What it holds is looked at by the caller."""
    if not isinstance(value, list | tuple | None):
        raise RequestError(f"{name} must be a list, got {value!r}", param=name)
    return tuple(value or ())


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, got {value!r}", param=name)


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


@dataclass(frozen=True, slots=True)
class Begun:
    """A choice that has been drawn in part, elsewhere or earlier, and goes on from there.

    index   which choice of its request
    tokens  its output so far; none of them ended it
    """

    index: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and what to do with it, as the scheduler sees it.

    prompt         token ids, at least one
    priority       smaller goes first; among equal ones clients take turns, each client's own by order of arrival
    namespace      who may share cached blocks with this request; equal bytes share
    end_token_ids  the model's end tokens; end the output unless `params.ignore_eos`
    begun          the choices to go on with, in place of all choices from their beginning; empty begins
    num_public_tokens  leading prompt tokens whose full blocks everybody may share
    client         whose it is; clients that wait take turns, the least served first (`fair.py`)
    cost_weight    what one token of it counts in the client's service: 0.5 counts half
    """

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    namespace: bytes = b""
    end_token_ids: frozenset[int] = frozenset()
    begun: tuple[Begun, ...] = ()
    num_public_tokens: int = 0
    client: str = ""
    cost_weight: float = 1.0


class State(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    HELD = "held"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What a look into the prefix cache gave a sequence, and why it was not more.

    num_blocks          full blocks reused in place
    num_partial_tokens  leading tokens of one more block, reused by copying it
    why                 what ended the match
    """

    num_blocks: int
    num_partial_tokens: int
    why: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a sequence is not being computed, and since when."""

    because: str
    since_s: float


@dataclass(slots=True, eq=False)
class Sequence:
    """One growing line of tokens. Only the core changes it; everybody may read it.

    index              which choice or beam of its request
    turn               counts requests in the order in which they got their turn; None while it waits for one
    max_total_tokens   longest the sequence may become, prompt included
    num_draws          tokens to draw when all known ones are computed: one, one per choice at the end of a prompt,
                       or none, and then the sequence ends there
    is_beam            candidates are reported instead of drawn, and it is held until `advance`
    tokens             prompt and output
    epoch              raised at each preemption
    num_cached_tokens  tokens found in the prefix cache when it first got memory
    wait_reasons       reason -> how many plans it waited for that reason; `wait_reason` is the latest
    waits_since_s      when it was last queued or held; `waited_s` is the time it spent in the queue

        0        num_computed      num_planned       num_known
        |-- settled --|-- in flight ----|-- still to plan --|

    table              block ids by position; the null block where a sliding window has passed
    num_reported       table entries the worker has been told of
    pending            tokens that the steps in flight will append
    chain              its full blocks with their keys, as far as anybody asked
    node               where its published prefix ends in the prefix tree
    computing          index range of blocks that others may wait for, because this sequence computes them
    """

    seq_id: int
    request: Request
    index: int
    turn: int | None
    max_total_tokens: int
    tokens: list[int]
    lineage: Lineage
    num_draws: int = 1
    is_beam: bool = False
    state: State = State.WAITING
    epoch: int = 0
    preemptions: int = 0
    num_cached_tokens: int = 0
    cache_report: CacheReport | None = None
    wait_reason: str | None = None
    wait_reasons: dict[str, int] = field(default_factory=dict)
    waits_since_s: float = 0.0
    waited_s: float = 0.0
    table: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_planned: int = 0
    num_reported: int = 0
    pending: int = 0
    num_passed_blocks: int = 0
    chain: Chain = field(default_factory=Chain)
    node: Node[int] | None = None
    num_published: int = 0
    computing: tuple[int, int] = (0, 0)
    awaits_key: bytes | None = None

    @property
    def keys(self) -> list[bytes]:
        """Of its full blocks, as far as anybody asked."""
        return self.chain.keys

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt)

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def num_known(self) -> int:
        """Tokens there will be when the steps in flight have been committed."""
        return len(self.tokens) + self.pending

    @property
    def num_ready(self) -> int:
        """Positions that may be planned now: 1 in steady decoding, more in a prefill."""
        known = len(self.tokens) + self.pending
        if self.state is not State.RUNNING or known >= self.max_total_tokens:
            return 0
        return known - self.num_planned

    @property
    def is_in_flight(self) -> bool:
        return self.num_planned > self.num_computed

    @property
    def order(self) -> tuple[int, int, int]:
        """Smaller goes first, and is preempted last."""
        assert self.turn is not None, "a sequence without a turn has no place yet"
        return (self.request.priority, self.turn, self.seq_id)

    def wait(self, reason: str) -> None:
        self.wait_reason = reason
        self.wait_reasons[reason] = self.wait_reasons.get(reason, 0) + 1
