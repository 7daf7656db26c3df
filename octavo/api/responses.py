"""`/v1/responses` on the wire: what it reads, and its items as turns of a conversation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.api.structure import JsonSchema, ResponseFormat, Structured
from octavo.api.tools import Function, ToolParam
from octavo.core.sequence import Grammar, SamplingParams
from octavo.errors import RequestError, Unsupported

MAX_TOP_LOGPROBS = 20
MAX_WHOLE = 2**31 - 1
TEXT_PARTS = frozenset({"input_text", "output_text", "text", "reasoning_text", "summary_text"})


class ContentPart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An input item of any kind that can be read: message, function_call, function_call_output, reasoning."""

    type: str = "message"
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None
    status: str | None = None


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    """Tools of other types than function are passed over, and said so in the warning header."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoiceObject(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[FunctionTool] | None = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: Any = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(msgspec.Struct, frozen=True, kw_only=True):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class InputTokensRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What makes the prompt; `/v1/responses/input_tokens` reads no more."""

    model: str | None = None
    input: str | list[Item] | None = None
    instructions: str | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceObject | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    previous_response_id: str | None = None
    truncation: Literal["auto", "disabled"] | None = None

    def items(self) -> list[Item]:
        """Raises RequestError when there is no input."""
        if not self.input:
            raise RequestError("input is empty; send a text or a list of items", param="input")
        return [Item(role="user", content=self.input)] if isinstance(self.input, str) else list(self.input)

    def function_tools(self) -> list[ToolParam]:
        """Those that can be called here. Raises RequestError for one without a name."""
        found = []
        for number, tool in enumerate(self.tools or ()):
            if tool.type != "function":
                continue
            if tool.name is None:
                raise RequestError(f"tools[{number}].name is missing", param=f"tools[{number}].name")
            function = Function(
                name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
            )
            found.append(ToolParam(type="function", function=function))
        return found

    def without_effect(self) -> list[str]:
        """Fields that are read and change nothing."""
        found = [f"tools.{tool.type}" for tool in self.tools or () if tool.type != "function"]
        if self.reasoning is not None and (self.reasoning.summary or self.reasoning.generate_summary):
            found.append("reasoning.summary")
        if self.text is not None and self.text.verbosity is not None:
            found.append("text.verbosity")
        return found

    def grammar(self) -> Grammar | None:
        """Raises RequestError for a schema that is missing."""
        asked = self.text.format if self.text is not None else None
        if asked is None:
            return None
        schema = JsonSchema(name=asked.name, schema=asked.schema)
        wanted = ResponseFormat(type=asked.type, json_schema=schema if asked.type == "json_schema" else None)
        try:
            return Structured(response_format=wanted).grammar()
        except RequestError as error:
            raise RequestError(_renamed(str(error)), param=_renamed(error.param or "")) from None


def _renamed(text: str) -> str:
    """Names of chat's fields as this route has them."""
    return text.replace("response_format.json_schema", "text.format").replace(
        "response_format", "text.format"
    )


class ResponsesRequest(InputTokensRequest, frozen=True, kw_only=True):
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    max_tool_calls: int | None = None
    service_tier: str | None = None
    user: str | None = None
    deadline_ms: int | None = None

    @property
    def wants_logprobs(self) -> bool:
        return "message.output_text.logprobs" in (self.include or ())

    def params(self) -> SamplingParams:
        """Raises RequestError with the field's name as `param`, and Unsupported."""
        if self.background:
            raise Unsupported("background is not supported by this build; leave it out", param="background")
        if self.truncation == "auto":
            raise Unsupported(
                "truncation is 'auto': nothing is left out of a conversation here; shorten it",
                param="truncation",
            )
        for name in self.include or ():
            if name not in ("message.output_text.logprobs", "reasoning.encrypted_content"):
                raise Unsupported(f"include names {name[:80]!r}, which is not built", param="include")
        most = self.max_output_tokens
        if most is not None and not 1 <= most <= MAX_WHOLE:
            raise RequestError(
                f"max_output_tokens must be from 1 to {MAX_WHOLE}, got {most}", param="max_output_tokens"
            )
        top = self.top_logprobs
        if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
            raise RequestError(
                f"top_logprobs must be from 0 to {MAX_TOP_LOGPROBS}, got {top}", param="top_logprobs"
            )
        given: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p}
        given["logprobs"] = (top or 0) if self.wants_logprobs else None
        return SamplingParams(
            max_tokens=most,
            grammar=self.grammar(),
            **{name: value for name, value in given.items() if value is not None},
        )


def turns(items: Sequence[Item], *, knows_developer: bool) -> list[dict[str, Any]]:
    """Items as messages of a chat template: calls and reasoning join the assistant's message they stand beside.

    Raises RequestError and Unsupported, with the place named.
    """
    found: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        here = f"input[{number}]"
        match item.type:
            case "message":
                role = "system" if item.role == "developer" and not knows_developer else item.role
                if role is None:
                    raise RequestError(f"{here}.role is missing", param=f"{here}.role")
                text = _text(f"{here}.content", item.content)
                last = found[-1] if found else None
                if role == "assistant" and last is not None and last["role"] == role and not last["content"]:
                    last["content"] = text
                else:
                    found.append({"role": role, "content": text})
            case "reasoning":
                parts = item.content if isinstance(item.content, list) else item.summary or []
                _of_assistant(found)["reasoning_content"] = _text(f"{here}.content", parts)
            case "function_call":
                calls = _of_assistant(found).setdefault("tool_calls", [])
                calls.append(_call(here, item))
            case "function_call_output":
                call_id = _needed(item.call_id, f"{here}.call_id")
                text = _text(f"{here}.output", item.output)
                found.append({"role": "tool", "tool_call_id": call_id, "content": text})
            case _:
                raise Unsupported(
                    f"{here} is of type {item.type[:80]!r}; this build reads message, function_call,"
                    " function_call_output and reasoning",
                    param=here,
                )
    return found


def _of_assistant(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's turn that is under way, begun now if there is none."""
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": ""})
    return found[-1]


def _call(place: str, item: Item) -> dict[str, Any]:
    try:
        arguments = json.loads(item.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise RequestError(f"{place}.arguments must be the text of a JSON object", param=f"{place}.arguments")
    function = {"name": _needed(item.name, f"{place}.name"), "arguments": arguments}
    return {"id": _needed(item.call_id, f"{place}.call_id"), "type": "function", "function": function}


def _text(place: str, content: str | list[ContentPart] | None) -> str:
    if content is None:
        raise RequestError(f"{place} is missing", param=place)
    if isinstance(content, str):
        return content
    texts = []
    for number, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in TEXT_PARTS and part.type != "refusal":
            raise Unsupported(
                f"{place}[{number}] is of type {part.type[:80]!r}; this build reads text only",
                param=f"{place}[{number}]",
            )
        texts.append(_needed(text, f"{place}[{number}].text"))
    return "\n".join(texts)


def _needed(value: str | None, place: str) -> str:
    if value is None:
        raise RequestError(f"{place} is missing", param=place)
    return value


class InputDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class OutputText(msgspec.Struct, frozen=True, kw_only=True):
    """Of a message: output_text; of reasoning: reasoning_text, without the lists."""

    type: str
    text: str
    annotations: list[Any] | UnsetType = UNSET
    logprobs: list[Any] | UnsetType = UNSET


class OutputItem(msgspec.Struct, frozen=True, kw_only=True):
    """A message, a function_call or reasoning."""

    id: str
    type: str
    status: str
    role: str | UnsetType = UNSET
    content: list[OutputText] | UnsetType = UNSET
    summary: list[Any] | UnsetType = UNSET
    call_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ResponseError(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str


class Incomplete(msgspec.Struct, frozen=True, kw_only=True):
    reason: str


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """status: in_progress, completed, incomplete or failed."""

    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None = None
    status: str
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    service_tier: str = "default"
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[Any]
    top_logprobs: int
    top_p: float
    truncation: str = "disabled"
    usage: Usage | None = None
    user: str | None
    metadata: dict[str, str]


class ItemList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[Any]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "response"
    deleted: bool = True


class CountedTokens(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "response.input_tokens"
    input_tokens: int
