"""What a service manager is told: that the server is ready, what it does, that it is alive (sd_notify(3)).

A datagram to the socket that `NOTIFY_SOCKET` names; where it names none, nothing is said. A service manager that
cannot be reached is no reason not to serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping

EXTENSION_S = 60
"""A service that is loading or draining asks for so much more time, again and again."""


class Supervisor:
    """environment  the variables it has set

    Raises nothing.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(microseconds) / 1e6 if is_ours and microseconds.isdigit() else 0.0

    def tell(self, *lines: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), self._address)

    def busy(self, status: str) -> None:
        """Starting or stopping takes its time, and goes on."""
        self.tell(f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={EXTENSION_S * 10**6}")

    def ready(self, status: str) -> None:
        self.tell("READY=1", f"STATUS={status}")

    @contextlib.asynccontextmanager
    async def watched(self, is_well: Callable[[], bool]) -> AsyncIterator[None]:
        """Say that the server is alive while the event loop turns and `is_well`, twice as often as is asked for."""
        if not self._address or not self.watchdog_s:
            yield
            return

        async def beat() -> None:
            while True:
                if is_well():
                    self.tell("WATCHDOG=1")
                await asyncio.sleep(self.watchdog_s / 2)

        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            beating.cancel()
