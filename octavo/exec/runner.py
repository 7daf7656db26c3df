"""The executor that owns tensors: steps in, tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.core.sequence import SamplingParams
from octavo.core.step import Output, Slice, Step, StepResult
from octavo.decode.beam import candidates, num_candidates
from octavo.decode.grammar import DeadEnd
from octavo.decode.logprobs import BadLogits, Choice, prompt_logprobs
from octavo.decode.sampler import Job
from octavo.errors import Bug
from octavo.exec.batch import UNKNOWN, Held, flatten
from octavo.exec.constraints import Constraints, Restriction
from octavo.exec.draws import Draw, Drawn, Known, draw_for
from octavo.exec.executor import Start
from octavo.exec.forward import Eager, Forward, Rows
from octavo.exec.place import on
from octavo.exec.pooling import BadStates
from octavo.kv.pool import KvPool
from octavo.models.model import Model
from octavo.planner.memory import PROMPT_ROWS


@dataclass(frozen=True, slots=True)
class Payload:
    """What travels with a slice's tokens.

    choices     one per drawn token, in order
    prompt      (position, choice) of prompt tokens whose log-probability was asked for
    candidates  of a beam: likeliest next tokens as (token, log-probability)
    complete    one per drawn token: its output is complete by its grammar, so nothing follows; () without a grammar
    embedding   with the last slice of an embedding's prompt: see `octavo.exec.pooling.Mean.unit`
    """

    choices: tuple[Choice, ...] = ()
    prompt: tuple[tuple[int, Choice], ...] = ()
    candidates: tuple[tuple[int, float], ...] = ()
    complete: tuple[bool, ...] = ()
    embedding: bytes | None = None


@dataclass(slots=True)
class Part:
    """What has been ordered for one slice.

    output     where it is known already: nothing drawn, a beam, an embedding, or something went wrong
    first_job  number of its first draw among the step's
    place      of the token it draws among the sequence's
    prompt     log-probabilities of prompt tokens, or an error
    """

    piece: Slice
    held: Held
    output: Output | None = None
    first_job: int = 0
    place: int = 0
    prompt: tuple[tuple[int, Choice], ...] | Output = ()


class Pending:
    """A step whose work has been ordered; see `octavo.exec.executor.Launched`."""

    def __init__(self, number: int, parts: Sequence[Part], drawn: Drawn, constraints: Constraints) -> None:
        self.parts, self.drawn = parts, drawn
        self._number, self._constraints = number, constraints
        self._result: StepResult | None = None

    @property
    def must_be_read(self) -> bool:
        """Whether the next step cannot be ordered before this one's tokens are known here."""
        return self.drawn.tokens is None or any(_follows(part.held.start.params) for part in self.parts)

    def result(self) -> StepResult:
        if self._result is None:
            choices = self.drawn.read()
            self._result = StepResult(self._number, tuple(self._output(part, choices) for part in self.parts))
        return self._result

    def _output(self, part: Part, choices: Sequence[Choice | BadLogits]) -> Output:
        output = part.output
        if output is None:
            output = self._sampled(part, choices[part.first_job : part.first_job + part.piece.samples])
        if output.error is not None or not part.prompt:
            return output
        if isinstance(part.prompt, Output):
            return part.prompt
        seen = output.payload if isinstance(output.payload, Payload) else Payload()
        return output._replace(payload=replace(seen, prompt=part.prompt))

    def _sampled(self, part: Part, choices: Sequence[Choice | BadLogits]) -> Output:
        piece, held = part.piece, part.held
        good = [choice for choice in choices if isinstance(choice, Choice)]
        if len(good) < len(choices):
            bad = next(choice for choice in choices if isinstance(choice, BadLogits))
            held.tokens[part.place] = 0  # a step planned ahead may ask for it before the core hears of this
            return Output(piece.seq_id, piece.epoch, error=str(bad))
        held.tokens[part.place] = good[0].token
        tokens = tuple(choice.token for choice in good)
        complete = self._constraints.drawn(held.start, tokens)
        payload = Payload(choices=tuple(good), complete=complete)
        return Output(piece.seq_id, piece.epoch, tokens, payload=payload)


class Runner:
    """Runs a model over a KV pool, both of which it owns from here on. See `LaunchingExecutor`.

    forward  how steps are computed; None: op by op
    draw     how tokens are drawn; None: as suits the model's device
    """

    def __init__(
        self, model: Model, kv: KvPool, *, forward: Forward | None = None, draw: Draw | None = None
    ) -> None:
        self.model = model
        self.kv = kv
        self._forward = Eager(model, kv) if forward is None else forward
        self._draw = draw_for(model) if draw is None else draw
        self._held: dict[int, Held] = {}
        self._constraints = Constraints(model.arch.vocab_size, model.device)
        self._last: Pending | None = None

    def run(
        self,
        step: Step,
        starts: Sequence[Start] = (),
        appended: Sequence[tuple[int, int]] = (),
        ended: Sequence[int] = (),
    ) -> StepResult:
        """Carry out a step; see `Executor.run`."""
        return self.launch(step, starts, appended, ended).result()

    def launch(
        self,
        step: Step,
        starts: Sequence[Start] = (),
        appended: Sequence[tuple[int, int]] = (),
        ended: Sequence[int] = (),
    ) -> Pending:
        """Order a step. Waits for the one before where its tokens are needed here (a grammar, penalties, beams)."""
        before = self._last
        if before is not None and before.must_be_read:
            before.result()
        with on(self.model.device):
            self._learn(step, starts, appended, ended)
            if step.copies:
                self.kv.copy(step.copies)
            if not step.slices:
                return Pending(step.number, (), Known([]), self._constraints)
            for piece in step.slices:
                self._held[piece.seq_id].apply(piece)
            with torch.inference_mode():
                self._last = self._ordered(step, None if before is None else before.drawn.tokens)
        return self._last

    def _learn(
        self,
        step: Step,
        starts: Sequence[Start],
        appended: Sequence[tuple[int, int]],
        ended: Sequence[int],
    ) -> None:
        for seq_id in (*ended, *step.preempted):
            self._held.pop(seq_id, None)
            self._constraints.forget(seq_id)
        for seq_id, token in appended:
            if seq_id in self._held:  # a beam preempted since then starts anew, with this token
                self._held[seq_id].tokens.append(token)
        for start in starts:
            self._held[start.seq_id] = Held(start, list(start.tokens))
            self._constraints.learn(start)

    def _ordered(self, step: Step, previous: Tensor | None) -> Pending:
        slices = step.slices
        flat = flatten(slices, self._held, self.kv.layout.block_tokens)
        first_rows = [0]
        for piece in slices:
            first_rows.append(first_rows[-1] + piece.num_tokens)
        drawing = [i for i, piece in enumerate(slices) if piece.samples]
        parts = [Part(piece, self._held[piece.seq_id]) for piece in slices]
        wants_hidden = any(_looks_at_states(part) for part in parts)
        rows = self._forward(
            flat, [first_rows[i + 1] - 1 for i in drawing], previous, wants_hidden=wants_hidden
        )
        drawn = self._drawn([parts[i] for i in drawing], rows)
        for part, first_row in zip(parts, first_rows, strict=False):
            if part.held.start.params.embed:
                assert rows.hidden is not None, "an embedding asks for hidden states"
                states = rows.hidden[first_row : first_row + part.piece.num_tokens]
                part.output = self._embedded(part.piece, part.held, states)
            elif not part.piece.samples:
                part.output = Output(part.piece.seq_id, part.piece.epoch)
            if _prompt_end(part) > part.piece.start and (part.output is None or part.output.error is None):
                assert rows.hidden is not None, "log-probabilities of a prompt ask for hidden states"
                part.prompt = self._prompt(part, rows.hidden, first_row)
        return Pending(step.number, parts, drawn, self._constraints)

    def _embedded(self, piece: Slice, held: Held, rows: Tensor) -> Output:
        """Add a slice's hidden states [T, E] up; the last slice of the prompt brings the embedding."""
        try:
            held.mean.add(rows)
        except BadStates as error:
            return Output(piece.seq_id, piece.epoch, error=str(error))
        if piece.end < held.start.num_prompt:
            return Output(piece.seq_id, piece.epoch)
        return Output(piece.seq_id, piece.epoch, payload=Payload(embedding=held.mean.unit()))

    def _drawn(self, parts: Sequence[Part], rows: Rows) -> Drawn:
        """The draws of slices that draw; row i of the logits belongs to part i."""
        jobs: list[Job] = []
        for row, part in enumerate(parts):
            piece, held = part.piece, part.held
            start = held.start
            prompt, output = held.tokens[: start.num_prompt], held.tokens[start.num_prompt :]
            try:
                restriction = self._constraints.at(start, output)
            except DeadEnd as error:
                held.tokens.append(0)  # a step planned ahead may ask for it before the core hears of this
                part.output = Output(piece.seq_id, piece.epoch, error=str(error))
                continue
            if start.params.beam_width is not None:
                part.output = _beam(piece, start, rows.logits[row], prompt, output, restriction)
                continue
            if piece.end != len(held.tokens):
                raise Bug(
                    f"sequence {piece.seq_id} draws at {piece.end}, but {len(held.tokens)} tokens are known"
                )
            part.first_job, part.place, held.source = len(jobs), len(held.tokens), len(jobs)
            jobs.extend(_jobs(piece, row, start, prompt, output, restriction))
            held.tokens.append(UNKNOWN)
        return self._draw(rows.logits, jobs) if jobs else Known([])

    def _prompt(self, part: Part, hidden: Tensor, first_row: int) -> tuple[tuple[int, Choice], ...] | Output:
        """(position, choice) of the prompt tokens that follow this slice's positions."""
        piece, held = part.piece, part.held
        stop, num_top = _prompt_end(part), held.start.params.prompt_logprobs
        assert num_top is not None
        pairs: list[tuple[int, Choice]] = []
        for start in range(piece.start, stop, PROMPT_ROWS):
            end = min(start + PROMPT_ROWS, stop)
            row = first_row + start - piece.start
            logits = self.model.logits(hidden[row : row + end - start])
            try:
                found = prompt_logprobs(
                    logits, held.tokens[start + 1 : end + 1], num_top, self.model.sampling
                )
            except BadLogits as error:
                return Output(piece.seq_id, piece.epoch, error=str(error))
            del logits  # before the next rows' are made
            pairs.extend(zip(range(start + 1, end + 1), found, strict=True))
        return tuple(pairs)


def _jobs(
    piece: Slice,
    row: int,
    start: Start,
    prompt: Sequence[int],
    output: Sequence[int],
    restriction: Restriction,
) -> list[Job]:
    """One job per sample. Parallel choices of a prompt count on from the slice's own index."""
    return [
        Job(
            row=row,
            params=start.params,
            seed=start.seed,
            choice=start.index + sample,
            position=piece.end,
            prompt_tokens=prompt,
            output_tokens=output,
            suppressed=restriction.suppressed,
            allowed=restriction.allowed,
        )
        for sample in range(piece.samples)
    ]


def _beam(
    piece: Slice,
    start: Start,
    logits: Tensor,
    prompt: Sequence[int],
    output: Sequence[int],
    restriction: Restriction,
) -> Output:
    params = start.params
    assert params.beam_width is not None
    ends = set(params.stop_token_ids) | (set() if params.ignore_eos else start.end_token_ids)
    count = num_candidates(params.beam_width, len(ends))
    try:
        found = candidates(logits, count, params, prompt, output, restriction.suppressed, restriction.allowed)
    except BadLogits as error:
        return Output(piece.seq_id, piece.epoch, error=str(error))
    return Output(piece.seq_id, piece.epoch, payload=Payload(candidates=found))


def _looks_at_states(part: Part) -> bool:
    return part.held.start.params.embed or _prompt_end(part) > part.piece.start


def _prompt_end(part: Part) -> int:
    """Position before which log-probabilities of the slice's prompt tokens are asked for; its start: none are."""
    if part.held.start.params.prompt_logprobs is None:
        return part.piece.start
    return max(min(part.piece.end, part.held.start.num_prompt - 1), part.piece.start)


def _follows(params: SamplingParams) -> bool:
    """Whether what may be drawn next depends on which tokens have been drawn."""
    return bool(
        params.grammar is not None
        or params.beam_width is not None
        or params.bad_words
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
    )
