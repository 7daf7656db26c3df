"""Request bodies: of the right type, of bounded size, in bounded time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from octavo.api.faults import HttpError

BODY_S = 60.0
"""A body that takes longer is being dripped."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises HttpError when it is no JSON by its type, too large, or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpError(
            "unsupported_media_type",
            f"content-type is {kind or 'missing'!r}; send JSON with `content-type: application/json`",
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise HttpError(
            "unsupported_media_type", f"content-encoding is {encoding[:64]!r}; send the body as it is"
        )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(int(announced), max_bytes)
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise _too_large(size, max_bytes)
                parts.append(part)
    except TimeoutError:
        raise HttpError("request_timeout", f"the body did not arrive within {BODY_S:g} s") from None
    return b"".join(parts)


def _too_large(size: int, max_bytes: int) -> HttpError:
    return HttpError(
        "request_too_large",
        f"the body has {size} bytes or more; at most {max_bytes} (max_body_bytes) are read",
    )
