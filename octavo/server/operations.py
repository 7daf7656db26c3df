"""What a server can be asked: each operation once, with what it takes and gives.

The routes are made from it, and the OpenAPI document too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.api.batches import Batch, BatchList, BatchRequest
from octavo.api.chat import ChatChunk, ChatCompletion, ChatRequest
from octavo.api.common import ModelCard, ModelList
from octavo.api.completions import Completion, CompletionRequest
from octavo.api.embeddings import EmbeddingList, EmbeddingRequest
from octavo.api.files import PURPOSES, FileDeleted, FileList, FileObject
from octavo.api.messages import Conversation, Message, MessagesRequest
from octavo.api.messages import CountedTokens as MessageTokens
from octavo.api.responses import CountedTokens, Deleted, InputTokensRequest, ItemList, ResponsesRequest
from octavo.api.responses import Response as ModelResponse
from octavo.api.tokens import DetokenizeRequest, Text, TokenizeMessages, TokenizePrompt, Tokens
from octavo.server import batches, console, files, health, messages, meters, models, responses, tokens
from octavo.server.endpoints import ENDPOINTS, run_model

Schema = Mapping[str, Any]

PAGE: Mapping[str, Schema] = {
    "limit": {"type": "integer", "minimum": 1, "description": "Rows of one answer at most."},
    "after": {"type": "string", "description": "The id behind which to begin."},
    "order": {"enum": ["asc", "desc"], "description": "By time of making; newest first unless asked."},
}
UPLOAD: Schema = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": list(PURPOSES)},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer"},
    },
    "required": ["file", "purpose"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Takes:
    """The body: JSON of one of some types, or a form."""

    types: tuple[type[msgspec.Struct], ...] = ()
    form: Schema | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    path      as the router reads it
    summary   in a few words, for the document
    takes     the body, where there is one
    gives     the type of an answer in JSON; `dict` where its fields depend on what there is to tell
    events    the type of the events of a stream, where answers can be streamed; `dict` for several
    media     other forms of an answer
    query     parameters behind the question mark, with their schemas
    metered   counts against a tenant's rate and its requests at once: costs more than looking something up
    """

    method: str
    path: str
    run: Callable[[Request], Awaitable[Response]]
    summary: str
    gives: type | None = None
    takes: Takes | None = None
    events: type | None = None
    media: tuple[str, ...] = ()
    query: Mapping[str, Schema] = field(default_factory=dict)
    metered: bool = False

    def route(self) -> Route:
        return Route(self.path, self.run, methods=[self.method])


def _takes(*types: type[msgspec.Struct]) -> Takes:
    return Takes(types=types)


def _model(
    path: str,
    summary: str,
    takes: type[msgspec.Struct],
    gives: type[msgspec.Struct],
    events: type | None = None,
) -> Operation:
    assert path in ENDPOINTS
    return Operation("POST", path, run_model, summary, gives, _takes(takes), events, metered=True)


def _counted(
    path: str,
    run: Callable[[Request], Awaitable[Response]],
    summary: str,
    gives: type,
    *takes: type[msgspec.Struct],
) -> Operation:
    return Operation("POST", path, run, summary, gives, _takes(*takes), metered=True)


_TOKENIZE = ("Text or conversation to tokens", Tokens, TokenizePrompt, TokenizeMessages)
_DETOKENIZE = ("Tokens to text", Text, DetokenizeRequest)

OPERATIONS = (
    _model("/v1/chat/completions", "Answer a conversation", ChatRequest, ChatCompletion, ChatChunk),
    _model("/v1/completions", "Go on with a text", CompletionRequest, Completion, Completion),
    _model("/v1/embeddings", "Texts to vectors", EmbeddingRequest, EmbeddingList),
    _model("/v1/responses", "Answer items, and keep the answer", ResponsesRequest, ModelResponse, dict),
    _model("/v1/messages", "Answer a conversation, as Anthropic writes it", MessagesRequest, Message, dict),
    _counted(
        "/v1/responses/input_tokens",
        responses.input_tokens,
        "Tokens a response would read",
        CountedTokens,
        InputTokensRequest,
    ),
    _counted(
        "/v1/messages/count_tokens",
        messages.count_tokens,
        "Tokens a message would read",
        MessageTokens,
        Conversation,
    ),
    Operation("GET", "/v1/responses/{response_id}", responses.get, "A kept response", ModelResponse),
    Operation("DELETE", "/v1/responses/{response_id}", responses.delete, "Forget a response", Deleted),
    Operation(
        "POST",
        "/v1/responses/{response_id}/cancel",
        responses.cancel,
        "Refused: no response runs in the background",
        ModelResponse,
    ),
    Operation(
        "GET",
        "/v1/responses/{response_id}/input_items",
        responses.input_items,
        "What a kept response has read",
        ItemList,
        query=PAGE,
    ),
    Operation("GET", "/v1/models", models.list_models, "The models", ModelList),
    Operation("GET", "/v1/models/{model:path}", models.one_model, "One model", ModelCard),
    Operation("POST", "/v1/files", files.upload, "Upload a file", FileObject, Takes(form=UPLOAD)),
    Operation(
        "GET",
        "/v1/files",
        files.list_files,
        "The files",
        FileList,
        query={**PAGE, "purpose": {"type": "string"}},
    ),
    Operation("GET", "/v1/files/{file_id}", files.one_file, "About a file", FileObject),
    Operation("DELETE", "/v1/files/{file_id}", files.delete, "Delete a file", FileDeleted),
    Operation(
        "GET",
        "/v1/files/{file_id}/content",
        files.content,
        "What a file holds",
        media=("application/jsonl", "application/octet-stream"),
    ),
    Operation("POST", "/v1/batches", batches.create, "Begin a batch", Batch, _takes(BatchRequest)),
    Operation("GET", "/v1/batches", batches.list_batches, "The batches", BatchList, query=PAGE),
    Operation("GET", "/v1/batches/{batch_id}", batches.one_batch, "One batch", Batch),
    Operation("POST", "/v1/batches/{batch_id}/cancel", batches.cancel, "Cancel a batch", Batch),
    *(_counted(path, tokens.tokenize, *_TOKENIZE) for path in ("/tokenize", "/v1/tokenize")),
    *(_counted(path, tokens.detokenize, *_DETOKENIZE) for path in ("/detokenize", "/v1/detokenize")),
    Operation("GET", "/health", health.health, "Whether it serves, and what is known of its engines", dict),
    Operation("GET", "/health/live", health.live, "Whether the process answers", dict),
    Operation("GET", "/ping", health.live, "Whether the process answers", dict),
    Operation("GET", "/health/ready", health.ready, "Whether a request would be taken up", dict),
    Operation("GET", "/metrics", meters.metrics, "Metrics for Prometheus", media=("text/plain",)),
    *(
        Operation("GET", path, console.static, "The console", media=(file.kind,))
        for path, file in console.STATIC.items()
    ),
    Operation("GET", "/console/pages", console.pages, "What the blocks of the cache hold", dict),
    Operation("GET", "/console/requests", console.requests, "One's own requests that have ended", dict),
    Operation("GET", "/version", health.version, "The version", dict),
)
