"""The operator's listener: drain, sleep, wake, forget cached prefixes, save a recording, show the settings.

It has a socket and a key of its own and shares no route with the public port. Every call is a line in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import secrets
import socket
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from octavo.api.faults import HttpError
from octavo.config import ServerConfig
from octavo.errors import Bug, ConfigError, OctavoError
from octavo.server.front import Front
from octavo.server.gate import REQUEST_ID, error_response, json_response, routing_error
from octavo.server.protocol import Http, http_settings


@dataclass(frozen=True, slots=True)
class Operator:
    """What the routes act upon.

    drain  begins what SIGTERM begins, and returns at once
    """

    front: Front
    drain: Callable[[], None]


async def drain(request: Request) -> Response:
    """Refuse what is new, let what runs end within `drain_s`, then stop the server."""
    operator: Operator = request.state.operator
    operator.drain()
    front = operator.front
    return json_response(
        {"status": "draining", "requests": len(front.running), "within_s": front.config.drain_s}, 202
    )


async def sleep(request: Request) -> Response:
    """End the engine's process: weights, KV cache and cached prefixes are given back to the system."""
    operator: Operator = request.state.operator
    await operator.front.fleet.sleep(operator.front.config.drain_s)
    freed = "the engine process has ended; its weights, KV cache and cached prefixes are freed"
    return json_response({"status": operator.front.fleet.phase.value, "freed": freed})


async def wake(request: Request) -> Response:
    """Start the engine again; answered when it serves."""
    operator: Operator = request.state.operator
    ready = await operator.front.fleet.wake()
    return json_response({"status": operator.front.fleet.phase.value, "load_s": ready.load_s})


async def replace(request: Request) -> Response:
    """Put a new engine in each one's place, one after the other; answered when all serve. No request is lost."""
    operator: Operator = request.state.operator
    num_engines = await operator.front.fleet.replace(operator.front.config.drain_s)
    return json_response({"status": operator.front.fleet.phase.value, "engines_replaced": num_engines})


async def reset_prefix_cache(request: Request) -> Response:
    """Forget cached prefixes; blocks of running requests stay until those end, and pinned ones stay."""
    operator: Operator = request.state.operator
    return json_response({"blocks_freed": await operator.front.fleet.reset_prefix_cache()})


async def reload_keys(request: Request) -> Response:
    """Read the file of keys again. A file that is wrong changes nothing."""
    operator: Operator = request.state.operator
    try:
        count = operator.front.reload_keys()
    except ConfigError as error:
        raise HttpError("conflict", f"the keys stay as they were: {error}") from error
    return json_response({"keys": count, "tenants": sorted(operator.front.keyring.tenants)})


async def save_recording(request: Request) -> Response:
    """Save what the server and its engines remember of the last while; see `octavo explain`."""
    operator: Operator = request.state.operator
    try:
        written = await operator.front.recordings.save("the operator asked for it")
    except OSError as error:
        raise HttpError("storage_unavailable", f"it cannot be written: {error.strerror or error}") from error
    return json_response({"path": str(written.path), "bytes": written.num_bytes})


async def config(request: Request) -> Response:
    """Every setting of this server; secrets as whether they are set."""
    operator: Operator = request.state.operator
    return json_response({"settings": operator.front.settings()})


ROUTES = (
    Route("/admin/drain", drain, methods=["POST"]),
    Route("/admin/sleep", sleep, methods=["POST"]),
    Route("/admin/wake", wake, methods=["POST"]),
    Route("/admin/replace", replace, methods=["POST"]),
    Route("/admin/reset_prefix_cache", reset_prefix_cache, methods=["POST"]),
    Route("/admin/reload_keys", reload_keys, methods=["POST"]),
    Route("/admin/recording", save_recording, methods=["POST"]),
    Route("/admin/config", config, methods=["GET"]),
)


class AdminGate:
    """Key and audit in front of the routes. The key is asked for before anything is said about a path."""

    def __init__(self, operator: Operator, key: str) -> None:
        self._operator = operator
        self._log = operator.front.log
        self._digest = hashlib.sha256(key.encode()).digest()
        self._router = Router(routes=ROUTES, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the server speaks http only, not {scope['type']}")
        request_id = f"adm-{secrets.token_hex(12)}"
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        scope["app"] = self  # makes the router raise its refusals
        scope["state"] = {"operator": self._operator}
        try:
            self._check(Headers(scope=scope))
            await self._router(scope, receive, noted)
        except HTTPException as error:
            await routing_error(scope, error)(scope, receive, noted)
        except OctavoError as error:
            await error_response(error)(scope, receive, noted)
        except Exception as error:
            self._log.error("internal_error", request_id=request_id, kind=type(error).__name__)
            await error_response(Bug("an internal error; the log has it"))(scope, receive, noted)
        finally:
            caller = ":".join(map(str, scope.get("client") or ("unix",)))
            self._log.note(
                "admin_call",
                request_id=request_id,
                method=scope["method"],
                path=scope["path"],
                status=status,
                caller=caller,
            )

    def _check(self, headers: Headers) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        if not hmac.compare_digest(digest, self._digest) or scheme.lower() != "bearer":
            raise HttpError(
                "invalid_api_key", "the admin key is missing or wrong; send `Authorization: Bearer KEY`"
            )


def listening(config: ServerConfig, bind: Callable[[str, int], socket.socket]) -> list[socket.socket]:
    """The sockets to listen on: none when no admin setting asks for one. Raises ConfigError."""
    found: list[socket.socket] = []
    if config.admin_port is not None:
        found.append(bind(config.admin_host, config.admin_port))
    if config.admin_socket is not None:
        try:
            found.append(_unix(Path(config.admin_socket)))
        except BaseException:
            for one in found:
                one.close()
            raise
    return found


def close(sockets: Sequence[socket.socket], config: ServerConfig) -> None:
    """Close what `listening` opened, and take the Unix socket's file away."""
    for one in sockets:
        one.close()
    if config.admin_socket is not None:
        Path(config.admin_socket).unlink(missing_ok=True)


def _unix(path: Path) -> socket.socket:
    """A socket file that only this user can open. A dead one of an earlier server is replaced."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        if path.exists() and stat.S_ISSOCK(path.lstat().st_mode) and not _answers(path):
            path.unlink()
        made.bind(str(path))
        made.listen(16)
    except OSError as error:
        made.close()
        raise ConfigError(
            f"cannot listen on {path}: {error.strerror or error}; choose another --admin-socket"
        ) from error
    finally:
        os.umask(mask)
    made.setblocking(False)
    return made


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


@contextlib.asynccontextmanager
async def serving(operator: Operator, sockets: Sequence[socket.socket]) -> AsyncIterator[None]:
    """Serve the routes on these sockets inside the block."""
    if not sockets:
        yield
        return
    config = operator.front.config
    assert config.admin_key is not None
    settings = uvicorn.Config(AdminGate(operator, config.admin_key), **http_settings())
    http = Http(settings)
    task = asyncio.create_task(http.serve(sockets=list(sockets)))
    names = [one.getsockname() for one in sockets]
    operator.front.log.note("admin_listens", on=names)
    try:
        yield
    finally:
        http.should_exit = True
        await task
