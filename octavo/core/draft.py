"""A step while it is being planned."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.core.cache import Hit, PrefixCache
from octavo.core.sequence import Sequence
from octavo.core.step import Copy, Slice


@dataclass(slots=True, eq=False)
class Draft:
    """What has been decided so far, and what is left to give away.

    budget           most tokens in the step, `num_tokens` of them given away
    promised_tokens  kept for decodes that are still to be drafted
    reserved_blocks  still needed by prefills that have begun, beyond what this step gives them; `reserves` by sequence
    is_closed        a waiting sequence was refused and lets nobody pass
    is_short         a running sequence could not get the blocks it needs; nobody new may take any
    preempted        sequences that lost their memory while this step was being planned
    in_background    those that give way to others; `background_tokens` is what their prompts have of the step
    """

    cache: PrefixCache
    budget: int
    num_tokens: int = 0
    promised_tokens: int = 0
    reserved_blocks: int = 0
    is_closed: bool = False
    is_short: bool = False
    in_background: set[int] = field(default_factory=set)
    background_tokens: int = 0
    decodes: dict[int, Slice] = field(default_factory=dict)
    prefills: dict[int, Slice] = field(default_factory=dict)
    reserves: dict[int, int] = field(default_factory=dict)
    copies: list[tuple[int, Copy]] = field(default_factory=list)
    preempted: set[int] = field(default_factory=set)
    _looked_up: tuple[Sequence, Hit] | None = None

    @property
    def is_empty(self) -> bool:
        return not self.decodes and not self.prefills

    @property
    def tokens_left(self) -> int:
        """Tokens that a prefill may still have."""
        return self.budget - self.num_tokens - self.promised_tokens

    def hit(self, sequence: Sequence) -> Hit:
        """What `sequence` would find in the cache now. Looked up once until something changes."""
        if self._looked_up is None or self._looked_up[0] is not sequence:
            self._looked_up = (sequence, self.cache.lookup(sequence))
        return self._looked_up[1]

    def forget_hit(self) -> None:
        self._looked_up = None

    def add(self, piece: Slice, copies: tuple[Copy, ...], *, is_decode: bool) -> None:
        (self.decodes if is_decode else self.prefills)[piece.seq_id] = piece
        for copy in copies:
            self.copies.append((piece.seq_id, copy))
        self.num_tokens += piece.num_tokens

    def reserve(self, seq_id: int, num_blocks: int) -> None:
        """Keep that many blocks for the rest of a prefill when others ask to begin."""
        self.reserved_blocks += num_blocks - self.reserves.get(seq_id, 0)
        self.reserves[seq_id] = num_blocks

    def release(self, seq_id: int) -> None:
        """Its prompt needs no further blocks."""
        if self.reserves:
            self.reserved_blocks -= self.reserves.pop(seq_id, 0)

    def withdraw(self, seq_id: int) -> list[Copy]:
        """Take back what was decided for a sequence. Returns the copies that will not be made."""
        self.release(seq_id)
        piece = self.decodes.pop(seq_id, None) or self.prefills.pop(seq_id, None)
        if piece is None:
            return []
        self.num_tokens -= piece.num_tokens
        dropped = [copy for owner, copy in self.copies if owner == seq_id]
        self.copies = [(owner, copy) for owner, copy in self.copies if owner != seq_id]
        return dropped
