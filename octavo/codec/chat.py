"""Messages to the prompt text a model was trained on, by its chat template.

Templates come from model folders and from requests, so they run in a sandbox with a bound on work
(`octavo.codec.sandbox`). What they are given is rebuilt from plain JSON values first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes

from octavo.codec.meter import Exhausted, metered
from octavo.codec.sandbox import Refused, Sandbox
from octavo.codec.tokenizer import Tokenizer
from octavo.errors import LoadError, RequestError, Unsupported

MAX_TEMPLATE_CHARS = 2**20
MAX_DEPTH = 64

_BASES: Mapping[type, Callable[[Any], Any]] = {str: str.__str__, int: int.__int__, float: float.__float__}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatLimits:
    """What one rendering may take.

    max_chars  longest prompt, and longest text made on the way
    max_units  units of work (see `octavo.codec.meter`), about a microsecond each
    """

    max_chars: int = 8 * 2**20
    max_units: int = 1_000_000


class ChatTemplate:
    """A compiled template. Immutable; threads may share it.

    reads_parts  whether it goes through content given as a list of parts; otherwise `render` joins text parts
    """

    def __init__(self, source: str) -> None:
        """Raises LoadError when the template is too long or not valid Jinja."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise LoadError(
                f"the chat template has {len(source)} characters, at most {MAX_TEMPLATE_CHARS} are read"
            )
        limits = ChatLimits()
        try:
            with metered(limits.max_units, limits.max_chars):
                self.reads_parts = _reads_parts(_SANDBOX.parse(source))
                self._compiled = _SANDBOX.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise LoadError(
                f"the chat template is not valid, line {error.lineno}: {error.message}"
            ) from error
        except (Exhausted, RecursionError, SyntaxError, MemoryError) as error:
            raise LoadError(f"the chat template cannot be compiled: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        now: datetime | None = None,
        limits: ChatLimits | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for a conversation. See the function `render`."""
        limits = limits or ChatLimits()
        given = {
            **variables,
            "messages": prepared(messages, self.reads_parts),
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        values = {name: plain(value, name) for name, value in given.items()}
        if now is not None:
            values["strftime_now"] = _strftime(now)
        try:
            with metered(limits.max_units, limits.max_chars):
                return _collected(self._compiled.generate(values), limits.max_chars)
        except Refused as error:
            raise RequestError(
                f"the chat template refuses these messages: {error}", param="messages"
            ) from error
        except Exhausted as error:
            raise RequestError(
                f"{error}; shorten the conversation or mend the template", param="messages"
            ) from error
        except Exception as error:  # a template can fail in any way Python can
            raise RequestError(
                f"the chat template cannot render these messages: {type(error).__name__}: {error}",
                param="messages",
            ) from error


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    now: datetime | None = None,
    limits: ChatLimits | None = None,
    **variables: Any,
) -> str:
    """The prompt text for a conversation.

    template   Jinja source
    messages   objects with at least "role"; "content" is text, None, or a list of text parts,
               {"type": "text", "text": ...}
    tools      JSON schemas of functions the model may call
    documents  texts it may quote
    now        what `strftime_now` in a template tells the time from; without it that name is not defined
    variables  further names for the template: `Tokenizer.special_tokens`, and what the caller was given

    The prompt holds the begin token if the template writes it: encode with add_special_tokens=False.
    Raises LoadError for a template that is not valid; RequestError when the template refuses the messages,
    fails on them, or goes past `limits`; Unsupported for content parts other than text.
    """
    return compiled(template).render(
        messages,
        add_generation_prompt,
        tools=tools,
        documents=documents,
        now=now,
        limits=limits,
        **variables,
    )


def chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    *,
    template: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> str:
    """`render` with the model's own template and special tokens.

    template  the name of one of the model's templates, or Jinja source; None takes the model's "tool_use"
              template when there are tools and it has one, else its default
    options   whatever else `render` takes
    Raises RequestError when the model has no template and none is given; an invalid template that came with
    the request is a RequestError too.
    """
    named = tokenizer.chat_templates
    source = named.get(template, template) if template is not None else None
    if source is None:
        source = named.get("tool_use") if tools else None
    if source is None:
        source = tokenizer.chat_template
    if source is None:
        raise RequestError(
            "this model has no chat template; pass chat_template, or send a plain prompt for completion",
            param="messages",
        )
    try:
        chosen = compiled(source)
    except LoadError as error:
        if template is None or template in named:
            raise
        raise RequestError(str(error), param="chat_template") from error
    return chosen.render(
        messages, add_generation_prompt, tools=tools, **{**tokenizer.special_tokens, **options}
    )


@lru_cache(maxsize=64)
def compiled(template: str) -> ChatTemplate:
    """The compiled template, kept for the next time."""
    return ChatTemplate(template)


def prepared(messages: Sequence[Mapping[str, Any]], reads_parts: bool) -> list[dict[str, Any]]:
    """Messages as templates expect them.

    Text parts are joined by a newline for a template that reads plain text only. The arguments of a tool
    call, which the OpenAI interface carries as JSON text, become the object that templates print.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise RequestError("messages must be a list of at least one message", param="messages")
    found = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f"messages[{i}] must be an object with a text 'role'", param="messages")
        message = dict(message)
        if isinstance(message.get("content"), list | tuple):
            message["content"] = _parts(message["content"], f"messages[{i}].content", reads_parts)
        if isinstance(message.get("tool_calls"), list | tuple):
            message["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
        found.append(message)
    return found


def _parts(parts: Sequence[Any], where: str, reads_parts: bool) -> str | list[Any]:
    for part in parts:
        if (
            not isinstance(part, Mapping)
            or part.get("type") != "text"
            or not isinstance(part.get("text"), str)
        ):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise Unsupported(
                f"{where} holds a part of kind {kind!r}; only text parts can be read", param="messages"
            )
    return list(parts) if reads_parts else "\n".join(part["text"] for part in parts)


def _tool_call(call: Any) -> Any:
    """The call with its arguments as an object, where they are the JSON text of one."""
    function = call.get("function") if isinstance(call, Mapping) else None
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": parsed}} if isinstance(parsed, dict) else call


def plain(value: Any, name: str, depth: int = 0) -> Any:
    """A copy made of nothing but JSON's own types. Raises RequestError for anything else."""
    if depth > MAX_DEPTH:
        raise RequestError(f"{name} is nested more than {MAX_DEPTH} deep", param=name)
    if value is None or isinstance(value, bool):
        return value
    for kind, base in _BASES.items():
        if isinstance(value, kind):
            return value if type(value) is kind else base(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise RequestError(f"{name} has a key that is not text", param=name)
        return {str(key): plain(item, name, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, name, depth + 1) for item in value]
    raise RequestError(f"{name} holds a {type(value).__name__}, which is no JSON value", param=name)


def _reads_parts(tree: nodes.Template) -> bool:
    """A template that asks for some part's text (`part.text`, `part["text"]`) goes through parts itself."""
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
    keys = {node.arg.value for node in tree.find_all(nodes.Getitem) if isinstance(node.arg, nodes.Const)}
    return "text" in attributes | keys


def _collected(chunks: Any, max_chars: int) -> str:
    found, num_chars = [], 0
    for chunk in chunks:
        num_chars += len(chunk)
        if num_chars > max_chars:
            raise Exhausted(f"the chat template makes a prompt of more than {max_chars} characters")
        found.append(chunk)
    return "".join(found)


def _strftime(now: datetime) -> Callable[[str], str]:
    def strftime_now(pattern: str) -> str:
        if re.search(r"%[^a-zA-Z%]*\d", pattern):
            raise Exhausted("the chat template gives a width to a date format")
        return now.strftime(pattern)

    return strftime_now


_SANDBOX = Sandbox()
