"""Ways to lay a model out: precision, KV layout, spread over ranks, requests at once; and why some cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from octavo.arch.shape import Shape
from octavo.errors import ConfigError
from octavo.planner.capacity import Load, Replica, room_for
from octavo.planner.formats import WeightFormat
from octavo.planner.front_end import FRONT_ENDS, FrontEnd
from octavo.planner.hardware import Device
from octavo.planner.kv_layouts import KvLayout
from octavo.planner.parallel import Parallel
from octavo.planner.slo import Slo
from octavo.units import format_bytes

LADDER = 2**0.25
"""From one number of requests at once to the next that is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is to be served, on what, how well.

    requests_per_s, concurrency   one of both: arrivals of an open loop, or requests of a closed one
    max_ranks      devices of one replica at most; None for those of a node
    budgets        tokens computed in one step at most
    prices         dollars an hour by a device's name, instead of the table's
    """

    shape: Shape
    devices: tuple[Device, ...]
    weights: tuple[WeightFormat, ...]
    kvs: tuple[KvLayout, ...]
    load: Load
    slo: Slo
    requests_per_s: float | None = None
    concurrency: float | None = None
    max_ranks: int | None = None
    budgets: tuple[int, ...] = (8192,)
    max_seqs: int = 1024
    front_end: FrontEnd = FRONT_ENDS["vllm"]
    prices: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.requests_per_s is None) == (self.concurrency is None):
            raise ConfigError("a plan needs a rate of arrivals or a concurrency, and not both")
        for name in ("requests_per_s", "concurrency"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, got {value:g}")
        if not self.devices or not self.weights or not self.kvs or not self.budgets:
            raise ConfigError("a plan needs a device, a weight format, a KV layout and a budget of tokens")
        longest = self.load.prompt_tokens + self.load.output_tokens
        if longest > self.shape.max_positions:
            raise ConfigError(
                f"prompt and output are {longest:g} tokens, and the model's positions reach "
                f"{self.shape.max_positions}; shorten them or take another model"
            )

    def front_end_s(self, step_s: float) -> float:
        """Of a first token beside the steps, where a step takes `step_s`."""
        return self.front_end.seconds(self.shape, self.load.prompt_tokens, step_s)

    def price(self, device: Device) -> float | None:
        return self.prices.get(device.name, device.usd_per_hour)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A layout that cannot be, or keeps no limit."""

    label: str
    reason: str


def label(replica: Replica) -> str:
    parallel = replica.parallel
    ways = [
        f"{name}{count}"
        for name, count in (
            ("TP", parallel.tensor),
            ("PP", parallel.pipeline),
            ("DP", parallel.data),
            ("EP", parallel.expert),
        )
        if count > 1
    ]
    spread = " ".join(ways) or "alone"
    stored = f"{replica.weights.name}/{replica.kv.name}"
    return f"{replica.num_devices} x {replica.device.name} {stored} {spread}, {replica.budget_tokens} a step"


def spreads(shape: Shape, max_ranks: int) -> Iterator[Parallel]:
    """Powers of two: tensor and pipeline ranks, and where there are experts, whole ones, attention cut or not."""
    routed = any(layer.experts is not None for layer in shape.layers)
    sizes = [1 << power for power in range(max_ranks.bit_length()) if 1 << power <= max_ranks]
    for tensor in sizes:
        for pipeline in sizes:
            if tensor * pipeline <= max_ranks and pipeline <= shape.num_layers:
                yield Parallel(tensor=tensor, pipeline=pipeline)
        if not routed:
            continue
        for data in sizes:
            if 1 < tensor * data <= max_ranks:
                yield Parallel(tensor=tensor, data=data, expert=tensor * data)


def replicas(ask: Ask) -> Iterator[Replica | Rejected]:
    """Every combination, in a fixed order, those that cannot be with the reason."""
    for device, form, kv in product(ask.devices, ask.weights, ask.kvs):
        for parallel, budget in product(spreads(ask.shape, ask.max_ranks or device.per_node), ask.budgets):
            made = Replica(
                shape=ask.shape,
                device=device,
                weights=form,
                kv=kv,
                parallel=parallel,
                budget_tokens=budget,
                max_seqs=ask.max_seqs,
            )
            yield _fitting(made, ask.load)


def _fitting(made: Replica, load: Load) -> Replica | Rejected:
    try:
        memory = made.memory
        made.check()
    except ConfigError as error:
        return Rejected(label=label(made), reason=str(error))
    if room_for(made, load) >= 1:
        return made
    limit, weights = format_bytes(memory.limit_bytes), format_bytes(memory.weight_bytes)
    if memory.pool_bytes <= 0:
        reason = f"does not fit: {weights} of weights and workspace on a rank of {limit}"
    else:
        longest = memory.kv.sequence_bytes(round(load.prompt_tokens + load.output_tokens))
        reason = (
            f"does not fit: beside {weights} of weights a rank has {format_bytes(memory.pool_bytes)} for keys and "
            f"values, and one request takes {format_bytes(longest)}"
        )
    return Rejected(label=label(made), reason=reason)


def ladder(replica: Replica, load: Load) -> list[float]:
    """Requests at once that are looked at: from one in each lane to what has room."""
    most, steps = room_for(replica, load), []
    at = float(min(replica.lanes, most))
    while at < most:
        steps.append(at)
        at = max(at + 1, at * LADDER) if at < 8 else at * LADDER
    return [*steps, most]
