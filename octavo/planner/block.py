"""A layer operation by operation: shapes, parameters, FLOPs, bytes, intensity. The table a lecture draws of a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.arch.mixers import Attention, LatentAttention
from octavo.arch.shape import Layer, Shape
from octavo.arch.tensors import Matrix, Tensor
from octavo.planner.flops import Slice, causal_pairs, mixer_pairs
from octavo.planner.formats import WeightFormat, rest_bytes, tensor_bytes
from octavo.planner.hardware import Device
from octavo.planner.kv_layouts import KvLayout, index_bytes, token_bytes
from octavo.planner.parallel import ALONE, Parallel, cut
from octavo.planner.step_work import ACTIVATION_BYTES, kept_positions, touched_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation of one rank over all tokens of a step.

    shape             what is multiplied with what
    num_parameters    held by the rank
    weight_bytes      read; of experts, those expected to be touched
    activation_bytes  read and written, were nothing kept on the chip
    kv_bytes          keys and values read and written
    """

    name: str
    part: str
    shape: str
    num_parameters: int
    flop: float
    weight_bytes: float
    activation_bytes: float
    kv_bytes: float

    @property
    def num_bytes(self) -> float:
        return self.weight_bytes + self.activation_bytes + self.kv_bytes

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flop / self.num_bytes if self.num_bytes else 0.0

    def seconds(self, device: Device, precision: str) -> float:
        """At the speed of light."""
        return max(self.flop / device.rate(precision), self.num_bytes / device.bytes_per_s)

    def bound(self, device: Device, precision: str) -> str:
        compute, memory = self.flop / device.rate(precision), self.num_bytes / device.bytes_per_s
        return "compute" if compute > memory else "memory"


def block_ops(
    shape: Shape,
    layer: Layer,
    slices: Sequence[Slice],
    form: WeightFormat,
    layout: KvLayout,
    parallel: Parallel = ALONE,
) -> list[Op]:
    """The operations of one layer of `shape`, in order; attention's products come after its queries and keys.

    Raises ConfigError where the spread does not divide the layer.
    """
    tokens = sum(count for _, count, _ in slices)
    hidden = shape.hidden_size
    ops: list[Op] = []
    for mixer in layer.mixers:
        tensors = list(mixer.tensors(hidden))
        last = tensors.index(next(one for one in tensors if one.name in ("o", "out")))
        ops += [_weights(one, tokens, form, parallel) for one in tensors[:last]]
        if isinstance(mixer, Attention | LatentAttention):
            ops += _attention(mixer, slices, layout, parallel)
        else:
            state = mixer.state_elements() * layout.state_bytes + mixer.conv_elements() * layout.conv_bytes
            ops.append(
                Op(
                    name="recurrence",
                    part="recurrence",
                    shape=f"state of {mixer.state_elements() + mixer.conv_elements():,}",
                    num_parameters=0,
                    flop=tokens * mixer.flop_per_token() / parallel.tensor,
                    weight_bytes=0,
                    activation_bytes=0,
                    kv_bytes=2 * len(slices) * state / parallel.tensor,
                )
            )
        ops += [_weights(one, tokens, form, parallel) for one in tensors[last:]]
    for mlp in layer.mlps:
        ops += [_weights(one, tokens, form, parallel) for one in mlp.tensors(hidden)]
    if layer.norm_elements:
        passes = -(-layer.norm_elements // hidden)
        ops.append(_norms(layer.norm_elements, passes * tokens * hidden, form))
    return [op for op in ops if op.num_parameters or op.flop]


def _weights(tensor: Tensor, tokens: int, form: WeightFormat, parallel: Parallel) -> Op:
    mine = cut(tensor, parallel)
    rest = rest_bytes(form)
    if not isinstance(mine, Matrix):
        return _norms(mine.size, 0, form, name=mine.name, part=mine.part)
    share = 1 / parallel.tensor if mine.is_expert and parallel.expert > 1 else 1.0
    held = tensor_bytes(mine, form, rest)
    shape = f"{mine.inputs:,} x {mine.outputs:,}"
    if mine.is_expert and isinstance(tensor, Matrix):
        touched = touched_experts(mine.count, tensor.used / tensor.count, tokens * parallel.data)
        held *= touched / mine.count
        shape = f"{mine.count} of {shape}, {mine.used} used"
    rows = tokens * mine.used * share
    return Op(
        name=mine.name,
        part=mine.part,
        shape=shape,
        num_parameters=mine.num_elements(),
        flop=tokens * mine.flop_per_token() * share,
        weight_bytes=held,
        activation_bytes=rows * (mine.inputs + mine.outputs) * ACTIVATION_BYTES,
        kv_bytes=0,
    )


def _norms(size: int, elements: int, form: WeightFormat, name: str = "norms", part: str = "norm") -> Op:
    """FLOPs of norms are not counted, as is usual; their bytes are."""
    return Op(
        name=name,
        part=part,
        shape=f"{size:,}",
        num_parameters=size,
        flop=0,
        weight_bytes=size * rest_bytes(form),
        activation_bytes=2 * elements * ACTIVATION_BYTES,
        kv_bytes=0,
    )


def _attention(
    mixer: Attention | LatentAttention, slices: Sequence[Slice], layout: KvLayout, parallel: Parallel
) -> list[Op]:
    """Scores read the keys, values the rest; half of the bytes each, or of latents all with the scores."""
    ranks = parallel.tensor
    chunked = isinstance(mixer, Attention) and mixer.window is None and mixer.chunk is not None
    pairs = sum(mixer_pairs(mixer, start, count) for start, count, _ in slices)
    tokens = sum(count for _, count, _ in slices)
    positions = sum(kept_positions(start, count, mixer.reach, chunked) for start, count, _ in slices)
    of_index = index_bytes(mixer, layout)
    moved = (positions + tokens) * (token_bytes(mixer, layout, ranks) - of_index)
    heads = mixer.num_heads // ranks
    if isinstance(mixer, LatentAttention):
        decodes = all(count == 1 for _, count, _ in slices)
        scores, values = mixer.score_flop_per_pair(decodes), mixer.value_flop_per_pair(decodes)
        key, value = (
            (mixer.kv_rank + mixer.rope_dim, mixer.kv_rank) if decodes else (mixer.head_dim, mixer.value_dim)
        )
        of_scores = 1.0
    else:
        scores, values = mixer.score_flop_per_pair(), mixer.value_flop_per_pair()
        key, value = mixer.head_dim, mixer.value_width
        of_scores = key / (key + value)
    rows = ((key, scores, of_scores, "scores"), (value, values, 1 - of_scores, "values"))
    found = [_indexer(mixer, slices, of_index)] if of_index and isinstance(mixer, LatentAttention) else []
    return found + [
        Op(
            name=name,
            part=name,
            shape=f"{heads} heads of {width} x {pairs:,} pairs",
            num_parameters=0,
            flop=pairs * flop / ranks,
            weight_bytes=0,
            activation_bytes=tokens * heads * width * ACTIVATION_BYTES,
            kv_bytes=moved * share,
        )
        for width, flop, share, name in rows
    ]


def _indexer(mixer: LatentAttention, slices: Sequence[Slice], token: int) -> Op:
    """Every position is compared, those that are not picked too; each rank does all of it."""
    pairs = sum(causal_pairs(start, count) for start, count, _ in slices)
    tokens = sum(count for _, count, _ in slices)
    positions = sum(start + count for start, count, _ in slices)
    return Op(
        name="index",
        part="index",
        shape=f"{mixer.index_heads} heads of {mixer.index_dim} x {pairs:,} pairs",
        num_parameters=0,
        flop=pairs * mixer.index_flop_per_pair(),
        weight_bytes=0,
        activation_bytes=tokens * mixer.index_heads * mixer.index_dim * ACTIVATION_BYTES,
        kv_bytes=(positions + tokens) * token,
    )
