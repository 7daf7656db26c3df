"""Whether a reply is right, and how sure the share of right ones is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from octavo.evals.tasks import WORDS, Item

_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|resp|approx|no|Dr|Mr|St|[A-Z]))\.$")
_LISTED = frozenset(WORDS)


def one_line(text: str) -> str:
    """The text with every run of white space turned into one space."""
    return " ".join(text.split())


def first_sentence(text: str) -> str:
    """Up to the first full stop, question mark or exclamation mark that ends a word and is no abbreviation's.

    A text without one is a sentence as a whole.
    """
    line = one_line(text)
    for match in _SENTENCE_END.finditer(line):
        head = line[: match.end()]
        if not _ABBREVIATION.search(head):
            return head
    return line


def is_first_sentence(reply: str, answer: str) -> bool:
    """Whether the reply opens with exactly the expected sentence."""
    return first_sentence(reply) == answer


def names_value(reply: str, answer: str, key: str) -> bool:
    """Whether the reply names the value asked for and, save for the key, no other word of the task's list."""
    named = {word for word in re.findall(r"[a-z]+", reply.lower()) if word in _LISTED}
    return named - {key} == {answer}


def is_right(item: Item, reply: str) -> bool:
    """Whether a reply answers an item, by the rule of its task."""
    if item.task == "stdlib-qa":
        return is_first_sentence(reply, item.answer)
    return names_value(reply, item.answer, str(item.tags["key"]))


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share of right answers with its 95 % interval."""

    right: int
    count: int

    @property
    def share(self) -> float:
        """Right answers over all answers; not a number where nothing was asked."""
        return self.right / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval at 95 %. Source: E. B. Wilson, JASA 22 (1927), 209-212."""
        if not self.count:
            return 0.0, 1.0
        z, n, p = 1.959963984540054, self.count, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low = 0.0 if self.right == 0 else max(0.0, middle - half)
        high = 1.0 if self.right == n else min(1.0, middle + half)
        return low, high

    def __str__(self) -> str:
        low, high = self.interval
        shown = f"{100 * self.share:.1f} % ({self.right}/{self.count}"
        return f"{shown}, 95 % interval {100 * low:.1f}-{100 * high:.1f})"
