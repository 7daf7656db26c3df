"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from octavo.api import sse
from octavo.api.common import Usage
from octavo.api.completions import Choice, Completion, CompletionRequest, Logprobs, Prompt
from octavo.api.parse import parse, warning
from octavo.codec.tokenizer import Tokenizer
from octavo.core.sequence import SamplingParams
from octavo.errors import RequestError
from octavo.link import frames
from octavo.server import answers
from octavo.server.front import Front
from octavo.server.logprobs import CompletionLogprobs
from octavo.server.running import Running
from octavo.server.tenants import Caller
from octavo.server.writer import CompletionsWriter, Writer

Pairs = Sequence[tuple[int, frames.TokenLogprob | None]]


@dataclass(frozen=True, slots=True)
class Call:
    """A request, read and tokenized."""

    request: CompletionRequest
    params: SamplingParams
    prompts: Sequence[Prompt]
    token_ids: Sequence[Sequence[int]]
    headers: dict[str, str]


async def begin(front: Front, caller: Caller, body: bytes) -> Writer:
    """Read and check a request; nothing of it runs yet. Raises what refuses it."""
    call = await front.off_loop(lambda: _read(front, body), len(body))
    asked = call.request
    running = front.request(
        caller,
        call.token_ids,
        call.params,
        param="prompt",
        priority=asked.priority,
        salt=asked.cache_salt,
        deadline_ms=asked.deadline_ms,
        grammar_param=asked.grammar_param,
    )
    return _CompletionWriter(front, call, running)


def _read(front: Front, body: bytes) -> Call:
    asked, idle = parse(body, CompletionRequest)
    front.check_model(asked.model)
    params = asked.params()
    prompts = asked.prompts()
    token_ids = [prompt_tokens(front.tokenizer, prompt, "prompt") for prompt in prompts]
    return Call(asked, params, prompts, token_ids, warning(idle))


def prompt_tokens(tokenizer: Tokenizer, prompt: Prompt, name: str) -> list[int]:
    """Token ids of a text or of token ids. Raises RequestError with the field's name."""
    tokens = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if not tokens:
        raise RequestError("the prompt is empty; send at least one token", param=name)
    if min(tokens) < 0 or max(tokens) >= 2**31:
        raise RequestError("the prompt holds a token id outside the vocabulary", param=name)
    return tokens


class _CompletionWriter(CompletionsWriter):
    """Completion objects. Choice `i` of prompt `p` has index `p * n + i`."""

    def __init__(self, front: Front, call: Call, running: Running) -> None:
        super().__init__(front, call.request, running, "cmpl")
        self._call = call
        self.headers = call.headers
        self._lists: dict[int, CompletionLogprobs] = {}

    @property
    def waits_for_tokens(self) -> bool:
        return not self._call.request.is_scoring

    def whole(self, got: Sequence[answers.Answer]) -> Completion:
        choices = [
            self._choice(place, index, answer, answer.choices[index])
            for place, answer in enumerate(got)
            for index in sorted(answer.choices)
        ]
        usage = answers.usage_of(self.running, got)
        if self._call.request.is_scoring:
            usage = Usage.of(usage.prompt_tokens, 0, usage.prompt_tokens_details.cached_tokens)
        return self._completion(choices, usage)

    def _choice(self, place: int, index: int, answer: answers.Answer, choice: answers.Choice) -> Choice:
        asked = self._call.request
        if asked.is_scoring:
            choice = answers.Choice(finish_reason="length")
        prompt_logprobs = None
        if asked.prompt_logprobs is not None and answer.prompt_logprobs is not None:
            prompt_logprobs = answers.wire_prompt_logprobs(answer.prompt_logprobs, self.front.tokenizer)
        with_ids = bool(asked.return_token_ids)
        return Choice(
            index=self._index(place, index),
            text=(self._prompt_text(place) if asked.echo else "") + choice.text,
            logprobs=None if asked.logprobs is None else self._logprobs(place, index, answer, choice),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if with_ids else UNSET,
            prompt_token_ids=list(self._call.token_ids[place]) if with_ids else UNSET,
            prompt_logprobs=UNSET if prompt_logprobs is None else prompt_logprobs,
        )

    def _logprobs(self, place: int, index: int, answer: answers.Answer, choice: answers.Choice) -> Logprobs:
        """Of the prompt, when it is echoed, and of the tokens after it."""
        pairs: list[tuple[int, frames.TokenLogprob | None]] = []
        if self._call.request.echo:
            pairs += zip(self._call.token_ids[place], answer.prompt_logprobs or (), strict=True)
        pairs += zip(choice.token_ids, choice.logprobs, strict=True)
        return self._listed(self._index(place, index), pairs)

    def opening(self) -> Iterator[bytes]:
        asked = self._call.request
        for place in range(len(self._call.prompts) if asked.echo else 0):
            for index in range(self._call.params.n):
                yield self._chunk(place, index, self._prompt_text(place))
                if asked.is_scoring:
                    yield self._chunk(place, index, "", finish_reason="length")

    def delta(self, delta: frames.Delta) -> Iterator[bytes]:
        place = self.running.place(delta)
        logprobs = None
        if delta.logprobs is not None:
            pairs = list(zip(delta.token_ids, delta.logprobs, strict=True))
            logprobs = self._listed(self._index(place, delta.index), pairs)
        yield self._chunk(place, delta.index, delta.text, logprobs=logprobs, token_ids=delta.token_ids)

    def choice_end(self, ended: frames.ChoiceEnded) -> Iterator[bytes]:
        place = self.running.place(ended)
        reason, stop = ended.finish_reason, ended.stop_reason
        yield self._chunk(place, ended.index, "", finish_reason=reason, stop_reason=stop)

    def last(self, usage: Usage) -> bytes:
        return sse.event(self._completion([], usage))

    def _chunk(
        self,
        place: int,
        index: int,
        text: str,
        *,
        logprobs: Logprobs | None = None,
        token_ids: Sequence[int] = (),
        finish_reason: str | None = None,
        stop_reason: str | int | None = None,
    ) -> bytes:
        choice = Choice(
            index=self._index(place, index),
            text=text,
            logprobs=logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            token_ids=list(token_ids) if self._call.request.return_token_ids else UNSET,
        )
        return sse.event(self._completion([choice], self.chunk_usage()))

    def _completion(self, choices: list[Choice], usage: Usage | UnsetType | None) -> Completion:
        return Completion(
            id=self.id,
            created=self.created,
            model=self.front.card.id,
            choices=choices,
            usage=usage,
            system_fingerprint=self.fingerprint,
        )

    def _index(self, place: int, index: int) -> int:
        return place * self._call.params.n + index

    def _prompt_text(self, place: int) -> str:
        prompt = self._call.prompts[place]
        return prompt if isinstance(prompt, str) else self.front.tokenizer.decode(prompt)

    def _listed(self, index: int, pairs: Pairs) -> Logprobs:
        """The next tokens of a choice as lists; offsets go on from those before."""
        if index not in self._lists:
            self._lists[index] = CompletionLogprobs(self.front.tokenizer, self._call.request.logprobs or 0)
        return self._lists[index].lists(pairs)
