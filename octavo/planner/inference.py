"""Memory of serving a model on devices: weights, position tables, activations of the largest step, and the pool that is
left for keys and values.

`octavo.planner.memory` plans this engine on the machine it runs on, to the byte; here any shape is planned for any
device, the parts that only an engine knows as estimates one can replace by what it printed.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.arch.mlps import Experts
from octavo.arch.shape import Shape
from octavo.errors import ConfigError
from octavo.planner.formats import WeightFormat, rest_bytes, weight_bytes
from octavo.planner.kv_layouts import KvCost, KvLayout, kv_cost
from octavo.planner.parallel import ALONE, Parallel, rank_tensors
from octavo.units import GIB, format_bytes

LOGIT_BYTES = 16
"""Of one logit while a batch is sampled: as computed, in float32, and two copies to sort and to normalise. vLLM 0.19
printed peaks of 1.89 GiB (vocabulary 128,256) and 2.21 GiB (151,936) for 1024 sequences: 15.5 bytes
(llm-d planner, docs/empirical-vllm-memory-results.md)."""

LIBRARY_BYTES, GROUP_BYTES = GIB // 4, round(2.1 * GIB)
"""What a driver's context and libraries take beside the tensors of one rank, alone and in a tensor group: 0.25 and
2.06 to 2.13 GiB printed by vLLM 0.19 (same source). Such figures change from version to version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How a model is to be served.

    max_tokens      computed in one step at most
    max_seqs        in one step at most
    block_tokens    tokens of a KV block
    utilization     share of the device's memory that may be taken
    activation_bytes, library_bytes   as an engine printed them; None for the estimate
    """

    max_tokens: int = 8192
    max_seqs: int = 1024
    block_tokens: int = 16
    utilization: float = 0.9
    activation_bytes: int | None = None
    library_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_seqs", "block_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.utilization <= 1:
            raise ConfigError(f"utilization must be above 0 and at most 1, got {self.utilization}")


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceMemory:
    """Bytes of the rank that holds most, and what fits beside them.

    stage           the pipeline stage it is in
    limit_bytes     that may be taken
    kv              what sequences cost on it
    """

    stage: int
    limit_bytes: int
    weight_bytes: int
    table_bytes: int
    activation_bytes: int
    library_bytes: int
    block_tokens: int
    kv: KvCost

    @property
    def pool_bytes(self) -> int:
        """Left for keys and values; negative where the rest does not fit."""
        return (
            self.limit_bytes
            - self.weight_bytes
            - self.table_bytes
            - self.activation_bytes
            - self.library_bytes
        )

    @property
    def pool_tokens(self) -> int:
        """In whole blocks, all layers kept in full."""
        if self.kv.token_bytes == 0:
            return 0
        return max(0, self.pool_bytes // (self.block_tokens * self.kv.token_bytes)) * self.block_tokens

    def num_sequences(self, length: int) -> int:
        """Of so many tokens, each in whole blocks, windows capped and states included."""
        rounded = -(-length // self.block_tokens) * self.block_tokens
        return max(0, self.pool_bytes // self.kv.sequence_bytes(rounded))

    def rows(self) -> list[tuple[str, int, str]]:
        """(what, bytes, remark) for a printed table."""
        return [
            ("weights", self.weight_bytes, ""),
            ("position tables", self.table_bytes, "cosines and sines of every position"),
            ("activations", self.activation_bytes, "of the largest step, estimated"),
            ("libraries", self.library_bytes, "context and communication buffers, estimated"),
            ("KV pool", self.pool_bytes, f"of a limit of {format_bytes(self.limit_bytes)}"),
        ]


def rank_weight_bytes(shape: Shape, form: WeightFormat, parallel: Parallel, stage: int | None) -> int:
    """Weights of one rank of a stage, an image encoder whole on the first."""
    held = weight_bytes(rank_tensors(shape, parallel, stage), form)
    if stage in (None, 0):
        held += int(sum(tensor.num_elements() for tensor in shape.vision) * rest_bytes(form))
    return held


def table_bytes(shape: Shape, element_bytes: float = 2) -> int:
    """Cosines and sines of every position that rotary embeddings are made for, as vLLM keeps them on each rank."""
    return int(shape.max_positions * shape.rotary_size * element_bytes)


def activation_bytes(
    shape: Shape, serving: Serving, parallel: Parallel = ALONE, *, is_last: bool = True
) -> int:
    """Peak of the largest step: the widest layer's residual, its norm and its network, or the logits being sampled."""
    tensor = parallel.tensor
    widths = []
    for layer, _ in shape.groups():
        for mlp in layer.mlps:
            columns = 3 if mlp.gated else 2
            widths.append(columns * mlp.active_width() / tensor)
            if isinstance(mlp, Experts):
                widths[-1] += 2 * mlp.used * shape.hidden_size
        for attention in layer.attentions:
            widths.append(4 * attention.num_heads * attention.head_dim / tensor)
        for state in layer.states:
            widths.append(
                sum(one.outputs for one in state.tensors(shape.hidden_size) if hasattr(one, "outputs"))
            )
    layer_peak = serving.max_tokens * 2 * (4 * shape.hidden_size + max(widths))
    logits = min(serving.max_seqs, serving.max_tokens) * shape.vocab_size * LOGIT_BYTES * is_last
    return int(max(layer_peak, logits))


def plan_inference(
    shape: Shape,
    memory_bytes: int,
    form: WeightFormat,
    layout: KvLayout,
    *,
    parallel: Parallel = ALONE,
    serving: Serving | None = None,
) -> InferenceMemory:
    """The rank with least room for keys and values, on devices of so much memory (`Device.limit_bytes`).

    Raises ConfigError where the spread does not divide the model.
    """
    serving = Serving() if serving is None else serving
    limit = int(serving.utilization * memory_bytes)
    stages = [
        _stage(shape, limit, form, layout, parallel, serving, stage) for stage in range(parallel.pipeline)
    ]
    return min(stages, key=lambda one: one.pool_bytes / max(1, one.kv.token_bytes + one.kv.state_bytes))


def _stage(
    shape: Shape,
    limit_bytes: int,
    form: WeightFormat,
    layout: KvLayout,
    parallel: Parallel,
    serving: Serving,
    stage: int,
) -> InferenceMemory:
    is_last = stage == parallel.pipeline - 1
    activations, libraries = serving.activation_bytes, serving.library_bytes
    if activations is None:
        activations = activation_bytes(shape, serving, parallel, is_last=is_last)
    if libraries is None:
        libraries = GROUP_BYTES if parallel.tensor * parallel.data > 1 else LIBRARY_BYTES
    return InferenceMemory(
        stage=stage,
        limit_bytes=limit_bytes,
        weight_bytes=rank_weight_bytes(shape, form, parallel, stage),
        table_bytes=table_bytes(shape, rest_bytes(form)),
        activation_bytes=activations,
        library_bytes=libraries,
        block_tokens=serving.block_tokens,
        kv=kv_cost(shape, layout, parallel, stage),
    )
