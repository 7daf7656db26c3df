"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from octavo.api import sse
from octavo.api.common import Usage
from octavo.api.completions import Choice, Completion, CompletionRequest, Logprobs, Prompt
from octavo.api.parse import parse, warning
from octavo.codec.tokenizer import Tokenizer
from octavo.core.sequence import SamplingParams
from octavo.errors import OctavoError, RequestError
from octavo.link import frames
from octavo.server import answers
from octavo.server.bodies import read_body
from octavo.server.events import EventStream, watching
from octavo.server.front import Front, namespace_of
from octavo.server.gate import json_response
from octavo.server.logprobs import CompletionLogprobs
from octavo.server.running import Running


@dataclass(frozen=True, slots=True)
class Call:
    """A request, read and tokenized."""

    request: CompletionRequest
    params: SamplingParams
    prompts: Sequence[Prompt]
    token_ids: Sequence[Sequence[int]]
    headers: dict[str, str]


async def completions(request: Request) -> Response:
    """The route."""
    front: Front = request.state.front
    body = await read_body(request, front.config.max_body_bytes)
    call = await front.off_loop(lambda: _read(front, body))
    running = front.request(
        call.token_ids,
        call.params,
        priority=call.request.priority or 0,
        namespace=namespace_of(request.state.api_key, call.request.cache_salt),
    )
    writer = _Writer(front, call, running)
    async with watching(request.receive, running.abandon):
        await front.admit(running)
        if call.request.stream:
            return EventStream(writer.events(), running, front.finish, call.headers)
        try:
            return json_response(writer.whole(await answers.collect(running)), headers=call.headers)
        finally:
            front.finish(running)


def _read(front: Front, body: bytes) -> Call:
    asked, idle = parse(body, CompletionRequest)
    front.check_model(asked.model)
    params = asked.params()
    prompts = asked.prompts()
    token_ids = [_tokens(front.tokenizer, prompt) for prompt in prompts]
    return Call(asked, params, prompts, token_ids, warning(idle))


def _tokens(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    tokens = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if not tokens:
        raise RequestError("the prompt is empty; send at least one token", param="prompt")
    if min(tokens) < 0 or max(tokens) >= 2**31:
        raise RequestError("the prompt holds a token id outside the vocabulary", param="prompt")
    return tokens


class _Writer:
    """Turns frames into completion objects."""

    def __init__(self, front: Front, call: Call, running: Running) -> None:
        self._front = front
        self._call = call
        self._running = running
        self._id = f"cmpl-{running.submits[0].request_id}"
        self._usage = answers.RunningUsage(running)
        self._lists: dict[int, CompletionLogprobs] = {}
        self._created = int(time.time())
        self._fingerprint = front.fingerprint

    def whole(self, got: Sequence[answers.Answer]) -> Completion:
        """The answer in one piece."""
        choices = [
            self._choice(place, index, answer, answer.choices[index])
            for place, answer in enumerate(got)
            for index in sorted(answer.choices)
        ]
        usage = answers.usage_of(self._running, got)
        if self._call.request.is_scoring:
            usage = Usage.of(usage.prompt_tokens, 0, usage.prompt_tokens_details.cached_tokens)
        return self._completion(choices, usage)

    def _choice(self, place: int, index: int, answer: answers.Answer, choice: answers.Choice) -> Choice:
        asked = self._call.request
        text, token_ids, entries = choice.text, choice.token_ids, list(choice.logprobs)
        finish_reason, stop_reason = choice.finish_reason, choice.stop_reason
        if asked.is_scoring:
            text, token_ids, entries, finish_reason, stop_reason = "", [], [], "length", None
        logprobs = None
        if asked.logprobs is not None:
            pairs: list[tuple[int, frames.TokenLogprob | None]] = []
            if asked.echo:
                pairs += zip(self._call.token_ids[place], answer.prompt_logprobs or (), strict=True)
            pairs += zip(token_ids, entries, strict=True)
            logprobs = self._logprobs(self._index(place, index), pairs)
        prompt_logprobs = None
        if asked.prompt_logprobs is not None and answer.prompt_logprobs is not None:
            prompt_logprobs = answers.wire_prompt_logprobs(answer.prompt_logprobs, self._front.tokenizer)
        with_ids = bool(asked.return_token_ids)
        return Choice(
            index=self._index(place, index),
            text=(self._prompt_text(place) if asked.echo else "") + text,
            logprobs=logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            token_ids=token_ids if with_ids else UNSET,
            prompt_token_ids=list(self._call.token_ids[place]) if with_ids else UNSET,
            prompt_logprobs=UNSET if prompt_logprobs is None else prompt_logprobs,
        )

    async def events(self) -> AsyncGenerator[bytes]:
        """The answer as a stream: `[DONE]` at a good end, an error event at a bad one."""
        asked = self._call.request
        try:
            if asked.echo:
                for place in range(len(self._call.prompts)):
                    for index in range(self._call.params.n):
                        yield self._chunk(place, index, self._prompt_text(place))
            unfinished = 0 if asked.is_scoring else len(self._call.prompts)
            while unfinished:
                update = await self._running.next(self._front.config.keep_alive_s)
                match update:
                    case None:
                        yield sse.KEEP_ALIVE
                    case frames.Delta():
                        self._usage.add(update)
                        if update.text or update.logprobs or asked.return_token_ids or asked.continuous_usage:
                            yield self._delta(update)
                    case frames.ChoiceEnded():
                        answers.check_choice(update)
                        place = self._running.place(update)
                        yield self._chunk(
                            place,
                            update.index,
                            "",
                            finish_reason=update.finish_reason,
                            stop_reason=update.stop_reason,
                        )
                    case frames.Ended():
                        answers.check_ended(update)
                        self._usage.add(update)
                        unfinished -= 1
            if asked.is_scoring:
                for place in range(len(self._call.prompts)):
                    for index in range(self._call.params.n):
                        yield self._chunk(place, index, "", finish_reason="length")
            if asked.include_usage:
                yield sse.event(self._completion([], self._usage.now()))
            yield sse.DONE
        except OctavoError as error:
            yield sse.error_event(error)

    def _delta(self, delta: frames.Delta) -> bytes:
        place = self._running.place(delta)
        logprobs = None
        if delta.logprobs is not None:
            pairs = list(zip(delta.token_ids, delta.logprobs, strict=True))
            logprobs = self._logprobs(self._index(place, delta.index), pairs)
        return self._chunk(place, delta.index, delta.text, logprobs=logprobs, token_ids=delta.token_ids)

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
        usage: Usage | UnsetType | None = UNSET
        if self._call.request.continuous_usage:
            usage = self._usage.now()
        elif self._call.request.include_usage:
            usage = None
        return sse.event(self._completion([choice], usage))

    def _completion(self, choices: list[Choice], usage: Usage | UnsetType | None) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._front.card.id,
            choices=choices,
            usage=usage,
            system_fingerprint=self._fingerprint,
        )

    def _index(self, place: int, index: int) -> int:
        return place * self._call.params.n + index

    def _prompt_text(self, place: int) -> str:
        prompt = self._call.prompts[place]
        return prompt if isinstance(prompt, str) else self._front.tokenizer.decode(prompt)

    def _logprobs(self, index: int, pairs: Sequence[tuple[int, frames.TokenLogprob | None]]) -> Logprobs:
        if index not in self._lists:
            self._lists[index] = CompletionLogprobs(self._front.tokenizer, self._call.request.logprobs or 0)
        return self._lists[index].lists(pairs)
