"""Writes down what tenants use, every few seconds and at the end, and reads what a month has come to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime

from octavo.server.documents import StoreError
from octavo.server.front import Front
from octavo.server.metering import Used
from octavo.server.storage import Storage
from octavo.server.store import Tally

PERIOD_S = 2.0
"""A server that is killed forgets the usage of so long at the most."""


class UsageBook:
    def __init__(self, front: Front, storage: Storage) -> None:
        self._front = front
        self._storage = storage
        self._tending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the month so far, then go on in the background. Raises StoreError."""
        await self._read()
        self._tending = asyncio.create_task(self._tend())

    async def stop(self) -> None:
        """Write down the last of it."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.wait({self._tending})
            await self._write()

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            if await self._write():
                await self._read()

    async def _write(self) -> bool:
        standings = self._front.standings
        taken = standings.taken()
        if not taken:
            return True
        tallies = {tenant_id: _tally(used) for tenant_id, used in taken.items()}
        try:
            await self._storage.off_loop(lambda: self._storage.store.add_usage(tallies))
        except StoreError as error:
            self._front.log.error("usage_not_written", because=error)
            standings.put_back(taken)
            return False
        return True

    async def _read(self) -> None:
        tenants = self._front.keyring.tenants.values()
        limited = [one for one in tenants if one.terms.monthly_tokens is not None]
        if not limited:
            return
        spent: Mapping[str, float] = await self._storage.off_loop(
            lambda: self._storage.store.weighted_tokens([one.tenant_id for one in limited], _today()[:7])
        )
        for tenant in limited:
            self._front.standings.of(tenant).spent = spent.get(tenant.tenant_id, 0.0)


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _tally(used: Used) -> Tally:
    return Tally(
        day=_today(),
        is_batch=False,
        requests=used.requests,
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        weight=1.0,
    )
