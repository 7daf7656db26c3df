"""A conversation made ready for the model: rendered and tokenized, with tools, and how to read the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from octavo.codec.chat import chat_prompt
from octavo.codec.parts import THINK
from octavo.codec.tools import Choice, Tool
from octavo.core.sequence import SamplingParams
from octavo.errors import RequestError
from octavo.server.front import Front
from octavo.server.reply import Listening


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the model.

    params     with what tools and reasoning make of them
    listening  None where everything it says is content
    """

    token_ids: Sequence[int]
    params: SamplingParams
    listening: Listening | None


def read_turn(
    front: Front,
    messages: Sequence[Mapping[str, Any]],
    params: SamplingParams,
    *,
    tools: Sequence[Tool] = (),
    choice: Choice | None = None,
    variables: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> Turn:
    """Render and tokenize.

    tools      all that the model is told of; `choice` says which of them it may call
    variables  for the chat template
    Raises RequestError, also where the model has no chat template, and Unsupported for a grammar that cannot be
    combined with tools or reasoning.
    """
    if front.chat_problem is not None:
        raise RequestError(front.chat_problem, param="messages")
    dialect, choice = front.dialect, choice or Choice(tools=tuple(tools))
    told, listed = dialect.told(messages, tools)
    text = chat_prompt(
        front.tokenizer, told, add_generation_prompt, tools=listed, now=datetime.now(), **(variables or {})
    )
    token_ids = front.tokenizer.encode(text, add_special_tokens=False)
    if not token_ids:
        raise RequestError("the messages render to an empty prompt", param="messages")
    is_thinking = dialect.thinks and text.rstrip().endswith(THINK)
    grammar = dialect.grammar(choice, is_thinking=is_thinking, content=params.grammar)
    shows = dialect.shows_marks and bool(choice.tools)
    params = replace(params, grammar=grammar, skip_special_tokens=params.skip_special_tokens and not shows)
    listening = Listening(dialect, choice, is_thinking)
    return Turn(token_ids, params, None if listening.is_plain else listening)
