"""The routes, behind the gate."""

from __future__ import annotations

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from octavo.server import batches, files, health, messages, meters, models, responses, tokens
from octavo.server.endpoints import ENDPOINTS, run_model
from octavo.server.front import Front
from octavo.server.gate import OPEN_PATHS, Gate
from octavo.server.replays import Replays

ROUTES = (
    *(Route(path, run_model, methods=["POST"]) for path in ENDPOINTS),
    Route("/v1/responses/input_tokens", responses.input_tokens, methods=["POST"]),
    Route("/v1/responses/{response_id}", responses.get, methods=["GET"]),
    Route("/v1/responses/{response_id}", responses.delete, methods=["DELETE"]),
    Route("/v1/responses/{response_id}/cancel", responses.cancel, methods=["POST"]),
    Route("/v1/responses/{response_id}/input_items", responses.input_items, methods=["GET"]),
    Route("/v1/messages/count_tokens", messages.count_tokens, methods=["POST"]),
    Route("/v1/models", models.list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", models.one_model, methods=["GET"]),
    Route("/v1/files", files.upload, methods=["POST"]),
    Route("/v1/files", files.list_files, methods=["GET"]),
    Route("/v1/files/{file_id}", files.one_file, methods=["GET"]),
    Route("/v1/files/{file_id}", files.delete, methods=["DELETE"]),
    Route("/v1/files/{file_id}/content", files.content, methods=["GET"]),
    Route("/v1/batches", batches.create, methods=["POST"]),
    Route("/v1/batches", batches.list_batches, methods=["GET"]),
    Route("/v1/batches/{batch_id}", batches.one_batch, methods=["GET"]),
    Route("/v1/batches/{batch_id}/cancel", batches.cancel, methods=["POST"]),
    *(Route(path, tokens.tokenize, methods=["POST"]) for path in ("/tokenize", "/v1/tokenize")),
    *(Route(path, tokens.detokenize, methods=["POST"]) for path in ("/detokenize", "/v1/detokenize")),
    Route("/health", health.health, methods=["GET"]),
    Route("/health/live", health.live, methods=["GET"]),
    Route("/health/ready", health.ready, methods=["GET"]),
    Route("/metrics", meters.metrics, methods=["GET"]),
    Route("/version", health.version, methods=["GET"]),
)


METERED = frozenset(
    {
        *ENDPOINTS,
        "/v1/responses/input_tokens",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
        "/v1/tokenize",
        "/v1/detokenize",
    }
)
"""What costs more than looking something up."""


def build_app(front: Front) -> ASGIApp:
    """The ASGI application of one server. Routes find `front` in `request.state`."""
    open_paths = OPEN_PATHS | {"/metrics"} if front.config.open_metrics else OPEN_PATHS
    router = Router(routes=ROUTES, redirect_slashes=False)
    shared = {"replays": Replays()}
    return Gate(router, front, label=route_of, open_paths=open_paths, metered=METERED, shared=shared)


def route_of(path: str) -> str:
    """The route a path belongs to, as it is written above; "other" for none."""
    return next((route.path for route in ROUTES if route.path_regex.match(path)), "other")
