"""FLOPs of prompts, chunks, decode tokens and training steps, by part and by layer. One multiplication or one addition
is one FLOP; norms, activation functions and softmax are not counted, as is usual."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from octavo.arch.mixers import Attention, LatentAttention
from octavo.arch.shape import Layer, Shape
from octavo.arch.tensors import Matrix
from octavo.errors import ConfigError

Slice = tuple[int, int, int]
"""(tokens before, tokens computed now, rows of logits): what a step does for one sequence."""

ATTENTION_PARTS = ("scores", "values", "index", "expand", "recurrence")
"""Parts that weights do not tell: products of queries with keys and of weights with values, an indexer's of all
positions, keys and values made anew from latents, and the updates of recurrent states."""


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs by part: the parts of weights, and ATTENTION_PARTS."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def attention(self) -> int:
        return sum(flop for part, flop in self.parts.items() if part in ATTENTION_PARTS)

    @property
    def linear(self) -> int:
        return self.total - self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(_summed([self.parts, other.parts]))

    def times(self, count: int) -> Flops:
        return Flops({part: flop * count for part, flop in self.parts.items()})


def causal_pairs(start: int, num_tokens: int, reach: int | None = None, *, chunked: bool = False) -> int:
    """(query, position) pairs of tokens at `start` and after, each seeing itself and what lies before.

    reach    positions a token sees at most
    chunked  positions are cut into stretches of that length instead, and a token sees its own stretch only
    """
    end = start + num_tokens
    if reach is None:
        return num_tokens * start + num_tokens * (num_tokens + 1) // 2
    if chunked:
        return _before(end, reach) - _before(start, reach)
    growing = max(0, min(end, reach) - start)
    return growing * start + growing * (growing + 1) // 2 + (num_tokens - growing) * reach


def _before(position: int, chunk: int) -> int:
    """Pairs of all tokens before a position."""
    whole, rest = divmod(position, chunk)
    return whole * (chunk * (chunk + 1) // 2) + rest * (rest + 1) // 2


def mixer_pairs(mixer: Attention | LatentAttention, start: int, num_tokens: int) -> int:
    chunked = isinstance(mixer, Attention) and mixer.window is None and mixer.chunk is not None
    return causal_pairs(start, num_tokens, mixer.reach, chunked=chunked)


def layer_flops(
    layer: Layer, hidden: int, slices: Iterable[Slice], *, absorbed: bool = False, re_expand: bool = False
) -> Flops:
    """One layer over some slices.

    absorbed    latent attention compares with latents (what decoding does) instead of expanded keys and values
    re_expand   tokens before a slice are kept as latents, and are expanded again for it
    """
    slices = list(slices)
    tokens = sum(count for _, count, _ in slices)
    parts: dict[str, int] = {}
    for tensor in layer.tensors(hidden):
        if isinstance(tensor, Matrix):
            parts[tensor.part] = parts.get(tensor.part, 0) + tokens * tensor.flop_per_token()
    for mixer in layer.attentions:
        pairs = sum(mixer_pairs(mixer, start, count) for start, count, _ in slices)
        scores, values = _pair_flop(mixer, absorbed)
        parts["scores"] = parts.get("scores", 0) + pairs * scores
        parts["values"] = parts.get("values", 0) + pairs * values
        if isinstance(mixer, LatentAttention) and mixer.index_heads:
            seen = sum(causal_pairs(start, count) for start, count, _ in slices)
            parts["index"] = parts.get("index", 0) + seen * mixer.index_flop_per_pair()
        if isinstance(mixer, LatentAttention) and re_expand and not absorbed:
            before = sum(start for start, _, _ in slices)
            parts["expand"] = parts.get("expand", 0) + before * mixer.expand_flop_per_token()
    if layer.states:
        recurrent = tokens * sum(state.flop_per_token() for state in layer.states)
        parts["recurrence"] = parts.get("recurrence", 0) + recurrent
    return Flops(parts)


def _pair_flop(mixer: Attention | LatentAttention, absorbed: bool) -> tuple[int, int]:
    if isinstance(mixer, LatentAttention):
        return mixer.score_flop_per_pair(absorbed), mixer.value_flop_per_pair(absorbed)
    return mixer.score_flop_per_pair(), mixer.value_flop_per_pair()


def forward(
    shape: Shape, slices: Sequence[Slice], *, absorbed: bool = False, re_expand: bool = False
) -> Flops:
    """All layers, and the head on the rows of logits asked for."""
    tokens = sum(count for _, count, _ in slices)
    sampled = sum(rows for _, _, rows in slices)
    parts = [
        layer_flops(layer, shape.hidden_size, slices, absorbed=absorbed, re_expand=re_expand)
        .times(count)
        .parts
        for layer, count in shape.groups()
    ]
    around: dict[str, int] = {}
    for tensor in shape.around:
        if isinstance(tensor, Matrix):
            rows = sampled if tensor.part == "head" else tokens
            around[tensor.part] = around.get(tensor.part, 0) + rows * tensor.flop_per_token()
    head = {"head": sampled * shape.head.flop_per_token()}
    return Flops(_summed([*parts, around, head]))


def prefill(
    shape: Shape, num_tokens: int, *, num_cached: int = 0, num_sampled: int = 1, absorbed: bool = False
) -> Flops:
    """A prompt of `num_tokens` of which `num_cached` need no computing; the head runs on `num_sampled` rows."""
    if not 0 <= num_cached < num_tokens:
        raise ConfigError(
            f"cached tokens must be from 0 to {num_tokens - 1} of {num_tokens}, got {num_cached}"
        )
    return forward(shape, [(num_cached, num_tokens - num_cached, num_sampled)], absorbed=absorbed)


def chunked_prefill(
    shape: Shape, num_tokens: int, chunk_tokens: int, *, num_cached: int = 0, re_expand: bool = False
) -> Flops:
    """The same prompt in pieces. Pieces change nothing in the total, unless latents are expanded again for each."""
    if chunk_tokens < 1:
        raise ConfigError(f"a chunk has at least 1 token, got {chunk_tokens}")
    total = Flops({})
    for start in range(num_cached, num_tokens, chunk_tokens):
        count = min(chunk_tokens, num_tokens - start)
        rows = int(start + count == num_tokens)
        total += forward(shape, [(start, count, rows)], re_expand=re_expand)
    return total


def decode(shape: Shape, context: int, *, absorbed: bool = False) -> Flops:
    """One token that sees `context` positions, its own included."""
    if context < 1:
        raise ConfigError(f"a decode token sees at least itself: context must be at least 1, got {context}")
    return forward(shape, [(context - 1, 1, 1)], absorbed=absorbed)


RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFlops:
    """One sequence through forward, backward, and what is computed again because it was not kept."""

    forward: Flops
    backward: Flops
    recomputed: Flops
    num_tokens: int

    @property
    def model(self) -> int:
        """What the model asks for: the numerator of model-FLOP utilisation."""
        return self.forward.total + self.backward.total

    @property
    def hardware(self) -> int:
        """What is computed: the numerator of hardware-FLOP utilisation."""
        return self.model + self.recomputed.total


def training(shape: Shape, num_tokens: int, *, recompute: str = "none") -> TrainingFlops:
    """A sequence of `num_tokens`, the head on every token; a backward pass costs two forward passes.

    recompute  "none"; "selective" does attention's products again (Korthikanti et al. 2022, arXiv 2205.05198,
               section 5); "full" does whole layers again, not the head
    """
    if recompute not in RECOMPUTE:
        raise ConfigError(f"recompute must be one of {', '.join(RECOMPUTE)}, got {recompute!r}")
    once = forward(shape, [(0, num_tokens, num_tokens)])
    again = {
        "none": {},
        "selective": {part: flop for part, flop in once.parts.items() if part in ATTENTION_PARTS},
        "full": {part: flop for part, flop in once.parts.items() if part != "head"},
    }[recompute]
    return TrainingFlops(forward=once, backward=once.times(2), recomputed=Flops(again), num_tokens=num_tokens)


def full_attention_flop_per_token(num_parameters: int, num_layers: int, hidden: int, num_tokens: int) -> int:
    """Training FLOPs of a token as llm-foundry counts them: every parameter twice, and attention over all positions
    rather than those before; three times for forward and backward.

    Source: MosaicML llm-foundry, scripts/train/benchmarking/README.md, "MFU and HFU".
    """
    return 3 * (2 * num_parameters + 4 * num_layers * hidden * num_tokens)


def _summed(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in parts:
        for part, flop in one.items():
            total[part] = total.get(part, 0) + flop
    return total
