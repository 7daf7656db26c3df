"""What the scheduler orders and what comes back: plain values of counts and ids.

A `Step` says how many tokens of which sequences to compute, in which blocks. An executor carries it out
and answers with a `StepResult`. `Scheduler.commit` turns that into events. Steps and results compare with
`==`, so that a recorded run can be replayed and checked decision for decision.

Slices, outputs and tokens are made by the hundred in each step, and are tuples because those are made three times as
fast as frozen dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Slice(NamedTuple):
    """Compute positions `start .. start + num_tokens - 1` of one sequence.

    seq_id        the sequence
    epoch         raised at each preemption; an output with an older epoch is ignored
    start         first position to compute; everything before it already lies in the block table
    num_tokens    how many positions, at least 1
    new_blocks    block ids to append to the worker's block table of this sequence. With the first slice of an
                  epoch the worker's table starts empty, so cached prefix blocks come this way too. After a
                  sliding window has passed a block, the worker need not be told: it never reads it again.
    draft_tokens  proposed tokens to verify; they are the last `len(draft_tokens)` of `num_tokens`
    samples       how many tokens to draw from the logits of the last position: 0 while a prefill is not yet
                  complete and for an embedding, 1 usually, n at the end of the prompt of a request with n
                  parallel choices
    replaced      (index, block id) pairs: entries of the worker's table that change because the block there
                  was shared and has been copied (the copy itself is in `Step.copies`)
    """

    seq_id: int
    epoch: int
    start: int
    num_tokens: int
    new_blocks: tuple[int, ...] = ()
    draft_tokens: tuple[int, ...] = ()
    samples: int = 0
    replaced: tuple[tuple[int, int], ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy the first `num_tokens` slots of block `source` to block `target`, all layers, before computing."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Move:
    """Carry a block between tiers. No tier below the device exists yet, so no step holds one."""

    block: int
    source_tier: str
    target_tier: str
    key: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass.

    number     counts planned steps from 0
    slices     what to compute; at most one per sequence
    copies     block copies to carry out first, in order
    moves      transfers to start
    preempted  sequences whose blocks were taken away; the worker forgets their tables
    """

    number: int
    slices: tuple[Slice, ...]
    copies: tuple[Copy, ...] = ()
    moves: tuple[Move, ...] = ()
    preempted: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum([piece.num_tokens for piece in self.slices])


class Output(NamedTuple):
    """What one slice produced.

    tokens   () for a slice with samples == 0; one token per sample otherwise; with drafts, the accepted ones
             and the one that follows, in order of position
    error    why this sequence cannot go on (a NaN in its logits, say), or None. Others are not affected.
    payload  anything the executor wants to travel with the tokens (log-probabilities, beam candidates);
             the core never looks inside, and comparisons ignore it
    """

    seq_id: int
    epoch: int
    tokens: tuple[int, ...] = ()
    error: str | None = None
    payload: object = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Output) and self[:-1] == other[:-1]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:-1])


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outputs in the order of the step's slices."""

    number: int
    outputs: tuple[Output, ...]


class Token(NamedTuple):
    """A sequence grew by one token.

    position  of the token in the sequence, prompt included
    payload   the output's payload, unchanged
    """

    request_id: str
    seq_id: int
    index: int  # type: ignore[assignment]
    position: int
    token: int
    payload: object = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Token) and self[:-1] == other[:-1]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:-1])


@dataclass(frozen=True, slots=True)
class Forked:
    """A new sequence shares its parent's tokens up to `num_tokens` (its own first token not included)."""

    request_id: str
    parent_id: int
    seq_id: int
    index: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Held:
    """A beam has been computed and waits for `Scheduler.advance`; its candidates are in `payload`."""

    request_id: str
    seq_id: int
    payload: object = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Preempted:
    """A sequence lost its blocks and will be recomputed. No token is lost."""

    request_id: str
    seq_id: int
    because: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A sequence has ended, once and for all.

    reason      "stop", "length", "cancelled", "error", "beam" for a beam that no candidate continued, or what
                the caller of `Scheduler.finish` said
    stop_token  the token id that ended it, when the reason is "stop" and a token did
    error       what went wrong, when the reason is "error"
    """

    request_id: str
    seq_id: int
    index: int
    reason: str
    stop_token: int | None = None
    error: str | None = None


Event = Token | Forked | Held | Preempted | Finished
