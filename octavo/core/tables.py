"""The block tables of sequences: filled from hits, extended, copied on write, shared by forks, given back.

table of a sequence, 4 tokens per block, sliding window over the last 6 tokens

  block   null    7      12      9
  slots   ----   abcd   efgh   ij__
                 ^ reused: full, published, maybe shared    ^ own: written by this sequence alone
"""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.core.blocks import NULL_BLOCK, BlockPool
from octavo.core.cache import Hit, PrefixCache
from octavo.core.sequence import Sequence
from octavo.core.step import Copy
from octavo.errors import Bug


@dataclass(frozen=True, slots=True)
class Extension:
    """What changed in a table: copies to make first, and reported entries that now name another block."""

    copies: tuple[Copy, ...] = ()
    replaced: tuple[tuple[int, int], ...] = ()


UNCHANGED = Extension()


@dataclass(slots=True)
class Tables:
    """Every change of a sequence's table goes through here.

    span_blocks  most blocks one sequence needs at a time under a sliding window; None with full attention
    """

    cache: PrefixCache
    block_tokens: int
    span_blocks: int | None = None
    pool: BlockPool = field(init=False)

    def __post_init__(self) -> None:
        self.pool = self.cache.pool

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def missing(self, sequence: Sequence, end: int) -> int:
        """Blocks to take before positions `num_planned .. end - 1` can be written."""
        table, size = sequence.table, self.block_tokens
        count = -(-end // size) - len(table)
        index = sequence.num_planned // size
        must_copy = index < len(table) and self.pool.is_read(table[index])
        return (count if count > 0 else 0) + must_copy

    def reachable(self, sequence: Sequence, end: int) -> int:
        """How far up to `end` the available blocks go; `num_planned` when not one position can be written."""
        while end > sequence.num_planned and self.missing(sequence, end) > self.pool.num_available:
            end = max(sequence.num_planned, (self.blocks_for(end) - 1) * self.block_tokens)
        return end

    def outstanding(self, sequence: Sequence) -> int:
        """Blocks its known tokens and one more will still take, beyond those in its table."""
        count = max(0, self.blocks_for(sequence.num_known + 1) - len(sequence.table))
        if self.span_blocks is not None:
            held = len(sequence.table) - sequence.num_passed_blocks
            count = min(count, max(0, self.span_blocks - held))
        return count

    def needed_with(self, sequence: Sequence, hit: Hit) -> int:
        """Blocks to have available for `sequence` to start from `hit` and hold its known tokens and one more.

        Counts the hit's idle blocks too: using them takes them from what is available.
        """
        resident = [block for block in hit.blocks if block != NULL_BLOCK]
        count = self.blocks_for(len(sequence.tokens) + 1) - len(hit.blocks)
        if self.span_blocks is not None:
            count = min(count, max(0, self.span_blocks - len(resident)))
        return count + self.pool.idle.num_listed(resident)

    def adopt(self, sequence: Sequence, hit: Hit, *, with_partial: bool) -> Extension:
        """Start an empty table from a hit. Hits are shared before anything is taken from the pool."""
        if sequence.table:
            raise Bug(f"sequence {sequence.seq_id} takes over a hit while it has a table")
        self.pool.share_all(hit.blocks)
        sequence.table.extend(hit.blocks)
        sequence.num_passed_blocks = self.cache.num_passed_blocks(len(hit.blocks) * self.block_tokens)
        sequence.node = hit.node
        sequence.num_published = len(hit.blocks)
        sequence.num_computed = len(hit.blocks) * self.block_tokens
        extension = UNCHANGED
        if with_partial and hit.partial is not None:
            source, count = hit.partial
            extension = Extension(copies=(self._copy(source, count, sequence),))
            sequence.num_computed += count
            self.drop_passed(sequence)
        sequence.num_planned = sequence.num_computed
        self.cache.announce(sequence)
        return extension

    def _copy(self, source: int, count: int, sequence: Sequence) -> Copy:
        self.pool.share(source)
        taken = self.pool.take(1)
        if taken is None:
            raise Bug(
                f"I7: no block for the copy that starts sequence {sequence.seq_id}, though one was predicted"
            )
        sequence.table.append(taken[0])
        self.pool.begin_copy(source, taken[0])
        self.pool.give_back(source)
        return Copy(source, taken[0], count)

    def extend(self, sequence: Sequence, end: int) -> Extension:
        """Make positions `num_planned .. end - 1` writable: take blocks, and copy a shared one first.

        The caller has made sure that `missing` blocks are available.
        """
        extension = self._copy_on_write(sequence) if self.must_copy(sequence) else UNCHANGED
        count = -(-end // self.block_tokens) - len(sequence.table)
        if count > 0:
            taken = self.pool.take(count)
            if taken is None:
                raise Bug(
                    f"I7: sequence {sequence.seq_id} needs {count} blocks that were predicted to be there"
                )
            sequence.table.extend(taken)
        return extension

    def must_copy(self, sequence: Sequence) -> bool:
        """The first block to be written has slots that somebody else still reads."""
        index = sequence.num_planned // self.block_tokens
        if index >= len(sequence.table):
            return False
        return self.pool.is_read(sequence.table[index])

    def _copy_on_write(self, sequence: Sequence) -> Extension:
        index, count = divmod(sequence.num_planned, self.block_tokens)
        source = sequence.table[index]
        taken = self.pool.take(1)
        if taken is None:
            raise Bug(
                f"I7: sequence {sequence.seq_id} needs a block for a copy that was predicted to be there"
            )
        sequence.table[index] = taken[0]
        copies: tuple[Copy, ...] = ()
        if count:
            self.pool.begin_copy(source, taken[0])
            copies = (Copy(source, taken[0], count),)
        self.pool.give_back(source)
        replaced = ((index, taken[0]),) if index < sequence.num_reported else ()
        return Extension(copies, replaced)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child` share everything its parent has settled; whoever writes first copies the shared tail."""
        count = self.blocks_for(parent.num_computed)
        child.table = parent.table[:count]
        self.pool.share_all(child.table)
        child.num_computed = child.num_planned = parent.num_computed
        child.num_passed_blocks = parent.num_passed_blocks
        child.chain = parent.chain[: parent.num_computed // self.block_tokens]
        child.node = parent.node
        child.num_published = parent.num_published

    def drop_passed(self, sequence: Sequence) -> None:
        """Give back the blocks that no position from `num_computed` on can see (settled tokens only)."""
        passed = min(self.cache.num_passed_blocks(sequence.num_computed), len(sequence.table))
        if passed <= sequence.num_passed_blocks:
            return
        gone = sequence.table[sequence.num_passed_blocks : passed]
        sequence.table[sequence.num_passed_blocks : passed] = [NULL_BLOCK] * len(gone)
        sequence.num_passed_blocks = passed
        self.pool.give_back_all(gone)

    def release(self, sequence: Sequence) -> None:
        """Give the whole table back. Nothing of the sequence's tokens is lost."""
        self.cache.withdraw(sequence)
        self.pool.give_back_all(sequence.table)
        sequence.table = []
        sequence.num_computed = sequence.num_planned = sequence.num_reported = 0
        sequence.num_passed_blocks = sequence.num_published = sequence.pending = 0
        sequence.node = None

    def report(self, sequence: Sequence) -> tuple[int, ...]:
        """Table entries the worker does not know yet; it is told of them with the next slice."""
        if sequence.num_reported == len(sequence.table):
            return ()
        fresh = tuple(sequence.table[sequence.num_reported :])
        sequence.num_reported = len(sequence.table)
        return fresh
