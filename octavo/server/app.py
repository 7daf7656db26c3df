"""The routes, behind the gate."""

from __future__ import annotations

import functools

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import ASGIApp

import octavo
from octavo.server.console import STATIC
from octavo.server.front import Front
from octavo.server.gate import OPEN_PATHS, Gate
from octavo.server.openapi import document
from octavo.server.operations import OPERATIONS, Operation
from octavo.server.replays import Replays


async def openapi(request: Request) -> Response:
    """GET /openapi.json."""
    front: Front = request.state.front
    wants_key = bool(front.keyring)
    return Response(described(wants_key, front.config.open_metrics), media_type="application/json")


ALL = (*OPERATIONS, Operation("GET", "/openapi.json", openapi, "This document", dict))
ROUTES = tuple(operation.route() for operation in ALL)
METERED = frozenset(operation.path for operation in ALL if operation.metered)


def build_app(front: Front) -> ASGIApp:
    """The ASGI application of one server. Routes find `front` in `request.state`."""
    router = Router(routes=ROUTES, redirect_slashes=False)
    shared = {"replays": Replays()}
    open_paths = _open_paths(front.config.open_metrics)
    return Gate(router, front, label=route_of, open_paths=open_paths, metered=METERED, shared=shared)


def route_of(path: str) -> str:
    """The route a path belongs to, as its operation writes it; "other" for none."""
    return next((route.path for route in ROUTES if route.path_regex.match(path)), "other")


def _open_paths(open_metrics: bool) -> frozenset[str]:
    return OPEN_PATHS | frozenset(STATIC) | ({"/metrics"} if open_metrics else set())


@functools.cache
def described(wants_key: bool, open_metrics: bool) -> bytes:
    keyless = _open_paths(open_metrics)
    return msgspec.json.encode(
        document(ALL, version=octavo.__version__, keyless=keyless, wants_key=wants_key)
    )
