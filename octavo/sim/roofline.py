"""Step times from a data sheet: the planner's roofline as a time model, and the memory its devices have for a pool.

Where every attention reaches back to the beginning and nothing else is kept of a sequence, a decode's share of a step
is proportional to its context, and the model is `Affine`. Otherwise it looks at every slice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.arch.mixers import LatentAttention
from octavo.arch.shape import Shape
from octavo.core.limits import Limits
from octavo.errors import ConfigError
from octavo.planner.efficiency import Efficiency, efficiency
from octavo.planner.formats import FORMATS, WeightFormat
from octavo.planner.hardware import Device
from octavo.planner.inference import Serving, plan_inference
from octavo.planner.kv_layouts import LAYOUTS, KvLayout
from octavo.planner.links import Link
from octavo.planner.parallel import ALONE, Parallel
from octavo.planner.roofline import step_seconds
from octavo.planner.step_work import StepCounter, StepWork
from octavo.sim.timing import Affine, TimeModel, Timing, Work
from octavo.units import format_bytes

FAR_TOKENS = 1 << 20
"""A context at which the cost of a token of context is read off; it is the same at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One replica's hardware and how a model lies on it.

    device  of which each of `parallel.num_ranks` ranks has one
    """

    shape: Shape
    device: Device
    weights: WeightFormat = FORMATS["bf16"]
    kv: KvLayout = LAYOUTS["bf16"]
    parallel: Parallel = ALONE

    @property
    def link(self) -> Link | None:
        return self.device.node() if self.parallel.tensor * self.parallel.data > 1 else None

    @property
    def efficiency(self) -> Efficiency:
        return efficiency(self.device.name, self.device.computes_in(self.weights.compute))

    def counter(self) -> StepCounter:
        return StepCounter(self.shape, weights=self.weights, kv=self.kv, parallel=self.parallel)

    def seconds(self, work: StepWork) -> float:
        return step_seconds(
            work, self.device, self.efficiency, precision=self.weights.compute, link=self.link
        )

    @property
    def usd_per_hour(self) -> float | None:
        """Of all its ranks."""
        price = self.device.usd_per_hour
        return None if price is None else price * self.parallel.num_ranks


class Sliced(TimeModel):
    """Looks at every slice: for windows, states and latents."""

    needs_slices = True

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._counter = rank.counter()

    def seconds(self, work: Work) -> float:
        return self._rank.seconds(self._counter.work(work.slices))


class Summed(Affine):
    """Looks at chunks one by one, and at decodes together."""

    __slots__ = ("_counter", "_rank", "_row_flop", "_unit", "context_s")

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._counter = rank.counter()
        self._unit = self._counter.work([(-1, 1, 0)])  # a decode without what it reads
        self._row_flop = self._counter.work([(-1, 1, 1)]).linear_flop - self._unit.linear_flop
        far = self._counter.work([(FAR_TOKENS - 1, 1, 0)])
        self.context_s = (rank.seconds(far) - rank.seconds(self._unit)) / FAR_TOKENS

    def base_s(self, work: Work) -> float:
        unit, count = self._unit, work.num_decodes
        chunks = self._counter.work(work.chunks)
        rows = work.num_sampled - chunks.num_sampled
        return self._rank.seconds(
            replace(
                chunks,
                num_tokens=work.num_tokens,
                num_seqs=work.num_seqs,
                num_sampled=work.num_sampled,
                linear_flop=chunks.linear_flop + count * unit.linear_flop + rows * self._row_flop,
                weight_bytes=self._counter.weight_bytes(work.num_tokens, work.num_sampled),
                expert_bytes=self._counter.expert_bytes(work.num_tokens),
                expert_flop=chunks.expert_flop + count * unit.expert_flop,
                kv_write_bytes=chunks.kv_write_bytes + count * unit.kv_write_bytes,
                activation_bytes=chunks.activation_bytes + count * unit.activation_bytes,
                link_bytes=chunks.link_bytes + count * unit.link_bytes,
            )
        )


def roofline(rank: Rank) -> Timing:
    """Step times of a model on a device, uncalibrated, without a host's."""
    shape = rank.shape
    is_plain = not any(layer.states for layer in shape.layers) and all(
        mixer.reach is None and not isinstance(mixer, LatentAttention)
        for layer in shape.layers
        for mixer in layer.attentions
    )
    model: TimeModel = Summed(rank) if is_plain else Sliced(rank)
    basis = rank.efficiency
    return Timing(
        model=model, source=f"roofline of {rank.device.label}; efficiencies {basis.basis}: {basis.source}"
    )


def pool_limits(rank: Rank, limits: Limits, utilization: float = 0.9) -> Limits:
    """The limits with as many blocks as the rank's memory has room for beside weights and workspace.

    Raises ConfigError when not even one longest sequence fits.
    """
    serving = Serving(
        max_tokens=limits.max_num_batched_tokens,
        max_seqs=limits.max_num_seqs,
        block_tokens=limits.block_tokens,
        utilization=utilization,
    )
    memory = plan_inference(
        rank.shape,
        rank.device.limit_bytes,
        rank.weights,
        rank.kv,
        parallel=rank.parallel,
        serving=serving,
    )
    blocks = memory.pool_tokens // limits.block_tokens + 1
    least = limits.min_blocks(limits.max_model_len) + 1
    if blocks < least:
        raise ConfigError(
            f"{format_bytes(memory.weight_bytes)} of weights leave {max(memory.pool_tokens, 0)} tokens of KV on"
            f" {rank.parallel.num_ranks} x {rank.device.label}, and one sequence of max_model_len="
            f"{limits.max_model_len} needs {(least - 1) * limits.block_tokens}; take more devices, narrower weights or"
            " a lower max_model_len"
        )
    useful = limits.max_num_seqs * limits.min_blocks(limits.max_model_len) + 1
    return replace(limits, num_blocks=min(blocks, useful))
