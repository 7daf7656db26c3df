"""An executor without tensors: each slot holds a tag that says which prefix was computed into it.

`Shadow` keeps its own copy of every worker table, built from nothing but the slices. When a position is computed,
its slot gets the tag H(namespace, tokens up to it). Every attention read asserts that each visible slot carries the
tag of the reader's own prefix, so a wrong block, a stale block, a missing copy or an unwritten slot fails at once.
Blocks that the pool has freed or handed out again are poisoned.

Tokens are a pure function of the prefix and the choice, so `alone` knows the answer without any scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from octavo.core.sequence import Request
from octavo.core.step import Copy, Event, Finished, Forked, Output, Slice, Step, StepResult, Token

POISON = None


def extend_hash(prefix_hash: int, token: int) -> int:
    return hash((prefix_hash, token))


def hash_of(tokens) -> int:
    value = 0
    for token in tokens:
        value = extend_hash(value, token)
    return value


def next_token(prefix_hash: int, choice: int, vocab: int) -> int:
    return (hash((prefix_hash, choice, 77)) >> 7) % vocab


def candidates(prefix_hash: int, width: int, vocab: int) -> tuple[tuple[int, int], ...]:
    """Twice `width` distinct (token, score) pairs of a beam, best first; a pure function of its tokens."""
    scored = sorted(((hash((prefix_hash, token, 99)) >> 5) % 1000, token) for token in range(vocab))
    return tuple((token, score) for score, token in reversed(scored[-2 * width :]))


def alone(request: Request, choice: int, max_model_len: int, vocab: int) -> tuple[list[int], str]:
    """Output tokens and finish reason of one choice, run by itself."""
    params, tokens = request.params, list(request.prompt)
    while True:
        token = next_token(hash_of(tokens), choice, vocab)
        tokens.append(token)
        num_output = len(tokens) - len(request.prompt)
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else request.end_token_ids)
        if token in ends and num_output >= params.min_tokens:
            return tokens[len(request.prompt) :], "stop"
        if num_output == params.max_tokens or len(tokens) == max_model_len:
            return tokens[len(request.prompt) :], "length"


def choose_beams(
    request: Request, tokens: Mapping[Hashable, list[int]], held: Mapping[Hashable, tuple]
) -> list[tuple[Hashable, int]]:
    """(parent, token) of the best `beam_width` continuations; none when the last token has been chosen."""
    width, longest = request.params.beam_width, len(request.prompt) + request.params.max_tokens
    if any(len(tokens[name]) + 1 >= longest for name in held):
        return []
    found = [(-score, tokens[name], token, name) for name, pairs in held.items() for token, score in pairs]
    return [(name, token) for _, _, token, name in sorted(found)[:width]]


def alone_beams(request: Request, max_model_len: int, vocab: int) -> list[list[int]]:
    """The beams, prompt included, when the search ends, run by itself."""
    beams = [list(request.prompt)]
    while True:
        tokens = dict(enumerate(beams))
        held = {
            name: candidates(hash_of(line), request.params.beam_width, vocab) for name, line in tokens.items()
        }
        chosen = choose_beams(request, tokens, held)
        if not chosen:
            return beams
        beams = [[*tokens[name], token] for name, token in chosen]
        if len(beams[0]) == max_model_len:
            return beams


@dataclass
class Worker:
    """What the executor knows of one sequence. After an error it answers with nothing else."""

    request: Request
    index: int
    tokens: list[int]
    hashes: list[int]
    epoch: int = -1
    table: list[int] = field(default_factory=list)
    is_broken: bool = False

    def append(self, token: int) -> None:
        self.hashes.append(extend_hash(self.hashes[-1] if self.hashes else 0, token))
        self.tokens.append(token)


@dataclass
class Flight:
    """A launched step, with what each slice will use whatever happens to its sequence meanwhile."""

    step: Step
    tables: list[list[int]]
    workers: list[Worker]
    touched: set[int]


class Shadow:
    """Runs steps in order. `launch` when a step is planned, `run` when its results are wanted."""

    def __init__(self, num_blocks: int, block_tokens: int, window: int | None, vocab: int) -> None:
        self.P, self.window, self.vocab = block_tokens, window, vocab
        self.slots: list[list[int | None]] = [[POISON] * block_tokens for _ in range(num_blocks)]
        self.generations = [0] * num_blocks
        self.workers: dict[int, Worker] = {}
        self.in_flight: list[Flight] = []
        self.num_computed = self.num_copies = self.num_reads = 0

    def begin(self, seq_id: int, request: Request, index: int = 0, output: Sequence[int] = ()) -> None:
        worker = self.workers[seq_id] = Worker(request, index, [], [])
        for token in (*request.prompt, *output):
            worker.append(token)

    def take_in(self, events: list[Event]) -> None:
        """Follow the scheduler's decisions, as an engine would."""
        for event in events:
            if isinstance(event, Forked):
                parent = self.workers[event.parent_id]
                self.begin(event.seq_id, parent.request, event.index)
                child = self.workers[event.seq_id]
                for token in parent.tokens[len(child.tokens) : event.num_tokens]:
                    child.append(token)
            elif isinstance(event, Token):
                worker = self.workers[event.seq_id]
                if event.position == len(worker.tokens):
                    worker.append(event.token)
                assert worker.tokens[event.position] == event.token, "the worker has drawn another token"
                assert worker.index == event.index
            elif isinstance(event, Finished):
                del self.workers[event.seq_id]

    def launch(self, step: Step, generations: list[int], tokens_of: Callable[[int], list[int]]) -> None:
        """A step has been planned: what it will touch must not be touched by others in flight (I17).

        generations  of the pool's blocks; a block whose generation moved on has been handed out again
        tokens_of    what a sequence that begins a new epoch is told of its tokens
        """
        for block, generation in enumerate(generations):
            if generation != self.generations[block]:
                self.generations[block] = generation
                self.slots[block] = [POISON] * self.P
                for flight in self.in_flight:
                    assert block not in flight.touched, f"I17: block {block} handed out while in flight"
        touched = {block for copy in step.copies for block in (copy.source, copy.target)}
        tables, workers = [], []
        for piece in step.slices:
            worker = self.workers[piece.seq_id]
            self._follow_table(worker, piece, tokens_of)
            assert len(worker.table) * self.P >= piece.end, "a position has no block"
            visible = worker.table[self._first_visible(piece.start) // self.P :]
            assert 0 not in visible, "a visible block is null"
            touched.update(visible)
            tables.append(list(worker.table))
            workers.append(worker)
        self.in_flight.append(Flight(step, tables, workers, touched))

    def _follow_table(self, worker: Worker, piece: Slice, tokens_of: Callable[[int], list[int]]) -> None:
        if piece.epoch != worker.epoch:
            assert piece.epoch > worker.epoch, "an epoch went back"
            worker.epoch, worker.table = piece.epoch, []
            known = len(tokens_of(piece.seq_id))
            del worker.tokens[known:], worker.hashes[known:]
            assert worker.tokens == tokens_of(piece.seq_id)
        for index, block in piece.replaced:
            assert index < len(worker.table), "an unreported entry is replaced"
            worker.table[index] = block
        worker.table.extend(piece.new_blocks)

    def _first_visible(self, position: int) -> int:
        return 0 if self.window is None else max(0, position - self.window + 1)

    def run(self, errors: frozenset[int] = frozenset()) -> StepResult:
        """Carry out the oldest launched step; sequences in `errors` answer with an error."""
        flight = self.in_flight[0]
        for copy in flight.step.copies:
            self._copy(copy)
        outputs = []
        for piece, table, worker in zip(flight.step.slices, flight.tables, flight.workers, strict=True):
            worker.is_broken |= piece.seq_id in errors
            if not worker.is_broken:
                self._compute(piece, table, worker)
            if worker.is_broken:
                outputs.append(Output(piece.seq_id, piece.epoch, error="not a number in the logits"))
            else:
                outputs.append(self._draw(piece, worker))
        self.in_flight.pop(0)
        return StepResult(flight.step.number, tuple(outputs))

    def _copy(self, copy: Copy) -> None:
        assert 0 < copy.num_tokens <= self.P
        assert copy.source != copy.target
        assert 0 not in (copy.source, copy.target), "the null block is copied"
        self.slots[copy.target][: copy.num_tokens] = self.slots[copy.source][: copy.num_tokens]
        self.num_copies += 1

    def _compute(self, piece: Slice, table: list[int], worker: Worker) -> None:
        assert piece.end <= len(worker.tokens), "a token is computed before it is known"
        hashes, P = worker.hashes, self.P
        own = int.from_bytes(worker.request.namespace, "little")
        end_of_public = worker.request.num_public_tokens // P * P

        def wanted(position: int) -> int:
            return hash(("everybody's" if position < end_of_public else own, hashes[position]))

        for position in range(piece.start, piece.end):
            self.slots[table[position // P]][position % P] = wanted(position)
        for position in range(self._first_visible(piece.start), piece.end):
            tag = self.slots[table[position // P]][position % P]
            assert tag == wanted(position), (
                f"I18: sequence {piece.seq_id} reads position {position} and finds "
                f"{'poison' if tag is POISON else 'another prefix'}"
            )
        self.num_computed += piece.num_tokens
        self.num_reads += piece.end - self._first_visible(piece.start)

    def _draw(self, piece: Slice, worker: Worker) -> Output:
        if not piece.samples:
            return Output(piece.seq_id, piece.epoch)
        prefix_hash, params = worker.hashes[piece.end - 1], worker.request.params
        if params.beam_width is not None:
            payload = candidates(prefix_hash, params.beam_width, self.vocab)
            return Output(piece.seq_id, piece.epoch, payload=payload)
        tokens = tuple(next_token(prefix_hash, worker.index + i, self.vocab) for i in range(piece.samples))
        if worker.epoch == piece.epoch:
            assert piece.end == len(worker.tokens), "drawn from logits that are not the last"
            worker.append(tokens[0])
        return Output(piece.seq_id, piece.epoch, tokens)

    def poison(self, blocks) -> None:
        """The pool has freed these: nothing may be read from them any more."""
        for block in blocks:
            self.slots[block] = [POISON] * self.P
