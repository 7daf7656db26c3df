"""GET /health, /health/live, /health/ready and /version: is it alive, can it serve, what is it."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import octavo
from octavo.link import frames
from octavo.server.fleet import Fleet
from octavo.server.front import Front
from octavo.server.gate import json_response
from octavo.server.member import Phase


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
    return "draining" if front.is_draining else front.fleet.phase.value


def _engine(fleet: Fleet) -> dict[str, Any]:
    """All engines together, and each."""
    facts: dict[str, Any] = {
        "requests": fleet.num_running,
        "engine": {
            "epoch": max(member.epoch for member in fleet.members),
            "restarts": fleet.num_restarts,
            "last_failure": fleet.last_failure,
            "held": fleet.num_held,
            "resumed": fleet.num_resumed,
        }
        | _load(fleet.stats),
        "engines": [
            {
                "engine": member.number,
                "status": member.phase.value,
                "epoch": member.epoch,
                "restarts": member.num_restarts,
                "last_failure": member.last_failure,
                "requests": len(member.aboard),
            }
            | _load(member.stats)
            for member in fleet.members
        ],
    }
    if fleet.phase is not Phase.READY and fleet.loading is not None:
        facts["loading"] = msgspec.to_builtins(fleet.loading) | {"type": "loading"}
    return facts


def _load(stats: frames.Stats | None) -> dict[str, Any]:
    if stats is None:
        return {}
    return {
        "steps": stats.num_steps,
        "running": stats.num_running,
        "waiting": stats.num_waiting,
        "kv_blocks_used": stats.used_kv_blocks,
        "kv_blocks": stats.num_kv_blocks,
    }
