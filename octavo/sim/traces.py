"""Requests from files: public traces in their published columns, and a plain format of our own.

    azure     CSV TIMESTAMP,ContextTokens,GeneratedTokens        (Azure/AzurePublicDataset)
    burstgpt  CSV Timestamp,...,Request tokens,Response tokens   (HPMLL/BurstGPT)
    mooncake  JSON lines timestamp (ms), input_length, output_length, hash_ids   (kvcache-ai/Mooncake)
    plain     CSV or JSON lines arrival_s, prompt_tokens, output_tokens, and optionally prefix, client, priority,
              cancel_after_s

`prefix` of the plain format lists ids of blocks of `BLOCK_TOKENS` tokens, in JSON a list, in CSV separated by spaces:
prompts whose lists begin alike begin alike. Files may be gzipped. Rows need not be sorted.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from octavo.errors import ConfigError
from octavo.sim.spelling import Spelled, Spelling
from octavo.sim.timing import NS_PER_S
from octavo.sim.workload import Job, Piece, TokenSpace

BLOCK_TOKENS = 16
"""Tokens of a block that `prefix` names in the plain format."""
MOONCAKE_BLOCK_TOKENS = 512
"""Qin et al., FAST 2025, section 4: `hash_ids` name blocks of 512 tokens."""

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One request of a trace.

    blocks   name its leading blocks of `block_tokens` tokens; what is left is its own
    spelled  names of all its tokens, in place of `blocks`; see `spelling.py`
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int | str, ...] = ()
    block_tokens: int = BLOCK_TOKENS
    spelled: Spelled | None = None
    client: str = ""
    priority: int = 0
    cancel_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """Rows by time of arrival, the first at 0, and what was left out.

    num_without_output  requests that had no output token, as failed ones have none
    """

    kind: str
    rows: tuple[Row, ...]
    num_without_output: int = 0

    @property
    def duration_s(self) -> float:
        return self.rows[-1].arrival_s

    def from_zero(self) -> Trace:
        """The same, moved so that the first comes at 0."""
        start_s = self.rows[0].arrival_s
        return replace(self, rows=tuple(replace(row, arrival_s=row.arrival_s - start_s) for row in self.rows))

    @property
    def rate_per_s(self) -> float:
        """Mean rate of arrivals, gaps counted; 0 for a single request or a burst at once."""
        return (len(self.rows) - 1) / self.duration_s if self.duration_s else 0.0


class Replay:
    """The rows of a trace as a workload, `speed` times as fast, the first `num_requests` of them."""

    def __init__(self, trace: Trace, *, speed: float = 1.0, num_requests: int | None = None) -> None:
        if not 0 < speed < math.inf:
            raise ConfigError(f"the speed of a replay must be above 0, got {speed}")
        self._rows = trace.rows[:num_requests]
        self._speed = speed
        self._space = TokenSpace()  # begun anew by `arrivals`
        self._spelling = Spelling(self._space)
        self.follows = False
        self.shares = any(row.blocks or row.spelled for row in self._rows)

    def arrivals(self) -> Iterator[Job]:
        self._space = TokenSpace()
        self._spelling = Spelling(self._space)
        for number, row in enumerate(self._rows):
            leaves_s = row.cancel_after_s
            if row.spelled is None:
                prompt, output = self._prompt(row), self._space.take(row.output_tokens)
            else:
                prompt, output = self._spelling.pieces(row.spelled, row.output_tokens)
            yield Job(
                number=number,
                at_ns=round(row.arrival_s / self._speed * NS_PER_S),
                prompt=prompt,
                output=output,
                client=row.client,
                priority=row.priority,
                cancel_after_ns=None if leaves_s is None else round(leaves_s * NS_PER_S),
            )

    def after(self, job: Job, now_ns: int, *, is_answered: bool) -> Job | None:  # noqa: ARG002
        return None

    def _prompt(self, row: Row) -> tuple[Piece, ...]:
        """Runs of ids: neighbouring named blocks that were made one after another become one run."""
        left, pieces = row.prompt_tokens, list[Piece]()
        for name in row.blocks:
            first, count = self._space.named(str(name), row.block_tokens)
            count = min(count, left)
            left -= count
            if pieces and sum(pieces[-1]) == first:
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + count)
            else:
                pieces.append((first, count))
            if not left:
                return tuple(pieces)
        return (*pieces, self._space.take(left))


def read_trace(path: str | Path) -> Trace:
    """A trace in whichever of the formats its first line shows.

    Raises ConfigError that names the line, the field and the value.
    """
    path = Path(path)
    try:
        with opened(path) as file:
            return _read(file, str(path))
    except (OSError, EOFError) as error:
        raise ConfigError(f"the trace {path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the trace {path} is not text in UTF-8: {error}") from error


def read_lengths(path: str | Path) -> tuple[list[int], list[int]]:
    """Prompt and output lengths of a trace, or of a CSV num_prefill_tokens,num_decode_tokens (microsoft/vidur)."""
    path = Path(path)
    with opened(path) as file:
        first = file.readline()
    if "num_prefill_tokens" not in first:
        trace = read_trace(path)
        return [row.prompt_tokens for row in trace.rows], [row.output_tokens for row in trace.rows]
    prompts, outputs = [], []
    with opened(path) as file:
        for number, fields in csv_rows(file):
            where = f"{path}, line {number}"
            prompts.append(_count(fields, "num_prefill_tokens", where, 1))
            outputs.append(_count(fields, "num_decode_tokens", where, 1))
    return prompts, outputs


def opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read(file: TextIO, name: str) -> Trace:
    first = file.readline()
    if not first.strip():
        raise ConfigError(f"the trace {name} is empty; its first line should be a header or a JSON object")
    file.seek(0)
    kind, reader, numbered = _format(first, file, name)
    rows, num_without_output = [], 0
    for number, fields in numbered:
        where = f"{name}, line {number}"
        row = reader(fields, where)
        if row is None:
            num_without_output += 1
        else:
            rows.append(row)
    if not rows:
        raise ConfigError(f"the trace {name} holds no request with an output")
    rows.sort(key=lambda row: row.arrival_s)
    return Trace(kind, tuple(rows), num_without_output).from_zero()


Reader = Callable[[Fields, str], Row | None]


def _format(first: str, file: TextIO, name: str) -> tuple[str, Reader, Iterator[tuple[int, Fields]]]:
    if first.lstrip().startswith("{"):
        kind, reader = (
            ("mooncake", _mooncake)
            if '"hash_ids"' in first or '"input_length"' in first
            else ("plain", _plain)
        )
        return kind, reader, _json_rows(file, name)
    columns = {column.strip() for column in first.strip().split(",")}
    for kind, needed, reader in (
        ("azure", {"TIMESTAMP", "ContextTokens", "GeneratedTokens"}, _azure),
        ("burstgpt", {"Timestamp", "Request tokens", "Response tokens"}, _burstgpt),
        ("plain", {"arrival_s", "prompt_tokens", "output_tokens"}, _plain),
    ):
        if needed <= columns:
            return kind, reader, csv_rows(file)
    raise ConfigError(
        f"{name}, line 1: the columns {sorted(columns)} are of no known trace; name them arrival_s, prompt_tokens and"
        " output_tokens, or see `octavo simulate --help`"
    )


def csv_rows(file: TextIO) -> Iterator[tuple[int, Fields]]:
    reader = csv.DictReader(file, skipinitialspace=True)
    for fields in reader:
        yield reader.line_num, fields


def _json_rows(file: TextIO, name: str) -> Iterator[tuple[int, Fields]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{name}, line {number}: this is no JSON: {error}") from None
        if not isinstance(fields, dict):
            raise ConfigError(
                f"{name}, line {number}: each line should be a JSON object, got {line.strip()[:40]!r}"
            )
        yield number, fields


def _azure(fields: Fields, where: str) -> Row | None:
    return _row(_timestamp(fields, "TIMESTAMP", where), fields, ("ContextTokens", "GeneratedTokens"), where)


def _burstgpt(fields: Fields, where: str) -> Row | None:
    return _row(seconds(fields, "Timestamp", where), fields, ("Request tokens", "Response tokens"), where)


def _mooncake(fields: Fields, where: str) -> Row | None:
    arrival_s = seconds(fields, "timestamp", where) / 1000
    blocks = _blocks(fields.get("hash_ids", []), "hash_ids", where)
    return _row(
        arrival_s,
        fields,
        ("input_length", "output_length"),
        where,
        blocks=blocks,
        block_tokens=MOONCAKE_BLOCK_TOKENS,
    )


def _plain(fields: Fields, where: str) -> Row | None:
    cancel = fields.get("cancel_after_s")
    return _row(
        seconds(fields, "arrival_s", where),
        fields,
        ("prompt_tokens", "output_tokens"),
        where,
        blocks=_blocks(fields.get("prefix") or [], "prefix", where),
        client=str(fields.get("client") or ""),
        priority=_whole(fields, "priority", where) if fields.get("priority") not in (None, "") else 0,
        cancel_after_s=seconds(fields, "cancel_after_s", where) if cancel not in (None, "") else None,
    )


def _row(arrival_s: float, fields: Fields, names: tuple[str, str], where: str, **more: Any) -> Row | None:
    """A request of these columns; None where nothing came back."""
    prompt = _count(fields, names[0], where, 1)
    output = _count(fields, names[1], where, 0)
    return Row(arrival_s=arrival_s, prompt_tokens=prompt, output_tokens=output, **more) if output else None


def _timestamp(fields: Fields, name: str, where: str) -> float:
    text = _text(fields, name, where)
    whole, _, fraction = text.partition(".")
    digits = fraction.partition("+")[0].rstrip("Z")
    try:
        at = datetime.fromisoformat(whole)
        return (at - datetime(2000, 1, 1)).total_seconds() + (float(f"0.{digits}") if digits else 0.0)
    except (ValueError, TypeError):
        raise ConfigError(
            f"{where}: {name} is {text!r}; it should be a time such as 2023-11-16 18:15:46.680590"
        ) from None


def seconds(fields: Fields, name: str, where: str) -> float:
    value = present(fields, name, where)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ConfigError(f"{where}: {name} is {value!r}; it should be a number of at least 0")
    return number


def _whole(fields: Fields, name: str, where: str) -> int:
    value = present(fields, name, where)
    try:
        number = float(value)
        if number.is_integer():
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(f"{where}: {name} is {value!r}; it should be a whole number")


def _count(fields: Fields, name: str, where: str, low: int) -> int:
    count = _whole(fields, name, where)
    if count < low:
        raise ConfigError(f"{where}: {name} is {count}; it should be at least {low}")
    return count


def _blocks(value: Any, name: str, where: str) -> tuple[int | str, ...]:
    if isinstance(value, str):
        return tuple(value.split())
    if not isinstance(value, Sequence) or any(not isinstance(one, int | str) for one in value):
        raise ConfigError(f"{where}: {name} is {value!r}; it should be a list of block ids")
    return tuple(value)


def _text(fields: Fields, name: str, where: str) -> str:
    return str(present(fields, name, where))


def present(fields: Fields, name: str, where: str) -> Any:
    value = fields.get(name)
    if value is None or value == "":
        raise ConfigError(f"{where}: {name} is missing")
    return value
