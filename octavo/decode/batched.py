"""From logits to tokens for all rows of a step at once, without waiting for the device.

The draws are those of `sampler.sample_rows`: the same order of application, the same noise. A job's result depends on
nothing but the job: sums over the vocabulary are taken as whole numbers, which no order and no company can change, and
everything else goes element by element. Nothing here reads from the device until `Drawn.read`, and that is one
transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.decode.logprobs import BadLogits, Choice
from octavo.decode.sampler import Job, is_plain
from octavo.kernels.sampling import PROBLEMS, Likeliest, likeliest, ordered, whole_shares
from octavo.kernels.sampling.noise import gumbel, signed, stream_key
from octavo.planner.device import DRAW_BYTES

GROUP_BYTES = DRAW_BYTES
"""Bound of the work space of the rows that are handled together, unless one row alone needs more."""
ROW_BYTES = 96
"""Of work space for each entry of a row: sorted values and their places, noise, shares, and what torch keeps beside."""
NUM_FIXED = 4
"""Columns of a result before those of the likeliest tokens: token, log-probability, rank, problem."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token per job, on the device.

    tokens   [J] int64; without meaning where a job has a problem, but an id of the vocabulary all the same
    results  [J, NUM_FIXED + 2 n] float64, exact: see NUM_FIXED; then n ids and n log-probabilities, likeliest first
    num_top  of each job, how many of those it asked for
    ready    says when `host` holds the results; None on the CPU
    """

    tokens: Tensor
    results: Tensor
    num_top: tuple[int, ...]
    ready: Any = None

    def read(self) -> list[Choice | BadLogits]:
        """Waits for the results; in the order of the jobs."""
        if self.ready is not None:
            self.ready.synchronize()
        wide = (self.results.shape[1] - NUM_FIXED) // 2
        return [
            _choice(row, num_top, wide)
            for row, num_top in zip(self.results.tolist(), self.num_top, strict=True)
        ]


def draw(logits: Tensor, jobs: Sequence[Job], find: Callable[[Tensor], Likeliest] = likeliest) -> Drawn:
    """Draws one token per job.

    logits  [N, V] float32, as the model gave them; only read
    find    the likeliest token of every row; see `octavo.kernels.sampling`
    """
    device, size = logits.device, logits.shape[1]
    facts = find(logits)
    rows = moved([job.row for job in jobs], torch.int64, device)
    of_job = Likeliest(*(column.index_select(0, rows) for column in facts))
    num_top = tuple(min(job.params.logprobs or 0, size) for job in jobs)
    widest = max(num_top, default=0)
    results = torch.zeros(len(jobs), NUM_FIXED + 2 * widest, dtype=torch.float64, device=device)
    results[:, 0] = of_job.tokens
    results[:, 1] = -of_job.log_masses
    results[:, 2] = 1
    results[:, 3] = of_job.problems
    closer = [i for i, job in enumerate(jobs) if not is_plain(job) or num_top[i]]
    for group in _groups(closer, size):
        index = moved(group, torch.int64, device)
        raw = logits.index_select(0, rows.index_select(0, index))
        some = Likeliest(*(column.index_select(0, index) for column in of_job))
        tokens, problems = _tokens(raw, [jobs[i] for i in group], some)
        described = _described(raw, some, tokens, widest)
        results.index_copy_(
            0, index, torch.cat((tokens[:, None], described[:, :2], problems[:, None], described[:, 2:]), 1)
        )
    tokens = results[:, 0].to(torch.int64)
    if device.type != "cuda":
        return Drawn(tokens, results, num_top)
    host = torch.empty(results.shape, dtype=results.dtype, pin_memory=True)
    host.copy_(results, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return Drawn(tokens, host, num_top, ready)


def moved(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of `values` on a device; the host does not wait for what the device still has to do."""
    here = torch.tensor(values, dtype=dtype)
    return (here.pin_memory() if device.type == "cuda" else here).to(device, non_blocking=True)


def _choice(row: Sequence[float], num_top: int, wide: int) -> Choice | BadLogits:
    token, logprob, rank, problem = row[:NUM_FIXED]
    if problem:
        return BadLogits(_WHY[int(problem)])
    ids, values = row[NUM_FIXED : NUM_FIXED + num_top], row[NUM_FIXED + wide : NUM_FIXED + wide + num_top]
    return Choice(
        int(token),
        logprob,
        int(rank),
        tuple((int(one), value) for one, value in zip(ids, values, strict=True)),
    )


_FORBIDDEN = len(PROBLEMS)
_WHY = (
    "",
    "a logit is NaN",
    "a logit is +inf",
    "every logit is -inf",
    "every token is forbidden or has logit -inf",
)


def _groups(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    most = max(GROUP_BYTES // (ROW_BYTES * size), 1)
    for first in range(0, len(indices), most):
        yield list(indices[first : first + most])


def _tokens(raw: Tensor, jobs: Sequence[Job], facts: Likeliest) -> tuple[Tensor, Tensor]:
    """(token, problem) of each job [J]; row i of `raw` belongs to job i and may be written to no more."""
    adjusted = _adjusted(raw, jobs)
    tokens = adjusted.argmax(-1)
    hot = [i for i, job in enumerate(jobs) if not job.params.is_greedy]
    if hot:
        index = moved(hot, torch.int64, raw.device)
        drawn = _noisy(adjusted.index_select(0, index), [jobs[i] for i in hot])
        tokens = tokens.index_copy(0, index, drawn)
    barred = adjusted.gather(1, tokens[:, None])[:, 0] == float("-inf")
    problems = torch.where((facts.problems == 0) & barred, _FORBIDDEN, facts.problems)
    return tokens, problems


def _adjusted(raw: Tensor, jobs: Sequence[Job]) -> Tensor:
    """Rows after allowed tokens, bias, penalties and forbidden tokens."""
    device, rows = raw.device, raw.clone()
    masked = [i for i, job in enumerate(jobs) if job.allowed is not None]
    if masked:
        allowed = torch.stack([job.allowed for job in jobs if job.allowed is not None])
        index = moved(masked, torch.int64, device)
        rows.index_copy_(0, index, rows.index_select(0, index).masked_fill(~allowed, float("-inf")))
    biases = [
        (i, token, bias)
        for i, job in enumerate(jobs)
        for token, bias in (job.params.logit_bias or {}).items()
    ]
    if biases:
        places = _places(biases, device)
        rows.index_put_(places, rows[places] + moved([bias for *_, bias in biases], torch.float32, device))
    _penalise(rows, jobs)
    barred = [(i, token) for i, job in enumerate(jobs) for token in job.suppressed]
    if barred:
        rows.index_put_(_places(barred, device), rows.new_full((1,), float("-inf")))
    return rows


def _penalise(rows: Tensor, jobs: Sequence[Job]) -> None:
    device = rows.device
    lowered: list[tuple[int, int, float]] = []
    repeated: list[tuple[int, int, float]] = []
    for i, job in enumerate(jobs):
        params = job.params
        if params.presence_penalty or params.frequency_penalty:
            seen, counts = _counted(job.output_tokens)
            by = np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * counts
            lowered += [(i, token, much) for token, much in zip(seen.tolist(), by.tolist(), strict=True)]
        if params.repetition_penalty != 1.0:
            seen, _ = _counted([*job.prompt_tokens, *job.output_tokens])
            repeated += [(i, token, params.repetition_penalty) for token in seen.tolist()]
    if lowered:
        places = _places(lowered, device)
        rows.index_put_(places, rows[places] - moved([much for *_, much in lowered], torch.float32, device))
    if repeated:
        places = _places(repeated, device)
        old, by = rows[places], moved([penalty for *_, penalty in repeated], torch.float32, device)
        rows.index_put_(places, torch.where(old > 0, old / by, old * by))


def _counted(tokens: Sequence[int]) -> tuple[Any, Any]:
    """Each token once, ascending, and how often it occurs (float32)."""
    seen, counts = np.unique(np.asarray(tokens, dtype=np.int64), return_counts=True)
    return seen, counts.astype(np.float32)


def _places(entries: Sequence[tuple[Any, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(row, token) of entries that begin with both, as an index."""
    rows, tokens = moved([entry[:2] for entry in entries], torch.int64, device).unbind(1)
    return rows, tokens


def _noisy(rows: Tensor, jobs: Sequence[Job]) -> Tensor:
    """Draws [J] from rows after temperature, top-k, top-p and min-p, with each draw's own noise."""
    device, size = rows.device, rows.shape[1]
    params = [job.params for job in jobs]
    values = rows / moved([[one.temperature] for one in params], torch.float32, device)
    kept = values > float("-inf")
    cut = [i for i, one in enumerate(params) if 0 < one.top_k < size or one.top_p < 1.0]
    if cut:
        index = moved(cut, torch.int64, device)
        kept.index_copy_(0, index, _cut(values.index_select(0, index), [params[i] for i in cut]))
    if any(one.min_p > 0.0 for one in params):
        least = moved([[one.min_p] for one in params], torch.float64, device)
        kept &= (values - values.amax(-1, keepdim=True)).double().exp() >= least
    keys = [[signed(stream_key(job.seed, job.choice, job.position))] for job in jobs]
    scores = gumbel(moved(keys, torch.int64, device), torch.arange(size, device=device)).add_(values)
    return scores.masked_fill_(~kept, float("-inf")).argmax(-1)


def _cut(values: Tensor, params: Sequence[Any]) -> Tensor:
    """What top-k and top-p leave of each row, [J, V]; of equal values the lower ids come first."""
    device, size = values.device, values.shape[1]
    limits = [[one.top_k if 0 < one.top_k < size else size] for one in params]
    shares = [[one.top_p] for one in params]
    sorted_values, ids = values.sort(dim=-1, descending=True, stable=True)
    within = torch.arange(size, device=device) < moved(limits, torch.int64, device)
    mass = whole_shares(sorted_values.masked_fill_(~within, float("-inf")), sorted_values[:, :1])
    before = mass.cumsum(-1) - mass
    share = moved(shares, torch.float64, device)
    within &= (before < mass.sum(-1, keepdim=True) * share) | (share >= 1.0)
    within &= sorted_values > float("-inf")
    return torch.zeros_like(within).scatter_(1, ids, within)


def _described(raw: Tensor, facts: Likeliest, tokens: Tensor, num_top: int) -> Tensor:
    """Log-probability and rank of each token, then ids and log-probabilities of the likeliest, [J, 2 + 2 n] float64."""
    logprobs = (raw - facts.tops[:, None]) - facts.log_masses[:, None]
    own = logprobs.gather(1, tokens[:, None])
    ids = torch.arange(raw.shape[1], device=raw.device)
    ahead = (logprobs > own) | ((logprobs == own) & (ids < tokens[:, None]))
    columns = [own.double(), 1.0 + ahead.sum(-1, keepdim=True).double()]
    if num_top:
        keys = (ordered(logprobs) << 32) + (2**31 - 1 - ids)
        best = 2**31 - 1 - (keys.topk(num_top, dim=-1).values & (2**32 - 1))
        columns += [best.double(), logprobs.gather(1, best).double()]
    return torch.cat(columns, dim=1)
