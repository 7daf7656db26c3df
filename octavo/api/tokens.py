"""`/tokenize` and `/detokenize` on the wire."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from octavo.api.chat import ChatRequest, Message
from octavo.api.tools import ToolParam

MAX_TOKENS = 2**20


class TokenizePrompt(msgspec.Struct, frozen=True, kw_only=True):
    """A text; special tokens go in front where the tokenizer has that habit, unless `add_special_tokens` is false."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeMessages(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation, rendered by the chat template, which brings its own special tokens."""

    messages: list[Message]
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, str | int | float | bool] | None = None
    tools: list[ToolParam] | None = None
    model: str | None = None
    return_token_strs: bool | None = None

    def chat(self) -> ChatRequest:
        """The request that reads the same tokens."""
        return ChatRequest(
            messages=self.messages,
            add_generation_prompt=self.add_generation_prompt,
            chat_template_kwargs=self.chat_template_kwargs,
            tools=self.tools,
        )


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """token_strs: each token's text, where asked for; `bytes:\\x..` where its bytes alone are no text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    tokens: list[int]
    model: str | None = None


class Text(msgspec.Struct, frozen=True, kw_only=True):
    prompt: str
