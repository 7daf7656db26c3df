"""Which time model fits measured steps: each kind is fitted to some of them and judged by the others.

`Linear` has a constant for each sum. `Blend` lets reading the weights and multiplying overlap. `Table` takes what steps
of so many sequences, and chunks of so many tokens, were measured to take, whatever line that makes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.sim.calibrate import constants_of, features, fit_linear, non_negative_least_squares, seconds_of
from octavo.sim.from_requests import simplex
from octavo.sim.timing import Blend, Grid, Linear, Table, Work

Floats = NDArray[np.float64]
Measured = Sequence[tuple[Work, float]]
Model = Linear | Blend | Table

LEAST_STEPS = 30
NUM_FOLDS = 5
NUM_RUNS = 500
"""Of each of two searches for the constants of `Blend`."""
HUBER = 0.05
"""Relative errors above that count linearly."""
BETTER = 0.95
"""A kind with more constants is taken where its loss is at most so much of that of the ones before it."""
MAX_STEPS = 6000
"""So many are looked at, evenly spread over all."""
LEAST_AT = 12
"""Steps for each point of a table."""
BEYOND = 4
SPACING = 1.2
"""Points of a table are at least so many times the one before."""
STALLED = 99.9
"""Percentile of measured over said above which a step was held up by something else."""
LINE = ("overhead_s", "seq_s", "token_s", "sampled_s", "context_s", "pair_s")
NAMES = ("overhead_s", "seq_s", "weights_s", "token_s", "context_s", "sampled_tokens", "pair_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """Of steps that a model was not fitted to, as shares of what they took.

    loss  mean of Huber's loss of the relative errors
    bias  all said seconds over all that were, less 1
    """

    loss: float
    median: float
    p90: float
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The model, fitted to all steps; how each kind did on steps it had not seen; why this one."""

    model: Model
    kind: str
    num_steps: int
    errors: Mapping[str, Error]
    because: str

    @property
    def error(self) -> Error:
        return self.errors[self.kind]


def choose(measured: Measured, seed: int = 0) -> Chosen:
    """The kind that is nearest to steps it has not seen, fitted to all. Raises ConfigError for too few steps."""
    if len(measured) < LEAST_STEPS:
        raise ConfigError(
            f"{len(measured)} measured steps are too few to fit a time model to; {LEAST_STEPS} are the least"
        )
    seconds_of(measured)
    some = measured[:: max(len(measured) // MAX_STEPS, 1)]
    errors = {kind: _held_out(kind, some, seed) for kind in FITS}
    kind = next(iter(FITS))
    for other in FITS:
        if errors[other].loss < BETTER * errors[kind].loss:
            kind = other
    rest = ", ".join(f"{other} {one.median:.2%}" for other, one in errors.items() if other != kind)
    return Chosen(
        model=fit(kind, some),
        kind=kind,
        num_steps=len(measured),
        errors=errors,
        because=f"{kind}: median error {errors[kind].median:.2%} on steps it was not fitted to; {rest}",
    )


def fit(kind: str, measured: Measured) -> Model:
    """A model of that kind, of what steps take on average, whose seconds add up to the measured ones."""
    model = FITS[kind](measured)
    return _scaled(model, _bias(model, measured))


def fit_blend(measured: Measured) -> Blend:
    """The search begins at the linear fit."""
    seconds = seconds_of(measured)
    rows = np.array(
        [
            (work.num_seqs, work.num_tokens, work.num_sampled, work.decode_context, work.chunk_pairs)
            for work, _ in measured
        ],
        dtype=np.float64,
    )
    start = _start(fit_linear(measured).model, float(np.percentile(seconds, 5)))

    def values(shift: Floats) -> Floats:
        return start * np.exp(np.clip(shift, -12.0, 6.0))

    def loss(shift: Floats) -> float:
        overhead, seq, weights, token, context, sampled, pair = values(shift)
        seqs, tokens, drawn, decode_context, pairs = rows.T
        multiplied = token * (tokens + sampled * drawn + pair * pairs)
        said = overhead + seq * seqs + np.cbrt(weights**3 + multiplied**3) + context * decode_context
        return _huber(said / seconds - 1)

    shift, _, _ = simplex(loss, np.zeros(len(NAMES)), 0.5, NUM_RUNS)
    shift, _, _ = simplex(loss, shift, 0.2, NUM_RUNS)
    return Blend(**{name: float(value) for name, value in zip(NAMES, values(shift), strict=True)})


def _start(model: Linear, shortest_s: float) -> Floats:
    """Above 0, all of them: a search by factors cannot leave 0."""
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


def fit_line(measured: Measured) -> Linear:
    """`fit_linear`, and then by means."""
    first = fit_linear(measured).model
    seconds = seconds_of(measured)
    rows = np.array([features(work) for work, _ in measured], dtype=np.float64)
    found = _by_means(rows, seconds, np.array([getattr(first, name) for name in LINE]))
    return Linear(**{name: float(value) for name, value in zip(LINE, found, strict=True)})


def _by_means(rows: Floats, seconds: Floats, constants: Floats) -> Floats:
    """Constants near robust ones with which steps take what they take on average.

    Errors are parts of what the constants before say, not of what was measured: parts of the latter count a slow step
    for less than a quick one, and the answer would lie below the mean.
    """
    for _ in range(2):
        said = np.maximum(rows @ constants, 1e-9)
        ratio = seconds / said
        target = np.minimum(ratio, np.percentile(ratio, STALLED))
        joined = np.linalg.qr(np.column_stack([rows / said[:, None], target])).R
        scale = np.maximum(np.abs(joined[:, :-1]).max(axis=0), 1e-300)
        constants = non_negative_least_squares(joined[:, :-1] / scale, joined[:, -1]) / scale
    return constants


def fit_table(measured: Measured) -> Table:
    """Seconds at each point, such that what lies between them fits.

    What tokens before a chunk cost is the line's: chunks behind others are too few to say it for each size.
    """
    line = fit_line(measured)
    before_s = np.array([line.pair_s * work.chunk_tokens * _before(work) for work, _ in measured])
    seconds = seconds_of(measured)
    seconds = np.maximum(seconds - before_s, seconds / 10)
    widths = _points([work.num_decodes for work, _ in measured])
    sizes = _points([work.chunk_tokens for work, _ in measured])
    rows = np.zeros((len(measured), len(widths) + len(sizes) + 2))
    for row, (work, _) in zip(rows, measured, strict=True):
        if work.num_decodes:
            row[: len(widths)] = _hats(widths, work.num_decodes)
        if work.num_chunks:
            row[len(widths) : -2] = _hats(sizes, work.chunk_tokens)
        row[-2:] = work.decode_context, -1.0 if work.num_decodes and work.num_chunks else 0.0
    found = _by_means(rows, seconds, constants_of(rows / seconds[:, None]))
    decode_s, chunk_s = found[: len(widths)].tolist(), found[len(widths) : -2].tolist()
    widths, decode_s = _continued(widths, decode_s, line.seq_s + line.token_s + line.sampled_s)
    sizes, chunk_s = _continued(sizes, chunk_s, line.token_s + line.pair_s * sizes[-1])
    farthest = max(1, *(round(_before(work)) for work, _ in measured))
    return Table(
        decodes=Grid(rows=widths, columns=(0,), seconds=tuple((one,) for one in decode_s)),
        chunks=Grid(
            rows=sizes,
            columns=(0, farthest),
            seconds=tuple(
                (one, one + line.pair_s * size * farthest) for one, size in zip(chunk_s, sizes, strict=True)
            ),
        ),
        shared_s=float(found[-1]),
        context_s=float(found[-2]),
    )


def _continued(
    points: tuple[int, ...], seconds: list[float], slope_s: float
) -> tuple[tuple[int, ...], list[float]]:
    """With one point more, far beyond what was measured: there the line says how it goes on, and not the last two."""
    far = points[-1] * BEYOND
    return (*points, far), [*seconds, seconds[-1] + slope_s * (far - points[-1])]


def _before(work: Work) -> float:
    return (work.chunk_context - work.chunk_tokens) / work.num_chunks if work.num_chunks else 0.0


def _points(values: Sequence[int]) -> tuple[int, ...]:
    """Some of the values above 0, the least and the greatest among them; (1,) of none.

    Up to each from the one before lie enough steps to say what it costs.
    """
    counts = Counter(value for value in values if value > 0)
    there = sorted(counts)
    kept, since = there[:1], 0
    for value in there[1:]:
        since += counts[value]
        if since >= LEAST_AT and (value >= kept[-1] * SPACING or value == kept[-1] + 1 <= 4):
            kept.append(value)
            since = 0
    if kept and kept[-1] != there[-1]:
        kept[-1 if len(kept) > 1 else len(kept) :] = [there[-1]]
    return tuple(kept) or (1,)


def _hats(points: tuple[int, ...], value: int) -> Floats:
    """How much of each point's seconds a value between them has."""
    found = np.zeros(len(points))
    if len(points) == 1:
        found[0] = 1.0
        return found
    index = min(max(int(np.searchsorted(points, value)) - 1, 0), len(points) - 2)
    share = (value - points[index]) / (points[index + 1] - points[index])
    found[index], found[index + 1] = 1 - share, share
    return found


FITS: Mapping[str, Callable[[Measured], Model]] = {
    "linear": fit_line,
    "blend": fit_blend,
    "table": fit_table,
}
"""Those with fewer constants first."""


def _held_out(kind: str, measured: Measured, seed: int) -> Error:
    places = list(range(len(measured)))
    random.Random(f"octavo folds {seed}").shuffle(places)
    errors = np.zeros(len(measured))
    said_s = 0.0
    for fold in range(NUM_FOLDS):
        tested = places[fold::NUM_FOLDS]
        away = set(tested)
        model = fit(kind, [one for place, one in enumerate(measured) if place not in away])
        for place in tested:
            work, took_s = measured[place]
            said = model.seconds(work)
            said_s += said
            errors[place] = said / took_s - 1
    size = np.abs(errors)
    return Error(
        loss=_huber(errors),
        median=float(np.median(size)),
        p90=float(np.percentile(size, 90)),
        bias=said_s / float(seconds_of(measured).sum()) - 1,
    )


def _huber(errors: Floats) -> float:
    size = np.abs(errors)
    return float(np.mean(np.where(size <= HUBER, size * size / 2, HUBER * (size - HUBER / 2))))


def _bias(model: Model, measured: Measured) -> float:
    """What steps took together, per what the model says: queues go by means, and robust fits by medians.

    The slowest thousandth is left out: what stalled once will not stall again.
    """
    said = np.array([model.seconds(work) for work, _ in measured])
    took = seconds_of(measured)
    ratio = took / np.maximum(said, 1e-12)
    kept = ratio <= np.percentile(ratio, STALLED)
    return float(took[kept].sum() / max(float(said[kept].sum()), 1e-12))


def _scaled(model: Model, times: float) -> Model:
    if isinstance(model, Table):
        grids = {
            name: replace(grid, seconds=tuple(tuple(one * times for one in row) for row in grid.seconds))
            for name, grid in (("decodes", model.decodes), ("chunks", model.chunks))
        }
        return replace(model, **grids, shared_s=model.shared_s * times, context_s=model.context_s * times)
    changed = {one.name: getattr(model, one.name) * times for one in fields(model) if one.name.endswith("_s")}
    return replace(model, **changed)
