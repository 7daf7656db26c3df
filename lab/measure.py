"""Quick measures during training, by one forward pass each.

A reply decoded greedily equals the expected one exactly when, with the expected reply fed in, the highest
score is right at each of its tokens; so no decoding is needed. The figures that count are taken from the
rounded model by decoding, in `lab.evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from lab import corpus
from lab.batches import Batches, Row, pad
from lab.model import Llama
from lab.tokenizer import ASSISTANT_ID, BOS_ID, END_ID, USER_ID
from octavo.evals import tasks

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Probe:
    """A fixed sample of every task and of the held-out text."""

    def __init__(self, batches: Batches, held_out: Sequence[corpus.Source], sample: int = 256) -> None:
        self.batches = batches
        texts = [source.text for source in held_out]
        chosen = np.random.default_rng(0).permutation(len(batches.canonical))[:sample]
        self.questions = [batches.canonical[i] for i in chosen]
        self.recall = {n: [self.row(item) for item in tasks.recall(n, 96, 1)] for n in (4, 8, 16)}
        self.needle = {}
        for context in (400, 1900):
            items = tasks.needle(DEPTHS, context, 4, 1, count_tokens=batches.count, filler=texts)
            self.needle[context] = [(item.tags["depth"], self.row(item)) for item in items]
        flat = [i for text in texts for i in [BOS_ID, *batches.encode(text), 2]]
        self.windows = [flat[i : i + 1024] for i in range(0, len(flat) - 1024, len(flat) // 24)]

    def row(self, item: tasks.Item) -> Row:
        """An item as tokens; only the answer weighs."""
        asked = [BOS_ID, USER_ID, *self.batches.encode(item.messages[0]["content"]), END_ID, ASSISTANT_ID]
        said = [*self.batches.encode(tasks.full_reply(item)), END_ID]
        return asked + said, [0.0] * len(asked) + [1.0] * len(said)

    @torch.no_grad()
    def right(self, model: Llama, rows: Sequence[Row], size: int) -> list[bool]:
        """Whether each row's weighted tokens are all predicted."""
        results: list[bool] = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            batch = pad("probe", part, max(len(ids) for ids, _ in part))
            tokens, marks = torch.from_numpy(batch.tokens), torch.from_numpy(batch.weights)[:, 1:] > 0
            best = model.logits(model.hidden(tokens)[:, :-1]).argmax(-1)
            results += ((best == tokens[:, 1:]) | ~marks).all(-1).tolist()
        return results

    @torch.no_grad()
    def perplexity(self, model: Llama) -> float:
        """Exponential of the mean loss over held-out windows of 1024 tokens."""
        losses = []
        for window in self.windows:
            tokens = torch.tensor([window])
            logits = model.logits(model.hidden(tokens)[0, :-1]).float()
            losses.append(F.cross_entropy(logits, tokens[0, 1:]).item())
        return math.exp(sum(losses) / len(losses))

    def run(self, model: Llama) -> dict[str, float]:
        """Every measure, as fractions right and a perplexity."""
        figures = {"perplexity": self.perplexity(model)}
        asked = self.right(model, self.questions, 64)
        figures["questions_exact"] = sum(asked) / len(asked)
        for count, rows in self.recall.items():
            right = self.right(model, rows, 48)
            figures[f"recall_{count}"] = sum(right) / len(right)
        for context, pairs in self.needle.items():
            right = self.right(model, [row for _, row in pairs], 4)
            figures[f"needle_{context}"] = sum(right) / len(right)
            for depth in DEPTHS:
                at = [ok for ok, (d, _) in zip(right, pairs, strict=True) if d == depth]
                figures[f"needle_{context}_at_{depth}"] = sum(at) / len(at)
        return figures
