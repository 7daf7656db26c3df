"""Rows of tokens with a weight for each: what the model reads in one step, as a function of seed and step."""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from lab import corpus
from lab.tokenizer import (
    ASSISTANT_ID,
    BOS_ID,
    END_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL,
    SYSTEM_ID,
    USER_ID,
    VOCAB_TOKENS,
)
from octavo.evals import tasks

FREE_WEIGHT = 0.5
"""Weight of answer tokens that only repeat the question; the looked-up value and what follows weigh one."""

EDGE_SHARE = 0.2
"""Share of needles at the very start or end of the text, where chance alone would put few."""

COPY_WEIGHT = 0.5
"""Weight of each token of a repeated list."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens [N, T] and the weight [N, T] of predicting each of them."""

    kind: str
    tokens: np.ndarray
    weights: np.ndarray


Row = tuple[list[int], list[float]]
Pair = tuple[str, str]


def pad(kind: str, rows: Sequence[Row], width: int) -> Batch:
    """Rows cut to `width` or filled up to it with padding of weight zero."""
    tokens = np.full((len(rows), width), PAD_ID, dtype=np.int64)
    weights = np.zeros((len(rows), width), dtype=np.float32)
    for number, (ids, marks) in enumerate(rows):
        n = min(width, len(ids))
        tokens[number, :n] = ids[:n]
        weights[number, :n] = marks[:n]
    return Batch(kind, tokens, weights)


class Batches:
    """The four kinds of rows. Each method is a function of its arguments and of the seed."""

    def __init__(self, tokenizer: Tokenizer, train: Sequence[corpus.Source], seed: int) -> None:
        self.tokenizer, self.seed = tokenizer, seed
        self.texts = [source.text for source in train]
        flat: list[int] = []
        files = list(self.texts)
        random.Random(f"files:{seed}").shuffle(files)
        for encoding in tokenizer.encode_batch(files):
            flat += [BOS_ID, *encoding.ids, EOS_ID]
        self.flat = np.array(flat, dtype=np.int64)
        entries = corpus.entries()
        self.canonical = [self.turn(corpus.question(e), e.paragraph) for e in entries]
        self.others = [self.turn(q, a) for e in entries for q, a in corpus.other_questions(e)]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def count(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self.encode(text))

    def turn(self, question: str, answer: str, answer_weight: float = 1.0) -> Row:
        """A conversation of one turn; only the answer and its end weigh."""
        asked = [BOS_ID, USER_ID, *self.encode(question), END_ID, ASSISTANT_ID]
        said = [*self.encode(answer), END_ID]
        return asked + said, [0.0] * len(asked) + [answer_weight] * len(said)

    def text(self, step: int, rows: int, width: int) -> Batch:
        """Windows of source text, each opened by the start token."""
        rng = random.Random(f"text:{self.seed}:{step}:{width}")
        drawn: list[Row] = []
        for _ in range(rows):
            start = rng.randrange(len(self.flat) - width)
            ids = [BOS_ID, *self.flat[start : start + width - 1].tolist()]
            drawn.append((ids, [0.0] + [1.0] * (width - 1)))
        return pad("text", drawn, width)

    def questions(self, step: int, num_tokens: int, other_share: float, parts: int = 3) -> list[Batch]:
        """Questions about the library, about `num_tokens` in all, in `parts` batches from short to long.

        Canonical questions go round in epochs, each in its own order; other phrasings are drawn at random.
        """
        rng = random.Random(f"questions:{self.seed}:{step}")
        mean = sum(len(ids) for ids, _ in self.canonical) / len(self.canonical)
        count = int(num_tokens / mean)
        first = int(count * (1 - other_share))
        drawn = []
        for number in range(step * first, (step + 1) * first):
            epoch, place = divmod(number, len(self.canonical))
            drawn.append(self.canonical[self.order(epoch)[place]])
        drawn += [self.instructed(rng, row) for row in rng.sample(self.others, count - first)]
        drawn.sort(key=lambda row: len(row[0]))
        borders = [len(drawn) * part // parts for part in range(parts + 1)]
        chunks = [drawn[low:high] for low, high in itertools.pairwise(borders)]
        return [pad("questions", chunk, len(chunk[-1][0])) for chunk in chunks]

    def instructed(self, rng: random.Random, row: Row) -> Row:
        """The row, in one case of five behind the usual system message."""
        if rng.random() < 0.8:
            return row
        (start, *ids), (free, *marks) = row
        added = [SYSTEM_ID, *self.encode("You are a helpful assistant."), END_ID]
        return [start, *added, *ids], [free, *[0.0] * len(added), *marks]

    def order(self, epoch: int) -> list[int]:
        """The order of the canonical questions in one epoch."""
        cached: tuple[int, list[int]] | None = getattr(self, "_order", None)
        if cached is None or cached[0] != epoch:
            order = list(range(len(self.canonical)))
            random.Random(f"order:{self.seed}:{epoch}").shuffle(order)
            cached = self._order = (epoch, order)
        return cached[1]

    def pairs(self, rng: random.Random, count: int) -> list[tuple[str, str]]:
        """Pairs to look up: mostly the words of the tasks, else made-up names and numbers."""
        if rng.random() < 0.7:
            return tasks.draw_pairs(rng, min(count, tasks.MAX_PAIRS))
        keys: dict[str, str] = {}
        numeric = rng.random() < 0.5
        while len(keys) < count:
            key = "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 6)))
            keys[key] = str(rng.randint(10, 9999)) if numeric else rng.choice(tasks.WORDS)
        return list(keys.items())

    def answer_turn(self, key: str, value: str, opening: str) -> Row:
        """One turn that asks for `key`; `opening` goes before the question in the same message."""
        question = self.encode(opening + tasks.QUESTION.format(key=key))
        asked = [USER_ID, *question, END_ID, ASSISTANT_ID]
        said = [*self.encode(tasks.FACT.format(key=key, value=value)), END_ID]
        tail = 1 + self.count(f" {value}.")
        marks = [FREE_WEIGHT] * (len(said) - tail) + [1.0] * tail
        return asked + said, [0.0] * len(asked) + marks

    def conversation(self, opening: str, pairs: Sequence[Pair], width: int, rng: random.Random) -> Row:
        """Facts once, then one question after another until the row is full."""
        ids, marks = [BOS_ID], [0.0]
        asked = rng.sample(list(pairs), len(pairs))
        for number, (key, value) in enumerate(asked):
            more_ids, more_marks = self.answer_turn(key, value, "" if number else opening)
            if number and len(ids) + len(more_ids) > width:
                break
            ids += more_ids
            marks += more_marks
        return ids, marks

    def recall(self, step: int, rows: int, width: int, copy_share: float) -> Batch:
        """Key-value lookup with as many pairs as fit; `copy_share` of the rows repeat a list instead."""
        rng = random.Random(f"recall:{self.seed}:{step}")
        drawn = []
        for _ in range(rows):
            make = self.copy if rng.random() < copy_share else self.lookup
            drawn.append(make(rng, width))
        return pad("recall", drawn, width)

    def lookup(self, rng: random.Random, width: int) -> Row:
        """One conversation over 2 to width / 12 pairs."""
        pairs = self.pairs(rng, rng.randint(2, max(2, min(width // 12, tasks.MAX_PAIRS))))
        while True:
            facts = "".join(tasks.FACT.format(key=k, value=v) + " " for k, v in pairs)
            row = self.conversation(facts, pairs, width, rng)
            if len(row[0]) <= width or len(pairs) == 1:
                return row
            pairs.pop()

    def copy(self, rng: random.Random, width: int) -> Row:
        """Repeat a list: of words, or of tokens that make no sense and can only be copied."""
        count = rng.randint(3, width // 2 - 8)
        if rng.random() < 0.5:
            listed = self.encode("".join(f" {rng.choice(tasks.WORDS)}" for _ in range(count)))
        else:
            listed = [rng.randrange(len(SPECIAL), VOCAB_TOKENS) for _ in range(count)]
        asked = [BOS_ID, USER_ID, *self.encode("Repeat:"), *listed, END_ID, ASSISTANT_ID]
        said = [*self.encode("Repeated:"), *listed, END_ID]
        return asked + said, [0.0] * len(asked) + [COPY_WEIGHT] * len(said)

    def needle(self, step: int, rows: int, width: int) -> Batch:
        """Facts hidden in source text at random depths, every row near full."""
        rng = random.Random(f"needle:{self.seed}:{step}:{width}")
        drawn: list[Row] = []
        for _ in range(rows):
            pairs = self.pairs(rng, rng.choice((1, 1, 2, 3, 4)))
            room = int(width * (1.0 if rng.random() < 0.7 else rng.uniform(0.2, 1.0))) - 32 * len(pairs) - 24
            lines = tasks.filler_lines(rng, self.texts, max(room, 8), pairs[0][0], self.count)
            for key, value in pairs:
                place = (
                    rng.choice((0, len(lines))) if rng.random() < EDGE_SHARE else rng.randint(0, len(lines))
                )
                lines.insert(place, tasks.FACT.format(key=key, value=value))
            drawn.append(self.conversation("\n".join(lines) + "\n", pairs, width, rng))
        return pad("needle", drawn, width)
