"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from octavo.api import sse
from octavo.api.chat import Answer, ChatChunk, ChatCompletion, ChatRequest, Choice, ChunkChoice, Delta
from octavo.api.common import Usage
from octavo.api.parse import parse, warning
from octavo.codec.chat import chat_prompt
from octavo.core.sequence import SamplingParams
from octavo.errors import OctavoError, RequestError
from octavo.link import frames
from octavo.server import answers
from octavo.server.bodies import read_body
from octavo.server.events import EventStream, watching
from octavo.server.front import Front, namespace_of
from octavo.server.gate import json_response
from octavo.server.logprobs import chat_logprobs
from octavo.server.running import Running


@dataclass(frozen=True, slots=True)
class Call:
    """A request, read, rendered and tokenized."""

    request: ChatRequest
    params: SamplingParams
    token_ids: Sequence[int]
    headers: dict[str, str]


async def chat_completions(request: Request) -> Response:
    """The route."""
    front: Front = request.state.front
    body = await read_body(request, front.config.max_body_bytes)
    call = await front.off_loop(lambda: _read(front, body))
    running = front.request(
        [call.token_ids],
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
            (answer,) = await answers.collect(running)
            return json_response(writer.whole(answer), headers=call.headers)
        finally:
            front.finish(running)


def _read(front: Front, body: bytes) -> Call:
    asked, idle = parse(body, ChatRequest)
    front.check_model(asked.model)
    params = asked.params()
    tokenizer = front.tokenizer
    text = chat_prompt(
        tokenizer,
        asked.template_messages(knows_developer="developer" in (tokenizer.chat_template or "")),
        asked.add_generation_prompt is not False,
        now=datetime.now(),
        **asked.template_variables(),
    )
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    if not token_ids:
        raise RequestError("the messages render to an empty prompt", param="messages")
    return Call(asked, params, token_ids, warning(idle))


class _Writer:
    """Turns frames into chat objects."""

    def __init__(self, front: Front, call: Call, running: Running) -> None:
        self._front = front
        self._call = call
        self._running = running
        self._id = f"chatcmpl-{running.submits[0].request_id}"
        self._usage = answers.RunningUsage(running)
        self._created = int(time.time())
        self._fingerprint = front.fingerprint

    def whole(self, answer: answers.Answer) -> ChatCompletion:
        """The answer in one piece."""
        asked = self._call.request
        with_ids = bool(asked.return_token_ids)
        prompt_logprobs = None
        if asked.prompt_logprobs is not None and answer.prompt_logprobs is not None:
            prompt_logprobs = answers.wire_prompt_logprobs(answer.prompt_logprobs, self._front.tokenizer)
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._front.card.id,
            choices=[self._choice(index, answer.choices[index]) for index in sorted(answer.choices)],
            usage=answers.usage_of(self._running, [answer]),
            system_fingerprint=self._fingerprint,
            prompt_token_ids=list(self._call.token_ids) if with_ids else UNSET,
            prompt_logprobs=UNSET if prompt_logprobs is None else prompt_logprobs,
        )

    def _choice(self, index: int, choice: answers.Choice) -> Choice:
        asked = self._call.request
        return Choice(
            index=index,
            message=Answer(content=choice.text),
            logprobs=chat_logprobs(self._front.tokenizer, choice.logprobs) if asked.logprobs else None,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if asked.return_token_ids else UNSET,
        )

    async def events(self) -> AsyncGenerator[bytes]:
        """The answer as a stream: roles first, `[DONE]` at a good end, an error event at a bad one."""
        asked = self._call.request
        try:
            for index in range(self._call.params.n):
                yield self._chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content="")))
            while True:
                update = await self._running.next(self._front.config.keep_alive_s)
                match update:
                    case None:
                        yield sse.KEEP_ALIVE
                    case frames.Delta():
                        self._usage.add(update)
                        if update.text or update.logprobs or asked.return_token_ids or asked.continuous_usage:
                            yield self._chunk(self._delta(update))
                    case frames.ChoiceEnded():
                        answers.check_choice(update)
                        yield self._chunk(
                            ChunkChoice(
                                index=update.index,
                                delta=Delta(),
                                finish_reason=update.finish_reason,
                                stop_reason=update.stop_reason,
                            )
                        )
                    case frames.Ended():
                        answers.check_ended(update)
                        self._usage.add(update)
                        break
            if asked.include_usage:
                yield self._event([], self._usage.now())
            yield sse.DONE
        except OctavoError as error:
            yield sse.error_event(error)

    def _delta(self, delta: frames.Delta) -> ChunkChoice:
        logprobs = None
        if self._call.request.logprobs and delta.logprobs is not None:
            logprobs = chat_logprobs(self._front.tokenizer, delta.logprobs)
        return ChunkChoice(
            index=delta.index,
            delta=Delta(content=delta.text),
            logprobs=logprobs,
            token_ids=list(delta.token_ids) if self._call.request.return_token_ids else UNSET,
        )

    def _chunk(self, choice: ChunkChoice) -> bytes:
        usage: Usage | UnsetType | None = UNSET
        if self._call.request.continuous_usage:
            usage = self._usage.now()
        elif self._call.request.include_usage:
            usage = None
        return self._event([choice], usage)

    def _event(self, choices: list[ChunkChoice], usage: Usage | UnsetType | None) -> bytes:
        return sse.event(
            ChatChunk(
                id=self._id,
                created=self._created,
                model=self._front.card.id,
                choices=choices,
                usage=usage,
                system_fingerprint=self._fingerprint,
            )
        )
