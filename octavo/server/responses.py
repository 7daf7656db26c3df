"""/v1/responses: answer, keep, go on from what was kept."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from octavo.api.chat import thinking_variables
from octavo.api.faults import ErrorBody, HttpError, fault
from octavo.api.parse import decode, parse, warning
from octavo.api.responses import (
    CountedTokens,
    Deleted,
    Incomplete,
    InputDetails,
    InputTokensRequest,
    Item,
    ItemList,
    OutputDetails,
    Response,
    ResponseError,
    ResponsesRequest,
    ToolChoiceObject,
    Usage,
    turns,
)
from octavo.api.tools import AllowedTools, NamedFunction, NamedTool, ToolChoice
from octavo.api.tools import ToolChoiceObject as ChatToolChoice
from octavo.codec.parts import Content
from octavo.core.sequence import SamplingParams
from octavo.errors import OctavoError, RequestError, Unsupported
from octavo.link import frames
from octavo.server import answers
from octavo.server.bodies import read_body
from octavo.server.front import Front
from octavo.server.gate import json_response
from octavo.server.logprobs import chat_logprobs
from octavo.server.reply import Reply
from octavo.server.response_events import Items, as_input
from octavo.server.running import Running, Update
from octavo.server.storage import Page
from octavo.server.store import StoredResponse
from octavo.server.tenants import Caller, Tenant
from octavo.server.tools import chosen_tools, known_tools
from octavo.server.turn import Turn, read_turn
from octavo.server.writer import StreamWriter, Writer

MAX_CHAIN = 256
"""Answers that one may go on from, one behind the other."""
DEFAULT_LIST, LONGEST_LIST = 20, 100


@dataclass(frozen=True, slots=True)
class Call:
    """A request, read and rendered. `items` are its own, without those it goes on from."""

    request: ResponsesRequest
    items: Sequence[Item]
    turn: Turn
    headers: dict[str, str]
    is_kept: bool


async def begin(front: Front, caller: Caller, body: bytes) -> Writer:
    """Read, render and check a request; nothing of it runs yet. Raises what refuses it."""
    asked, idle = await front.off_loop(lambda: parse(body, ResponsesRequest), len(body))
    front.check_model(asked.model)
    params = asked.params()
    is_kept = front.config.store_responses if asked.store is None else asked.store
    if is_kept and front.storage is None:
        if asked.store:
            front.storage_or_refuse()
        is_kept = False
    items = asked.items()
    history = await _history(front, caller.tenant, asked.previous_response_id)
    turn = await front.off_loop(lambda: _turn(front, asked, [*history, *items], params), len(body))
    call = Call(asked, items, turn, warning([*idle, *asked.without_effect()]), is_kept)
    running = front.request(
        caller,
        [turn.token_ids],
        turn.params,
        param="input",
        grammar_param="tools",
        deadline_ms=asked.deadline_ms,
    )
    return _ResponsesWriter(front, caller, call, running)


async def input_tokens(request: Request) -> HttpResponse:
    """POST /v1/responses/input_tokens."""
    front: Front = request.state.front
    body = await read_body(request, front.config.max_body_bytes)
    asked, idle = await front.off_loop(lambda: parse(body, InputTokensRequest), len(body))
    front.check_model(asked.model)
    items = asked.items()
    history = await _history(front, request.state.caller.tenant, asked.previous_response_id)
    turn = await front.off_loop(lambda: _turn(front, asked, [*history, *items], SamplingParams()), len(body))
    headers = warning([*idle, *asked.without_effect()])
    return json_response(CountedTokens(input_tokens=len(turn.token_ids)), headers=headers)


async def get(request: Request) -> HttpResponse:
    """GET /v1/responses/{response_id}."""
    if request.query_params.get("stream", "false").lower() not in ("", "0", "false"):
        raise Unsupported(
            "stream: events of an answer that has been given are not kept; leave it out", param="stream"
        )
    row = await _kept(request.state.front, request.state.caller.tenant, request.path_params["response_id"])
    return HttpResponse(bytes(row.body), media_type="application/json")


async def delete(request: Request) -> HttpResponse:
    """DELETE /v1/responses/{response_id}."""
    front: Front = request.state.front
    row = await _kept(front, request.state.caller.tenant, request.path_params["response_id"])
    storage = front.storage_or_refuse()
    await storage.off_loop(lambda: storage.store.responses.remove(row.response_id))
    return json_response(Deleted(id=row.response_id))


async def cancel(request: Request) -> HttpResponse:
    """POST /v1/responses/{response_id}/cancel: only those that run in the background could be, and none does here."""
    row = await _kept(request.state.front, request.state.caller.tenant, request.path_params["response_id"])
    raise HttpError("invalid_value", f"response {row.response_id} does not run in the background")


async def input_items(request: Request) -> HttpResponse:
    """GET /v1/responses/{response_id}/input_items."""
    asked = Page.of(request.query_params, default=DEFAULT_LIST, longest=LONGEST_LIST)
    row = await _kept(request.state.front, request.state.caller.tenant, request.path_params["response_id"])
    items = [msgspec.json.decode(item) for item in row.items]
    if asked.is_newest_first:
        items.reverse()
    ids = [item["id"] for item in items]
    if asked.after is not None:
        if asked.after not in ids:
            raise HttpError("not_found", "there is nothing of the id given as `after`", param="after")
        items = items[ids.index(asked.after) + 1 :]
    shown = items[: asked.limit]
    listed = ItemList(
        data=shown,
        first_id=shown[0]["id"] if shown else None,
        last_id=shown[-1]["id"] if shown else None,
        has_more=len(items) > len(shown),
    )
    return json_response(listed)


async def _kept(front: Front, tenant: Tenant, response_id: str, param: str | None = None) -> StoredResponse:
    """Raises HttpError where the tenant has no such answer, or had one that has expired."""
    storage = front.storage_or_refuse()
    row = await storage.off_loop(lambda: storage.store.responses.get(response_id, tenant.tenant_id))
    if row is None or row.expires_at <= time.time():
        raise HttpError("not_found", f"there is no response {response_id[:64]!r}", param=param)
    return row


async def _history(front: Front, tenant: Tenant, response_id: str | None) -> list[Item]:
    """Everything said up to and with that answer, oldest first."""
    found: list[list[Item]] = []
    while response_id is not None:
        if len(found) >= MAX_CHAIN:
            raise RequestError(
                f"previous_response_id goes back more than {MAX_CHAIN} answers; send the conversation itself",
                param="previous_response_id",
            )
        row = await _kept(front, tenant, response_id, "previous_response_id")
        raw = [*row.items, *decode(bytes(row.body), _Output).output]
        found.append([decode(bytes(item), Item) for item in raw])
        response_id = row.previous_id
    return [item for items in reversed(found) for item in items]


class _Output(msgspec.Struct, frozen=True):
    output: list[msgspec.Raw]


def _turn(front: Front, asked: InputTokensRequest, items: Sequence[Item], params: SamplingParams) -> Turn:
    knows_developer = "developer" in (front.tokenizer.chat_template or "")
    messages = turns(items, knows_developer=knows_developer)
    if asked.instructions is not None:
        messages.insert(0, {"role": "system", "content": asked.instructions})
    tools = known_tools(asked.function_tools())
    try:
        choice = chosen_tools(tools, _choice(asked), asked.parallel_tool_calls)
        effort = asked.reasoning.effort if asked.reasoning is not None else None
        return read_turn(
            front, messages, params, tools=tools, choice=choice, variables=thinking_variables(effort)
        )
    except RequestError as error:
        if error.param == "messages":
            raise type(error)(str(error), param="input") from None
        raise


def _choice(asked: InputTokensRequest) -> ToolChoice | None:
    """As chat completions have it."""
    choice = asked.tool_choice
    if not isinstance(choice, ToolChoiceObject):
        return choice
    if choice.type == "function":
        named = NamedFunction(name=choice.name) if choice.name is not None else None
        return ChatToolChoice(type="function", function=named)
    tools = [
        NamedTool(function=NamedFunction(name=tool.name))
        for tool in choice.tools or ()
        if tool.name is not None
    ]
    allowed = AllowedTools(mode=choice.mode or "auto", tools=tools)
    return ChatToolChoice(type="allowed_tools", allowed_tools=allowed)


class _ResponsesWriter(StreamWriter):
    """A response: whole, or as events from `response.created` to the one that says how it ended."""

    def __init__(self, front: Front, caller: Caller, call: Call, running: Running) -> None:
        super().__init__(front, running)
        self._call = call
        self._tenant = caller.tenant
        self.headers = call.headers
        self.listening = call.turn.listening
        self.id = f"resp_{running.submits[0].request_id}"
        self._created = int(time.time())
        self._items = Items()
        self._reply: Reply | None = self.listening.reply() if self.listening else None
        self._usage = answers.RunningUsage(running)
        self._logprobs: list[frames.TokenLogprob] = []
        self._reason = "stop"
        self._final: Response | None = None

    @property
    def is_stream(self) -> bool:
        return bool(self._call.request.stream)

    def whole(self, got: Sequence[answers.Answer]) -> Response:
        """The same as the events add up to."""
        (answer,) = got
        choice = answer.choices[0]
        self._reply = choice.reply
        self._logprobs += choice.logprobs
        for _ in self._grow_whole(choice):
            pass
        usage = answers.usage_of(self.running, got)
        return self._ended(choice.finish_reason, usage)

    def _grow_whole(self, choice: answers.Choice) -> Iterator[bytes]:
        reply = choice.reply
        if reply is None:
            yield from self._items.grow([Content(choice.text)] if choice.text else [], (), self._numbers())
        else:
            yield from self._items.grow(reply.parts(), reply.calls, self._numbers())
        yield from self._items.close(_status(choice.finish_reason))

    def opening(self) -> Iterator[bytes]:
        now = self._response("in_progress")
        yield self._items.event("response.created", response=now)
        yield self._items.event("response.in_progress", response=now)

    def update(self, update: Update) -> Iterator[bytes]:
        match update:
            case frames.Delta():
                self._usage.add(update)
                self._logprobs += update.logprobs or ()
                if self._reply is None:
                    parts = [Content(update.text)] if update.text else []
                    yield from self._items.grow(parts, (), self._numbers() if parts else [])
                else:
                    found = self._reply.push(update.text, update.token_ids)
                    yield from self._items.grow(found, self._reply.calls, self._numbers() if found else [])
            case frames.ChoiceEnded():
                answers.check_choice(update)
                self._reason = update.finish_reason
                if self._reply is not None:
                    yield from self._items.grow(self._reply.close(), self._reply.calls, self._numbers())
                yield from self._items.close(_status(self._reason))
            case frames.Ended():
                answers.check_ended(update)
                self._usage.add(update)
                if self._reply is not None:
                    self._usage.reasoning_tokens = self._reply.num_reasoning_tokens
                self._ended(self._reason, self._usage.now())

    def closing(self) -> Iterator[bytes]:
        assert self._final is not None
        yield self._items.event(f"response.{self._final.status}", response=self._final)

    def failure(self, error: OctavoError) -> bytes:
        """Two events: the response as it failed, and the error, which makes the official clients raise."""
        body = fault(error).body
        assert isinstance(body, ErrorBody)
        said = body.error
        failed = self._response("failed", error=ResponseError(code=said.code, message=said.message))
        first = self._items.event("response.failed", response=failed)
        fields = {"code": said.code, "message": said.message, "param": said.param, "error": said}
        return first + self._items.event("error", **fields)

    async def keep(self) -> None:
        if not self._call.is_kept:
            return
        assert self._final is not None
        storage = self.front.storage_or_refuse()
        items = []
        for item in self._call.items:
            named = (
                item
                if item.id is not None
                else msgspec.structs.replace(item, id=f"msg_{secrets.token_hex(16)}")
            )
            items.append(msgspec.Raw(msgspec.json.encode(msgspec.to_builtins(named) | {"type": named.type})))
        row = StoredResponse(
            tenant_id=self._tenant.tenant_id,
            response_id=self.id,
            created_at=self._created,
            expires_at=int(self._created + self.front.config.response_ttl_s),
            body=msgspec.Raw(msgspec.json.encode(self._final)),
            items=items,
            previous_id=self._call.request.previous_response_id,
        )
        await storage.off_loop(lambda: storage.store.responses.add(row))

    def _numbers(self) -> list[Any]:
        """Log-probabilities that no event has carried yet."""
        entries, self._logprobs = self._logprobs, []
        if not self._call.request.wants_logprobs or not entries:
            return []
        return list(chat_logprobs(self.front.tokenizer, entries).content)

    def _ended(self, reason: str, counted: Any) -> Response:
        details = counted.completion_tokens_details
        usage = Usage(
            input_tokens=counted.prompt_tokens,
            input_tokens_details=InputDetails(cached_tokens=counted.prompt_tokens_details.cached_tokens),
            output_tokens=counted.completion_tokens,
            output_tokens_details=OutputDetails(
                reasoning_tokens=0 if details is msgspec.UNSET else details.reasoning_tokens
            ),
            total_tokens=counted.total_tokens,
        )
        incomplete = Incomplete(reason="max_output_tokens") if reason == "length" else None
        self._final = self._response(_status(reason), usage=usage, incomplete_details=incomplete)
        return self._final

    def _response(self, status: str, **more: Any) -> Response:
        asked, params = self._call.request, self._call.turn.params
        text = (
            asked.text.format
            if asked.text is not None and asked.text.format is not None
            else {"type": "text"}
        )
        reasoning = asked.reasoning
        return Response(
            id=self.id,
            created_at=self._created,
            completed_at=int(time.time()) if status in ("completed", "incomplete") else None,
            status=status,
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            max_tool_calls=asked.max_tool_calls,
            model=self.front.card.id,
            output=[as_input(item) if not asked.wants_logprobs else item for item in self._items.done],
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            previous_response_id=asked.previous_response_id,
            reasoning={"effort": reasoning.effort if reasoning is not None else None, "summary": None},
            store=self._call.is_kept,
            temperature=params.temperature,
            text={"format": text},
            tool_choice=asked.tool_choice or "auto",
            tools=list(asked.tools or ()),
            top_logprobs=asked.top_logprobs or 0,
            top_p=params.top_p,
            user=asked.user,
            metadata=asked.metadata or {},
            **more,
        )


def _status(reason: str) -> str:
    return "incomplete" if reason == "length" else "completed"
