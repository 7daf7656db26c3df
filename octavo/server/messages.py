"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.api import sse
from octavo.api.faults import messages_fault
from octavo.api.messages import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Conversation,
    CountedTokens,
    Message,
    MessageDelta,
    MessageEnd,
    MessagesRequest,
    MessageStart,
    MessageStop,
    OutputBlock,
    Ping,
    Usage,
)
from octavo.api.parse import parse, warning
from octavo.api.tools import Function, ToolParam
from octavo.codec.parts import CallArguments, CallStart, Content, Part, Reasoning
from octavo.codec.tools import Choice, Tool
from octavo.core.sequence import SamplingParams
from octavo.errors import OctavoError, RequestError
from octavo.link import frames
from octavo.server import answers
from octavo.server.bodies import read_body
from octavo.server.front import Front
from octavo.server.gate import json_response
from octavo.server.reply import Call, Reply
from octavo.server.running import Running, Update
from octavo.server.tenants import Caller
from octavo.server.tools import known_tools
from octavo.server.turn import Turn, read_turn
from octavo.server.writer import StreamWriter, Writer

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


async def begin(front: Front, caller: Caller, body: bytes) -> Writer:
    """Read, render and check a request; nothing of it runs yet. Raises what refuses it."""
    asked, turn, headers = await front.off_loop(lambda: _read(front, body), len(body))
    running = front.request(
        caller,
        [turn.token_ids],
        turn.params,
        param="messages",
        grammar_param="tools",
        deadline_ms=asked.deadline_ms,
    )
    return _MessagesWriter(front, caller, bool(asked.stream), turn, running, headers)


async def count_tokens(request: Request) -> Response:
    """The route of the tokens a conversation has."""
    front: Front = request.state.front
    body = await read_body(request, front.config.max_body_bytes)

    def counted() -> tuple[int, dict[str, str]]:
        asked, idle = parse(body, Conversation)
        front.check_model(asked.model)
        turn = _turn(front, asked, SamplingParams())
        return len(turn.token_ids), warning([*idle, *asked.without_effect()])

    num_tokens, headers = await front.off_loop(counted, len(body))
    return json_response(CountedTokens(input_tokens=num_tokens), headers=headers)


def _read(front: Front, body: bytes) -> tuple[MessagesRequest, Turn, dict[str, str]]:
    asked, idle = parse(body, MessagesRequest)
    front.check_model(asked.model)
    return asked, _turn(front, asked, asked.params()), warning([*idle, *asked.without_effect()])


def _turn(front: Front, asked: Conversation, params: SamplingParams) -> Turn:
    tools = _tools(asked)
    return read_turn(
        front,
        asked.template_messages(),
        params,
        tools=tools,
        choice=_choice(tools, asked),
        variables=asked.template_variables(),
    )


def _tools(asked: Conversation) -> tuple[Tool, ...]:
    params = [
        ToolParam(
            type="function",
            function=Function(
                name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
            ),
        )
        for tool in asked.tools or ()
    ]
    try:
        return known_tools(params)
    except RequestError as error:
        here = (error.param or "tools").replace(".function", "").replace(".parameters", ".input_schema")
        text = str(error).replace(".function", "").replace(".parameters", ".input_schema")
        raise RequestError(text, param=here) from None


def _choice(tools: tuple[Tool, ...], asked: Conversation) -> Choice:
    choice = asked.tool_choice
    if choice is None or choice.type == "none":
        return Choice(tools=tools if choice is None else ())
    made = Choice(
        tools=tools, is_required=choice.type != "auto", is_parallel=not choice.disable_parallel_tool_use
    )
    if choice.type == "tool":
        named = tuple(tool for tool in tools if tool.name == choice.name)
        if not named:
            raise RequestError(
                f"tool_choice names {choice.name!r}, the tools are {', '.join(tool.name for tool in tools) or 'none'}",
                param="tool_choice",
            )
        return replace(made, tools=named, is_parallel=False)
    if made.is_required and not tools:
        raise RequestError(
            "tool_choice asks for a call and there are no tools; send tools", param="tool_choice"
        )
    return made


@dataclass(slots=True)
class _Open:
    """The block that grows: its place, and what it is of. A call has the number of the call."""

    index: int
    kind: str
    call: int | None = None


class _MessagesWriter(StreamWriter):
    """A message: whole, or as blocks that start, grow and stop one after the other."""

    def __init__(
        self,
        front: Front,
        caller: Caller,
        is_stream: bool,
        turn: Turn,
        running: Running,
        headers: dict[str, str],
    ) -> None:
        super().__init__(front, running)
        self._request_id = caller.request_id
        self._is_stream = is_stream
        self.listening = turn.listening
        self.headers = headers
        self.id = f"msg_{running.submits[0].request_id}"
        self._usage = answers.RunningUsage(running)
        self._reply: Reply | None = self.listening.reply() if self.listening else None
        self._open: _Open | None = None
        self._num_blocks = 0
        self._ended: frames.ChoiceEnded | None = None

    @property
    def is_stream(self) -> bool:
        return self._is_stream

    def whole(self, got: Sequence[answers.Answer]) -> Message:
        (answer,) = got
        choice = answer.choices[0]
        blocks = (
            [OutputBlock(type="text", text=choice.text)] if choice.reply is None else _blocks(choice.reply)
        )
        usage = answers.usage_of(self.running, got)
        reason = (
            choice.finish_reason if choice.reply is None else choice.reply.finish_reason(choice.finish_reason)
        )
        return self._message(
            blocks,
            _usage(usage.prompt_tokens, answer.cached_tokens, usage.completion_tokens),
            _end(reason, choice.stop_reason),
        )

    def _message(self, blocks: list[OutputBlock], usage: Usage, end: MessageEnd | None) -> Message:
        return Message(
            id=self.id,
            model=self.front.card.id,
            content=blocks,
            stop_reason=end.stop_reason if end else None,
            stop_sequence=end.stop_sequence if end else None,
            usage=usage,
        )

    def opening(self) -> Iterator[bytes]:
        num_tokens = len(self.running.submits[0].prompt_token_ids)
        yield _event(MessageStart(message=self._message([], _usage(num_tokens, 0, 0), None)))

    def update(self, update: Update) -> Iterator[bytes]:
        match update:
            case frames.Delta():
                self._usage.add(update)
                if self._reply is not None:
                    yield from self._grow(self._reply.push(update.text, update.token_ids))
                elif update.text:
                    yield from self._grow([Content(update.text)])
            case frames.ChoiceEnded():
                answers.check_choice(update)
                self._ended = update
                if self._reply is not None:
                    yield from self._grow(self._reply.close())
            case frames.Ended():
                answers.check_ended(update)
                self._usage.add(update)

    def closing(self) -> Iterator[bytes]:
        yield from self._stop_block()
        assert self._ended is not None
        reason = self._ended.finish_reason
        if self._reply is not None:
            reason = self._reply.finish_reason(reason)
        now = self._usage.now()
        cached = now.prompt_tokens_details.cached_tokens
        usage = _usage(now.prompt_tokens, cached, now.completion_tokens)
        yield _event(MessageDelta(delta=_end(reason, self._ended.stop_reason), usage=usage))
        yield _event(MessageStop())

    def failure(self, error: OctavoError) -> bytes:
        return _named("error", messages_fault(error, self._request_id).body)

    def keep_alive(self) -> bytes:
        return _event(Ping())

    def _grow(self, parts: Sequence[Part]) -> Iterator[bytes]:
        for part in parts:
            match part:
                case Content():
                    yield from self._in_block("text", OutputBlock(type="text", text=""))
                    yield self._delta({"type": "text_delta", "text": part.text})
                case Reasoning():
                    yield from self._in_block(
                        "thinking", OutputBlock(type="thinking", thinking="", signature="")
                    )
                    yield self._delta({"type": "thinking_delta", "thinking": part.text})
                case CallStart():
                    assert self._reply is not None
                    call = self._reply.calls[part.number]
                    block = OutputBlock(type="tool_use", id=_tool_id(call), name=call.name, input={})
                    yield from self._in_block("tool_use", block, part.number)
                case CallArguments():
                    yield self._delta({"type": "input_json_delta", "partial_json": part.text})

    def _in_block(self, kind: str, block: OutputBlock, call: int | None = None) -> Iterator[bytes]:
        """See to it that a block of this kind is open."""
        if self._open is not None and (self._open.kind, self._open.call) == (kind, call):
            return
        yield from self._stop_block()
        self._open = _Open(self._num_blocks, kind, call)
        self._num_blocks += 1
        yield _event(BlockStart(index=self._open.index, content_block=block))

    def _stop_block(self) -> Iterator[bytes]:
        if self._open is not None:
            yield _event(BlockStop(index=self._open.index))
            self._open = None

    def _delta(self, delta: dict[str, str]) -> bytes:
        assert self._open is not None
        return _event(BlockDelta(index=self._open.index, delta=delta))


def _blocks(reply: Reply) -> list[OutputBlock]:
    blocks: list[OutputBlock] = []
    if reply.reasoning:
        blocks.append(OutputBlock(type="thinking", thinking=reply.reasoning, signature=""))
    if reply.content:
        blocks.append(OutputBlock(type="text", text=reply.content))
    for call in reply.calls:
        arguments = _object(call.arguments)
        if arguments is None:  # cut short: there is no object to give
            blocks.append(OutputBlock(type="text", text=call.arguments))
        else:
            blocks.append(OutputBlock(type="tool_use", id=_tool_id(call), name=call.name, input=arguments))
    return blocks


def _object(text: str) -> Any:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _tool_id(call: Call) -> str:
    return "toolu_" + call.id.removeprefix("call_")


def _usage(prompt_tokens: int, cached_tokens: int, output_tokens: int) -> Usage:
    return Usage(
        input_tokens=prompt_tokens - cached_tokens,
        cache_read_input_tokens=cached_tokens,
        output_tokens=output_tokens,
    )


def _end(reason: str, stop: str | int | None) -> MessageEnd:
    if reason == "stop" and isinstance(stop, str):
        return MessageEnd(stop_reason="stop_sequence", stop_sequence=stop)
    return MessageEnd(stop_reason=STOP_REASONS[reason], stop_sequence=None)


Event = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Ping


def _event(value: Event) -> bytes:
    return _named(value.type, value)


def _named(name: str, value: Any) -> bytes:
    return b"event: " + name.encode() + b"\n" + sse.event(value)
