"""Tools that a model may call: how it is told of them, how its calls are written, and how they are forced to be right.

A chat template that knows tools says itself what calls look like. To a model whose template does not, tools are told
in a system text of ours, calls look like Hermes', and results are told as user turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.codec.grammar import JSON_OPTIONS
from octavo.codec.parts import FORMATS, HERMES, LLAMA, MISTRAL, THOUGHT, Markers
from octavo.codec.tokenizer import Tokenizer
from octavo.core.sequence import Grammar
from octavo.errors import Unsupported

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function.

    parameters  JSON schema of its arguments; None where it takes none
    strict      its arguments follow the schema even where the model chose to call it by itself
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    def described(self) -> dict[str, Any]:
        """As chat templates expect it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = dict(self.parameters if self.parameters is not None else NO_ARGUMENTS)
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which calls an answer may hold.

    tools        those that may be called, none to forbid it
    is_required  there must be a call
    is_parallel  there may be several
    """

    tools: tuple[Tool, ...] = ()
    is_required: bool = False
    is_parallel: bool = True


class Dialect:
    """How one model is told of tools and how it writes calls.

    Raises Unsupported when a format is asked for by a name that is none.
    """

    def __init__(self, tokenizer: Tokenizer, name: str = "auto") -> None:
        template = tokenizer.chat_templates.get("tool_use") or tokenizer.chat_template or ""
        self.is_known = "tools" in template
        self.thinks = THOUGHT in template or "</think>" in "".join(tokenizer.special_tokens.values())
        if name == "auto":
            self.markers = _guessed(template) if self.is_known else HERMES
        elif name in FORMATS:
            self.markers = FORMATS[name]
        else:
            raise Unsupported(f"tool_call_format is one of auto, {', '.join(FORMATS)}, got {name!r}")
        opening = self.markers.opening
        token = tokenizer.token_id(opening) if opening else None
        self._tokenizer = tokenizer
        self._opening_id = token if token is not None and tokenizer.is_special(token) else None

    @property
    def shows_marks(self) -> bool:
        """Whether marks are special tokens, which have to be part of the text to be seen."""
        return self._opening_id is not None

    def num_bytes(self, token: int) -> int:
        """Of the text a token adds."""
        shown = not self._tokenizer.is_special(token) or self.shows_marks
        return len(self._tokenizer.token_bytes(token)) if shown else 0

    def told(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Messages and tools as the chat template takes them."""
        if self.is_known:
            return [dict(message) for message in messages], [tool.described() for tool in tools] or None
        plain = [_plain(message) for message in messages]
        if tools:
            text = _introduction([tool.described() for tool in tools])
            if plain and plain[0]["role"] == "system":
                plain[0] = {**plain[0], "content": f"{_text(plain[0])}\n\n{text}"}
            else:
                plain.insert(0, {"role": "system", "content": text})
        return _merged(plain), None

    def grammar(self, choice: Choice, *, is_thinking: bool, content: Grammar | None = None) -> Grammar | None:
        """What an answer with these calls must look like, None where it is free.

        is_thinking  the prompt has opened a <think> mark: reasoning comes first
        content      what an answer without calls must follow; of JSON kinds only
        """
        strict = any(tool.strict for tool in choice.tools)
        if not choice.tools:
            return content if content is None or not is_thinking else _after_thought(content)
        if not (choice.is_required or strict or content is not None):
            return None
        if self.markers is LLAMA and not choice.is_required and content is None:
            return None  # there is no mark at which the grammar could set in
        lines = _calls(self.markers, choice, self._opening())
        opening = self._opening()
        if choice.is_required:
            start = "calls"
        elif content is not None:
            lines.append(f"answer: %json {_schema(_content_schema(content))}")
            start = "calls | answer"
        elif self._opening_id is not None:
            lines += [f"lead: TEXT {opening}", "TEXT: /(.|\\n)*/"]
            start = "TEXT | lead rest"
        else:
            lines += [f"lead[lazy]: TEXT {opening}", "TEXT: /(.|\\n)*/"]
            start = "TEXT | lead rest"
        if is_thinking:
            lines += _THOUGHT
            start = f"thought BLANK ({start})"
        return Grammar(kind="calls", source="\n".join([f"start: {start}", *lines]))

    def _opening(self) -> str:
        """The opening mark in Lark's notation."""
        if self._opening_id is not None:
            return f"<[{self._opening_id}]>"
        return json.dumps(self.markers.opening) if self.markers.opening else ""


_THOUGHT = (f'thought[lazy]: ANY "{THOUGHT}"', "ANY: /(.|\\n)*/", "BLANK: /[ \\n]{0,4}/")


def _after_thought(content: Grammar) -> Grammar:
    """Reasoning, then what the content must be."""
    answer = f"answer: %json {_schema(_content_schema(content))}"
    return Grammar(kind="calls", source="\n".join(["start: thought BLANK answer", answer, *_THOUGHT]))


def _guessed(template: str) -> Markers:
    """By what a template writes itself when it repeats calls of earlier turns."""
    if HERMES.opening in template:
        return HERMES
    if MISTRAL.opening in template:
        return MISTRAL
    if '"parameters"' in template or "python_tag" in template:
        return LLAMA
    return HERMES


def _calls(markers: Markers, choice: Choice, opening: str) -> list[str]:
    """Lark rules for `calls`, a whole list of them, and `rest`, the same behind the first opening mark."""
    names = [f"call_{number}" for number in range(len(choice.tools))]
    lines = [f"call: {' | '.join(names)}"]
    for name, tool in zip(names, choice.tools, strict=True):
        parameters = tool.parameters if tool.parameters is not None else NO_ARGUMENTS
        if not tool.strict and not choice.is_required:
            parameters = ANY_OBJECT
        head = f'{{"name": {json.dumps(tool.name)}, "{markers.arguments}": '
        lines.append(f'{name}: {json.dumps(head)} %json {_schema(parameters)} "}}"')
    if markers is HERMES:
        closing = json.dumps("\n" + markers.closing)
        more = f' ("\\n" {opening} "\\n" call {closing})*' if choice.is_parallel else ""
        lines += [f'calls: {opening} "\\n" call {closing}{more}', f'rest: "\\n" call {closing}{more}']
    elif markers is MISTRAL:
        more = ' (", " call)*' if choice.is_parallel else ""
        lines += [f"calls: {opening} rest", f'rest: " [" call{more} "]"']
    else:
        more = ' ("; " call)*' if choice.is_parallel else ""
        lines += [f"calls: call{more}", f"rest: call{more}"]
    return lines


def _schema(schema: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": JSON_OPTIONS}, ensure_ascii=False)


def _content_schema(content: Grammar) -> Mapping[str, Any]:
    if content.kind == "json_object":
        return ANY_OBJECT
    if content.kind != "json_schema":
        raise Unsupported(
            f"tools cannot be combined with a {content.kind}; send a JSON schema, or one of the two",
            param="tools",
        )
    try:
        schema = json.loads(content.source)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise Unsupported(
            "tools and reasoning can be combined with a JSON schema that is an object only", param="tools"
        )
    return schema


def _introduction(tools: Sequence[Mapping[str, Any]]) -> str:
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return (
        "You can call functions. They are described one per line, with a JSON schema of their parameters:\n"
        f"{listed}\n"
        "To call one, write this and nothing after it:\n"
        '<tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call>'
    )


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without anything a plain template would not know."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{_text(message)}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return {key: value for key, value in message.items() if key != "tool_calls"}
    written = [
        HERMES.opening
        + "\n"
        + json.dumps(
            {"name": call["function"]["name"], "arguments": _object(call["function"]["arguments"])},
            ensure_ascii=False,
        )
        + "\n"
        + HERMES.closing
        for call in calls
    ]
    text = _text(message)
    return {"role": message["role"], "content": "\n".join([*([text] if text else []), *written])}


def _object(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of several calls, one after the other, as one turn: many templates want turns to alternate."""
    found: list[dict[str, Any]] = []
    for message in messages:
        last = found[-1] if found else None
        is_result = str(message["content"]).startswith("<tool_response>")
        if last is not None and is_result and last["role"] == "user" == message["role"]:
            found[-1] = {**last, "content": f"{_text(last)}\n{message['content']}"}
        else:
            found.append(message)
    return found


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
