"""HTTP/1.1 on a socket, with the limits that uvicorn's own protocol leaves open.

A head that is not complete in time closes the connection; a head that is too long is answered with 431 and one that
makes no sense with 400, in the shape of every other error. A peer that takes nothing of what is waiting for it is cut
off, which cancels its request. The rest of a body that was refused is passed over for a while, so that the refusal
arrives, and then the connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import h11
import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from octavo.api.faults import HttpError, fault

MAX_HEADER_BYTES = 64 * 1024
HEAD_S = 10.0
"""From a connection's first moment, or the end of its last answer's keep-alive, to a complete head."""
STALL_S = 30.0
MIN_TAKEN_BYTES = 1024
"""A reader that takes less than this in `STALL_S` while more waits for it is cut off."""
PASSED_OVER_BYTES = 64 * 1024 * 1024
"""Of a body whose request has been answered already: clients read the answer only after they have sent it all."""
KEEP_ALIVE_S = 75


class Http(uvicorn.Server):
    """Leaves signals alone: who started it decides when it ends, by `should_exit`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_settings() -> dict[str, Any]:
    """What both listeners tell uvicorn."""
    return {
        "http": SafeProtocol,
        "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
        "lifespan": "off",
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": KEEP_ALIVE_S,
    }


class SafeProtocol(H11Protocol):
    """One connection."""

    head_s = HEAD_S
    stall_s = STALL_S

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._waiting_bytes = 0
        self._passed_over_bytes: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._pass_over(len(data))
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        elif self._passed_over_bytes is None:
            self._head_came()

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is not h11.IDLE and self._passed_over_bytes is None:
            self._head_came()

    def on_response_complete(self) -> None:
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._passed_over_bytes = 0
            self._head_timer = self._head_timer or self.loop.call_later(self.head_s, self._head_is_late)
        super().on_response_complete()

    def _pass_over(self, num_bytes: int) -> None:
        """Count what comes of a body that nobody wants."""
        if self._passed_over_bytes is None:
            return
        if self.conn.their_state is not h11.SEND_BODY:
            self._passed_over_bytes = None
            return
        self._passed_over_bytes += num_bytes
        if self._passed_over_bytes > PASSED_OVER_BYTES:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """The request made no sense to the parser; nothing of it has been answered yet."""
        too_long = self.conn.their_state is h11.ERROR and self._is_too_long()
        error = (
            HttpError(
                "headers_too_large", f"the request's head is longer than {MAX_HEADER_BYTES} bytes; send less"
            )
            if too_long
            else HttpError("invalid_http", "this is no valid HTTP/1.1 request")
        )
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(error)
        self.transport.close()

    def _send(self, error: HttpError) -> None:
        answer = fault(error)
        body = msgspec.json.encode(answer.body)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **answer.headers,
        }
        response = h11.Response(status_code=answer.status, headers=list(headers.items()))
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _is_too_long(self) -> bool:
        """h11 says so by a hint in the exception, which uvicorn has caught; the buffer tells it as well."""
        return len(self.conn.trailing_data[0]) > MAX_HEADER_BYTES

    def _await_head(self) -> None:
        if self._head_timer is None and self.timeout_keep_alive_task is None:
            self._head_timer = self.loop.call_later(self.head_s, self._head_is_late)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._waiting_bytes = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self.stall_s, self._look_at_reader)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _look_at_reader(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting > self._waiting_bytes - MIN_TAKEN_BYTES:
            self._stall_timer = None
            self.transport.abort()
            return
        self._waiting_bytes = waiting
        self._stall_timer = self.loop.call_later(self.stall_s, self._look_at_reader)

    def _cancel_timers(self) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._stall_timer = None
