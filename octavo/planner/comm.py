"""Bytes that one rank sends, operations it takes part in, and seconds on a link, for every way to spread a model.

T tokens, p ranks, x the bytes of T hidden states. Collectives are counted as rings do them: an all-reduce sends
2 (p - 1) / p of its bytes, an all-gather, a reduce-scatter and an all-to-all (p - 1) / p of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from octavo.arch.mixers import Attention
from octavo.arch.shape import Layer, Shape
from octavo.errors import ConfigError
from octavo.planner.kv_layouts import KvLayout, kv_cost
from octavo.planner.links import Link
from octavo.planner.parallel import padded_vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one rank sends for one purpose.

    operations  collectives or messages, each of which waits once
    formula     what was computed, for people to read
    """

    what: str
    sent_bytes: float
    operations: int
    formula: str

    def seconds(self, link: Link) -> float:
        return link.seconds(self.sent_bytes, self.operations)

    def times(self, count: int) -> Traffic:
        return replace(self, sent_bytes=count * self.sent_bytes, operations=count * self.operations)


def all_reduce_bytes(num_bytes: float, ranks: int, *, in_switch: bool = False) -> float:
    """Sent by each rank; a switch that adds up (NVLink SHARP) takes each rank's share once."""
    return float(num_bytes) if in_switch and ranks > 1 else 2 * (ranks - 1) / ranks * num_bytes


def share_bytes(num_bytes: float, ranks: int) -> float:
    """Sent by each rank of an all-gather or reduce-scatter of so many bytes in all, or of an all-to-all of so many
    bytes on each."""
    return (ranks - 1) / ranks * num_bytes


def _sums(layer: Layer) -> int:
    """Results in a layer that ranks add up: one after the mixers, one after the networks."""
    return bool(layer.mixers) + bool(layer.mlps)


def num_sums(shape: Shape) -> int:
    return sum(count * _sums(layer) for layer, count in shape.groups())


def tensor_parallel(
    shape: Shape, num_tokens: int, ranks: int, element_bytes: float = 2, *, in_switch: bool = False
) -> Traffic:
    """Forward pass of the layers: an all-reduce after attention and one after the network of each. Training sends as
    much again in its backward pass (Shoeybi et al. 2019, arXiv 1909.08053, section 3)."""
    hidden = num_tokens * shape.hidden_size * element_bytes
    sums = num_sums(shape)
    return Traffic(
        what="tensor parallel",
        sent_bytes=sums * all_reduce_bytes(hidden, ranks, in_switch=in_switch),
        operations=sums * (ranks > 1),
        formula=f"{sums} all-reduces of T h e",
    )


def sequence_sharded(shape: Shape, num_tokens: int, ranks: int, element_bytes: float = 2) -> Traffic:
    """Tensor parallel with norms and residuals sharded along the sequence: each all-reduce becomes a reduce-scatter
    and an all-gather. As many bytes, twice the operations, less to keep (Korthikanti et al. 2022, section 4.2.2)."""
    hidden = num_tokens * shape.hidden_size * element_bytes
    sums = num_sums(shape)
    return Traffic(
        what="tensor + sequence parallel",
        sent_bytes=sums * 2 * share_bytes(hidden, ranks),
        operations=2 * sums * (ranks > 1),
        formula=f"{sums} all-gathers and {sums} reduce-scatters of T h e",
    )


def vocabulary(
    shape: Shape, num_tokens: int, num_sampled: int, ranks: int, element_bytes: float = 2
) -> Traffic:
    """Where embedding and head are cut along the vocabulary: the looked-up rows are added up, the logits gathered."""
    rows = num_tokens * shape.hidden_size * element_bytes
    logits = num_sampled * padded_vocabulary(shape.vocab_size) * element_bytes
    return Traffic(
        what="embedding and logits",
        sent_bytes=all_reduce_bytes(rows, ranks) + share_bytes(logits, ranks),
        operations=2 * (ranks > 1),
        formula="an all-reduce of T h e, an all-gather of S V e",
    )


def pipeline_parallel(
    shape: Shape, num_tokens: int, stages: int, element_bytes: float = 2, *, tensor: int = 1
) -> Traffic:
    """One microbatch through all boundaries, forward. With tensor parallel each rank can send its part and gather on
    the other side (`tensor`)."""
    hidden = num_tokens * shape.hidden_size * element_bytes / tensor
    return Traffic(
        what="pipeline parallel",
        sent_bytes=(stages - 1) * hidden,
        operations=stages - 1,
        formula=f"T h e{f' / {tensor}' if tensor > 1 else ''} across {stages - 1} boundaries",
    )


def bubble(stages: int, microbatches: int, *, interleaved: int = 1) -> float:
    """Share of the time that a stage waits, (p - 1) / (m + p - 1); with `interleaved` chunks of layers on each stage
    it fills and drains so many times faster (Narayanan et al. 2021, arXiv 2104.04473, section 2.2)."""
    if microbatches < 1:
        raise ConfigError(f"a pipeline needs at least 1 microbatch, got {microbatches}")
    waiting = (stages - 1) / interleaved
    return waiting / (microbatches + waiting)


def expert_parallel(
    shape: Shape,
    num_tokens: int,
    ranks: int,
    *,
    dispatch_bytes: float = 2,
    combine_bytes: float = 2,
    leaving: float | None = None,
) -> Traffic:
    """Tokens to their experts and back, all layers with experts. Every rank has `num_tokens` of its own.

    leaving  share of the copies whose expert lies on another rank; None takes (p - 1) / p, uniform routing. Routing
             limited to some nodes sends a token once to each node instead of once to each expert, which makes the
             share smaller (DeepSeek-AI 2024, arXiv 2412.19437, section 2.1.2).
    """
    share = (ranks - 1) / ranks if leaving is None else leaving
    copies = 0
    layers = 0
    for layer, count in shape.groups():
        if layer.experts is not None:
            copies += count * layer.experts.used
            layers += count
    sent = num_tokens * copies * shape.hidden_size * (dispatch_bytes + combine_bytes) * share
    return Traffic(
        what="expert parallel",
        sent_bytes=sent,
        operations=2 * layers * (ranks > 1),
        formula=f"T K h (e_out + e_back) {share:.3g} in {layers} layers",
    )


def _grouped(shape: Shape) -> list[tuple[Attention, int]]:
    found = [
        (mixer, count)
        for layer, count in shape.groups()
        for mixer in layer.mixers
        if isinstance(mixer, Attention)
    ]
    if not found:
        raise ConfigError(f"{shape.family} has no layers with keys and values for each head to share out")
    return found


def ulysses(shape: Shape, num_tokens: int, ranks: int, element_bytes: float = 2) -> Traffic:
    """Four all-to-alls around attention, forward: queries, keys and values from shares of the sequence to shares of
    the heads, and the result back. The degree is limited by key-value heads; above it they are repeated.

    Source: Jacobs et al. 2023, arXiv 2309.14509; its 4 N h / P holds for multi-head attention.
    """
    tokens, total = num_tokens / ranks, 0.0
    for mixer, count in _grouped(shape):
        keys = max(mixer.num_kv_heads, ranks) * (mixer.head_dim + mixer.value_width)
        queries = mixer.num_heads * (mixer.head_dim + mixer.value_width)
        total += count * share_bytes(tokens * (queries + keys) * element_bytes, ranks)
    layers = sum(count for _, count in _grouped(shape))
    return Traffic(
        what="Ulysses",
        sent_bytes=total,
        operations=4 * layers * (ranks > 1),
        formula="(T / p) (2 a d + 2 k d) e (p - 1) / p a layer",
    )


def ring_attention(shape: Shape, num_tokens: int, ranks: int, element_bytes: float = 2) -> Traffic:
    """Every rank passes its keys and values round, forward (Liu et al. 2023, arXiv 2310.01889)."""
    tokens, total = num_tokens / ranks, 0.0
    for mixer, count in _grouped(shape):
        width = mixer.num_kv_heads * (mixer.head_dim + mixer.value_width)
        total += count * tokens * width * element_bytes * (ranks - 1)
    layers = sum(count for _, count in _grouped(shape))
    return Traffic(
        what="ring attention",
        sent_bytes=total,
        operations=layers * (ranks - 1),
        formula="2 (T / p) k d e (p - 1) a layer",
    )


def data_parallel(num_parameters: int, ranks: int, *, stage: int = 0, element_bytes: float = 2) -> Traffic:
    """Gradients, and weights where they are sharded, of one training step (Rajbhandari et al. 2019, arXiv 1910.02054,
    section 7): stages 0 to 2 reduce and gather once each, stage 3 gathers once more for the backward pass."""
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"zero-stage must be 0, 1, 2 or 3, got {stage}")
    passes = 3 if stage == 3 else 2
    return Traffic(
        what=f"data parallel, ZeRO {stage}" if stage else "data parallel",
        sent_bytes=passes * share_bytes(num_parameters * element_bytes, ranks),
        operations=passes * (ranks > 1),
        formula=f"{passes} N e (p - 1) / p",
    )


def hand_over(shape: Shape, num_tokens: int, layout: KvLayout) -> Traffic:
    """Keys, values, latents and states of one prompt, from a pool that reads prompts to one that decodes."""
    return Traffic(
        what="KV hand-over",
        sent_bytes=kv_cost(shape, layout).sequence_bytes(num_tokens),
        operations=1,
        formula="S kv, once a request",
    )


Spread = Callable[[Shape, int, int], Traffic]
"""(shape, tokens, ranks) to what one rank sends in a forward pass."""

SPREADS: dict[str, Spread] = {
    "tensor": tensor_parallel,
    "tensor-sequence": sequence_sharded,
    "pipeline": pipeline_parallel,
    "expert": expert_parallel,
    "ulysses": ulysses,
    "ring": ring_attention,
}
