"""A time model for steps that were recorded: a linear one, or one in which reading weights and multiplying overlap.

On a CPU time grows with what is in a step; on an accelerator a step takes as long as reading the weights does until it
has many tokens. Both are fitted, and the one that is nearer to the steps is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from octavo.sim.calibrate import Fit, fit_linear
from octavo.sim.from_requests import simplex
from octavo.sim.timing import Blend, Linear, TimeModel, Work

Floats = NDArray[np.float64]

MAX_STEPS = 4000
"""So many are looked at, evenly spread over all."""
NUM_RUNS = 600
HUBER = 0.05
"""Relative errors above that count linearly."""
BETTER = 0.9
"""The second model is taken where its loss is at most so much of the first one's."""
NAMES = ("overhead_s", "seq_s", "weights_s", "token_s", "context_s", "sampled_tokens", "pair_tokens")


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model of steps, and the median of its errors as a share of what they took."""

    model: TimeModel
    median_error: float


def fitted(measured: Sequence[tuple[Work, float]]) -> Fitted:
    """The better of the two for (step, seconds) pairs."""
    linear = fit_linear(measured)
    some = measured[:: max(len(measured) // MAX_STEPS, 1)]
    rows, seconds = _rows(some), np.array([took_s for _, took_s in some])
    first = np.array([max(linear.model.seconds(work), 0.0) for work, _ in some])
    blend, loss, error = _fit_blend(rows, seconds, linear)
    model: Linear | Blend = linear.model
    if loss < BETTER * _huber(first / seconds - 1):
        model = blend
    else:
        error = linear.median_error
    return Fitted(_scaled(model, _bias(model, measured)), error)


def _bias(model: TimeModel, measured: Sequence[tuple[Work, float]]) -> float:
    """What steps took together, per what the model says: what queues up goes by means, and fits go by medians.

    The worst hundredth is left out: what stalled once will not stall again.
    """
    said = np.array([model.seconds(work) for work, _ in measured])
    took = np.array([took_s for _, took_s in measured])
    kept = took / said <= np.percentile(took / said, 99)
    return float(took[kept].sum() / said[kept].sum())


def _scaled(model: Linear | Blend, times: float) -> Linear | Blend:
    changed = {one.name: getattr(model, one.name) * times for one in fields(model) if one.name.endswith("_s")}
    return replace(model, **changed)


def _rows(measured: Sequence[tuple[Work, float]]) -> Floats:
    """[steps, sequences | tokens | sampled rows | context of decodes | pairs of chunks]"""
    return np.array(
        [
            (work.num_seqs, work.num_tokens, work.num_sampled, work.decode_context, work.chunk_pairs)
            for work, _ in measured
        ],
        dtype=np.float64,
    )


def _fit_blend(rows: Floats, seconds: Floats, linear: Fit) -> tuple[Blend, float, float]:
    """The model, its loss, and its median error. The search begins at the linear fit."""
    start = _start(linear.model, float(np.percentile(seconds, 5)))

    def values(shift: Floats) -> Floats:
        return start * np.exp(np.clip(shift, -12.0, 6.0))

    def loss(shift: Floats) -> float:
        return _huber(_blend(rows, values(shift)) / seconds - 1)

    found, least, _ = simplex(loss, np.zeros(len(NAMES)), 0.5, NUM_RUNS)
    found, least, _ = simplex(loss, found, 0.2, NUM_RUNS)
    best = values(found)
    error = float(np.median(np.abs(_blend(rows, best) / seconds - 1)))
    return Blend(**{name: float(value) for name, value in zip(NAMES, best, strict=True)}), least, error


def _start(model: Linear, shortest_s: float) -> Floats:
    token_s = max(model.token_s, shortest_s * 1e-4)
    return np.array(
        [
            max(0.2 * model.overhead_s, shortest_s * 1e-2),
            max(model.seq_s, shortest_s * 1e-4),
            max(0.8 * model.overhead_s, shortest_s * 0.2),
            token_s,
            max(model.context_s, shortest_s * 1e-7),
            max(model.sampled_s / token_s, 1e-2),
            max(model.pair_s / token_s, 1e-6),
        ]
    )


def _blend(rows: Floats, values: Floats) -> Floats:
    overhead, seq, weights, token, context, sampled, pair = values
    seqs, tokens, rows_of_logits, decode_context, pairs = rows.T
    multiplied = token * (tokens + sampled * rows_of_logits + pair * pairs)
    found: Floats = overhead + seq * seqs + np.cbrt(weights**3 + multiplied**3) + context * decode_context
    return found


def _huber(errors: Floats) -> float:
    size = np.abs(errors)
    return float(np.mean(np.where(size <= HUBER, size * size / 2, HUBER * (size - HUBER / 2))))
