"""Bytes of keys and values, latents and states: per token, per sequence of a length, per rank."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.arch.mixers import Attention, LatentAttention
from octavo.arch.shape import Layer, Shape
from octavo.errors import ConfigError
from octavo.planner.parallel import ALONE, Parallel, kv_heads_per_rank, stage_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """How one element of keys, values or latents is stored.

    bits         of one element
    extra_bytes  for each token and head, of keys and again of values: scales and zero points
    state_bytes  of an element of a recurrent state
    conv_bytes   of an input that a small convolution needs again
    source       whose layout this is
    """

    name: str
    bits: int
    extra_bytes: int = 0
    state_bytes: int = 4
    conv_bytes: int = 2
    source: str = ""

    def bytes_of(self, elements: int, vectors: int) -> int:
        """Elements that lie in so many vectors, each with its scale."""
        return -(-elements * self.bits // 8) + vectors * self.extra_bytes


LAYOUTS = {
    layout.name: layout
    for layout in (
        KvLayout(name="fp32", bits=32, conv_bytes=4, source="IEEE 754"),
        KvLayout(name="bf16", bits=16, source="bfloat16"),
        KvLayout(
            name="fp8", bits=8, source="vLLM, kv_cache_dtype fp8: one scale for each layer, not counted"
        ),
        KvLayout(
            name="int8", bits=8, extra_bytes=4, source="vLLM, int8 per token and head: a float32 scale each"
        ),
        KvLayout(
            name="int4",
            bits=4,
            extra_bytes=4,
            source="LMDeploy, quant_policy 4: a float16 scale and zero point for each token and head",
        ),
    )
}
"""Recurrent states are kept in float32, as Qwen3.5 and Nemotron-H ask for in their configs (`mamba_ssm_dtype`)."""


def kv_layout(name: str) -> KvLayout:
    """Raises ConfigError that lists what there is."""
    if name not in LAYOUTS:
        raise ConfigError(f"the KV layout {name!r} is not known; known are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def token_bytes(mixer: Attention | LatentAttention, layout: KvLayout, tensor: int = 1) -> int:
    """One token in one layer on one of `tensor` ranks. Latents are held by every rank; heads are shared out, and
    repeated where there are fewer than ranks."""
    if isinstance(mixer, LatentAttention):
        return layout.bytes_of(mixer.kv_rank + mixer.rope_dim, 1) + index_bytes(mixer, layout)
    if mixer.shares_kv:
        return 0
    heads = kv_heads_per_rank(mixer.num_kv_heads, tensor)
    return layout.bytes_of(heads * (mixer.head_dim + mixer.value_width), 2 * heads)


def index_bytes(mixer: Attention | LatentAttention, layout: KvLayout) -> int:
    """Of `token_bytes`, the key that an indexer compares all positions by."""
    if isinstance(mixer, LatentAttention) and mixer.index_heads:
        return layout.bytes_of(mixer.index_dim, 1)
    return 0


def layer_state_bytes(layer: Layer, layout: KvLayout, tensor: int = 1) -> int:
    """What one sequence holds in a layer whatever its length, shared out over ranks."""
    total = sum(
        state.state_elements() * layout.state_bytes + state.conv_elements() * layout.conv_bytes
        for state in layer.states
    )
    return -(-total // tensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCost:
    """What sequences take in the cache of one rank.

    token_bytes     of each token in all layers, windows left out of account
    windowed        (reach, bytes a token in the layers of that reach)
    state_bytes     of each sequence, whatever its length
    """

    token_bytes: int
    windowed: tuple[tuple[int, int], ...]
    state_bytes: int

    def sequence_bytes(self, length: int) -> int:
        """Of one sequence of so many tokens; layers with a reach keep no more than that."""
        saved = sum(max(0, length - reach) * bytes_ for reach, bytes_ in self.windowed)
        return length * self.token_bytes - saved + self.state_bytes

    @property
    def unbounded_token_bytes(self) -> int:
        """What a further token takes once every window is full."""
        return self.token_bytes - sum(bytes_ for _, bytes_ in self.windowed)


def kv_cost(shape: Shape, layout: KvLayout, parallel: Parallel = ALONE, stage: int | None = None) -> KvCost:
    """Of the layers of one stage, or of the stage that has most where None and there are several."""
    if stage is None and parallel.pipeline > 1:
        costs = [kv_cost(shape, layout, parallel, one) for one in range(parallel.pipeline)]
        return max(costs, key=lambda cost: cost.token_bytes + cost.state_bytes)
    per_token, states = 0, 0
    windowed: dict[int, int] = {}
    for layer in stage_layers(shape, parallel, stage):
        states += layer_state_bytes(layer, layout, parallel.tensor)
        for mixer in layer.attentions:
            bytes_ = token_bytes(mixer, layout, parallel.tensor)
            per_token += bytes_
            if mixer.keeps is not None:
                windowed[mixer.keeps] = windowed.get(mixer.keeps, 0) + bytes_
    return KvCost(token_bytes=per_token, windowed=tuple(sorted(windowed.items())), state_bytes=states)
