"""Who is in the family, and what each of them reads."""

from __future__ import annotations

from dataclasses import dataclass

from lab.model import Shape
from lab.train import Recipe

WINDOW_TOKENS = 255
"""Tokens predicted by one row, which has one more."""

ROWS = 16
"""Rows of a step."""

TOKENS = (500_000, 750_000, 1_000_000, 1_500_000, 2_000_000, 3_000_000, 4_000_000)
"""Token counts at which each member's loss is measured; the library has 2.2 million, so the last two repeat it."""

MUON_LR, ADAM_LR = 0.03, 0.02
"""Full rates of every member. At 0.4 million tokens the 0.3M and the 3M model were tried at Muon rates of 0.01 to 0.08
and AdamW rates of 0.002 to 0.03: both were best near these."""


def recipe(seed: int) -> Recipe:
    """What every member is trained by."""
    return Recipe(seed=seed, muon_lr=MUON_LR, adam_lr=ADAM_LR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A model of the family: depth and width grow together, the feed-forward is three times as wide."""

    name: str
    hidden: int
    layers: int
    query_heads: int
    kv_heads: int

    def shape(self, vocab: int) -> Shape:
        return Shape(
            vocab=vocab,
            hidden=self.hidden,
            ffn=3 * self.hidden,
            layers=self.layers,
            query_heads=self.query_heads,
            kv_heads=self.kv_heads,
            head_width=self.hidden // self.query_heads,
            max_tokens=WINDOW_TOKENS + 1,
        )


FAMILY = (
    Member(name="0.1M", hidden=64, layers=2, query_heads=2, kv_heads=1),
    Member(name="0.3M", hidden=96, layers=3, query_heads=2, kv_heads=1),
    Member(name="1M", hidden=128, layers=5, query_heads=4, kv_heads=2),
    Member(name="3M", hidden=192, layers=7, query_heads=4, kv_heads=2),
    Member(name="6M", hidden=256, layers=8, query_heads=4, kv_heads=2),
)
"""Smallest first; the last is the one to be predicted. Names give parameters outside the embedding."""


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
