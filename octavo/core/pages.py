"""The pool of blocks as a picture: what each block is, and whose."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.core.scheduler import Scheduler

FREE, RUNNING, CACHED, PINNED = range(4)
"""RUNNING: a sequence refers to it, or a step in flight still may. CACHED: keeps a prefix that nobody runs on."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Blocks in the order of their ids, the null block left out.

    states      one of the above for each block that is shown
    owners      for each of them, which of `clients` it belongs to, counted from 1; 0 where nobody or not known
    num_blocks  in the pool; where more than are shown, those are spread evenly
    """

    states: bytes
    owners: tuple[int, ...]
    clients: tuple[str, ...]
    num_blocks: int


def pages(scheduler: Scheduler, max_shown: int) -> Pages:
    """The pool as it is now. Changes nothing."""
    cache, num_blocks = scheduler.cache, scheduler.limits.num_blocks - 1
    clients: dict[str, int] = {}
    owners = [0] * (num_blocks + 1)
    for sequence in scheduler.sequences.values():
        number = clients.setdefault(sequence.request.client, len(clients) + 1)
        for block in sequence.table:
            owners[block] = owners[block] or number
    count = min(num_blocks, max_shown)
    shown = [1 + index * num_blocks // count for index in range(count)]
    states = bytearray()
    for block in shown:
        state = _state(scheduler, block)
        states.append(state)
        if state in (CACHED, PINNED) and not owners[block]:
            client = scheduler.client_of(cache.node_of[block].realm)
            owners[block] = clients.setdefault(client, len(clients) + 1) if client is not None else 0
    return Pages(bytes(states), tuple(owners[block] for block in shown), tuple(clients), num_blocks)


def _state(scheduler: Scheduler, block: int) -> int:
    pool = scheduler.cache.pool
    if block in scheduler.cache.pinned:
        return PINNED
    if pool.references[block] or block in pool.deferred:
        return RUNNING
    return CACHED if block in pool.idle else FREE
