"""The next token of a sequence, from its row of logits.

Order: tokens that are not allowed, logit bias, penalties (presence and frequency over the output, then repetition over
prompt and output), tokens forbidden for now, temperature, top-k, top-p, min-p, draw. All in float32, one row at a time:
a row's token does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.core.sequence import SamplingParams
from octavo.decode.logprobs import BadLogits, Choice, check_row, describe
from octavo.decode.noise import gumbel, stream_key
from octavo.decode.truncate import select
from octavo.errors import RequestError
from octavo.kernels import sampling
from octavo.kernels.sampling import Greedy


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


def sample_row(
    logits: Tensor,
    params: SamplingParams,
    seed: int,
    choice: int,
    position: int,
    prompt_tokens: Sequence[int] = (),
    output_tokens: Sequence[int] = (),
    suppressed: Collection[int] = frozenset(),
    allowed: Tensor | None = None,
) -> Choice:
    """Draws one token.

    logits  [V] float32, as the model gave them; only read
    The rest is described at `Job`.
    Raises BadLogits when nothing can be drawn, RequestError when `logit_bias` names a token past V.
    """
    check_row(logits)
    row = adjusted(logits, params, prompt_tokens, output_tokens, suppressed, allowed)
    if params.is_greedy:
        token = int(row.argmax())
    else:
        ids, values = select(row / params.temperature, params.top_k, params.top_p, params.min_p)
        scores = values.double() + gumbel(stream_key(seed, choice, position), ids)
        token = int(ids[scores == scores.max()].min()) if ids.numel() else 0
    if float(row[token]) == float("-inf"):
        raise BadLogits("every token is forbidden or has logit -inf")
    return describe(logits, token, params.logprobs or 0)


def sample_rows(
    logits: Tensor, jobs: Sequence[Job], greedy: Callable[[Tensor], list[Greedy]] = sampling.greedy
) -> list[Choice | BadLogits]:
    """Draws one token per job, the same that `sample_row` draws; a bad row spoils its own jobs only.

    logits  [N, V] float32
    greedy  finds the likeliest tokens of all rows at once; see `octavo.kernels.sampling`
    """
    plain = [is_plain(job) for job in jobs]
    likeliest = greedy(logits) if any(plain) else []
    results: list[Choice | BadLogits] = []
    for job, takes_top in zip(jobs, plain, strict=True):
        row = logits[job.row]
        try:
            if takes_top:
                found = likeliest[job.row]
                if found.problem:
                    check_row(row)
                if job.params.logprobs:
                    results.append(describe(row, found.token, job.params.logprobs))
                else:
                    results.append(Choice(found.token, found.logprob, rank=1))
            else:
                results.append(
                    sample_row(
                        row,
                        job.params,
                        job.seed,
                        job.choice,
                        job.position,
                        job.prompt_tokens,
                        job.output_tokens,
                        job.suppressed,
                        job.allowed,
                    )
                )
        except BadLogits as error:
            results.append(error)
    return results


def is_plain(job: Job) -> bool:
    """Whether the highest raw logit is the answer."""
    is_free = job.allowed is None and not job.suppressed
    return job.params.is_greedy and is_free and not _changes_logits(job.params)


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
