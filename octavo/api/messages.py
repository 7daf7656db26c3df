"""`/v1/messages` on the wire: Anthropic's Messages."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.core.sequence import SamplingParams
from octavo.errors import RequestError, Unsupported

MAX_STOPS = 16
MAX_STOP_CHARS = 4096
MAX_WHOLE = 2**31 - 1


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A content block of any of the kinds that can be read: text, thinking, tool_use, tool_result.

    `cache_control` changes nothing: every prefix is cached, as long as there is room.
    """

    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None
    cache_control: Any = None


class InputMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["user", "assistant"]
    content: str | list[Block]


class ToolDefinition(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    type: Literal["custom"] | None = None
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: Any = None


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What `/v1/messages/count_tokens` reads, and `/v1/messages` too."""

    model: str | None = None
    messages: list[InputMessage]
    system: str | list[Block] | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None

    def template_messages(self) -> list[dict[str, Any]]:
        """Messages for a chat template. Raises RequestError and Unsupported, with the place named."""
        if not self.messages:
            raise RequestError("messages is empty; send at least one", param="messages")
        if self.messages[-1].role == "assistant":
            raise Unsupported(
                "the last message is the assistant's own; an answer cannot be begun for it here, end with a user's",
                param="messages",
            )
        found: list[dict[str, Any]] = []
        if self.system:
            text = self.system if isinstance(self.system, str) else _texts("system", self.system)
            found.append({"role": "system", "content": text})
        for number, message in enumerate(self.messages):
            found += _turns(f"messages[{number}]", message)
        return found

    def template_variables(self) -> dict[str, Any]:
        return {} if self.thinking is None else {"enable_thinking": self.thinking.type != "disabled"}

    def without_effect(self) -> list[str]:
        """Fields that are read and change nothing."""
        budget = self.thinking.budget_tokens if self.thinking is not None else None
        return [] if budget is None else ["thinking.budget_tokens"]


class MessagesRequest(Conversation, frozen=True, kw_only=True):
    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    deadline_ms: int | None = None

    def params(self) -> SamplingParams:
        """Raises RequestError with the field's name as `param`."""
        stops = self.stop_sequences or []
        if len(stops) > MAX_STOPS or sum(map(len, stops)) > MAX_STOP_CHARS:
            raise RequestError(
                f"stop_sequences has {len(stops)} texts of {sum(map(len, stops))} characters, at most {MAX_STOPS} of"
                f" {MAX_STOP_CHARS} are allowed",
                param="stop_sequences",
            )
        for name in ("max_tokens", "top_k"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MAX_WHOLE:
                raise RequestError(f"{name} must be from 0 to {MAX_WHOLE}, got {value}", param=name)
        given: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        try:
            return SamplingParams(
                max_tokens=self.max_tokens,
                stop=tuple(stops),
                **{name: value for name, value in given.items() if value is not None},
            )
        except RequestError as error:
            param = "stop_sequences" if error.param == "stop" else error.param
            raise RequestError(str(error), param=param) from None


class _Said:
    """What a message says between two results of tools."""

    def __init__(self, role: str) -> None:
        self._role = role
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[dict[str, Any]] = []

    def turns(self) -> list[dict[str, Any]]:
        """As one turn of a template, or none when nothing was said."""
        if not self.texts and not self.calls and not self.thoughts:
            return []
        turn: dict[str, Any] = {"role": self._role, "content": "\n".join(self.texts)}
        if self.calls:
            turn["tool_calls"] = self.calls
        if self.thoughts:
            turn["reasoning_content"] = "\n".join(self.thoughts)
        return [turn]


def _turns(place: str, message: InputMessage) -> list[dict[str, Any]]:
    """A message as a template's: results of tools are turns of their own, in their order."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    found: list[dict[str, Any]] = []
    said = _Said(message.role)
    for number, block in enumerate(message.content):
        here = f"{place}.content[{number}]"
        match block.type, message.role:
            case "text", _:
                said.texts.append(_needed(block.text, f"{here}.text"))
            case "thinking", "assistant":
                said.thoughts.append(_needed(block.thinking, f"{here}.thinking"))
            case "tool_use", "assistant":
                function = {"name": _needed(block.name, f"{here}.name"), "arguments": block.input or {}}
                call = {"id": _needed(block.id, f"{here}.id"), "type": "function", "function": function}
                said.calls.append(call)
            case "tool_result", "user":
                found += [*said.turns(), _result(here, block)]
                said = _Said(message.role)
            case _:
                raise Unsupported(
                    f"{here} is of type {block.type[:80]!r} from the {message.role}; this build reads text, thinking,"
                    " tool_use and tool_result",
                    param=here,
                )
    found += said.turns()
    if not found:
        raise RequestError(f"{place}.content is empty", param=f"{place}.content")
    return found


def _result(place: str, block: Block) -> dict[str, Any]:
    content = block.content or ""
    text = content if isinstance(content, str) else _texts(f"{place}.content", content)
    return {
        "role": "tool",
        "tool_call_id": _needed(block.tool_use_id, f"{place}.tool_use_id"),
        "content": f"Error: {text}" if block.is_error else text,
    }


def _texts(place: str, blocks: list[Block]) -> str:
    for number, block in enumerate(blocks):
        if block.type != "text":
            raise Unsupported(
                f"{place}[{number}] is of type {block.type[:80]!r}; only text can be read here",
                param=f"{place}[{number}]",
            )
    return "\n".join(_needed(block.text, f"{place}.text") for block in blocks)


def _needed(value: str | None, place: str) -> str:
    if value is None:
        raise RequestError(f"{place} is missing", param=place)
    return value


class CountedTokens(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """`input_tokens` are those that were not read from the cache."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0


class OutputBlock(msgspec.Struct, frozen=True, kw_only=True):
    """Text, thinking (not signed) or tool_use."""

    type: str
    text: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    signature: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    input: Any = UNSET


class Message(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[OutputBlock]
    stop_reason: str | None
    stop_sequence: str | None
    usage: Usage


class MessageStart(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "message_start"
    message: Message


class BlockStart(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "content_block_start"
    index: int
    content_block: OutputBlock


class BlockDelta(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "content_block_delta"
    index: int
    delta: dict[str, str]


class BlockStop(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "content_block_stop"
    index: int


class MessageEnd(msgspec.Struct, frozen=True, kw_only=True):
    stop_reason: str
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "message_delta"
    delta: MessageEnd
    usage: Usage


class MessageStop(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "message_stop"


class Ping(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "ping"
