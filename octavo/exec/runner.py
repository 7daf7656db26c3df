"""The executor that owns tensors: steps in, tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.step import Output, Slice, Step, StepResult
from octavo.decode.beam import candidates, num_candidates
from octavo.decode.grammar import DeadEnd
from octavo.decode.logprobs import BadLogits, Choice, prompt_logprobs
from octavo.decode.sampler import Job, sample_rows
from octavo.errors import Bug
from octavo.exec.batch import Held, build
from octavo.exec.constraints import Constraints, Restriction
from octavo.exec.executor import Start
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


class Runner:
    """Runs a model over a KV pool, both of which it owns from here on."""

    def __init__(self, model: Model, kv: KvPool) -> None:
        self.model = model
        self.kv = kv
        self._held: dict[int, Held] = {}
        self._constraints = Constraints(model.arch.vocab_size, model.device)

    def run(
        self,
        step: Step,
        starts: Sequence[Start] = (),
        appended: Sequence[tuple[int, int]] = (),
        ended: Sequence[int] = (),
    ) -> StepResult:
        """Carry out a step; see `Executor.run`."""
        self._learn(step, starts, appended, ended)
        if step.copies:
            self.kv.copy(step.copies)
        if not step.slices:
            return StepResult(step.number, ())
        for piece in step.slices:
            self._held[piece.seq_id].apply(piece)
        with torch.inference_mode():
            batch = build(step.slices, self._held, self.kv.layout.block_tokens, self.model.device)
            hidden = self.model.forward(batch, self.kv)
            return StepResult(step.number, self._outputs(step.slices, hidden))

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

    def _outputs(self, slices: Sequence[Slice], hidden: Tensor) -> tuple[Output, ...]:
        last_rows, row = [], 0
        first_rows = []
        for piece in slices:
            first_rows.append(row)
            row += piece.num_tokens
            last_rows.append(row - 1)
        drawing = [i for i, piece in enumerate(slices) if piece.samples]
        found: dict[int, Output] = {}
        if drawing:
            rows = torch.tensor([last_rows[i] for i in drawing], device=hidden.device)
            logits = self.model.logits(hidden[rows])
            found = self._drawn([slices[i] for i in drawing], logits)
        outputs = []
        for i, piece in enumerate(slices):
            output = found.get(piece.seq_id, Output(piece.seq_id, piece.epoch))
            if self._held[piece.seq_id].start.params.embed:
                outputs.append(self._embedded(piece, hidden[first_rows[i] : last_rows[i] + 1]))
            else:
                outputs.append(self._with_prompt(piece, output, hidden, first_rows[i]))
        return tuple(outputs)

    def _embedded(self, piece: Slice, rows: Tensor) -> Output:
        """Add a slice's hidden states [T, E] up; the last slice of the prompt brings the embedding."""
        held = self._held[piece.seq_id]
        try:
            held.mean.add(rows)
        except BadStates as error:
            return Output(piece.seq_id, piece.epoch, error=str(error))
        if piece.end < held.start.num_prompt:
            return Output(piece.seq_id, piece.epoch)
        return Output(piece.seq_id, piece.epoch, payload=Payload(embedding=held.mean.unit()))

    def _drawn(self, slices: Sequence[Slice], logits: Tensor) -> dict[int, Output]:
        """Outputs of the slices that draw, by sequence; row i of `logits` belongs to slice i."""
        jobs: list[Job] = []
        found: dict[int, Output] = {}
        for row, piece in enumerate(slices):
            held = self._held[piece.seq_id]
            output = held.tokens[held.start.num_prompt :]
            try:
                restriction = self._constraints.at(held.start, output)
            except DeadEnd as error:
                found[piece.seq_id] = self._failed(piece, held, str(error))
                continue
            if held.start.params.beam_width is None:
                jobs.extend(self._jobs(piece, row, restriction))
            else:
                found[piece.seq_id] = self._beam(piece, held, logits[row], restriction)
        drawn = iter(sample_rows(logits, jobs, self.model.greedy))
        for piece in slices:
            if piece.seq_id not in found:
                choices = [next(drawn) for _ in range(piece.samples)]
                found[piece.seq_id] = self._sampled(piece, self._held[piece.seq_id], choices)
        return found

    def _jobs(self, piece: Slice, row: int, restriction: Restriction) -> list[Job]:
        """One job per sample. Parallel choices of a prompt count on from the slice's own index."""
        held = self._held[piece.seq_id]
        start = held.start
        if piece.end != len(held.tokens):
            raise Bug(
                f"sequence {piece.seq_id} draws at {piece.end}, but {len(held.tokens)} tokens are known"
            )
        prompt, output = held.tokens[: start.num_prompt], held.tokens[start.num_prompt :]
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

    def _sampled(self, piece: Slice, held: Held, choices: Sequence[Choice | BadLogits]) -> Output:
        good = [choice for choice in choices if isinstance(choice, Choice)]
        if len(good) < len(choices):
            bad = next(choice for choice in choices if isinstance(choice, BadLogits))
            return self._failed(piece, held, str(bad))
        held.tokens.append(good[0].token)
        tokens = tuple(choice.token for choice in good)
        complete = self._constraints.drawn(held.start, tokens)
        payload = Payload(choices=tuple(good), complete=complete)
        return Output(piece.seq_id, piece.epoch, tokens, payload=payload)

    def _failed(self, piece: Slice, held: Held, why: str) -> Output:
        held.tokens.append(0)  # a step planned ahead may ask for it before the core hears of this
        return Output(piece.seq_id, piece.epoch, error=why)

    def _beam(self, piece: Slice, held: Held, logits: Tensor, restriction: Restriction) -> Output:
        start = held.start
        params = start.params
        assert params.beam_width is not None
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else start.end_token_ids)
        prompt, output = held.tokens[: start.num_prompt], held.tokens[start.num_prompt :]
        try:
            found = candidates(
                logits,
                num_candidates(params.beam_width, len(ends)),
                params,
                prompt,
                output,
                restriction.suppressed,
                restriction.allowed,
            )
        except BadLogits as error:
            return Output(piece.seq_id, piece.epoch, error=str(error))
        return Output(piece.seq_id, piece.epoch, payload=Payload(candidates=found))

    def _with_prompt(self, piece: Slice, output: Output, hidden: Tensor, first_row: int) -> Output:
        """The output with log-probabilities of the prompt tokens that follow this slice's positions."""
        held = self._held[piece.seq_id]
        num_top = held.start.params.prompt_logprobs
        stop = min(piece.end, held.start.num_prompt - 1)
        if num_top is None or stop <= piece.start or output.error is not None:
            return output
        pairs: list[tuple[int, Choice]] = []
        for start in range(piece.start, stop, PROMPT_ROWS):
            end = min(start + PROMPT_ROWS, stop)
            row = first_row + start - piece.start
            logits = self.model.logits(hidden[row : row + end - start])
            try:
                found = prompt_logprobs(logits, held.tokens[start + 1 : end + 1], num_top)
            except BadLogits as error:
                return Output(piece.seq_id, piece.epoch, error=str(error))
            del logits  # before the next rows' are made
            pairs.extend(zip(range(start + 1, end + 1), found, strict=True))
        seen = output.payload if isinstance(output.payload, Payload) else Payload()
        payload = Payload(seen.choices, tuple(pairs), seen.candidates, seen.complete)
        return Output(output.seq_id, output.epoch, output.tokens, payload=payload)
