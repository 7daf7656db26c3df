"""The routes that run a model, by path: HTTP and batch files go through the same table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from octavo.server import chat, completions, embeddings, messages, responses
from octavo.server.bodies import read_body
from octavo.server.front import Front
from octavo.server.replays import read_key, respond_once
from octavo.server.tenants import Caller
from octavo.server.writer import Writer, respond

Begin = Callable[[Front, Caller, bytes], Awaitable[Writer]]

ENDPOINTS: Mapping[str, Begin] = {
    "/v1/chat/completions": chat.begin,
    "/v1/completions": completions.begin,
    "/v1/embeddings": embeddings.begin,
    "/v1/responses": responses.begin,
    "/v1/messages": messages.begin,
}
BATCHED = tuple(path for path in ENDPOINTS if path != "/v1/messages")
"""Those that lines of a batch may name."""


async def run_model(request: Request) -> Response:
    """The route of each of them."""
    front: Front = request.state.front
    body = await read_body(request, front.config.max_body_bytes)
    begin = ENDPOINTS[request.url.path]
    key = read_key(request)
    if key is not None:
        return await respond_once(request, key, body, lambda caller: begin(front, caller, body))
    return await respond(request, await begin(front, request.state.caller, body))
