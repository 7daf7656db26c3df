"""The gate in front of every route: request ids, keys, drain, and errors in the one shape clients read."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import secrets
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.api.faults import MESSAGES_PATH, ROWS, UNKNOWN, HttpError, fault, messages_fault
from octavo.errors import Bug, Busy, OctavoError
from octavo.server.guesses import Guesses
from octavo.server.metering import Standing
from octavo.server.running import Gone
from octavo.server.tenants import ANYBODY, PUBLIC, Caller, Tenant
from octavo.server.tracing import request_span

if TYPE_CHECKING:
    from octavo.server.front import Front

GONE = "client_gone"
OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/ping"})
"""Paths that need no key: probes have none."""
UNTRACED = OPEN_PATHS | {"/metrics", "/version"}
REQUEST_ID = "x-request-id"
MAX_HEADERS = 256
DROPPED = frozenset(
    {
        "overloaded",
        "deadline_unattainable",
        "deadline_exceeded",
        "model_loading",
        "no_ready_replica",
        "shutting_down",
    }
)
"""What a request was turned away for that was right in itself and within its tenant's terms."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})
_GOOD_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class Gate:
    """Wraps the router.

    front       put into `request.state` for the routes; has the keys that may call
    label       the name of a path's route, for metrics
    open_paths  those that need no key
    shared      put into `request.state` too
    metered     POST to these counts against a tenant's rate and its requests at once
    """

    def __init__(
        self,
        router: ASGIApp,
        front: Front,
        *,
        label: Callable[[str], str],
        open_paths: frozenset[str] = OPEN_PATHS,
        metered: frozenset[str] = frozenset(),
        shared: Mapping[str, object] | None = None,
    ) -> None:
        self._router = router
        self._front = front
        self._metrics = front.metrics
        self._label = label
        self._open_paths = open_paths
        self._metered = metered
        self._shared = dict(shared or {})
        self._guesses = Guesses()
        self._log = front.log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the server speaks http only, not {scope['type']}")
        received_s = time.monotonic()
        headers = Headers(scope=scope)
        given_id = headers.get(REQUEST_ID, "")
        request_id = given_id if _GOOD_ID.fullmatch(given_id) else f"req-{secrets.token_hex(12)}"
        started = False
        status = 0
        standing: Standing | None = None
        ended: str | None = GONE  # unless something else is found out

        async def send_with_id(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                answer = MutableHeaders(scope=message)
                answer[REQUEST_ID] = request_id
                for name, value in standing.headers() if standing is not None else ():
                    answer[name] = value
            await send(message)

        scope["app"] = self  # makes the router raise its refusals
        scope["state"] = {**self._shared, "front": self._front, "request_id": request_id}
        try:
            if len(scope["headers"]) > MAX_HEADERS:
                raise HttpError(
                    "headers_too_large",
                    f"the request has {len(scope['headers'])} headers; at most {MAX_HEADERS} are read",
                )
            tenant = await self._tenant(scope, headers)
            if tenant is PUBLIC:
                self._check_page(scope, headers)
            scope["state"]["caller"] = Caller(tenant=tenant, request_id=request_id, received_s=received_s)
            if scope["method"] == "POST" and scope["path"] in self._metered:
                standing = self._front.standings.of(tenant)
            with standing.request() if standing is not None else contextlib.nullcontext():
                await self._router(scope, receive, send_with_id)
            running = scope["state"].get("running")
            ended = running.marks.failure if running is not None else None
        except (Gone, ClientDisconnect):
            ended = GONE
            self._log.note("client_gone", request_id=request_id, path=scope["path"])
        except HTTPException as error:
            ended = "not_found" if error.status_code == 404 else "method_not_allowed"
            await routing_error(scope, error)(scope, receive, send_with_id)
        except Exception as error:
            known = error if isinstance(error, OctavoError) else self._unexpected(error, request_id)
            ended = known.code
            if isinstance(known, Busy | HttpError) and known.retry_after_s is not None:
                self._metrics.retry_after.observe(known.retry_after_s)
            if not started:
                await _refusal(scope, known)(scope, receive, send_with_id)
            # Otherwise the answer stays without its end and the connection is closed, which clients notice.
        finally:
            self._count(scope, headers, ended)
            self._record(scope, ended, received_s)
            self._trace(scope, headers, ended, received_s, status)

    def _record(self, scope: Scope, ended: str | None, received_s: float) -> None:
        running = scope["state"].get("running")
        if running is not None:
            self._front.recordings.note(
                running,
                request_id=scope["state"]["request_id"],
                route=self._label(scope["path"]),
                ended=ended,
                received_s=received_s,
            )

    def _trace(
        self, scope: Scope, headers: Headers, ended: str | None, received_s: float, status: int
    ) -> None:
        traces, caller = self._front.traces, scope["state"].get("caller", ANYBODY)
        path = scope["path"]
        is_shown = path in self._metered and self._front.config.console
        if path in UNTRACED or (traces is None and not is_shown):
            return
        span = request_span(
            method=scope["method"],
            route=self._label(path),
            status=status,
            start_s=received_s,
            end_s=time.monotonic(),
            request_id=scope["state"]["request_id"],
            tenant_id=caller.tenant.tenant_id,
            model=self._front.card.id,
            error=ended,
            running=scope["state"].get("running"),
        )
        if is_shown:
            self._front.remember(caller.tenant.tenant_id, span)
        if traces is not None:
            traces.note(span, headers, time.time() - time.monotonic())

    def _count(self, scope: Scope, headers: Headers, ended: str | None) -> None:
        if ended is None:
            outcome = "ok"
        elif ended == GONE:
            outcome = "cancelled"
        else:
            outcome = "failed" if ROWS.get(ended, UNKNOWN).status >= 500 else "refused"
        self._metrics.requests.labels(self._label(scope["path"]), outcome, ended or "ok").inc()
        if ended == "rate_limit_exceeded":
            tenant_id = scope["state"]["caller"].tenant.tenant_id
            self._metrics.throttled.labels(self._metrics.tenant(tenant_id)).inc()
        if ended in DROPPED:
            self._metrics.dropped.labels(ended).inc()
        if headers.get("x-stainless-retry-count", "0") not in ("", "0"):
            self._metrics.client_retries.inc()

    async def _tenant(self, scope: Scope, headers: Headers) -> Tenant:
        """Who calls; PUBLIC where no key is asked for."""
        if not self._front.keyring or scope["path"] in self._open_paths:
            return PUBLIC
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" and bearer else headers.get("x-api-key", "")
        tenant = self._front.keyring.tenant(given)
        if tenant is None:
            if given:
                await asyncio.sleep(self._guesses.wait_s((scope.get("client") or ("", 0))[0]))
            what = "wrong" if given else "missing; send it as `Authorization: Bearer KEY`"
            raise HttpError("invalid_api_key", f"the API key is {what}")
        return tenant

    def _check_page(self, scope: Scope, headers: Headers) -> None:
        """Where no key is asked for, a page of somebody else's must not act by a visitor's browser.

        Its own name shows as the origin of what it sends, as forms can; or as the host, when it has had that name lead
        to this machine. On a loopback address nobody but this machine's own users is meant, by its own names.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        acts = scope["method"] not in READING
        if acts and origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise HttpError(
                "cross_origin",
                f"a page from {origin[:256]!r} may not use this server without a key; start it with --api-key",
            )
        server = scope.get("server")
        if server is None or not _is_loopback(server[0]):
            return
        name = (host.rpartition(":")[0] if re.search(r":\d*$", host) else host).lower().rstrip(".")
        allowed = {one.lower().rstrip(".") for one in self._front.config.allowed_hosts}
        if not _is_own_name(name) and name not in allowed:
            raise HttpError(
                "cross_origin",
                f"this server is asked for as {name[:256]!r} on a loopback address; ask for localhost or the address "
                "itself, start it with --allowed-hosts and the name, or with --api-key",
            )

    def _unexpected(self, error: Exception, request_id: str) -> Bug:
        """Types and places go to the log, never texts: those may quote a prompt."""
        frames = traceback.extract_tb(error.__traceback__)
        where = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames[-6:]))
        self._log.error("internal_error", request_id=request_id, kind=type(error).__name__, where=where)
        return Bug("an internal error; the server's log has it under this x-request-id")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False  # the path of a socket


def _is_own_name(name: str) -> bool:
    """Whether a host's name is an address, or one that only this machine gives itself. None is as good."""
    if name in ("", "localhost", socket.gethostname().lower()) or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def routing_error(scope: Scope, error: HTTPException) -> Response:
    """The router's own refusals, in our shape."""
    if error.status_code != 405:
        return _refusal(scope, HttpError("not_found", f"there is no {scope['path']} here"))
    allowed = (error.headers or {}).get("Allow", "")
    message = f"{scope['method']} is not allowed on {scope['path']}; use {allowed}"
    response = _refusal(scope, HttpError("method_not_allowed", message))
    response.headers["allow"] = allowed
    return response


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON body, by msgspec."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def _refusal(scope: Scope, error: OctavoError) -> Response:
    """The error in the shape that clients of this path read."""
    if scope["path"] != MESSAGES_PATH and not scope["path"].startswith(MESSAGES_PATH + "/"):
        return error_response(error)
    answer = messages_fault(error, scope["state"].get("request_id", ""))
    return json_response(answer.body, answer.status, answer.headers)


def error_response(error: OctavoError) -> Response:
    """The whole answer to a request that failed before its first byte."""
    answer = fault(error)
    return json_response(answer.body, answer.status, answer.headers)
