"""Decode steps as recorded graphs: one launch instead of hundreds.

A graph has fixed shapes, so a step is padded up to the next of a few sizes (`Bucket`). What fills it up are sequences
of one token in the null block, which nobody reads; a row's bits do not depend on them. A bucket is recorded when it is
first needed. A step's arrays come by one transfer to memory that stays where it is:

    landing  | tokens | positions | slots | sources | starts | counts | tables, as wide as this step needs |
    tables   [max_seqs, width], to which those are copied: a graph knows one distance between two rows only

Logits end up in memory that stays, too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from octavo.arch import Arch
from octavo.decode.batched import moved
from octavo.exec.batch import Flat, Form, batch_of, to_device
from octavo.exec.forward import Eager, Forward, Rows
from octavo.kernels.linear import FORMATS
from octavo.kv.pool import KvPool
from octavo.models.model import Model
from octavo.models.ops import Decision
from octavo.planner.device import GRAPH_POSITIONS, GRAPH_SEQS

SEQUENCES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, GRAPH_SEQS)
"""Sequences of a bucket; beyond the last, steps run op by op."""
POSITIONS_STEP = 2
"""Ratio of one bucket's positions to the next smaller one's."""
LEAST_POSITIONS = 1024

Replay = Callable[[], object]
Capture = Callable[[Callable[[], object]], Replay]
"""Records what a function orders, without carrying it out; replaying carries it out, at the same addresses."""


class Bucket(NamedTuple):
    """A size of step: sequences, and positions of all of them together."""

    num_seqs: int
    num_positions: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """What graphs are made for.

    max_seqs       sequences of a step
    max_positions  of all sequences of a step together; more, where many share a prefix, run op by op
    width          block ids of one sequence
    """

    max_seqs: int
    max_positions: int
    width: int

    @classmethod
    def of(cls, max_seqs: int, max_model_len: int, block_tokens: int) -> Sizes:
        """Of an engine with these limits."""
        positions = min(max_seqs * max_model_len, GRAPH_POSITIONS)
        return cls(max_seqs, positions, -(-max_model_len // block_tokens))

    @property
    def most_seqs(self) -> int:
        """Of the largest bucket."""
        return min(self.max_seqs, SEQUENCES[-1])

    def bucket(self, num_seqs: int, num_positions: int) -> Bucket | None:
        """The smallest that holds such a step; None where none does."""
        if num_seqs > self.most_seqs:
            return None
        at_least = SEQUENCES[bisect_left(SEQUENCES, num_seqs)]
        seqs = min(at_least, self.most_seqs)
        wanted = num_positions + seqs - num_seqs
        if wanted > self.max_positions + seqs:
            return None
        positions = LEAST_POSITIONS
        while positions < wanted:
            positions *= POSITIONS_STEP
        return Bucket(seqs, min(positions, self.max_positions + seqs))

    @property
    def largest(self) -> Bucket:
        return Bucket(self.most_seqs, self.max_positions + self.most_seqs)


class Graphs:
    """Steps of decodes as graphs, all others op by op; see `Forward`. Owns its arrays and what it records."""

    def __init__(
        self,
        model: Model,
        kv: KvPool,
        sizes: Sizes,
        *,
        capture: Capture | None = None,
        eager: Forward | None = None,
    ) -> None:
        """`capture` is CUDA's unless told otherwise; `eager` takes the steps that graphs do not."""
        device = model.device
        self.model, self.kv, self.sizes = model, kv, sizes
        self._eager = Eager(model, kv) if eager is None else eager
        self._capture = cuda_capture() if capture is None else capture
        most = sizes.most_seqs
        self._landing = torch.zeros(Form(most, most, sizes.width).nbytes, dtype=torch.uint8, device=device)
        self._tables = torch.zeros(most, sizes.width, dtype=torch.int32, device=device)
        self._previous = torch.zeros(sizes.max_seqs, dtype=torch.int64, device=device)
        self._logits = torch.zeros(most, model.arch.vocab_size, dtype=torch.float32, device=device)
        self._graphs: dict[Bucket, Replay] = {}

    @property
    def nbytes(self) -> int:
        """Of the arrays that stay, beside what recorded graphs keep for themselves."""
        return sum(one.nbytes for one in (self._landing, self._tables, self._previous, self._logits))

    def reserve(self) -> None:
        """Record the largest bucket: what graphs need beside it, they find in its memory."""
        self._graph(self.sizes.largest)

    def __call__(
        self, flat: Flat, rows: Sequence[int], previous: Tensor | None, *, wants_hidden: bool
    ) -> Rows:
        bucket = self.sizes.bucket(len(flat.counts), flat.num_positions)
        is_fed = previous is not None and not flat.is_known
        too_many = (
            is_fed and previous is not None and len(previous) > len(self._previous)
        )  # many choices of a prompt
        if bucket is None or not flat.only_decodes or wants_hidden or not rows or too_many:
            return self._eager(flat, rows, previous, wants_hidden=wants_hidden)
        replay = self._graph(bucket)
        form = Form(bucket.num_seqs, bucket.num_seqs, flat.form.width)
        tables = to_device(flat, form, self.model.device, self._landing)["tables"]
        self._tables[: bucket.num_seqs, : form.width].copy_(tables)
        if is_fed and previous is not None:
            self._previous[: len(previous)].copy_(previous)
        replay()
        logits = self._logits[: len(flat.counts)]
        if len(rows) == len(logits):
            return Rows(None, logits)
        return Rows(None, logits.index_select(0, moved(rows, torch.int64, self.model.device)))

    def _graph(self, bucket: Bucket) -> Replay:
        if bucket not in self._graphs:
            arrays = Form(bucket.num_seqs, bucket.num_seqs, 0).views(self._landing)
            arrays["tables"] = self._tables[: bucket.num_seqs]
            _fill_up(arrays)

            def work() -> None:
                batch = batch_of(arrays, bucket.num_positions, self._previous)
                hidden = self.model.forward(batch, self.kv)
                self._logits[: bucket.num_seqs].copy_(self.model.logits(hidden))

            self._graphs[bucket] = self._capture(work)
        return self._graphs[bucket]


def _fill_up(arrays: dict[str, Tensor]) -> None:
    """A step of nobody's, so that recording may carry the work out first."""
    for name, array in arrays.items():
        array.fill_({"counts": 1, "sources": -1}.get(name, 0))


def cuda_capture() -> Capture:
    """Graphs that share one pool of memory. The work is carried out once before: kernels are built then.

    Not `torch.cuda.graph`, which collects garbage and empties the allocator each time: requests are waiting.
    """
    pool: Any = torch.cuda.graph_pool_handle()
    aside = torch.cuda.Stream()

    def capture(work: Callable[[], object]) -> Replay:
        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(aside):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(aside)
        return graph.replay

    return capture


def why_not(arch: Arch, device: torch.device, decisions: Sequence[Decision]) -> str | None:
    """Why steps of a model on these kernels cannot be recorded; None when they can."""
    if device.type != "cuda":
        return f"graphs are for cuda, not for {device.type}"
    if arch.rope.kind == "dynamic":
        return "angles of dynamic RoPE are reckoned position by position on the host"
    slow = [decision.op for decision in decisions if decision.op in OPS and decision.impl == "reference"]
    if slow:
        return f"the reference of {', '.join(slow)} reads from the device"
    return None


OPS = ("paged_attention", "paged_attention fp8", "linear", *(f"linear {format}" for format in FORMATS))
"""Whose references look at values or try products out as they go."""
