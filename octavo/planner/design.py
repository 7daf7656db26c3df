"""From a number of parameters to a model one can train: widths, layers, heads, vocabulary, and their neighbours.

Rules: heads of 128, 8 key-value heads, a gated feed-forward 3.5 times as wide as the model in steps of 256, width a
multiple of the head width times the tensor parallelism, and width over layers near 100 to 130, as in Llama 3 (8B:
128, 70B: 102, 405B: 130; arXiv 2407.21783 table 3). Small models have smaller heads and are deeper for their width.
How width and depth share a number of parameters matters little to the loss (Kaplan et al. 2020, arXiv 2001.08361,
sec. 3.1), so the number comes first and the rest of the rules second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from octavo.arch.shape import Shape
from octavo.errors import ConfigError
from octavo.planner import flops
from octavo.planner.laws import ParametricLaw
from octavo.planner.served import Costs

HEAD_WIDTH, SMALL_HEAD_WIDTH, SMALL_PARAMS = 128, 64, 1e9
"""Below SMALL_PARAMS heads are half as wide, as in Llama 3.2 1B."""

MAX_KV_HEADS = 8
FFN_RATIO, FFN_STEP = 3.5, 256

ASPECTS = ((1e9, 100.0, 130.0), (1e8, 60.0, 130.0), (0.0, 30.0, 80.0))
"""(parameters from, least and most width over layers). Of Chinchilla's family it is 64 at 73M, 51 at 305M, 69 at 1.1B
and 90 at 6.8B (arXiv 2203.15556 table A4)."""

LAYER_STEPS = ((40, 4), (20, 2), (0, 1))
"""(layers from, their step): deep models in fours, so that pipeline stages divide them."""

FFN_LAYER = 12.5
"""Parameters of a layer over its width squared: 3 x 3.5 of the feed-forward and 2 of queries and output."""

VOCABULARIES = (4_096, 8_192, 16_384, 32_000, 50_304, 65_536, 100_352, 128_256)
EMBEDDING_SHARE = 0.25
"""The largest vocabulary whose embeddings take no more of the parameters is taken; Llama 3.2 1B has 21 %, Qwen3 0.6B
26 %."""

TIED_PARAMS = 4e9
"""Below it input and output embedding are one matrix, as in Llama 3.2 3B and Qwen3 4B."""

MISS_WEIGHT, ASPECT_WEIGHT, KV_WEIGHT = 4.0, 1.0, 0.12


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a design must keep to.

    tensor_parallel  devices that share each layer
    vocabulary       tokens; None lets the size decide
    experts          experts of each layer, of which `active` work for a token; 1 is a dense model
    """

    tensor_parallel: int = 1
    vocabulary: int | None = None
    experts: int = 1
    active: int = 1

    def __post_init__(self) -> None:
        if self.tensor_parallel < 1:
            raise ConfigError(f"tensor parallelism must be at least 1, got {self.tensor_parallel}")
        if self.vocabulary is not None and self.vocabulary < 256:
            raise ConfigError(f"a vocabulary needs at least 256 tokens, got {self.vocabulary}")
        if self.experts < 1 or not 1 <= self.active <= self.experts:
            raise ConfigError(
                f"experts must be at least 1 and the active ones from 1 to all of them, got {self.active} of "
                f"{self.experts}"
            )


@dataclass(frozen=True, kw_only=True)
class Design:
    """One model in numbers. `ffn` is the width of all active experts together."""

    hidden: int
    layers: int
    head_width: int
    query_heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    tie_embeddings: bool
    experts: int = 1
    active: int = 1

    @property
    def aspect(self) -> float:
        """Width over layers."""
        return self.hidden / self.layers

    def config(self) -> dict[str, Any]:
        """A config.json that this project and transformers read: Llama's, or Mixtral's with experts."""
        kind = "Mixtral" if self.experts > 1 else "Llama"
        config: dict[str, Any] = {
            "architectures": [f"{kind}ForCausalLM"],
            "model_type": kind.lower(),
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.query_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width,
            "intermediate_size": self.ffn // self.active,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tie_embeddings,
            "max_position_embeddings": 8192,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
        }
        if self.experts > 1:
            config |= {"num_local_experts": self.experts, "num_experts_per_tok": self.active}
        return config

    @cached_property
    def shape(self) -> Shape:
        return Shape.from_config(self.config(), "the design")

    @cached_property
    def params(self) -> int:
        return self.shape.num_parameters()

    @cached_property
    def active_params(self) -> int:
        """What a token passes, embeddings included, as Chinchilla counts N."""
        return self.shape.num_active_parameters()


def _round_to(value: float, step: int) -> int:
    return max(step, step * round(value / step))


def _kv_heads(query_heads: int, tensor_parallel: int) -> int:
    """The most, up to MAX_KV_HEADS or the tensor parallelism, that query heads share evenly."""
    most = max(MAX_KV_HEADS, tensor_parallel)
    return max(count for count in range(1, min(most, query_heads) + 1) if query_heads % count == 0)


def vocabulary_for(params: float, hidden: int, tie: bool) -> int:
    """The largest usual vocabulary whose embeddings stay within EMBEDDING_SHARE; the smallest where none does."""
    tables = 1 if tie else 2
    fitting = [v for v in VOCABULARIES if tables * v * hidden <= EMBEDDING_SHARE * params]
    return max(fitting, default=VOCABULARIES[0])


def aspect_range(params: float) -> tuple[float, float]:
    """Usual width over layers of a size."""
    _, low, high = next(row for row in ASPECTS if params >= row[0])
    return low, high


def _layer_step(layers: float) -> int:
    return next(step for least, step in LAYER_STEPS if layers >= least)


def _layers_of(design: Design, params: float) -> list[int]:
    """Numbers of layers that bring the active parameters just below and above `params`."""
    one, two = replace(design, layers=1).active_params, replace(design, layers=2).active_params
    exact = 1 + (params - one) / (two - one)
    if exact < 1:
        return [1]
    step = _layer_step(exact)
    low = max(step, step * math.floor(exact / step))
    return [low, low + step]


def candidates(params: float, wishes: Wishes) -> Iterator[Design]:
    """Designs of about `params` active parameters at every width that is not absurdly deep or shallow."""
    head = SMALL_HEAD_WIDTH if params < SMALL_PARAMS else HEAD_WIDTH
    low, high = aspect_range(params)
    step = head * wishes.tensor_parallel
    tie = params < TIED_PARAMS
    narrow, wide = ((params * aspect / FFN_LAYER) ** (1 / 3) for aspect in (low / 4, high * 2))
    for number in range(max(1, math.floor(narrow / step)), max(2, math.ceil(wide / step)) + 1):
        hidden = number * step
        heads = hidden // head
        vocabulary = wishes.vocabulary or vocabulary_for(params, hidden, tie)
        ffn_step = FFN_STEP * wishes.active if wishes.experts > 1 else FFN_STEP
        if hidden < 512 and wishes.experts == 1:
            ffn_step = 64
        blank = Design(
            hidden=hidden,
            layers=1,
            head_width=head,
            query_heads=heads,
            kv_heads=_kv_heads(heads, wishes.tensor_parallel),
            ffn=_round_to(FFN_RATIO * hidden, ffn_step),
            vocabulary=vocabulary,
            tie_embeddings=tie,
            experts=wishes.experts,
            active=wishes.active,
        )
        for layers in _layers_of(blank, params):
            design = replace(blank, layers=layers)
            if low / 2 <= design.aspect <= high * 2:
                yield design


def penalty(design: Design, params: float) -> float:
    """How far a design is from the rules: its size first, then its aspect, then its key-value heads."""
    low, high = aspect_range(params)
    miss = abs(math.log(design.active_params / params))
    aspect = max(0.0, math.log(low / design.aspect), math.log(design.aspect / high))
    wanted = min(MAX_KV_HEADS, design.query_heads)
    short = 1 + math.log2(wanted / design.kv_heads) if design.kv_heads < wanted else 0.0
    return MISS_WEIGHT * miss + ASPECT_WEIGHT * aspect + KV_WEIGHT * short


def shape_for(params: float, wishes: Wishes | None = None) -> Design:
    """The design nearest to the rules. Raises ConfigError where none is within a factor of two of `params`."""
    wishes = wishes or Wishes()
    every = list(candidates(params, wishes))
    best = min(every, key=lambda design: penalty(design, params), default=None)
    if best is None or not params / 2 <= best.active_params <= params * 2:
        raise ConfigError(
            f"no design of about {params:.3g} parameters keeps to tensor parallelism {wishes.tensor_parallel} and a "
            f"vocabulary of {wishes.vocabulary or VOCABULARIES[0]}; ask for less parallelism, fewer tokens or more "
            "parameters"
        )
    return best


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A design with what it would come to.

    loss            predicted, of its active parameters and these tokens
    training_flop   exact, for those tokens
    served_flop     exact, of one token at the context served
    kv_elements     per token of context
    life_cost       of training and serving by the law's own counts; None where serving was not asked for
    loss_rank, serving_rank, life_rank   1 is best
    """

    design: Design
    tokens: float
    loss: float
    training_flop: float
    served_flop: float
    kv_elements: int
    life_cost: float | None
    loss_rank: int
    serving_rank: int
    life_rank: int | None


FACTORS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.12, 1.25, 1.5, 1.75, 2.0)
"""Sizes looked at around the best one."""


def neighbours(
    law: ParametricLaw,
    params: float,
    tokens_of: Callable[[float], float],
    wishes: Wishes,
    *,
    costs: Costs | None = None,
    sequence_tokens: int = 4096,
    context: int = 4096,
) -> list[Ranked]:
    """Designs around `params`, best first: by cost of life where `costs` are given, else by predicted loss.

    tokens_of  what a model of so many active parameters is trained on; not a positive number where it cannot be

    Raises ConfigError as `shape_for` does.
    """
    found: dict[tuple[int, int], Design] = {}
    for factor in FACTORS:
        design = shape_for(params * factor, wishes)
        found.setdefault((design.hidden, design.layers), design)
    made = []
    for design in found.values():
        active = design.active_params
        tokens = tokens_of(active)
        if sequence_tokens <= tokens < math.inf:
            made.append(_measured(law, design, tokens, costs, sequence_tokens, context))
    loss_rank = _ranks([one.loss for one in made])
    serving_rank = _ranks([one.served_flop for one in made])
    life_rank = _ranks([one.life_cost or 0.0 for one in made])
    ranked = [
        replace(
            one,
            loss_rank=loss_rank[i],
            serving_rank=serving_rank[i],
            life_rank=None if costs is None else life_rank[i],
        )
        for i, one in enumerate(made)
    ]
    return sorted(ranked, key=lambda one: one.life_rank or one.loss_rank)


def _measured(
    law: ParametricLaw, design: Design, tokens: float, costs: Costs | None, sequence_tokens: int, context: int
) -> Ranked:
    active = design.active_params
    training = flops.training(design.shape, sequence_tokens).model
    return Ranked(
        design=design,
        tokens=tokens,
        loss=law.loss(active, tokens),
        training_flop=tokens * training / sequence_tokens,
        served_flop=flops.decode(design.shape, context).total,
        kv_elements=design.shape.kv_elements_per_token(),
        life_cost=None if costs is None else costs.total(active, tokens),
        loss_rank=0,
        serving_rank=0,
        life_rank=None,
    )


def _ranks(values: Sequence[float]) -> list[int]:
    """1 for the least."""
    order = sorted(range(len(values)), key=values.__getitem__)
    places = [0] * len(values)
    for rank, i in enumerate(order):
        places[i] = rank + 1
    return places
