"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from octavo.api.common import ModelList
from octavo.server.front import Front
from octavo.server.gate import json_response


async def list_models(request: Request) -> Response:
    """All models: the one there is."""
    front: Front = request.state.front
    return json_response(ModelList(data=[front.card]))


async def one_model(request: Request) -> Response:
    """One model; ids may hold slashes."""
    front: Front = request.state.front
    front.check_model(request.path_params["model"])
    return json_response(front.card)
