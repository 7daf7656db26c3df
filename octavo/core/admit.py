"""Who may begin now: a list of rules, each of which names its reason to wait.

Waiting sequences are asked in order, best first. The first refusal ends the round, so that nobody behind takes what
the one in front is waiting for; only a rule with `lets_others_pass` steps aside instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octavo.core.cache import BEING_COMPUTED, PrefixCache
from octavo.core.draft import Draft
from octavo.core.roster import Roster
from octavo.core.sequence import Sequence
from octavo.core.tables import Tables

NO_TOKENS = "the step's token budget is used up"
NO_SEAT = "all seats are taken"
NO_BLOCKS = "not enough free blocks"
BLOCKS_PROMISED = "running sequences wait for blocks"
PREFIX_UNDER_WAY = "another sequence is computing its prefix right now"


class Rule(Protocol):
    """One reason to wait. `allows` returns it, or None; it changes nothing but notes of its own."""

    lets_others_pass: bool

    def allows(self, sequence: Sequence, draft: Draft) -> str | None: ...


@dataclass(slots=True)
class TokenBudget:
    """A first slice needs at least one token of the step's budget."""

    lets_others_pass: bool = False

    def allows(self, sequence: Sequence, draft: Draft) -> str | None:  # noqa: ARG002
        return None if draft.tokens_left >= 1 else NO_TOKENS


@dataclass(slots=True)
class Seats:
    """At most `max_num_seqs` sequences have memory, counting choices and beams that are yet to come."""

    roster: Roster
    lets_others_pass: bool = False

    def allows(self, sequence: Sequence, draft: Draft) -> str | None:  # noqa: ARG002
        return None if self.roster.seats_missing(sequence) <= 0 else NO_SEAT


@dataclass(slots=True)
class PrefixUnderWay:
    """Wait for a prefix that a running prefill is about to publish, when that saves at least half the work."""

    cache: PrefixCache
    block_tokens: int
    lets_others_pass: bool = True

    def allows(self, sequence: Sequence, draft: Draft) -> str | None:
        priority = sequence.request.priority
        if sequence.awaits_key is not None and self.cache.is_under_way(sequence.awaits_key, priority):
            return PREFIX_UNDER_WAY
        sequence.awaits_key = None
        report = draft.hit(sequence).report
        if report.why != BEING_COMPUTED:
            return None
        under_way = 0
        for key in sequence.keys[report.num_blocks :]:
            if not self.cache.is_under_way(key, priority):
                break
            under_way += self.block_tokens
        if not under_way or 2 * under_way < len(sequence.tokens) - report.num_blocks * self.block_tokens:
            return None
        sequence.awaits_key = sequence.keys[report.num_blocks]
        return PREFIX_UNDER_WAY


@dataclass(slots=True)
class FreeBlocks:
    """Room for all known tokens and one more, beyond what prefills that have begun still need."""

    tables: Tables
    lets_others_pass: bool = False

    def allows(self, sequence: Sequence, draft: Draft) -> str | None:
        if draft.is_short:
            return BLOCKS_PROMISED
        needed = self.tables.needed_with(sequence, draft.hit(sequence)) + draft.reserved_blocks
        return None if needed <= self.tables.pool.num_available else NO_BLOCKS
