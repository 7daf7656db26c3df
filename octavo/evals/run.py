"""Run a task against a model that is passed in as a function, and report what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from octavo.errors import ConfigError
from octavo.evals import tasks
from octavo.evals.score import Proportion, is_right

T = TypeVar("T")
Messages = Sequence[Mapping[str, str]]
Generate = Callable[[Sequence[Messages], int], Sequence[str]]
"""Conversations and a limit of new tokens, to replies in the same order, decoded greedily."""

Logprobs = Callable[[Sequence[Sequence[int]]], Sequence[Sequence[float]]]
"""Token ids per sequence, to the natural log-probability of each token but the first, given those before."""

TASKS = ("stdlib-qa", "recall", "needle")
"""Names `evaluate` knows; `perplexity` is the fourth measure and has its own function."""

GROUPED_BY = {"recall": "num_pairs", "needle": "depth"}
MAX_REPLY_TOKENS = {"stdlib-qa": 96, "recall": 24, "needle": 24}
DEFAULT_DEPTHS = tuple(step / 9 for step in range(10))
KEPT_MISSES = 20


@dataclass(frozen=True, slots=True)
class Miss:
    """A wrong reply, kept to look at."""

    question: str
    answer: str
    reply: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a task came to.

    total     over all items
    groups    by the task's tag: number of pairs for recall, depth for needle; none for stdlib-qa
    misses    the first KEPT_MISSES wrong replies
    """

    task: str
    total: Proportion
    group_tag: str | None
    groups: Mapping[float, Proportion]
    misses: tuple[Miss, ...]

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {
            "task": self.task,
            **_plain(self.total),
            "groups": [{str(self.group_tag): value, **_plain(share)} for value, share in self.groups.items()],
            "misses": [{"question": m.question, "answer": m.answer, "reply": m.reply} for m in self.misses],
        }


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a text is predicted.

    tokens    tokens predicted
    text_bytes  UTF-8 bytes of the text
    loss_nat  sum of the negative log-probabilities
    """

    tokens: int
    text_bytes: int
    loss_nat: float

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss of a token."""
        return math.exp(self.loss_nat / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Loss per byte of text in bits, which does not depend on the tokenizer."""
        return self.loss_nat / math.log(2) / self.text_bytes


def _plain(share: Proportion) -> dict[str, object]:
    low, high = share.interval
    return {"right": share.right, "count": share.count, "share": share.share, "low": low, "high": high}


def items_of(
    task: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    num_pairs: Sequence[int] = (8,),
    depths: Sequence[float] = DEFAULT_DEPTHS,
    context_tokens: int = 1900,
    count_tokens: Callable[[str], int] | None = None,
) -> list[tasks.Item]:
    """The items of a task.

    limit   items in all for stdlib-qa (None: every question); per number of pairs for recall (None: 200);
            per depth for needle (None: 20)

    Raises ConfigError for an unknown task and for needle without `count_tokens`.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1")
    if task == "stdlib-qa":
        return list(tasks.stdlib_qa(limit, seed))
    if task == "recall":
        return [item for pairs in num_pairs for item in tasks.recall(pairs, limit or 200, seed)]
    if task == "needle":
        if count_tokens is None:
            raise ConfigError("the needle task measures its context in tokens: pass count_tokens")
        return list(tasks.needle(depths, context_tokens, limit or 20, seed, count_tokens=count_tokens))
    raise ConfigError(f"no task is named {task!r}; there are: {', '.join(TASKS)}")


def evaluate(
    task: str,
    generate: Generate,
    *,
    limit: int | None = None,
    seed: int = 0,
    num_pairs: Sequence[int] = (8,),
    depths: Sequence[float] = DEFAULT_DEPTHS,
    context_tokens: int = 1900,
    count_tokens: Callable[[str], int] | None = None,
    batch_items: int = 64,
) -> Report:
    """Ask every item of a task and score the replies; arguments as for `items_of`.

    batch_items  conversations handed to `generate` at once
    """
    items = items_of(
        task,
        limit=limit,
        seed=seed,
        num_pairs=num_pairs,
        depths=depths,
        context_tokens=context_tokens,
        count_tokens=count_tokens,
    )
    return score(task, items, generate, batch_items)


def score(task: str, items: Sequence[tasks.Item], generate: Generate, batch_items: int = 64) -> Report:
    """Ask the given items and report."""
    tag = GROUPED_BY.get(task)
    right: dict[float, int] = {}
    count: dict[float, int] = {}
    misses: list[Miss] = []
    total = 0
    for batch in _batched(items, batch_items):
        replies = generate([item.messages for item in batch], MAX_REPLY_TOKENS[task])
        for item, reply in zip(batch, replies, strict=True):
            ok = is_right(item, reply)
            total += ok
            if tag is not None:
                group = float(item.tags[tag])
                right[group] = right.get(group, 0) + ok
                count[group] = count.get(group, 0) + 1
            if not ok and len(misses) < KEPT_MISSES:
                misses.append(Miss(item.messages[-1]["content"], item.answer, reply))
    groups = {group: Proportion(right[group], count[group]) for group in sorted(count)}
    return Report(task, Proportion(total, len(items)), tag, groups, tuple(misses))


def perplexity(
    texts: Iterable[str],
    logprobs: Logprobs,
    encode: Callable[[str], Sequence[int]],
    *,
    bos_id: int | None,
    window_tokens: int = 1024,
    batch_windows: int = 8,
) -> Perplexity:
    """Perplexity of texts cut into windows that do not overlap, each opened by `bos_id` where there is one.

    Without a start token the first token of a window is given, not predicted, and is not counted.
    """
    if window_tokens < 2:
        raise ConfigError(f"window_tokens is {window_tokens}; a window predicts something from 2 tokens on")
    windows: list[list[int]] = []
    text_bytes = 0
    opening = [] if bos_id is None else [bos_id]
    step = window_tokens - len(opening)
    for text in texts:
        ids = list(encode(text))
        text_bytes += len(text.encode())
        windows += [opening + ids[start : start + step] for start in range(0, len(ids), step)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise ConfigError("there is no text to measure perplexity on")
    loss, tokens = 0.0, 0
    for batch in _batched(windows, batch_windows):
        for window, values in zip(batch, logprobs(batch), strict=True):
            if len(values) != len(window) - 1:
                raise ConfigError(f"logprobs gave {len(values)} values for a window of {len(window)} tokens")
            loss -= math.fsum(values)
            tokens += len(values)
    return Perplexity(tokens, text_bytes, loss)


def _batched(values: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
