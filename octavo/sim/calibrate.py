"""Constants of a time model from measured steps, and the file they are kept in.

Non-negative least squares on relative errors, repeated with less weight for steps that fit badly (Huber's weights), so
that a few steps that something else disturbed do not bend the constants.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.limits import Limits
from octavo.errors import ConfigError
from octavo.sim.timing import Blend, Grid, Host, Linear, Table, TimeModel, Timing, Work

Floats = NDArray[np.float64]

HUBER = 1.345
"""Where weights begin to fall, in standard deviations: 95 % efficiency under normal errors (Huber 1981)."""
NUM_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted model, and how far it is from what it was fitted to, as shares of the measured seconds."""

    model: Linear
    num_steps: int
    median_error: float
    p90_error: float
    bias: float


def fit_linear(measured: Sequence[tuple[Work, float]]) -> Fit:
    """`Linear` for (step, seconds) pairs. Raises ConfigError for no steps and for seconds that are not above 0."""
    seconds = seconds_of(measured)
    rows = np.array([features(work) for work, _ in measured], dtype=np.float64) / seconds[:, None]
    constants = constants_of(rows)
    error = rows @ constants - 1.0
    names = ("overhead_s", "seq_s", "token_s", "sampled_s", "context_s", "pair_s")
    return Fit(
        Linear(**{name: float(value) for name, value in zip(names, constants, strict=True)}),
        len(seconds),
        float(np.median(np.abs(error))),
        float(np.percentile(np.abs(error), 90)),
        float(error.mean()),
    )


def seconds_of(measured: Sequence[tuple[Work, float]]) -> Floats:
    """What the steps took. Raises ConfigError for no steps and for seconds that are not above 0."""
    if not measured:
        raise ConfigError("no measured steps to fit a time model to")
    seconds = np.array([took_s for _, took_s in measured], dtype=np.float64)
    if not np.all(np.isfinite(seconds)) or seconds.min() <= 0:
        worst = (
            float(seconds[~np.isfinite(seconds)][0])
            if not np.all(np.isfinite(seconds))
            else float(seconds.min())
        )
        raise ConfigError(f"a measured step should take some time, got {worst} s")
    return seconds


def constants_of(rows: Floats) -> Floats:
    """The constants >= 0 of a model whose features, over the seconds of each step, should come to 1.

    rows  [steps, features]
    """
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0
    weights = np.ones(len(rows))
    constants = np.zeros(rows.shape[1])
    for _ in range(NUM_ROUNDS):
        root = np.sqrt(weights)
        joined = np.linalg.qr(np.column_stack([rows / scale * root[:, None], root])).R
        constants = non_negative_least_squares(joined[:, :-1], joined[:, -1]) / scale
        error = rows @ constants - 1.0
        deviation = 1.4826 * float(np.median(np.abs(error - np.median(error))))
        if deviation < 1e-12:
            break
        weights = np.minimum(1.0, HUBER * deviation / np.maximum(np.abs(error), 1e-300))
    return constants


def features(work: Work) -> tuple[float, ...]:
    """What the constants of `Linear` are multiplied by, in their order."""
    return (1.0, work.num_seqs, work.num_tokens, work.num_sampled, work.decode_context, work.chunk_pairs)


def non_negative_least_squares(rows: Floats, target: Floats) -> Floats:
    """The x >= 0 that minimises |rows x - target|.

    Source: Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23, algorithm NNLS.
    """
    count = rows.shape[1]
    free = np.zeros(count, dtype=bool)
    found = np.zeros(count)
    tolerance = 1e-12 * max(float(np.abs(rows.T @ target).max()), 1e-300)
    for _ in range(30 * count):
        gradient = rows.T @ (target - rows @ found)
        gradient[free] = -math.inf
        best = int(np.argmax(gradient))
        if free.all() or gradient[best] <= tolerance:
            break
        free[best] = True
        while True:
            trial = np.zeros(count)
            trial[free] = np.linalg.lstsq(rows[:, free], target, rcond=None)[0]
            negative = free & (trial <= 0)
            if not negative.any():
                found = trial
                break
            steps = found[negative] / np.maximum(found[negative] - trial[negative], 1e-300)
            found = found + float(steps.min()) * (trial - found)
            free &= found > 1e-15
            found[~free] = 0.0
            if not free.any():
                break
    return found


KINDS: Mapping[str, type[Linear] | type[Blend] | type[Table]] = {
    "linear": Linear,
    "blend": Blend,
    "table": Table,
}


def timing_json(timing: Timing) -> dict[str, Any]:
    """A timing as it is kept in a file. Raises ConfigError for a model that has no file form."""
    for kind, known in KINDS.items():
        if type(timing.model) is known:
            constants = asdict(timing.model)
            return {
                "model": {"kind": kind, **constants},
                "host": asdict(timing.host),
                "source": timing.source,
            }
    raise ConfigError(f"a {type(timing.model).__name__} cannot be kept in a timing file")


def read_timing(path: str | Path) -> Timing:
    """The timing a file holds: {"model": {"kind": "linear", ...}, "host": {...}, "source": "..."}.

    Raises ConfigError that names the file and the field.
    """
    document = _document(path)
    model = dict(document["model"])
    kind = model.pop("kind", None)
    if kind not in KINDS:
        raise ConfigError(f"{path}: model.kind is {kind!r}; it should be one of {', '.join(KINDS)}")
    host = document.get("host", {})
    try:
        made: TimeModel = _table(model) if kind == "table" else _made(KINDS[kind], model, "model")
        return Timing(model=made, host=_made(Host, host, "host"), source=str(document.get("source", path)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


LIMITS: Mapping[str, int] = {
    "num_blocks": 2,
    "block_tokens": 1,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "max_num_mixed_tokens": 1,
    "max_chunk_tokens": 1,
    "max_model_len": 2,
    "enable_prefix_caching": 0,
}
"""What a timing file says of the scheduler that was measured, and the least of each."""


def limits_json(limits: Limits) -> dict[str, int]:
    """Those of `LIMITS` that are set."""
    return {name: int(value) for name in LIMITS if (value := getattr(limits, name)) is not None}


def read_limits(path: str | Path) -> dict[str, int]:
    """The limits of the scheduler that was measured, by name; none where the file does not say.

    Raises ConfigError that names the file and the field.
    """
    measured = _document(path).get("measured", {})
    found = measured.get("limits", {}) if isinstance(measured, dict) else measured
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: measured.limits should be an object of numbers, got {found!r}")
    for name, value in found.items():
        if name not in LIMITS:
            raise ConfigError(f"{path}: measured.limits.{name} is not known; known are {', '.join(LIMITS)}")
        if not isinstance(value, int) or value < LIMITS[name]:
            raise ConfigError(
                f"{path}: measured.limits.{name} must be a whole number of at least {LIMITS[name]}, got {value!r}"
            )
    return {name: int(value) for name, value in found.items()}


def _document(path: str | Path) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the timing file {path}: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"the timing file {path} is not JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise ConfigError(f'the timing file {path} should hold {{"model": {{"kind": ...}}}}')
    return document


def _table(model: dict[str, Any]) -> Table:
    grids = {}
    for name in ("decodes", "chunks"):
        grid = model.pop(name, None)
        if not isinstance(grid, dict) or set(grid) != {"rows", "columns", "seconds"}:
            raise ConfigError(f"model.{name} should hold rows, columns and seconds, got {grid!r}")
        try:
            grids[name] = Grid(
                rows=tuple(int(one) for one in grid["rows"]),
                columns=tuple(int(one) for one in grid["columns"]),
                seconds=tuple(tuple(float(one) for one in row) for row in grid["seconds"]),
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.{name} should hold lists of numbers: {error}") from None
    made: Table = _made(Table, model | grids, "model")
    return made


def _made(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{where} should be an object of constants, got {values!r}")
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]} is not known; known are {', '.join(sorted(known))}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
