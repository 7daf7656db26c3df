"""What could be changed, what it costs, and the words that change it: one function per kind, by name."""

# ruff: noqa: ARG001 - all of them are asked in the same way, and few have to look at the finding

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from octavo.explain.setups import Setup
from octavo.explain.signs import Finding

FREE, MEMORY, MACHINES, NOT_YOURS = range(4)
"""What a change costs: a setting; more memory; more machines. The last is no change that anybody can make."""
MIXED_TOKENS = (1024, 512, 256, 128)
CHUNK_TOKENS = (512, 128)
CONCURRENCY = (32, 16, 8, 4)
BATCH = "/batch"
"""Ends the name that lines of a tenant's batches have at an engine."""


@dataclass(frozen=True, slots=True)
class Change:
    """One changed setup.

    says     what is different
    command  applies it: flags of `octavo serve`, or lines of its files; empty where there is none
    """

    says: str
    setup: Setup
    cost: int
    command: str


def _more_seats(setup: Setup, finding: Finding) -> list[Change]:
    now = setup.limits.max_num_seqs
    return [_with_seats(setup, now * times) for times in (2, 4, 8)]


def _fewer_seats(setup: Setup, finding: Finding) -> list[Change]:
    now = setup.limits.max_num_seqs
    wanted = sorted({max(now // part, 1) for part in (2, 4, 8, 16, 32)} - {now}, reverse=True)
    return [_with_seats(setup, seats) for seats in wanted]


def _with_seats(setup: Setup, seats: int) -> Change:
    limits = setup.limits
    budget = max(limits.max_num_batched_tokens, seats)
    flags = f"--max-num-seqs {seats}"
    if budget != limits.max_num_batched_tokens:
        flags += f" --max-num-batched-tokens {budget}"
    changed = replace(limits, max_num_seqs=seats, max_num_batched_tokens=budget)
    if setup.split is not None:
        split = replace(setup.split, limits=replace(setup.split.limits or limits, max_num_seqs=seats))
        return Change(f"{seats} seats where answers are made", replace(setup, split=split), FREE, "")
    return Change(f"{seats} seats", replace(setup, limits=changed), FREE, f"octavo serve {flags}")


def _mixed(setup: Setup, finding: Finding) -> list[Change]:
    limits = setup.limits
    now = limits.max_num_mixed_tokens or limits.max_num_batched_tokens
    return [
        Change(
            f"steps of {tokens} tokens where others decode",
            replace(setup, limits=replace(limits, max_num_mixed_tokens=tokens)),
            FREE,
            f"octavo serve --max-num-mixed-tokens {tokens}",
        )
        for tokens in MIXED_TOKENS
        if tokens < now
    ]


def _chunk(setup: Setup, finding: Finding) -> list[Change]:
    limits = setup.limits
    return [
        Change(
            f"parts of prompts of {tokens} tokens",
            replace(setup, limits=replace(limits, max_chunk_tokens=tokens)),
            FREE,
            f"octavo serve --max-chunk-tokens {tokens}",
        )
        for tokens in CHUNK_TOKENS
        if tokens < limits.chunk_tokens
    ]


def _more_blocks(setup: Setup, finding: Finding) -> list[Change]:
    limits = setup.limits
    found = []
    for times in (1.5, 2.0, 4.0):
        blocks = int((limits.num_blocks - 1) * times) + 1
        if setup.split is not None:
            split = replace(setup.split, limits=replace(setup.split.limits or limits, num_blocks=blocks))
            changed = replace(setup, split=split)
        else:
            changed = replace(setup, limits=replace(limits, num_blocks=blocks))
        says = f"{times:g} times the KV memory"
        found.append(Change(says, changed, MEMORY, f"octavo serve --num-kv-blocks {blocks}"))
    return found


def _public(setup: Setup, finding: Finding) -> list[Change]:
    return [
        Change(
            "what all namespaces send is shared by them",
            replace(setup, is_public=True),
            FREE,
            'in the file of --keys: [[public_prefix]] with system = "the message they all send"',
        )
    ]


def _routing(setup: Setup, finding: Finding) -> list[Change]:
    if setup.num_replicas < 2:
        return []
    other = "least_loaded" if setup.routing == "prefix" else "prefix"
    return [
        Change(f"routing {other}", replace(setup, routing=other), FREE, f"octavo serve --routing {other}")
    ]


def _concurrency(setup: Setup, finding: Finding) -> list[Change]:
    client = finding.client
    if not client:
        return []
    return [
        Change(
            f"{client} may have {most} requests at a time, and waits outside for more",
            replace(setup, bound=(client, most)),
            FREE,
            f"octavo serve --batch-concurrency {most}"
            if client.endswith(BATCH)
            else f'in the file of --keys, under [[tenant]] id = "{client}": max_concurrency = {most}',
        )
        for most in CONCURRENCY
        if most < setup.limits.max_num_seqs * setup.num_replicas
    ]


def _paged(setup: Setup, finding: Finding) -> list[Change]:
    if setup.baseline is None:
        return []
    says = "paging and continuous batching, as Octavo does it"
    return [Change(says, replace(setup, baseline=None), FREE, "octavo serve")]


def _answering(setup: Setup, finding: Finding) -> list[Change]:
    split = setup.split
    if split is None:
        return []
    found = []
    if setup.num_replicas > 1:
        moved = replace(setup, num_replicas=setup.num_replicas - 1)
        moved = replace(moved, split=replace(split, num_decode=split.num_decode + 1))
        says = "one engine answers instead of computing prompts"
        found.append(Change(says, moved, FREE, _pools(moved)))
    more = replace(setup, split=replace(split, num_decode=split.num_decode + 1))
    found.append(Change("one engine more that answers", more, MACHINES, _pools(more)))
    return found


def _pools(setup: Setup) -> str:
    assert setup.split is not None
    """`octavo serve` computes prompts and answers on the same engines, so this can only be rehearsed."""
    return f"octavo simulate --replicas {setup.num_replicas} --decode-replicas {setup.split.num_decode}"


def more_engines(setup: Setup, count: int) -> Change:
    """So many engines in all."""
    says = f"{count} engines instead of {setup.num_replicas}"
    return Change(says, replace(setup, num_replicas=count), MACHINES, f"octavo serve --engines {count}")


def _replicas(setup: Setup, finding: Finding) -> list[Change]:
    return [more_engines(setup, count) for count in (setup.num_replicas + 1, setup.num_replicas * 2 + 1)]


def _no_failure(setup: Setup, finding: Finding) -> list[Change]:
    return [Change("no engine is lost", replace(setup, failures=()), NOT_YOURS, "")]


def _quick_host(setup: Setup, finding: Finding) -> list[Change]:
    host = replace(setup.timing.host, turn_s=0.0, plan_s=0.0)
    changed = replace(setup, timing=replace(setup.timing, host=host))
    return [Change("a host that takes no time between steps", changed, NOT_YOURS, "")]


CHANGES: Mapping[str, Callable[[Setup, Finding], list[Change]]] = {
    "seats": _more_seats,
    "seats-down": _fewer_seats,
    "mixed": _mixed,
    "chunk": _chunk,
    "blocks": _more_blocks,
    "public": _public,
    "routing": _routing,
    "concurrency": _concurrency,
    "paged": _paged,
    "decode-replicas": _answering,
    "replicas": _replicas,
    "no-failure": _no_failure,
    "quick-host": _quick_host,
}
"""By the names that findings bear on."""

OUTSIDE: Mapping[str, str] = {
    "engine-lost": "no setting keeps an engine from going: look at why it went, in the server's log at that time",
    "host-bound": "no setting shortens the host's part: give the engine a core that nothing else uses, and look at"
    " what else runs there",
    "slow-front": "no engine setting helps: the front process has too little of a core, or too much to read",
    "slow-clients": "no setting helps: clients, or what lies between, take the answers too slowly",
}
"""What to do about causes that no setting mends."""


def changes(setup: Setup, finding: Finding) -> list[Change]:
    """That may help, small ones of a kind before large ones."""
    return [change for name in finding.bears_on for change in CHANGES[name](setup, finding)]
