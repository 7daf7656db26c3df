"""Which tokens may be drawn: top-k, then top-p, then min-p, each over what the one before left."""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST_GUESS = 512


def select(row: Tensor, top_k: int, top_p: float, min_p: float) -> tuple[Tensor, Tensor]:
    """Token ids that may be drawn, and their logits.

    row    [V] float32 without NaN, already divided by the temperature; -inf is never selected
    top_k  0, -1 and anything from V on: off;  top_p  1: off;  min_p  0: off
    Returns int64 and float32, both [N]; N is 0 only when the whole row is -inf.
    """
    limit = row.numel() if top_k <= 0 else min(top_k, row.numel())
    if top_p < 1.0:
        ids, values = nucleus(row, top_p, limit)
    elif limit < row.numel():
        ids, values = highest(row, limit)
    else:
        ids, values = torch.arange(limit, device=row.device), row
    if min_p > 0.0:
        likely = (values - values.max()).double().exp() >= min_p
        ids, values = ids[likely], values[likely]
    finite = values > float("-inf")
    return (ids, values) if bool(finite.all()) else (ids[finite], values[finite])


def highest(row: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest entries of a row, highest first; on a tie the lower id goes first, also across the edge.

    row  [V] float32 without NaN;  k  from 1 to V
    Returns ids and values, both [k].
    """
    if k < row.numel():
        edge = row.topk(k).values[-1]
        above = (row > edge).nonzero().flatten()
        level = (row == edge).nonzero().flatten()[: k - above.numel()]
        ids = torch.cat((above, level)).sort().values
    else:
        ids = torch.arange(k, device=row.device)
    values, order = row[ids].sort(descending=True, stable=True)
    return ids[order], values


def nucleus(row: Tensor, top_p: float, limit: int) -> tuple[Tensor, Tensor]:
    """The fewest tokens, likeliest first, whose probabilities reach top_p; the one that crosses it is kept.

    limit  only the `limit` highest take part, and probabilities are relative to their sum
    Probabilities and running sums are float64. The row is sorted whole only when its head is too flat to do.
    Returns ids and values, highest first. Source: Holtzman et al. 2020 (arXiv 1904.09751), sec. 3.1.
    """
    if limit < row.numel():
        ids, values = highest(row, limit)
        probabilities = values.double().softmax(-1)
    else:
        whole = row.double().softmax(-1)
        guess = min(_FIRST_GUESS, limit)
        while True:
            ids, values = highest(row, guess)
            probabilities = whole[ids]
            if guess == limit or probabilities.cumsum(-1)[-1] >= top_p:
                break
            guess = min(guess * 16, limit)
    sums = probabilities.cumsum(-1)
    num_kept = 1 + int((sums[:-1] < top_p).sum())
    return ids[:num_kept], values[:num_kept]
