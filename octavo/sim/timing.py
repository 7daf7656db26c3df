"""How long a step takes, and what the host adds to it.

A step becomes `Work`, a few sums over its slices; a `TimeModel` turns those into seconds. Most models are `Affine` in
the context that decodes read, so that a stretch of steps in which the same sequences decode is timed without looking
at them one by one, to the same nanosecond.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

from octavo.core.step import Slice, Step
from octavo.errors import ConfigError

NS_PER_S = 1_000_000_000
FS_PER_S, FS_PER_NS = 10**15, 10**6
"""Constants of affine models count in femtoseconds, so that sums of them are exact."""

LONG_CHUNK = 128
MAX_FIXED_TOKENS = 4096


class Work(NamedTuple):
    """One step in sums over its slices. A slice of one token decodes; a longer one is a chunk of a prompt.

    num_decodes     slices of one token
    decode_context  tokens these attend to, their own included
    num_chunks      longer slices, `chunk_tokens` in all
    chunk_pairs     (query, key) pairs of causal attention within and before chunks
    chunk_context   tokens that lie in the cache after each chunk, added up
    num_sampled     rows of logits
    chunks          (tokens before, tokens, rows) of each longer slice
    slices          the same of every slice, where the model asks for it by `needs_slices`
    group_tokens    mean of `num_tokens` over the replicas that take the step together; None for one on its own
    """

    num_decodes: int = 0
    decode_context: int = 0
    num_chunks: int = 0
    chunk_tokens: int = 0
    chunk_pairs: int = 0
    chunk_context: int = 0
    num_sampled: int = 0
    chunks: tuple[tuple[int, int, int], ...] = ()
    slices: tuple[tuple[int, int, int], ...] = ()
    group_tokens: float | None = None

    @property
    def num_seqs(self) -> int:
        return self.num_decodes + self.num_chunks

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + self.chunk_tokens


def work_of(step: Step, *, with_slices: bool = False) -> Work:
    """The sums of a planned step."""
    decodes = context = tokens = pairs = chunk_context = sampled = 0
    chunks: list[tuple[int, int, int]] = []
    for piece in step.slices:
        count, start = piece.num_tokens, piece.start
        sampled += piece.samples
        if count == 1:
            decodes += 1
            context += start + 1
        else:
            chunks.append((start, count, piece.samples))
            tokens += count
            pairs += count * start + count * (count + 1) // 2
            chunk_context += start + count
    return Work(
        num_decodes=decodes,
        decode_context=context,
        num_chunks=len(chunks),
        chunk_tokens=tokens,
        chunk_pairs=pairs,
        chunk_context=chunk_context,
        num_sampled=sampled,
        chunks=tuple(chunks),
        slices=tuple([(one.start, one.num_tokens, one.samples) for one in step.slices])
        if with_slices
        else (),
    )


class TimeModel(Protocol):
    """Seconds of a step on one device, launch to result.

    needs_slices  `Work.slices` must be there
    """

    @property
    def needs_slices(self) -> bool: ...

    def seconds(self, work: Work) -> float: ...


class Affine(ABC):
    """A model of the form `base_s(work) + context_s * work.decode_context`.

    context_s  what one more token of context costs a step in which a decode reads it
    """

    __slots__ = ()
    context_s: float

    @property
    def needs_slices(self) -> bool:
        return False

    @abstractmethod
    def base_s(self, work: Work) -> float:
        """Everything but what grows with `work.decode_context`."""

    def seconds(self, work: Work) -> float:
        return self.base_s(work) + self.context_s * work.decode_context


def fixed_tokens(model: TimeModel) -> int:
    """How many prompt tokens cost what a step costs without any, by a step of one and one of LONG_CHUNK of them."""
    short, long = (
        model.seconds(work_of(Step(0, (Slice(0, 0, 0, count, samples=1),)), with_slices=model.needs_slices))
        for count in (1, LONG_CHUNK)
    )
    per_token_s = (long - short) / (LONG_CHUNK - 1)
    if per_token_s <= 0:
        return MAX_FIXED_TOKENS
    return min(max(round(short / per_token_s - 1), 1), MAX_FIXED_TOKENS)


def step_ns(model: TimeModel, work: Work) -> int:
    """A step's duration, to the nearest nanosecond, at least one."""
    if isinstance(model, Affine):
        base, slope = round(model.base_s(work) * FS_PER_S), round(model.context_s * FS_PER_S)
        return (base + slope * work.decode_context + FS_PER_NS // 2) // FS_PER_NS or 1
    return round(model.seconds(work) * NS_PER_S) or 1


def stretch_ns(model: TimeModel, work: Work, num_steps: int) -> list[int]:
    """Durations of the steps that follow one of decodes only, when the same sequences go on: `step_ns` of each."""
    width = work.num_decodes
    first = work.decode_context + width
    contexts = range(first, first + num_steps * width, width)
    if isinstance(model, Affine):
        base, slope = round(model.base_s(work) * FS_PER_S), round(model.context_s * FS_PER_S)
        low, grows = base + slope * first + FS_PER_NS // 2, slope * width
        if not grows:
            return [low // FS_PER_NS or 1] * num_steps
        return [whole // FS_PER_NS or 1 for whole in range(low, low + num_steps * grows, grows)]
    found = []
    for place, context in enumerate(contexts, start=1):
        slices = tuple([(start + place, tokens, rows) for start, tokens, rows in work.slices])
        found.append(step_ns(model, work._replace(decode_context=context, slices=slices)))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(Affine):
    """A constant for each sum: overhead, per sequence, per token, per sampled row, per context token, per pair."""

    overhead_s: float = 0.0
    seq_s: float = 0.0
    token_s: float = 0.0
    sampled_s: float = 0.0
    context_s: float = 0.0
    pair_s: float = 0.0

    def __post_init__(self) -> None:
        _not_negative(self, "overhead_s", "seq_s", "token_s", "sampled_s", "context_s", "pair_s")

    def base_s(self, work: Work) -> float:
        return (
            self.overhead_s
            + self.seq_s * work.num_seqs
            + self.token_s * work.num_tokens
            + self.sampled_s * work.num_sampled
            + self.pair_s * work.chunk_pairs
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend(Affine):
    """Reading the weights and multiplying overlap, and the longer of the two counts: the cube root of the sum of cubes.

    `overhead + seq * S + (weights^3 + (token * (T + sampled_tokens * rows + pair_tokens * pairs))^3)^(1/3) + context`

    weights_s       reading all weights once
    sampled_tokens  what a row of logits costs, in tokens; pair_tokens what a pair of attention does
    mixed_s         what `overhead_s` is more in steps that have a chunk, too, as they are launched kernel by kernel
    mixed_context_s what `context_s` is more in them, as their kernels are slower at decodes
    group_share     the share of `token_s` that replicas which take a step together do together: the experts'
    The form of DistServe's (Zhong et al., OSDI 2024, section 3) with a smooth maximum in place of its two cases.
    """

    overhead_s: float = 0.0
    seq_s: float = 0.0
    weights_s: float = 0.0
    token_s: float = 0.0
    context_s: float = 0.0
    sampled_tokens: float = 0.0
    pair_tokens: float = 0.0
    mixed_s: float = 0.0
    mixed_context_s: float = 0.0
    group_share: float = 0.0

    def __post_init__(self) -> None:
        _not_negative(
            self,
            "overhead_s",
            "seq_s",
            "weights_s",
            "token_s",
            "context_s",
            "sampled_tokens",
            "pair_tokens",
            "mixed_s",
            "mixed_context_s",
            "group_share",
        )
        if self.group_share > 1:
            raise ConfigError(f"timing: group_share must be at most 1, got {self.group_share}")

    def base_s(self, work: Work) -> float:
        tokens = (
            work.num_tokens + self.sampled_tokens * work.num_sampled + self.pair_tokens * work.chunk_pairs
        )
        if work.group_tokens is not None:
            tokens += self.group_share * (work.group_tokens - work.num_tokens)
        multiplied_s = self.token_s * tokens
        cubes = self.weights_s * self.weights_s * self.weights_s + multiplied_s * multiplied_s * multiplied_s
        overlapped_s: float = cubes ** (1 / 3)
        base_s = self.overhead_s + self.seq_s * work.num_seqs + overlapped_s
        if work.num_chunks:
            base_s += self.mixed_s + self.mixed_context_s * work.decode_context
        return base_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A measured function of two whole numbers, bilinear between its points and beyond the outermost ones.

    seconds  [rows, columns]; negative extrapolation stops at zero
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for name, axis in (("rows", self.rows), ("columns", self.columns)):
            if not axis or any(low >= high for low, high in pairwise(axis)):
                raise ConfigError(
                    f"timing: {name} of a table must grow from point to point, got {list(axis)}"
                )
        if len(self.seconds) != len(self.rows) or any(len(row) != len(self.columns) for row in self.seconds):
            raise ConfigError(
                f"timing: a table of {len(self.rows)} rows and {len(self.columns)} columns needs as many seconds, got"
                f" rows of {[len(row) for row in self.seconds]}"
            )

    def at(self, row: float, column: float) -> float:
        i, share = _between(self.rows, row)
        low = self._along(i, column)
        high = self._along(min(i + 1, len(self.rows) - 1), column)
        return max(low + (high - low) * share, 0.0)

    def _along(self, i: int, column: float) -> float:
        j, share = _between(self.columns, column)
        line = self.seconds[i]
        return line[j] + (line[min(j + 1, len(line) - 1)] - line[j]) * share


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(Affine):
    """Measured steps: decodes by (sequences, context of each), chunks by (tokens, tokens before them).

    A step that has both costs the sum, less `shared_s`, what they do once together: reading the weights and launching.
    context_s  slope along the context, measured; the grid of decodes is read at its first column
    """

    decodes: Grid
    chunks: Grid
    shared_s: float
    context_s: float

    def __post_init__(self) -> None:
        _not_negative(self, "shared_s", "context_s")

    def base_s(self, work: Work) -> float:
        decode_s = chunk_s = 0.0
        if work.num_decodes:
            first = self.decodes.columns[0]
            decode_s = self.decodes.at(work.num_decodes, first) - self.context_s * first * work.num_decodes
        if work.num_chunks:
            before = (work.chunk_context - work.chunk_tokens) / work.num_chunks
            chunk_s = self.chunks.at(work.chunk_tokens, before)
        shared_s = self.shared_s if work.num_decodes and work.num_chunks else 0.0
        return max(decode_s + chunk_s - shared_s, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the machine around the device adds, each measured by itself.

    turn_s   between the end of a step and the launch of one that was planned meanwhile
    plan_s   more, where it was not
    front_s  from a request's arrival until the engine hears of it: reading, tokenizing, routing
    reply_s  from a token's commit until its client has it
    """

    turn_s: float = 0.0
    plan_s: float = 0.0
    front_s: float = 0.0
    reply_s: float = 0.0

    def __post_init__(self) -> None:
        _not_negative(self, "turn_s", "plan_s", "front_s", "reply_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A device and its host. `source` says where the constants come from."""

    model: TimeModel
    host: Host = field(default_factory=Host)
    source: str = ""


def _between(axis: Sequence[int], value: float) -> tuple[int, float]:
    """The interval of an axis that holds `value`, the nearest one outside, and how far along it lies."""
    if len(axis) == 1:
        return 0, 0.0
    index = 0
    while index < len(axis) - 2 and value > axis[index + 1]:
        index += 1
    return index, (value - axis[index]) / (axis[index + 1] - axis[index])


def _not_negative(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ConfigError(f"timing: {name} must be a number of at least 0, got {value!r}")
