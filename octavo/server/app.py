"""The routes, behind the gate."""

from __future__ import annotations

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from octavo.server import health, models
from octavo.server.chat import chat_completions
from octavo.server.completions import completions
from octavo.server.front import Front
from octavo.server.gate import Gate

ROUTES = (
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/models", models.list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", models.one_model, methods=["GET"]),
    Route("/health", health.health, methods=["GET"]),
    Route("/health/live", health.live, methods=["GET"]),
    Route("/health/ready", health.ready, methods=["GET"]),
    Route("/version", health.version, methods=["GET"]),
)


def build_app(front: Front) -> ASGIApp:
    """The ASGI application of one server. Routes find `front` in `request.state`."""
    return Gate(Router(routes=ROUTES, redirect_slashes=False), front, front.config.api_key, front.log)
