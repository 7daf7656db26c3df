"""Training runs as a scaling law sees them: how large, how long, how good. Read from a table, checked on the way in."""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.planner.laws import FLOP_PER_PARAM_TOKEN

Floats = NDArray[np.float64]

ALIASES = {
    "params": ("params", "parameters", "n", "params_n", "num_params", "model_size", "active_params"),
    "tokens": ("tokens", "d", "tokens_d", "num_tokens", "training_tokens", "train_tokens"),
    "flop": (
        "flop",
        "flops",
        "c",
        "train_flop_c",
        "train_flop",
        "training_flop",
        "training_flops",
        "compute",
    ),
    "loss": ("loss", "l", "final_loss", "eval_loss", "val_loss", "validation_loss"),
    "experts": ("experts", "num_experts", "e"),
}
"""Names of columns that are understood, compared without case and with spaces as underscores."""

MAX_RUNS = 20_000
"""More are refused: checkpoints of a run are no runs, and resamples of so many fill the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Columns of equal length.

    flop     what the table says, else 6 N D
    experts  None for dense models
    rows     number of each run in the table it came from, the first being 1; None numbers them
    """

    params: Floats
    tokens: Floats
    flop: Floats
    loss: Floats
    experts: Floats | None = None
    rows: NDArray[np.intp] | None = None

    def __post_init__(self) -> None:
        if self.rows is None:
            object.__setattr__(self, "rows", np.arange(1, len(self.loss) + 1))
        columns = {"params": self.params, "tokens": self.tokens, "flop": self.flop, "loss": self.loss}
        if self.experts is not None:
            columns["experts"] = self.experts
        for name, values in columns.items():
            if values.shape != self.loss.shape:
                raise ConfigError(f"{name} has {len(values)} values for {len(self.loss)} losses")
            wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
            if len(wrong):
                raise ConfigError(
                    f"{name} of run {wrong[0] + 1} is {values[wrong[0]]:g}; sizes, tokens and losses must be positive"
                )

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def row_numbers(self) -> NDArray[np.intp]:
        assert self.rows is not None, "numbered when made"
        return self.rows

    def chosen(self, keep: NDArray[np.bool_] | NDArray[np.intp]) -> Runs:
        """Some of the runs, by mask or by number."""
        return Runs(
            params=self.params[keep],
            tokens=self.tokens[keep],
            flop=self.flop[keep],
            loss=self.loss[keep],
            experts=None if self.experts is None else self.experts[keep],
            rows=self.row_numbers[keep],
        )

    def without_highest_losses(self, count: int) -> Runs:
        """All but the `count` runs of highest loss, in their order."""
        if not 0 <= count < len(self):
            raise ConfigError(f"cannot drop {count} of {len(self)} runs; drop between 0 and {len(self) - 1}")
        keep = np.ones(len(self), dtype=bool)
        keep[np.argsort(self.loss, kind="stable")[len(self) - count :]] = False
        return self.chosen(keep)


def from_columns(columns: Mapping[str, Iterable[float]]) -> Runs:
    """Runs from columns named as in `Runs`; one of params, tokens and flop may be missing: C = 6 N D gives it."""
    given = {name: np.asarray(list(values), dtype=float) for name, values in columns.items()}
    if "loss" not in given:
        raise ConfigError("runs need a loss; columns given: " + ", ".join(given))
    missing = [name for name in ("params", "tokens", "flop") if name not in given]
    if len(missing) > 1:
        raise ConfigError(
            f"runs need two of params, tokens and flop (C = 6 N D gives the third); missing: {', '.join(missing)}"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        if "flop" in missing:
            given["flop"] = FLOP_PER_PARAM_TOKEN * given["params"] * given["tokens"]
        elif "tokens" in missing:
            given["tokens"] = given["flop"] / FLOP_PER_PARAM_TOKEN / given["params"]
        elif "params" in missing:
            given["params"] = given["flop"] / FLOP_PER_PARAM_TOKEN / given["tokens"]
    return Runs(
        **{name: given[name] for name in ("params", "tokens", "flop", "loss")}, experts=given.get("experts")
    )


def read_table(
    lines: Iterable[str], names: Mapping[str, str] | None = None, *, source: str = "the table"
) -> Runs:
    """Runs from CSV lines with a header.

    names  column of the table for a name of `ALIASES`, where it is called something else

    Raises ConfigError that names the row and the column for what is missing, not a number, or not positive.
    """
    reader = csv.reader(lines)
    header = next(reader, None)
    if not header or not any(cell.strip() for cell in header):
        raise ConfigError(f"{source} is empty; it needs a header such as params,tokens,loss")
    places = _places([cell.strip() for cell in header], dict(names or {}), source)
    values: dict[str, list[float]] = {name: [] for name in places}
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        for name, place in places.items():
            values[name].append(_number(row, place, header, reader.line_num, source))
        if len(values["loss"]) > MAX_RUNS:
            raise ConfigError(f"{source} has more than {MAX_RUNS} runs; keep the last checkpoints of each")
    if not values["loss"]:
        raise ConfigError(f"{source} has a header and no runs")
    return from_columns(values)


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _places(header: list[str], names: dict[str, str], source: str) -> dict[str, int]:
    """Column number of each name that the table has."""
    found: dict[str, int] = {}
    for name, wanted in names.items():
        if name not in ALIASES:
            raise ConfigError(f"unknown column {name!r}; columns are {', '.join(ALIASES)}")
        if wanted not in header:
            raise ConfigError(f"{source} has no column {wanted!r} for {name}; it has {', '.join(header)}")
        found[name] = header.index(wanted)
    plain = [_plain(cell) for cell in header]
    for name, aliases in ALIASES.items():
        if name in found:
            continue
        matches = [plain.index(alias) for alias in aliases if alias in plain]
        if len(matches) > 1:
            both = ", ".join(header[place] for place in matches)
            raise ConfigError(
                f"{source} has several columns for {name}: {both}; say which with --columns {name}=..."
            )
        if matches:
            found[name] = matches[0]
    if "loss" not in found:
        close = difflib.get_close_matches("loss", plain, n=1)
        hint = f"; --columns loss={header[plain.index(close[0])]} would take that one" if close else ""
        raise ConfigError(f"{source} has no column of losses; it has {', '.join(header)}{hint}")
    missing = [name for name in ("params", "tokens", "flop") if name not in found]
    if len(missing) > 1:
        raise ConfigError(
            f"{source} needs two of the columns params, tokens and flop (C = 6 N D gives the third); it has "
            f"{', '.join(header)}. Name others with --columns params=..., tokens=..., flop=..."
        )
    return found


def _number(row: list[str], place: int, header: list[str], line: int, source: str) -> float:
    where = f"{source}, line {line}, column {header[place].strip()}"
    if place >= len(row) or not row[place].strip():
        raise ConfigError(f"{where}: the value is missing")
    text = row[place].strip()
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{where}: {text!r} is not a number") from None
    if not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{where}: {text} must be a positive number")
    return value
