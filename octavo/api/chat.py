"""`/v1/chat/completions` on the wire."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.api.common import Generation, PromptLogprob, Usage
from octavo.api.tools import ToolCall, ToolCallDelta, ToolChoice, ToolParam
from octavo.core.sequence import SamplingParams
from octavo.errors import RequestError, Unsupported

MAX_TOP_LOGPROBS = 20
TEMPLATE_VARIABLES = frozenset({"enable_thinking", "thinking", "reasoning_effort", "date_string"})
"""Names a request may set for the chat template; the rest could shadow what the template is given by us."""


class ContentPart(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    text: str | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn. Images and the older function calls are refused by `template_messages`, with the place named."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: Any = None
    refusal: str | None = None
    audio: Any = None


class ChatRequest(Generation, frozen=True, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, str | int | float | bool] | None = None
    tools: list[ToolParam] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    def params(self) -> SamplingParams:
        """Raises RequestError for a value out of range or a combination that cannot be answered."""
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise RequestError(
                f"max_tokens is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens};"
                " send one of them",
                param="max_completion_tokens",
            )
        top = self.top_logprobs
        if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
            raise RequestError(
                f"top_logprobs must be from 0 to {MAX_TOP_LOGPROBS}, got {top}", param="top_logprobs"
            )
        if top and not self.logprobs:
            raise RequestError(f"top_logprobs is {top} but logprobs is not true", param="top_logprobs")
        params = self.sampling(
            max_tokens=self.max_completion_tokens if self.max_tokens is None else self.max_tokens,
            logprobs=(top or 0) if self.logprobs else None,
        )
        if self.stream and params.beam_width is not None:
            raise Unsupported(
                "beam_width ranks whole answers and cannot be combined with stream", param="beam_width"
            )
        if self.stream and params.prompt_logprobs is not None:
            raise Unsupported("prompt_logprobs cannot be combined with stream", param="prompt_logprobs")
        return params

    def template_messages(self, *, knows_developer: bool) -> list[dict[str, Any]]:
        """Messages for a chat template: role, content (a text or text parts), and the name where there is one.

        knows_developer  whether the template has that role; otherwise it is rendered as "system", whose newer
                         name it is
        Raises RequestError for an empty list and Unsupported for what is not text.
        """
        if not self.messages:
            raise RequestError("messages is empty; send at least one", param="messages")
        return [_plain(i, message, knows_developer) for i, message in enumerate(self.messages)]

    def template_variables(self) -> dict[str, Any]:
        """Raises Unsupported for a name that is not on the list."""
        given: dict[str, Any] = thinking_variables(self.reasoning_effort) | (self.chat_template_kwargs or {})
        for name in given:
            if name not in TEMPLATE_VARIABLES:
                known = ", ".join(sorted(TEMPLATE_VARIABLES))
                raise Unsupported(
                    f"chat_template_kwargs may set {known}; got {name!r}", param="chat_template_kwargs"
                )
        return given


def _plain(index: int, message: Message, knows_developer: bool) -> dict[str, Any]:
    place = f"messages[{index}]"
    if message.function_call is not None or message.role == "function":
        raise Unsupported(f"{place} is of the older function calls; use tools and tool_calls", param=place)
    if message.tool_calls and message.role != "assistant":
        raise RequestError(
            f"{place}.tool_calls: only an assistant calls, not a {message.role}", param=f"{place}.tool_calls"
        )
    if message.role == "tool" and not message.tool_call_id:
        raise RequestError(
            f"{place}.tool_call_id is missing; name the call this answers", param=f"{place}.tool_call_id"
        )
    if message.audio is not None:
        raise Unsupported(f"{place}.audio: this build reads text only", param=f"{place}.audio")
    role = "system" if message.role == "developer" and not knows_developer else message.role
    plain: dict[str, Any] = {"role": role, "content": _content(place, message)}
    if message.name is not None:
        plain["name"] = message.name
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        plain["tool_calls"] = [
            _call(f"{place}.tool_calls[{i}]", call) for i, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _call(place: str, call: ToolCall) -> dict[str, Any]:
    """As chat templates expect it. Its arguments are checked here: a template may print anything."""
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}")
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        arguments = None
    if not isinstance(arguments, dict):
        raise RequestError(
            f"{place}.function.arguments must be the text of a JSON object",
            param=f"{place}.function.arguments",
        )
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }


def thinking_variables(effort: str | None) -> dict[str, Any]:
    """What `reasoning_effort` is to chat templates: itself, and whether to think at all."""
    if effort is None:
        return {}
    return {"reasoning_effort": effort, "enable_thinking": effort not in ("none", "minimal")}


def _content(place: str, message: Message) -> str | list[dict[str, str]]:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        if message.role == "assistant" and message.refusal is not None:
            return message.refusal
        if message.tool_calls:
            return ""
        raise RequestError(f"{place}.content is missing; send a text", param=f"{place}.content")
    parts = []
    for number, part in enumerate(message.content):
        here = f"{place}.content[{number}]"
        if part.type != "text":
            raise Unsupported(f"{here} is of type {part.type!r}; this build reads text only", param=here)
        if part.text is None:
            raise RequestError(f"{here}.text is missing", param=here)
        parts.append({"type": "text", "text": part.text})
    return parts


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    content: list[TokenLogprob]
    refusal: None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`content` is null where there is nothing but calls."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: Answer
    logprobs: Logprobs | None = None
    finish_reason: str
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str
