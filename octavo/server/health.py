"""GET /health, /health/live, /health/ready and /version: is it alive, can it serve, what is it."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import octavo
from octavo.server.fleet import Fleet, Phase
from octavo.server.front import Front
from octavo.server.gate import json_response


async def live(_request: Request) -> Response:
    """The event loop turns; nothing more is claimed."""
    return json_response({"status": "alive"})


async def ready(request: Request) -> Response:
    """200 when a request sent now would be taken up, else 503 with the phase."""
    front: Front = request.state.front
    status = _status(front)
    return json_response({"status": status}, 200 if status == "ready" else 503)


async def health(request: Request) -> Response:
    """As `ready`, with what is known about the engine."""
    front: Front = request.state.front
    status = _status(front)
    body = {"status": status, "model": front.card.id, "version": octavo.__version__} | _engine(front.fleet)
    return json_response(body, 200 if status == "ready" else 503)


async def version(_request: Request) -> Response:
    return json_response({"version": octavo.__version__})


def _status(front: Front) -> str:
    if front.is_draining:
        return "draining"
    if front.fleet.stalled_s is not None:
        return "stalled"
    return front.fleet.phase.value


def _engine(fleet: Fleet) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "requests": fleet.num_running,
        "engine": {
            "epoch": fleet.epoch,
            "restarts": fleet.num_restarts,
            "last_failure": fleet.last_failure,
            "stalled_s": fleet.stalled_s,
        },
    }
    if fleet.phase is not Phase.READY and fleet.loading is not None:
        facts["loading"] = msgspec.to_builtins(fleet.loading) | {"type": "loading"}
    if fleet.stats is not None:
        stats = fleet.stats
        facts["engine"] |= {
            "steps": stats.num_steps,
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "kv_blocks_used": stats.used_kv_blocks,
            "kv_blocks": stats.num_kv_blocks,
        }
    return facts
