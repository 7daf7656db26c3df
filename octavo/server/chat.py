"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from msgspec import UNSET, UnsetType

from octavo.api import sse
from octavo.api.chat import (
    Answer,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Choice,
    ChunkChoice,
    Delta,
)
from octavo.api.common import Usage
from octavo.api.parse import parse, warning
from octavo.codec.chat import chat_prompt
from octavo.core.sequence import SamplingParams
from octavo.errors import RequestError
from octavo.link import frames
from octavo.server import answers
from octavo.server.front import Front
from octavo.server.logprobs import chat_logprobs
from octavo.server.running import Running
from octavo.server.tenants import Caller
from octavo.server.writer import CompletionsWriter, Writer


@dataclass(frozen=True, slots=True)
class Call:
    """A request, read, rendered and tokenized."""

    request: ChatRequest
    params: SamplingParams
    token_ids: Sequence[int]
    headers: dict[str, str]


async def begin(front: Front, caller: Caller, body: bytes) -> Writer:
    """Read, render and check a request; nothing of it runs yet. Raises what refuses it."""
    call = await front.off_loop(lambda: _read(front, body), len(body))
    asked = call.request
    running = front.request(
        caller,
        [call.token_ids],
        call.params,
        param="messages",
        priority=asked.priority,
        salt=asked.cache_salt,
        grammar_param=asked.grammar_param,
    )
    return _ChatWriter(front, call, running)


def _read(front: Front, body: bytes) -> Call:
    asked, idle = parse(body, ChatRequest)
    front.check_model(asked.model)
    params = asked.params()
    return Call(asked, params, rendered(front, asked), warning(idle))


def rendered(front: Front, asked: ChatRequest) -> list[int]:
    """The conversation as the model reads it. Raises RequestError, also where the model has no chat template."""
    tokenizer = front.tokenizer
    if front.chat_problem is not None:
        raise RequestError(front.chat_problem, param="messages")
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
    return token_ids


class _ChatWriter(CompletionsWriter):
    """Chat objects: roles first, then deltas."""

    def __init__(self, front: Front, call: Call, running: Running) -> None:
        super().__init__(front, call.request, running, "chatcmpl")
        self._call = call
        self.headers = call.headers

    def whole(self, got: Sequence[answers.Answer]) -> ChatCompletion:
        (answer,) = got
        asked = self._call.request
        prompt_logprobs = None
        if asked.prompt_logprobs is not None and answer.prompt_logprobs is not None:
            prompt_logprobs = answers.wire_prompt_logprobs(answer.prompt_logprobs, self.front.tokenizer)
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.front.card.id,
            choices=[self._choice(index, answer.choices[index]) for index in sorted(answer.choices)],
            usage=answers.usage_of(self.running, got),
            system_fingerprint=self.fingerprint,
            prompt_token_ids=list(self._call.token_ids) if asked.return_token_ids else UNSET,
            prompt_logprobs=UNSET if prompt_logprobs is None else prompt_logprobs,
        )

    def _choice(self, index: int, choice: answers.Choice) -> Choice:
        asked = self._call.request
        return Choice(
            index=index,
            message=Answer(content=choice.text),
            logprobs=chat_logprobs(self.front.tokenizer, choice.logprobs) if asked.logprobs else None,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if asked.return_token_ids else UNSET,
        )

    def opening(self) -> Iterator[bytes]:
        for index in range(self._call.params.n):
            yield self._chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content="")))

    def delta(self, delta: frames.Delta) -> bytes:
        logprobs = None
        if self._call.request.logprobs and delta.logprobs is not None:
            logprobs = chat_logprobs(self.front.tokenizer, delta.logprobs)
        return self._chunk(
            ChunkChoice(
                index=delta.index,
                delta=Delta(content=delta.text),
                logprobs=logprobs,
                token_ids=list(delta.token_ids) if self._call.request.return_token_ids else UNSET,
            )
        )

    def choice_end(self, ended: frames.ChoiceEnded) -> bytes:
        return self._chunk(
            ChunkChoice(
                index=ended.index,
                delta=Delta(),
                finish_reason=ended.finish_reason,
                stop_reason=ended.stop_reason,
            )
        )

    def last(self, usage: Usage) -> bytes:
        return self._event([], usage)

    def _chunk(self, choice: ChunkChoice) -> bytes:
        return self._event([choice], self.chunk_usage())

    def _event(self, choices: list[ChunkChoice], usage: Usage | UnsetType | None) -> bytes:
        return sse.event(
            ChatChunk(
                id=self.id,
                created=self.created,
                model=self.front.card.id,
                choices=choices,
                usage=usage,
                system_fingerprint=self.fingerprint,
            )
        )
