"""Memory of training: weights, gradients and optimizer states by convention and ZeRO stage, and activations with and
without checkpoints at the borders of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octavo.arch.mixers import Attention, LatentAttention
from octavo.arch.mlps import Experts, Mlp
from octavo.arch.shape import Layer, Mixer, Shape
from octavo.arch.tensors import Matrix
from octavo.errors import ConfigError
from octavo.planner.parallel import ALONE, Parallel, rank_tensors, stage_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """Bytes of each parameter before the optimizer's own: weights as multiplied, gradients, and the weights that the
    optimizer adds to where those are others."""

    name: str
    weight: int
    gradient: int
    master: int
    remark: str


CONVENTIONS: Mapping[str, Convention] = {
    one.name: one
    for one in (
        Convention(
            name="bf16",
            weight=2,
            gradient=2,
            master=4,
            remark="16 bytes with Adam: bfloat16 weights and gradients, float32 master copy",
        ),
        Convention(
            name="bf16-fp32-gradients",
            weight=2,
            gradient=4,
            master=4,
            remark="18 bytes with Adam: gradients are added up in float32 (Megatron-LM)",
        ),
        Convention(
            name="bf16-both-gradients",
            weight=2,
            gradient=6,
            master=4,
            remark="20 bytes with Adam: bfloat16 gradients beside their float32 sums",
        ),
        Convention(
            name="fp32", weight=4, gradient=4, master=0, remark="16 bytes with Adam: float32 throughout"
        ),
    )
}
"""Both 16 and 18 bytes are quoted as the rule of mixed precision; they differ in the gradients."""

OPTIMIZERS: Mapping[str, float] = {"adam": 8, "adamw-8bit": 2 + 2 * 4 / 256, "sgd-momentum": 4, "sgd": 0}
"""Bytes of state of each parameter. 8-bit Adam has a float32 scale for each 256 elements of either moment
(bitsandbytes, block-wise quantization)."""

CHECKPOINTS = ("none", "selective", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is trained.

    zero_stage         0 to 3: optimizer states, then gradients, then weights are sharded over `data` ranks
    data               replicas, over which states are sharded
    micro_tokens       tokens of one microbatch on one replica
    microbatches       of one step, which pipelines keep in flight
    checkpoint         "none"; "selective" does attention again; "full" keeps the input of each layer only
    flash              attention's scores are never written
    sequence_sharded   norms and residuals are sharded over the tensor group too
    fused_logits       logits and their gradient are never whole in memory
    """

    convention: str = "bf16"
    optimizer: str = "adam"
    zero_stage: int = 0
    data: int = 1
    micro_tokens: int = 4096
    sequence_tokens: int = 4096
    microbatches: int = 1
    checkpoint: str = "none"
    flash: bool = True
    sequence_sharded: bool = False
    fused_logits: bool = False

    def __post_init__(self) -> None:
        for name, known in (
            ("convention", tuple(CONVENTIONS)),
            ("optimizer", tuple(OPTIMIZERS)),
            ("checkpoint", CHECKPOINTS),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError(f"zero_stage must be 0, 1, 2 or 3, got {self.zero_stage}")
        for name in ("data", "micro_tokens", "sequence_tokens", "microbatches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


def state_bytes_per_parameter(recipe: Recipe) -> float:
    """Weights, gradients and optimizer states, nothing sharded."""
    made = CONVENTIONS[recipe.convention]
    return made.weight + made.gradient + made.master + OPTIMIZERS[recipe.optimizer]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Bytes of the rank that holds most.

    gathered_bytes    whole weights of the layer at work, where weights are sharded
    """

    stage: int
    num_parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    gathered_bytes: int
    activation_bytes: int
    logit_bytes: int

    @property
    def state_bytes(self) -> int:
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> int:
        return self.state_bytes + self.gathered_bytes + self.activation_bytes + self.logit_bytes

    def rows(self) -> list[tuple[str, int, str]]:
        """(what, bytes, remark) for a printed table."""
        return [
            ("weights", self.weight_bytes, ""),
            ("gradients", self.gradient_bytes, ""),
            ("optimizer", self.optimizer_bytes, "its states, and the master copy"),
            ("gathered layer", self.gathered_bytes, "whole while it is at work"),
            ("activations", self.activation_bytes, "kept for the backward pass"),
            ("logits", self.logit_bytes, "and their gradient"),
            ("total", self.total_bytes, ""),
        ]


def mixer_activation_bytes(mixer: Mixer, hidden: int, recipe: Recipe, element: int = 2) -> float:
    """Kept of one token: what goes into attention and comes out of it, its log-sum-exp, and without flash attention
    the scores, their softmax and its dropout mask. For states, everything their matrices put out: an estimate."""
    if isinstance(mixer, Attention):
        kept = element * (
            mixer.num_heads * (mixer.head_dim + mixer.value_width)
            + (0 if mixer.shares_kv else mixer.num_kv_heads * (mixer.head_dim + mixer.value_width))
        )
        return kept + _score_bytes(mixer, recipe, element)
    if isinstance(mixer, LatentAttention):
        latents = 2 * ((mixer.q_rank or 0) + mixer.kv_rank) + mixer.rope_dim
        heads = mixer.num_heads * (2 * mixer.head_dim + 2 * mixer.value_dim)
        return element * (latents + heads) + _score_bytes(mixer, recipe, element)
    into = [tensor for tensor in mixer.tensors(hidden) if isinstance(tensor, Matrix) and tensor.name != "out"]
    return element * (sum(tensor.outputs for tensor in into) + mixer.conv_elements())


def _score_bytes(mixer: Attention | LatentAttention, recipe: Recipe, element: int) -> float:
    """Log-sum-exp in float32; or 5 a s as in Korthikanti et al. 2022, equation 1, unless it is done again."""
    if recipe.flash:
        return 4 * mixer.num_heads
    again = recipe.checkpoint == "selective"
    return 0 if again else (2 * element + 1) * mixer.num_heads * recipe.sequence_tokens


def mlp_activation_bytes(mlp: Mlp | Experts, hidden: int, element: int = 2) -> float:
    """Kept of one token: gate, up and their product, or what goes into the activation and comes out; of experts, the
    copies sent to them and back besides, and the router's scores in float32."""
    columns = 3 if mlp.gated else 2
    kept = float(element * columns * mlp.active_width())
    if isinstance(mlp, Experts):
        kept += element * 2 * mlp.used * hidden + 4 * (mlp.routes or mlp.count)
    return kept


def layer_activation_bytes(
    layer: Layer, hidden: int, recipe: Recipe, *, tensor: int = 1, element: int = 2
) -> float:
    """Of one token on one rank, nothing checkpointed: 8h + 4ad + 4kd + 6i + 4a + 8 for a gated layer in bfloat16.

    For each half of the layer the input of its norm, that normed, and the norm's statistics; of these a tensor group
    shards nothing unless the sequence is sharded.
    """
    halves = bool(layer.mixers) + bool(layer.mlps)
    shared = halves * (2 * element * hidden + 4)
    cut = sum(mixer_activation_bytes(mixer, hidden, recipe, element) for mixer in layer.mixers)
    cut += sum(mlp_activation_bytes(mlp, hidden, element) for mlp in layer.mlps)
    return shared / (tensor if recipe.sequence_sharded else 1) + cut / tensor


def activation_bytes_per_token(
    shape: Shape, recipe: Recipe, parallel: Parallel = ALONE, stage: int | None = None
) -> float:
    """Kept of one token over the layers of a stage; checkpoints keep each layer's input and one layer live."""
    layers = stage_layers(shape, parallel, stage)
    each = [
        layer_activation_bytes(layer, shape.hidden_size, recipe, tensor=parallel.tensor) for layer in layers
    ]
    if recipe.checkpoint != "full":
        return sum(each)
    share = parallel.tensor if recipe.sequence_sharded else 1
    return len(layers) * checkpoint_bytes(shape) / share + max(each)


def checkpoint_bytes(shape: Shape, element: int = 2) -> int:
    """What one checkpoint keeps of one token: the input of a layer."""
    return element * shape.hidden_size


def plan_training(shape: Shape, recipe: Recipe, parallel: Parallel = ALONE) -> TrainingMemory:
    """The rank that holds most. Raises ConfigError where the spread does not divide the model."""
    stages = [_stage(shape, recipe, parallel, stage) for stage in range(parallel.pipeline)]
    return max(stages, key=lambda one: one.total_bytes)


def _stage(shape: Shape, recipe: Recipe, parallel: Parallel, stage: int) -> TrainingMemory:
    held = sum(count * tensor.num_elements() for tensor, count in rank_tensors(shape, parallel, stage))
    made, zero = CONVENTIONS[recipe.convention], recipe.zero_stage

    def shard(num_bytes: float, from_stage: int) -> int:
        return int(-(-num_bytes // (recipe.data if zero >= from_stage else 1)))

    largest = max(shape.num_layer_parameters(index) for index in range(shape.num_layers)) / parallel.tensor
    # one forward, one backward at a time: the first stage has as many microbatches in flight as there are stages
    in_flight = min(recipe.microbatches, parallel.pipeline - stage)
    per_token = activation_bytes_per_token(shape, recipe, parallel, stage)
    is_last = stage == parallel.pipeline - 1
    logits = 0.0
    if is_last and not recipe.fused_logits:
        logits = recipe.micro_tokens * logit_bytes_per_token(shape) / parallel.tensor
    return TrainingMemory(
        stage=stage,
        num_parameters=held,
        weight_bytes=shard(held * made.weight, 3),
        gradient_bytes=shard(held * made.gradient, 2),
        optimizer_bytes=shard(held * (made.master + OPTIMIZERS[recipe.optimizer]), 1),
        gathered_bytes=int(largest * made.weight) if zero == 3 and recipe.data > 1 else 0,
        activation_bytes=int(recipe.micro_tokens * per_token * in_flight),
        logit_bytes=int(logits),
    )


def logit_bytes_per_token(shape: Shape) -> int:
    """Logits in bfloat16 and in float32, whose gradient takes their place."""
    return 6 * shape.vocab_size


def gpt_activation_bytes(
    sequence_tokens: int,
    batch: int,
    hidden: int,
    num_heads: int,
    num_layers: int,
    *,
    tensor: int = 1,
    sequence_sharded: bool = False,
    checkpoint: str = "none",
) -> float:
    """The reference formula for GPT layers without flash attention: s b h (34 + 5 a s / h) of each.

    34 counts a network four times as wide as the hidden state and three dropout masks. A grouped-query layer with a
    gated network of 3.5 h comes near 34 by coincidence only. Source: Korthikanti et al. 2022, arXiv 2205.05198,
    equations 1, 2 and 4, table 2.
    """
    if checkpoint not in CHECKPOINTS:
        raise ConfigError(f"checkpoint must be one of {', '.join(CHECKPOINTS)}, got {checkpoint!r}")
    rows = sequence_tokens * batch * hidden * num_layers
    if checkpoint == "full":
        return float(2 * rows)
    scores = 0.0 if checkpoint == "selective" else 5 * num_heads * sequence_tokens / hidden
    if sequence_sharded:
        return rows * (34 + scores) / tensor
    return rows * (10 + (24 + scores) / tensor)
