"""Guided attention: a few heads are told early where to look, so that retrieval forms in minutes, not hours.

Looking a value up takes two kinds of heads: some that bring along the tokens before each token, and some that
find the place where the same tokens stood before. Left alone, a small model finds both late and suddenly. While
a guide is on, the loss gets the cross-entropy between chosen heads' attention and the right place, on recall
rows only; later it is off, and the heads are free.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

PREVIOUS_HEADS = ((0, 0, 1), (0, 2, 2), (1, 0, 1))
"""(layer, query head, how many tokens back to look)."""

RETRIEVAL_HEADS = ((2, 0), (3, 2), (4, 0))
"""(layer, query head) that look at the token to be said next, where it stood before."""

NOWHERE = -1


def places(tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For each token, where the token after it was read before; [N, T], NOWHERE where it was not.

    The place is the last earlier one where the next token followed the same two tokens; only places whose next
    token carries weight are given.
    """
    found = np.full(tokens.shape, NOWHERE, dtype=np.int64)
    for row, (ids, marks) in enumerate(zip(tokens.tolist(), weights.tolist(), strict=True)):
        last: dict[tuple[int, int, int], int] = {}
        for t in range(1, len(ids) - 1):
            seen = (ids[t - 1], ids[t], ids[t + 1])
            if marks[t + 1] > 0 and seen in last:
                found[row, t] = last[seen]
            last[seen] = t + 1
    return found


def guide_loss(watched: Sequence[tuple[Tensor, Tensor]], found: Tensor, real: Tensor) -> Tensor:
    """Mean cross-entropy of the guided heads' attention with where they should look.

    watched  rotated queries and keys of each layer, [N, H, T, D] each
    found    places to retrieve from, [N, T]
    real     whether a token is not padding, [N, T]
    """
    N, T = found.shape
    position = torch.arange(T)
    total = torch.zeros(())
    for layer, head, back in PREVIOUS_HEADS:
        goal = (position - back).clamp(min=0).expand(N, T)
        total = total + _cross_entropy(*watched[layer], head, goal, real)
    for layer, head in RETRIEVAL_HEADS:
        total = total + _cross_entropy(*watched[layer], head, found.clamp(min=0), found != NOWHERE)
    return total / (len(PREVIOUS_HEADS) + len(RETRIEVAL_HEADS))


def _cross_entropy(q: Tensor, k: Tensor, head: int, goal: Tensor, counted: Tensor) -> Tensor:
    """Mean of -log attention(goal) of one head over the counted positions."""
    T, D = q.shape[-2:]
    scores = (q[:, head] @ k[:, head].mT).float() * D**-0.5
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    log_attention = scores.masked_fill(hidden, -torch.inf).log_softmax(-1)
    at_goal = log_attention.gather(-1, goal.unsqueeze(-1)).squeeze(-1)
    loss: Tensor = -at_goal[counted].mean()
    return loss
