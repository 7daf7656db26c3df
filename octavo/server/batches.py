"""/v1/batches: create, list, look at, cancel; and what they need from the start of a server to its end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from octavo.api.batches import BatchList, BatchRequest
from octavo.api.parse import decode
from octavo.errors import ConfigError
from octavo.server.batch_runner import Batches
from octavo.server.bodies import read_body
from octavo.server.documents import StoreError
from octavo.server.front import Front
from octavo.server.gate import json_response
from octavo.server.storage import Page, Storage
from octavo.server.usage import UsageBook

DEFAULT_LIST, LONGEST_LIST = 20, 100


@contextlib.asynccontextmanager
async def keeping(front: Front) -> AsyncIterator[None]:
    """Files and batches while the block runs. Where they cannot be had, their routes say why; the rest is served."""
    async with contextlib.AsyncExitStack() as opened:
        try:
            storage = Storage(front.config)
            opened.callback(storage.close)
            batches = Batches(front, storage)
            opened.push_async_callback(batches.stop)
            await batches.start()
            usage = UsageBook(front, storage)
            opened.push_async_callback(usage.stop)
            await usage.start()
        except (ConfigError, StoreError, OSError) as error:
            front.storage_problem = f"files and batches are off: {error}"
            front.log.warn("no_storage", because=error)
        else:
            front.storage, front.batches = storage, batches
        yield


def _batches(request: Request) -> Batches:
    front: Front = request.state.front
    front.storage_or_refuse()
    assert front.batches is not None
    return front.batches


async def create(request: Request) -> Response:
    """POST /v1/batches."""
    batches = _batches(request)
    asked = decode(await read_body(request, request.state.front.config.max_body_bytes), BatchRequest)
    return json_response(await batches.create(request.state.caller.tenant, asked))


async def list_batches(request: Request) -> Response:
    """GET /v1/batches."""
    _batches(request)
    storage: Storage = request.state.front.storage_or_refuse()
    rows, has_more = await storage.page(
        storage.store.batches,
        request.state.caller.tenant,
        kind=None,
        asked=Page.of(request.query_params, default=DEFAULT_LIST, longest=LONGEST_LIST),
    )
    data = [row.batch for row in rows]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return json_response(BatchList(data=data, first_id=first, last_id=last, has_more=has_more))


async def one_batch(request: Request) -> Response:
    """GET /v1/batches/{id}."""
    return json_response(
        await _batches(request).get(request.state.caller.tenant, request.path_params["batch_id"])
    )


async def cancel(request: Request) -> Response:
    """POST /v1/batches/{id}/cancel. Lines answered so far are kept."""
    return json_response(
        await _batches(request).cancel(request.state.caller.tenant, request.path_params["batch_id"])
    )
