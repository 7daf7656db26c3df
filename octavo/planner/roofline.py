"""Seconds of a step: at the speed of light, and as kernels go; where arithmetic and memory meet."""

from __future__ import annotations

from octavo.planner.efficiency import Efficiency
from octavo.planner.formats import WeightFormat
from octavo.planner.hardware import Device
from octavo.planner.links import Link
from octavo.planner.step_work import StepWork

PARTS = ("host", "launches", "weights", "arithmetic", "activations", "kv", "links")
"""What a step waits for: the program around it, kernels being launched, weights read, products and attention
computed, norms and activation functions between them, keys and values read and written, other ranks."""


def step_seconds(
    work: StepWork,
    device: Device,
    efficiency: Efficiency,
    *,
    precision: str = "bf16",
    link: Link | None = None,
) -> float:
    """c0 + c1 B + launches + ((W / r_w)^3 + (F / r_f)^3)^(1/3) + activations + attention + links: the sum of
    `step_parts`."""
    return sum(step_parts(work, device, efficiency, precision=precision, link=link).values())


def step_parts(
    work: StepWork,
    device: Device,
    efficiency: Efficiency,
    *,
    precision: str = "bf16",
    link: Link | None = None,
) -> dict[str, float]:
    """Seconds of a step by PARTS.

    Reading weights and multiplying overlap but for where they are alike, which the cubes stand for; the time of both
    goes to the longer one. Routed experts go the same way by themselves, as fast as the busiest rank is, and so do
    single tokens' and longer slices' attention. Norms, rotations and activation functions read what products wrote and
    write what they read. Every kernel waits for the one before it, which costs its launch. Products run at `precision`
    or what the device has of it; attention always at bf16.
    """
    rate, peak = device.bytes_per_s, device.rate(precision)
    kv_rate = rate * efficiency.kv
    attention_peak = device.rate("bf16") * efficiency.attention
    parts = {
        "host": efficiency.step_s + work.num_seqs * efficiency.sequence_s,
        "launches": launch_seconds(work, efficiency),
        "weights": 0.0,
        "arithmetic": 0.0,
        "activations": work.activation_bytes / (rate * efficiency.weights),
        "kv": work.kv_write_bytes / kv_rate,
        "links": 0.0 if link is None else link.seconds(work.link_bytes, work.link_operations),
    }
    for memory, memory_s, arithmetic_s in (
        (
            "weights",
            (work.weight_bytes - work.expert_bytes) / (rate * efficiency.weights),
            (work.linear_flop - work.expert_flop) / (peak * efficiency.linear),
        ),
        (
            "weights",
            work.expert_bytes / (rate * (efficiency.expert_weights or efficiency.weights)),
            work.expert_skew * work.expert_flop / (peak * (efficiency.expert_linear or efficiency.linear)),
        ),
        ("kv", work.chunk_kv_read_bytes / kv_rate, work.chunk_attention_flop / attention_peak),
        (
            "kv",
            (work.kv_read_bytes - work.chunk_kv_read_bytes) / kv_rate,
            (work.attention_flop - work.chunk_attention_flop) / attention_peak,
        ),
    ):
        parts[memory if memory_s >= arithmetic_s else "arithmetic"] += _either(memory_s, arithmetic_s)
    return parts


def launch_seconds(work: StepWork, efficiency: Efficiency) -> float:
    """What kernels cost however little they do, one after another."""
    return (
        work.num_products * efficiency.product_s
        + work.num_attentions * efficiency.attention_s
        + work.num_routed * efficiency.experts_s
    )


def _either(first_s: float, second_s: float) -> float:
    return float((first_s**3 + second_s**3) ** (1 / 3))


def floor_seconds(
    work: StepWork, device: Device, *, precision: str = "bf16", link: Link | None = None
) -> float:
    """The speed of light: no efficiencies, no overheads, everything that can overlap does. Nothing is faster."""
    compute = work.linear_flop / device.rate(precision) + work.attention_flop / device.rate(precision)
    bounds = [work.memory_bytes / device.bytes_per_s, compute]
    if link is not None:
        bounds.append(work.link_bytes / link.bytes_per_s)
    return max(bounds)


def ridge(device: Device, precision: str = "bf16") -> float:
    """FLOPs for each byte at which arithmetic and memory take equally long."""
    return device.rate(precision) / device.bytes_per_s


def crossover_batch(device: Device, form: WeightFormat) -> float:
    """Tokens in a step at which its linear layers stop being bound by memory: ridge x bytes of an element / 2, the
    ridge at the precision products run at."""
    return ridge(device, form.compute) * form.bits / 8 / 2


def bound(work: StepWork, device: Device, *, precision: str = "bf16") -> str:
    """ "memory" or "compute", whichever takes longer at the speed of light."""
    slower = work.flop / device.rate(precision) > work.memory_bytes / device.bytes_per_s
    return "compute" if slower else "memory"
