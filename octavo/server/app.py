"""The routes, behind the gate."""

from __future__ import annotations

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from octavo.server import health, models
from octavo.server.endpoints import ENDPOINTS, run_model
from octavo.server.front import Front
from octavo.server.gate import Gate

ROUTES = (
    *(Route(path, run_model, methods=["POST"]) for path in ENDPOINTS),
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
