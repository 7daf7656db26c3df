"""Who is in the family, and what each of them reads."""

from __future__ import annotations

from dataclasses import dataclass

from lab.model import Shape
from lab.train import Recipe

WINDOW_TOKENS = 63
"""Tokens predicted by one row, which has one more. Rows are short on purpose: looking things up in a longer window
sets in suddenly, at another moment for each model, and no power law foretells that. In windows of 255 tokens a 0.3M
model was ahead of a 1M model from 2 million tokens on."""

ROWS = 64
"""Rows of a step."""

TOKENS = (250_000, 350_000, 500_000, 700_000, 1_000_000, 1_400_000, 2_000_000)
"""Token counts at which each member's loss is measured. The library has 2.2 million tokens: nothing is read twice."""

MUON_LR, ADAM_LR = 0.03, 0.02
"""Full rates of every member. Tried at 0.25 and 1 million tokens on the 0.3M and the 1M model, two thirds of Muon's and
half of AdamW's were worse in all four; in windows of 255, at 0.4 million tokens, so were 0.08 of Muon's and 0.004 of
AdamW's."""


def recipe(seed: int) -> Recipe:
    """What every member is trained by."""
    return Recipe(seed=seed, muon_lr=MUON_LR, adam_lr=ADAM_LR)


QUERY_HEADS, KV_HEADS = 4, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A model of the family: depth and width grow together, heads grow wide instead of many, the feed-forward is three
    times as wide as the model."""

    name: str
    hidden: int
    layers: int

    def shape(self, vocab: int) -> Shape:
        return Shape(
            vocab=vocab,
            hidden=self.hidden,
            ffn=3 * self.hidden,
            layers=self.layers,
            query_heads=QUERY_HEADS,
            kv_heads=KV_HEADS,
            head_width=self.hidden // QUERY_HEADS,
            max_tokens=WINDOW_TOKENS + 1,
        )


FAMILY = (
    Member(name="0.1M", hidden=64, layers=2),
    Member(name="0.3M", hidden=96, layers=3),
    Member(name="1M", hidden=128, layers=5),
    Member(name="3M", hidden=192, layers=7),
    Member(name="6M", hidden=256, layers=8),
)
"""Smallest first; the last is the one to be predicted. Names give the parameters of all matrices but the embedding."""


def matrix_parameters(shape: Shape) -> int:
    """Parameters of all matrices but the embedding: the N of Kaplan et al. 2020 (arXiv 2001.08361) sec. 2.1."""
    heads = shape.query_heads + shape.kv_heads
    per_layer = 2 * heads * shape.head_width * shape.hidden + 3 * shape.hidden * shape.ffn
    return shape.layers * per_layer


def training_flop_per_token(shape: Shape) -> float:
    """Three forward passes' worth: matrices and head twice each, and causal attention over a window."""
    matrices = 2 * (matrix_parameters(shape) + shape.vocab * shape.hidden)
    pairs_per_token = (WINDOW_TOKENS + 1) / 2
    attention = 4 * shape.layers * shape.query_heads * shape.head_width * pairs_per_token
    return 3 * (matrices + attention)
