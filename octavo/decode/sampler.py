"""The next token of a sequence, from its row of logits.

Order: tokens that are not allowed, logit bias, penalties (presence and frequency over the output, then repetition over
prompt and output), tokens forbidden for now, temperature, top-k, top-p, min-p, draw. All in float32, one row at a time:
a row's token does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.core.sequence import SamplingParams
from octavo.decode.logprobs import BadLogits, Choice, bad_logits
from octavo.errors import RequestError
from octavo.kernels.sampling import NO_TOKEN, TORCH, Described, Draw, Sampling
from octavo.kernels.sampling.noise import stream_key
from octavo.planner.memory import CHANGED_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One token to be drawn.

    row       index of its row of logits; several choices of one prompt may share a row
    seed, choice, position
              name the draw: the same three give the same noise. `position` is the index in the sequence,
              prompt included, of the token to be drawn
    prompt_tokens, output_tokens
              the sequence so far, read by the penalties only
    suppressed
              token ids that must not be drawn now (end tokens before min_tokens, ends of bad words)
    allowed   [V] bool: the only tokens that may be drawn; None allows all
    """

    row: int
    params: SamplingParams
    seed: int
    choice: int
    position: int
    prompt_tokens: Sequence[int] = ()
    output_tokens: Sequence[int] = ()
    suppressed: Collection[int] = field(default=frozenset())
    allowed: Tensor | None = None


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """Raises RequestError for token ids the model does not have; to be called once, when it comes in."""
    for name, ids in (("logit_bias", params.logit_bias or ()), ("stop_token_ids", params.stop_token_ids)):
        for token in ids:
            if token >= vocab_size:
                raise RequestError(
                    f"{name} names token {token}, the model's ids end at {vocab_size - 1}", param=name
                )


def sample_rows(logits: Tensor, jobs: Sequence[Job], sampling: Sampling = TORCH) -> list[Choice | BadLogits]:
    """Draws one token per job; a bad row spoils its own jobs only.

    logits  [N, V] float32, as the model gave them; only read
    Raises RequestError when `logit_bias` names a token past V.
    """
    plain = [is_plain(job) for job in jobs]
    likeliest = sampling.greedy(logits) if any(plain) else []
    drawn = _drawn(logits, {i: job for i, job in enumerate(jobs) if not plain[i]}, sampling)
    tokens = [likeliest[job.row].token if plain[i] else drawn[i] for i, job in enumerate(jobs)]
    asked = [
        i for i, job in enumerate(jobs) if not plain[i] or job.params.logprobs or likeliest[job.row].problem
    ]
    described = sampling.describe(
        logits, [(jobs[i].row, max(tokens[i], 0), jobs[i].params.logprobs or 0) for i in asked]
    )
    facts = dict(zip(asked, described, strict=True))
    return [
        _choice(logits[job.row], tokens[i], facts[i])
        if i in facts
        else Choice(tokens[i], likeliest[job.row].logprob, rank=1)
        for i, job in enumerate(jobs)
    ]


def _choice(row: Tensor, token: int, facts: Described) -> Choice | BadLogits:
    if facts.problem:
        return bad_logits(row, facts.problem)
    if token == NO_TOKEN:
        return BadLogits("every token is forbidden or has logit -inf")
    return Choice(token, facts.logprob, facts.rank, facts.top)


def _drawn(logits: Tensor, jobs: Mapping[int, Job], sampling: Sampling) -> dict[int, int]:
    """The token of each job, or NO_TOKEN."""
    raw = [i for i, job in jobs.items() if _is_raw(job)]
    tokens = dict(zip(raw, sampling.draw(logits, [_draw(jobs[i], jobs[i].row) for i in raw]), strict=True))
    cold = [i for i, job in jobs.items() if i not in tokens and job.params.is_greedy]
    for some in _groups(cold):
        found = sampling.greedy(_changed(logits, [jobs[i] for i in some]))
        tokens |= {i: NO_TOKEN if one.problem else one.token for i, one in zip(some, found, strict=True)}
    warm = [i for i in jobs if i not in tokens]
    for some in _groups(warm):
        rows = _changed(logits, [jobs[i] for i in some])
        draws = [_draw(jobs[i], row) for row, i in enumerate(some)]
        tokens |= dict(zip(some, sampling.draw(rows, draws), strict=True))
    return tokens


def _groups(which: Sequence[int]) -> Iterator[Sequence[int]]:
    return (which[first : first + CHANGED_ROWS] for first in range(0, len(which), CHANGED_ROWS))


def _changed(logits: Tensor, jobs: Sequence[Job]) -> Tensor:
    """Rows after allowed tokens, bias, penalties and forbidden tokens, [J, V] fresh."""
    rows = logits.new_empty(len(jobs), logits.shape[1])
    for row, job in zip(rows, jobs, strict=True):
        row.copy_(
            adjusted(
                logits[job.row], job.params, job.prompt_tokens, job.output_tokens, job.suppressed, job.allowed
            )
        )
    return rows


def _draw(job: Job, row: int) -> Draw:
    params = job.params
    key = stream_key(job.seed, job.choice, job.position)
    return Draw(row, params.temperature, params.top_k, params.top_p, params.min_p, key)


def is_plain(job: Job) -> bool:
    """Whether the highest raw logit is the answer."""
    return job.params.is_greedy and _is_raw(job)


def _is_raw(job: Job) -> bool:
    """Whether the row is drawn from as the model gave it."""
    return job.allowed is None and not job.suppressed and not _changes_logits(job.params)


def _changes_logits(params: SamplingParams) -> bool:
    return bool(
        params.logit_bias
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
    )


def adjusted(
    row: Tensor,
    params: SamplingParams,
    prompt_tokens: Sequence[int],
    output_tokens: Sequence[int],
    suppressed: Collection[int],
    allowed: Tensor | None = None,
) -> Tensor:
    """The row without what is not allowed, after bias, penalties and forbidden tokens; itself when nothing changes it.

    row  [V] float32: logits, or log-probabilities in beam search; only read
    Raises RequestError when `logit_bias` names a token past V.
    """
    if allowed is None and not suppressed and not _changes_logits(params):
        return row
    row = row.clone() if allowed is None else row.masked_fill(~allowed, float("-inf"))
    if params.logit_bias:
        check_params(params, row.numel())
        row[_ids(params.logit_bias, row)] += torch.tensor(
            list(params.logit_bias.values()), dtype=row.dtype, device=row.device
        )
    if output_tokens and (params.presence_penalty or params.frequency_penalty):
        ids, counts = torch.unique(_ids(output_tokens, row), return_counts=True)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts.to(row.dtype)
    if params.repetition_penalty != 1.0 and (prompt_tokens or output_tokens):
        ids = torch.unique(_ids([*prompt_tokens, *output_tokens], row))
        seen = row[ids]
        row[ids] = torch.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
    if suppressed:
        row[_ids(suppressed, row)] = float("-inf")
    return row


def _ids(tokens: Collection[int], row: Tensor) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.int64, device=row.device)
