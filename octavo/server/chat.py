"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
from octavo.api.tools import CalledFunction, FunctionDelta, ToolCall, ToolCallDelta
from octavo.codec.parts import CallArguments, CallStart, Content, Part, Reasoning
from octavo.link import frames
from octavo.server import answers
from octavo.server.front import Front
from octavo.server.logprobs import chat_logprobs
from octavo.server.reply import Reply
from octavo.server.running import Running
from octavo.server.tenants import Caller
from octavo.server.tools import chosen_tools, known_tools
from octavo.server.turn import Turn, read_turn
from octavo.server.writer import CompletionsWriter, Writer


@dataclass(frozen=True, slots=True)
class Call:
    """A request, read, rendered and tokenized."""

    request: ChatRequest
    turn: Turn
    headers: dict[str, str]


async def begin(front: Front, caller: Caller, body: bytes) -> Writer:
    """Read, render and check a request; nothing of it runs yet. Raises what refuses it."""
    call = await front.off_loop(lambda: _read(front, body), len(body))
    asked = call.request
    running = front.request(
        caller,
        [call.turn.token_ids],
        call.turn.params,
        param="messages",
        priority=asked.priority,
        salt=asked.cache_salt,
        deadline_ms=asked.deadline_ms,
        grammar_param=asked.grammar_param or "tools",
    )
    return _ChatWriter(front, call, running)


def _read(front: Front, body: bytes) -> Call:
    asked, idle = parse(body, ChatRequest)
    front.check_model(asked.model)
    return Call(asked, turn_of(front, asked), warning(idle))


def turn_of(front: Front, asked: ChatRequest) -> Turn:
    """The conversation as the model reads it. Raises RequestError, also where the model has no chat template."""
    params = asked.params()
    tools = known_tools(asked.tools)
    return read_turn(
        front,
        asked.template_messages(knows_developer="developer" in (front.tokenizer.chat_template or "")),
        params,
        tools=tools,
        choice=chosen_tools(tools, asked.tool_choice, asked.parallel_tool_calls),
        variables=asked.template_variables(),
        add_generation_prompt=asked.add_generation_prompt is not False,
    )


@dataclass(slots=True)
class _Growing:
    """A choice of a stream, and what of it no event has carried yet."""

    reply: Reply | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[frames.TokenLogprob] = field(default_factory=list)


def _answer(reply: Reply) -> Answer:
    calls = [
        ToolCall(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
        for call in reply.calls
    ]
    return Answer(
        content=reply.content or (None if calls else ""),
        reasoning_content=reply.reasoning or UNSET,
        tool_calls=calls or UNSET,
    )


def _delta(reply: Reply, part: Part) -> Delta:
    match part:
        case Content():
            return Delta(content=part.text)
        case Reasoning():
            return Delta(reasoning_content=part.text)
        case CallStart():
            call = ToolCallDelta(
                index=part.number,
                id=reply.calls[part.number].id,
                type="function",
                function=FunctionDelta(name=part.name, arguments=""),
            )
        case CallArguments():
            call = ToolCallDelta(index=part.number, function=FunctionDelta(arguments=part.text))
    return Delta(tool_calls=[call])


class _ChatWriter(CompletionsWriter):
    """Chat objects: roles first, then deltas."""

    def __init__(self, front: Front, call: Call, running: Running) -> None:
        super().__init__(front, call.request, running, "chatcmpl")
        self._call = call
        self.headers = call.headers
        self.listening = call.turn.listening
        self._growing: dict[int, _Growing] = {}

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
            prompt_token_ids=list(self._call.turn.token_ids) if asked.return_token_ids else UNSET,
            prompt_logprobs=UNSET if prompt_logprobs is None else prompt_logprobs,
        )

    def _choice(self, index: int, choice: answers.Choice) -> Choice:
        asked = self._call.request
        reply = choice.reply
        return Choice(
            index=index,
            message=Answer(content=choice.text) if reply is None else _answer(reply),
            logprobs=chat_logprobs(self.front.tokenizer, choice.logprobs) if asked.logprobs else None,
            finish_reason=choice.finish_reason
            if reply is None
            else reply.finish_reason(choice.finish_reason),
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if asked.return_token_ids else UNSET,
        )

    def opening(self) -> Iterator[bytes]:
        for index in range(self._call.turn.params.n):
            yield self._chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content="")))

    def delta(self, delta: frames.Delta) -> Iterator[bytes]:
        growing = self._of(delta.index)
        growing.token_ids += delta.token_ids
        growing.logprobs += delta.logprobs or ()
        if growing.reply is None:
            yield self._grown(delta.index, Delta(content=delta.text))
            return
        for part in growing.reply.push(delta.text, delta.token_ids):
            yield self._grown(delta.index, _delta(growing.reply, part))
        self.usage.reasoning_tokens = sum(
            one.reply.num_reasoning_tokens for one in self._growing.values() if one.reply is not None
        )

    def choice_end(self, ended: frames.ChoiceEnded) -> Iterator[bytes]:
        growing = self._of(ended.index)
        reason = ended.finish_reason
        if growing.reply is not None:
            for part in growing.reply.close():
                yield self._grown(ended.index, _delta(growing.reply, part))
            reason = growing.reply.finish_reason(reason)
        yield self._grown(ended.index, Delta(), reason, ended.stop_reason)

    def _of(self, index: int) -> _Growing:
        if index not in self._growing:
            self._growing[index] = _Growing(self.listening.reply() if self.listening else None)
        return self._growing[index]

    def _grown(
        self,
        index: int,
        delta: Delta,
        finish_reason: str | None = None,
        stop_reason: str | int | UnsetType | None = UNSET,
    ) -> bytes:
        """An event of a choice, with the numbers of the tokens that have come since the last one."""
        asked, growing = self._call.request, self._growing[index]
        logprobs = chat_logprobs(self.front.tokenizer, growing.logprobs) if growing.logprobs else None
        token_ids = growing.token_ids if asked.return_token_ids else UNSET
        growing.token_ids, growing.logprobs = [], []
        if finish_reason is not None and not token_ids:
            token_ids = UNSET
        return self._chunk(
            ChunkChoice(
                index=index,
                delta=delta,
                logprobs=logprobs if asked.logprobs else None,
                token_ids=token_ids,
                finish_reason=finish_reason,
                stop_reason=stop_reason,
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
