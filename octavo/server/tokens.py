"""POST /tokenize and /detokenize: what the model reads for a text or a conversation, and back."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from octavo.api.faults import HttpError
from octavo.api.parse import parse, warning
from octavo.api.tokens import (
    MAX_TOKENS,
    DetokenizeRequest,
    Text,
    TokenizeMessages,
    TokenizePrompt,
    Tokens,
)
from octavo.errors import RequestError
from octavo.server.bodies import read_body
from octavo.server.chat import turn_of
from octavo.server.front import Front
from octavo.server.gate import json_response
from octavo.server.logprobs import token_text

Headers = dict[str, str]


async def tokenize(request: Request) -> Response:
    """The route."""
    front: Front = request.state.front
    body = await read_body(request, front.config.max_body_bytes)
    tokens, headers = await front.off_loop(lambda: _tokens(front, body), len(body))
    return json_response(tokens, headers=headers)


async def detokenize(request: Request) -> Response:
    """The route."""
    front: Front = request.state.front
    body = await read_body(request, front.config.max_body_bytes)
    text, headers = await front.off_loop(lambda: _text(front, body), len(body))
    return json_response(text, headers=headers)


def _tokens(front: Front, body: bytes) -> tuple[Tokens, Headers]:
    asked: TokenizePrompt | TokenizeMessages
    try:
        asked, idle = parse(body, TokenizePrompt)
    except RequestError as error:
        if error.param not in ("prompt", "tools"):
            raise
        asked, idle = parse(body, TokenizeMessages)
    else:
        if "messages" in idle:
            raise RequestError("prompt and messages exclude each other; send one of them", param="messages")
    front.check_model(asked.model)
    if isinstance(asked, TokenizeMessages):
        ids = list(turn_of(front, asked.chat()).token_ids)
    else:
        ids = front.tokenizer.encode(asked.prompt, asked.add_special_tokens is not False)
    made = Tokens(count=len(ids), max_model_len=front.card.max_model_len, tokens=ids)
    if asked.return_token_strs:
        made = Tokens(
            count=made.count,
            max_model_len=made.max_model_len,
            tokens=ids,
            token_strs=[token_text(front.tokenizer, token) for token in ids],
        )
    return made, warning(idle)


def _text(front: Front, body: bytes) -> tuple[Text, Headers]:
    asked, idle = parse(body, DetokenizeRequest)
    front.check_model(asked.model)
    if len(asked.tokens) > MAX_TOKENS:
        raise HttpError(
            "invalid_value",
            f"tokens has {len(asked.tokens)} ids, at most {MAX_TOKENS} are read",
            param="tokens",
        )
    size = front.tokenizer.vocab_size
    for token in asked.tokens:
        if not 0 <= token < size:
            raise RequestError(f"token {token} is outside the tokenizer's {size} tokens", param="tokens")
    return Text(prompt=front.tokenizer.decode(asked.tokens, False)), warning(idle)
