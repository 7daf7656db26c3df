"""The page at /: a chat, charts, the cache as pages, the timelines of requests. No build, nothing from elsewhere.

Its three files need no key, since a browser has none yet, and hold nothing of anybody. What they show they ask for with
the caller's key; of other tenants that is how many blocks they have, and not who they are.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from octavo.api.faults import HttpError
from octavo.server.gate import json_response

if TYPE_CHECKING:
    from octavo.server.front import Front

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
NOBODY, YOURS = 0, 1


@dataclass(frozen=True, slots=True)
class File:
    """One of the files, and its media type."""

    name: str
    kind: str

    @functools.cache  # noqa: B019 - there are three of them
    def read(self) -> bytes:
        return resources.files(__package__).joinpath(self.name).read_bytes()


STATIC = {
    "/": File("index.html", "text/html"),
    "/console.css": File("console.css", "text/css"),
    "/console.js": File("console.js", "text/javascript"),
}


def _front(request: Request) -> Front:
    front: Front = request.state.front
    if not front.config.console:
        raise HttpError("not_found", "the console is off; start the server with --console to have it")
    return front


async def static(request: Request) -> Response:
    """GET / and the files it asks for."""
    _front(request)
    file = STATIC[request.url.path]
    return Response(file.read(), headers=HEADERS, media_type=file.kind)


async def pages(request: Request) -> Response:
    """GET /console/pages: per engine a digit per block (see `octavo.core.pages`) and whose it is.

    owners: 0 nobody's or everybody's, 1 the caller's, from 2 on other tenants', told apart and not named.
    """
    front = _front(request)
    own = request.state.caller.tenant.tenant_id
    others: dict[str, int] = {}
    shown: list[dict[str, Any]] = []
    for number, found in await front.fleet.pages():
        codes = [NOBODY]
        for client in found.clients:
            tenant_id = client.removesuffix("/batch")
            codes.append(YOURS if tenant_id == own else others.setdefault(tenant_id, YOURS + 1 + len(others)))
        shown.append(
            {
                "engine": number,
                "num_blocks": found.num_blocks,
                "states": "".join(map(str, found.states)),
                "owners": [codes[owner] for owner in found.owners],
            }
        )
    return json_response({"engines": shown, "num_others": len(others)})


async def requests(request: Request) -> Response:
    """GET /console/requests: the caller's own that have ended, oldest first, as the spans of their traces."""
    front = _front(request)
    spans = front.recent(request.state.caller.tenant.tenant_id)
    return json_response({"now_s": time.monotonic(), "requests": spans})
